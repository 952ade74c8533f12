// The library of the stand-in for TensorRT, over the fake driver in ../libcuda.c: its engine gives the mean of both sources.
//
// Its plans are texts: the four letters of a plan's beginning, then words that say how the engine is (see Plan). It fails, with
// a message in the log or by ending the process, where the real one would: objects in use that are deleted, calls without a
// shape, an address or scratch memory.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "NvInferRuntime.h"

extern "C" {
struct Shape;
typedef int Launch(const char* name, const Shape* shape, const void* arguments, std::size_t size);
void launch_with(Launch* launch);
int cuModuleLoadData(void** module, const char* image);
int cuModuleUnload(void* module);
int cuModuleGetFunction(void** function, void* module, const char* symbol);
int cuLaunchKernel(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
}

namespace {

using namespace nvinfer1;

int alive, enqueued;

[[noreturn]] void misuse(const char* what) {
    std::fprintf(stderr, "misuse of TensorRT: %s\n", what);
    std::abort();
}

void require(bool holds, const char* what) {
    if (!holds) misuse(what);
}

// The words of a plan: `fixed` for one size, `pixels` and `levels` for uint8 sources and results, `half` for another type, `code`
// for host code, `other` for an unknown tensor, and `load`, `context`, `shape`, `run`, `capture` or `later` (the third run, for
// want of memory) for what fails.
struct Plan {
    std::string words;
    bool has(const char* word) const { return words.find(word) != std::string::npos; }
};

struct Block {
    const float *a, *b;
    const std::uint8_t *a_pixels, *b_pixels;
    float* fused;
    std::uint64_t pixels;
};

int fuse(const char*, const Shape*, const void* arguments, std::size_t size) {
    Block block;
    if (size != sizeof block) return 1;
    std::memcpy(&block, arguments, sizeof block);
    for (std::uint64_t i = 0; i < block.pixels; ++i) {
        const float a = block.a[i] + (block.a_pixels ? block.a_pixels[i] / 255.0f : 0), b = block.b[i] + (block.b_pixels ? block.b_pixels[i] / 255.0f : 0);
        block.fused[i] = (a + b) / 2;
    }
    return 0;
}

struct Counted {
    Counted() { ++alive; }
    ~Counted() { --alive; }
};

class Context : public IExecutionContext, Counted {
  public:
    Context(ILogger& log, const Plan& plan, std::vector<std::string> names) : log_(log), plan_(plan), names_(std::move(names)) {
        const char image[] = "\x7f" "ELFfuse\0fuse";
        require(cuModuleLoadData(&module_, image) == 0 && cuModuleGetFunction(&function_, module_, "fuse") == 0, "no current context");
    }
    ~Context() noexcept override { require(cuModuleUnload(module_) == 0, "a context deleted without a current context"); }

    bool setInputShape(char const* name, Dims const& dims) noexcept override {
        require(dims.nbDims == 4 && dims.d[0] == 1 && dims.d[1] == 1, "a shape other than (1, 1, H, W)");
        if (plan_.has("shape")) return log_.log(ILogger::Severity::kERROR, "no such shape"), false;
        shapes_[name] = dims;
        return true;
    }
    bool setTensorAddress(char const* name, void* data) noexcept override {
        require(reinterpret_cast<std::uintptr_t>(data) % 256 == 0, "an address that is not aligned");
        addresses_[name] = data;
        return true;
    }
    std::size_t updateDeviceMemorySizeForShapes() noexcept override {
        require(shapes_.size() == (plan_.has("pixels") ? 4 : 2), "inputs without a shape");
        return 10 * pixels();
    }
    void setDeviceMemoryV2(void* memory, std::int64_t size) noexcept override {
        require(memory != nullptr && size >= static_cast<std::int64_t>(10 * pixels()), "too little scratch memory");
        std::memset(memory, 0xff, static_cast<std::size_t>(size));
        has_scratch_ = true;
    }
    bool enqueueV3(cudaStream_t stream) noexcept override {
        for (const std::string& name : names_) require(addresses_.count(name) == 1, "a tensor without an address");
        require(has_scratch_, "no scratch memory");
        if (++enqueued; plan_.has("run") || (plan_.has("capture") && enqueued == 2)) {
            return log_.log(ILogger::Severity::kERROR, "an internal\nerror"), false;
        }
        if (plan_.has("later") && enqueued == 3) return log_.log(ILogger::Severity::kERROR, "out of memory"), false;
        const auto at = [&](const char* name) { return addresses_.count(name) ? addresses_.at(name) : nullptr; };
        Block block{static_cast<float*>(at("a")), static_cast<float*>(at("b")), static_cast<std::uint8_t*>(at("a_pixels")),
                    static_cast<std::uint8_t*>(at("b_pixels")), static_cast<float*>(at("fused")), pixels()};
        std::size_t size = sizeof block;
        void* extra[] = {reinterpret_cast<void*>(1), &block, reinterpret_cast<void*>(2), &size, nullptr};
        return cuLaunchKernel(function_, 1, 1, 1, 64, 1, 1, 0, stream, nullptr, extra) == 0;
    }

  private:
    std::size_t pixels() const { return static_cast<std::size_t>(shapes_.at("a").d[2] * shapes_.at("a").d[3]); }

    ILogger& log_;
    const Plan plan_;
    const std::vector<std::string> names_;
    void *module_ = nullptr, *function_ = nullptr;
    std::map<std::string, Dims> shapes_;
    std::map<std::string, void*> addresses_;
    bool has_scratch_ = false;
};

class Engine : public ICudaEngine, Counted {
  public:
    Engine(ILogger& log, const Plan& plan) : log_(log), plan_(plan), names_{"b", "fused", "a"} {
        if (plan.has("pixels")) names_.insert(names_.end(), {"b_pixels", "a_pixels"});
        if (plan.has("levels")) names_.insert(names_.end(), {"fused_mean", "levels_fixed"});
        if (plan.has("other")) names_.emplace_back("another");
    }

    std::int32_t getNbIOTensors() const noexcept override { return static_cast<std::int32_t>(names_.size()); }
    char const* getIOTensorName(std::int32_t index) const noexcept override { return names_.at(static_cast<std::size_t>(index)).c_str(); }
    TensorIOMode getTensorIOMode(char const* name) const noexcept override {
        return name[0] == 'a' || name[0] == 'b' ? TensorIOMode::kINPUT : TensorIOMode::kOUTPUT;
    }
    DataType getTensorDataType(char const* name) const noexcept override {
        if (std::strstr(name, "pixels") || std::strstr(name, "levels")) return DataType::kUINT8;
        return plan_.has("half") ? DataType::kHALF : DataType::kFLOAT;
    }
    Dims getTensorShape(char const*) const noexcept override { return plan_.has("fixed") ? Dims{4, {1, 1, 16, 24}} : Dims{4, {1, 1, -1, -1}}; }
    Dims getProfileShape(char const*, std::int32_t profile, OptProfileSelector select) const noexcept override {
        require(profile == 0, "another profile");
        return select == OptProfileSelector::kMIN ? Dims{4, {1, 1, 8, 8}} : Dims{4, {1, 1, 64, 96}};
    }
    IExecutionContext* createExecutionContext(ExecutionContextAllocationStrategy strategy) noexcept override {
        require(strategy == ExecutionContextAllocationStrategy::kUSER_MANAGED, "another strategy");
        if (plan_.has("context")) return log_.log(ILogger::Severity::kERROR, "out of memory"), nullptr;
        return new Context(log_, plan_, names_);
    }

  private:
    ILogger& log_;
    const Plan plan_;
    std::vector<std::string> names_;
};

class Runtime : public IRuntime, Counted {
  public:
    explicit Runtime(ILogger& log) : log_(log) {}

    void setEngineHostCodeAllowed(bool allowed) noexcept override { allowed_ = allowed; }
    ICudaEngine* deserializeCudaEngine(void const* blob, std::size_t size) noexcept override {
        const Plan plan{std::string(static_cast<const char*>(blob), size)};
        log_.log(ILogger::Severity::kWARNING, "a warning, which is no reason");
        if (plan.words.compare(0, 4, "ftrt") != 0 || plan.has("load") || plan.has("code") != allowed_) {
            return log_.log(ILogger::Severity::kERROR, "the version does not match"), nullptr;
        }
        return new Engine(log_, plan);
    }

  private:
    ILogger& log_;
    bool allowed_ = false;
};

}  // namespace

extern "C" {

__attribute__((visibility("default"))) void* createInferRuntime_INTERNAL(void* logger, std::int32_t) noexcept {
    launch_with(fuse);
    enqueued = 0;
    return static_cast<IRuntime*>(new Runtime(*static_cast<ILogger*>(logger)));
}
__attribute__((visibility("default"))) int objects_alive() { return alive; }
__attribute__((visibility("default"))) int runs_enqueued() { return enqueued; }
}
