#include "cuda_driver.hpp"

#include <dlfcn.h>

#include "failure.hpp"

namespace refusion {
namespace {

// Of cuda.h, which is not needed to build.
constexpr int kSuccess = 0, kOutOfMemory = 2;
constexpr int kIntegrated = 18, kMapsHostMemory = 19, kMajor = 75, kMinor = 76;  // CUdevice_attribute
constexpr int kMostDynamicSharedBytes = 8;                                       // CUfunction_attribute
constexpr unsigned kDeviceMap = 2, kNonBlocking = 1;
constexpr int kThreadLocal = 1;  // CUstreamCaptureMode
// More than this has to be requested.
constexpr int kSharedBytesWithoutAsking = 48 * 1024;

}  // namespace

struct CudaDriver::Calls {
    void* library;
    int (*init)(unsigned);
    int (*driver_version)(int*);
    int (*device_get)(int*, int);
    int (*device_name)(char*, int, int);
    int (*device_attribute)(int*, int, int);
    int (*context_retain)(void**, int);
    int (*context_release)(int);
    int (*context_push)(void*);
    int (*context_pop)(void**);
    int (*module_load)(void**, const void*);
    int (*module_unload)(void*);
    int (*module_function)(void**, void*, const char*);
    int (*function_attribute)(void*, int, int);
    int (*launch_kernel)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
    int (*allocate)(Pointer*, std::size_t);
    int (*free)(Pointer);
    int (*host_allocate)(void**, std::size_t, unsigned);
    int (*host_pointer)(Pointer*, void*, unsigned);
    int (*host_free)(void*);
    int (*upload)(Pointer, const void*, std::size_t, void*);
    int (*download)(void*, Pointer, std::size_t, void*);
    int (*stream_create)(void**, unsigned);
    int (*stream_destroy)(void*);
    int (*stream_synchronize)(void*);
    int (*capture_begin)(void*, int);
    int (*capture_end)(void*, void**);
    int (*graph_instantiate)(void**, void*, unsigned long long);
    int (*graph_launch)(void*, void*);
    int (*graph_destroy)(void*);
    int (*executable_destroy)(void*);
    int (*error_name)(int, const char**);

    Calls() : library(dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL)) {
        if (library == nullptr) {
            throw Failure(REFUSION_EDGE_UNSUPPORTED, "there is no CUDA driver (libcuda.so.1); install NVIDIA's driver, or fuse on the CPU with weights");
        }
        find(init, "cuInit");
        find(driver_version, "cuDriverGetVersion");
        find(device_get, "cuDeviceGet");
        find(device_name, "cuDeviceGetName");
        find(device_attribute, "cuDeviceGetAttribute");
        find(context_retain, "cuDevicePrimaryCtxRetain");
        find(context_release, "cuDevicePrimaryCtxRelease_v2");
        find(context_push, "cuCtxPushCurrent_v2");
        find(context_pop, "cuCtxPopCurrent_v2");
        find(module_load, "cuModuleLoadData");
        find(module_unload, "cuModuleUnload");
        find(module_function, "cuModuleGetFunction");
        find(function_attribute, "cuFuncSetAttribute");
        find(launch_kernel, "cuLaunchKernel");
        find(allocate, "cuMemAlloc_v2");
        find(free, "cuMemFree_v2");
        find(host_allocate, "cuMemHostAlloc");
        find(host_pointer, "cuMemHostGetDevicePointer_v2");
        find(host_free, "cuMemFreeHost");
        find(upload, "cuMemcpyHtoDAsync_v2");
        find(download, "cuMemcpyDtoHAsync_v2");
        find(stream_create, "cuStreamCreate");
        find(stream_destroy, "cuStreamDestroy_v2");
        find(stream_synchronize, "cuStreamSynchronize");
        find(capture_begin, "cuStreamBeginCapture_v2");
        find(capture_end, "cuStreamEndCapture");
        find(graph_instantiate, "cuGraphInstantiateWithFlags");
        find(graph_launch, "cuGraphLaunch");
        find(graph_destroy, "cuGraphDestroy");
        find(executable_destroy, "cuGraphExecDestroy");
        find(error_name, "cuGetErrorName");
    }

    template <class Call>
    void find(Call& call, const char* name) {
        call = reinterpret_cast<Call>(dlsym(library, name));
        if (call == nullptr) throw Failure(REFUSION_EDGE_UNSUPPORTED, std::string("the CUDA driver has no ") + name + "; update it to CUDA 11.4 or newer");
    }
};

CudaDriver::Current::Current(const CudaDriver& driver) : driver_(driver) {
    driver.check(driver.calls_->context_push(driver.context_), "cuCtxPushCurrent");
}

CudaDriver::Current::~Current() {
    void* popped = nullptr;
    driver_.calls_->context_pop(&popped);
}

CudaDriver::CudaDriver() : calls_(std::make_unique<Calls>()) {
    check(calls_->init(0), "cuInit");
    check(calls_->device_get(&device_, 0), "cuDeviceGet");
    char name[128] = {};
    check(calls_->device_name(name, sizeof name - 1, device_), "cuDeviceGetName");
    device_name_ = name;
    const auto attribute = [&](int what) {
        int value = 0;
        check(calls_->device_attribute(&value, what, device_), "cuDeviceGetAttribute");
        return value;
    };
    architecture_ = 10 * attribute(kMajor) + attribute(kMinor);
    is_zero_copy_ = attribute(kIntegrated) != 0 && attribute(kMapsHostMemory) != 0;
    check(calls_->driver_version(&driver_version_), "cuDriverGetVersion");
    check(calls_->context_retain(&context_, device_), "cuDevicePrimaryCtxRetain");
}

// The library stays loaded: unloading a driver under others that use it ends badly.
CudaDriver::~CudaDriver() { calls_->context_release(device_); }

void CudaDriver::check(int code, const char* call) const {
    if (code == kSuccess) return;
    const char* name = nullptr;
    if (calls_->error_name(code, &name) != kSuccess || name == nullptr) name = "an unknown error";
    throw Failure(code == kOutOfMemory ? REFUSION_EDGE_NO_MEMORY : REFUSION_EDGE_FAILED,
                  std::string("the CUDA driver failed in ") + call + " with " + name + "; see whether nvidia-smi lists the device");
}

CudaDriver::Function CudaDriver::load(const std::string& image, const std::string& symbol, int shared_bytes) {
    void *module = nullptr, *function = nullptr;
    check(calls_->module_load(&module, image.data()), "cuModuleLoadData");
    modules_.push_back(module);
    check(calls_->module_function(&function, module, symbol.c_str()), "cuModuleGetFunction");
    if (shared_bytes > kSharedBytesWithoutAsking) {
        check(calls_->function_attribute(function, kMostDynamicSharedBytes, shared_bytes), "cuFuncSetAttribute");
    }
    return function;
}

void CudaDriver::unload() noexcept {
    for (void* module : modules_) calls_->module_unload(module);
    modules_.clear();
}

void CudaDriver::launch_kernel(Function function, Grid grid, unsigned threads, int shared_bytes, std::string arguments, Stream stream) const {
    std::size_t size = arguments.size();
    // CU_LAUNCH_PARAM_BUFFER_POINTER, _BUFFER_SIZE, _END. The driver copies the block before it returns, also into a graph.
    void* extra[] = {reinterpret_cast<void*>(1), arguments.data(), reinterpret_cast<void*>(2), &size, nullptr};
    check(calls_->launch_kernel(function, grid.x, grid.y, grid.z, threads, 1, 1, static_cast<unsigned>(shared_bytes), stream, nullptr, extra),
          "cuLaunchKernel");
}

CudaDriver::Pointer CudaDriver::allocate(std::size_t size) const {
    Pointer pointer = 0;
    check(calls_->allocate(&pointer, size), "cuMemAlloc");
    return pointer;
}

void CudaDriver::free(Pointer pointer) const noexcept { calls_->free(pointer); }

CudaDriver::HostBuffer CudaDriver::allocate_host(std::size_t size, bool mapped) const {
    void* data = nullptr;
    check(calls_->host_allocate(&data, size, mapped ? kDeviceMap : 0), "cuMemHostAlloc");
    HostBuffer buffer{static_cast<char*>(data), size, 0};
    const int code = mapped ? calls_->host_pointer(&buffer.pointer, data, 0) : kSuccess;
    if (code != kSuccess) calls_->host_free(data);
    check(code, "cuMemHostGetDevicePointer");
    return buffer;
}

void CudaDriver::free_host(const HostBuffer& buffer) const noexcept { calls_->host_free(buffer.data); }

CudaDriver::Stream CudaDriver::create_stream() const {
    Stream stream = nullptr;
    check(calls_->stream_create(&stream, kNonBlocking), "cuStreamCreate");
    return stream;
}

void CudaDriver::destroy_stream(Stream stream) const noexcept { calls_->stream_destroy(stream); }

void CudaDriver::upload(Pointer to, const HostBuffer& from, Stream stream) const {
    check(calls_->upload(to, from.data, from.size, stream), "cuMemcpyHtoDAsync");
}

void CudaDriver::download(const HostBuffer& to, Pointer from, Stream stream) const {
    check(calls_->download(to.data, from, to.size, stream), "cuMemcpyDtoHAsync");
}

void CudaDriver::synchronize(Stream stream) const { check(calls_->stream_synchronize(stream), "cuStreamSynchronize"); }

CudaDriver::Graph CudaDriver::capture(Stream stream, const std::function<void()>& work) const {
    void *graph = nullptr, *executable = nullptr;
    check(calls_->capture_begin(stream, kThreadLocal), "cuStreamBeginCapture");
    try {
        work();
    } catch (...) {
        // Until recording has ended the stream cannot be used; the first failure is the one to report.
        if (calls_->capture_end(stream, &graph) == kSuccess && graph != nullptr) calls_->graph_destroy(graph);
        throw;
    }
    check(calls_->capture_end(stream, &graph), "cuStreamEndCapture");
    const int code = calls_->graph_instantiate(&executable, graph, 0);
    calls_->graph_destroy(graph);
    check(code, "cuGraphInstantiate");
    return executable;
}

void CudaDriver::launch(Graph graph, Stream stream) const { check(calls_->graph_launch(graph, stream), "cuGraphLaunch"); }

void CudaDriver::destroy_graph(Graph graph) const noexcept { calls_->executable_destroy(graph); }

}  // namespace refusion
