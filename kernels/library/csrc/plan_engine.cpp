// Runs a TensorRT plan as refusion_edge/backends/tensorrt/runner.py does: one context, scratch memory for the size in use, and
// a CUDA graph of each size from its second image on, if TensorRT can be captured.
#include <NvInferRuntime.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda_driver.hpp"
#include "engine.hpp"
#include "failure.hpp"
#include "network.hpp"
#include "packed_planes.hpp"
#include "plan_bundle.hpp"
#include "undo.hpp"

namespace refusion {
namespace {

using nvinfer1::DataType;

// Keeps the first error of a call; later ones are consequences of it. TensorRT calls it from any thread.
class Log : public nvinfer1::ILogger {
  public:
    // An error that did not end an earlier call must not explain a failure of the next one.
    void clear() {
        const std::lock_guard<std::mutex> lock(mutex_);
        first_[0] = '\0';
    }

    void log(Severity severity, const char* text) noexcept override {
        if (severity > Severity::kERROR) return;
        const std::lock_guard<std::mutex> lock(mutex_);
        if (first_[0] != '\0') return;
        std::strncpy(first_, text, sizeof first_ - 1);  // the last byte stays 0
        std::replace(first_, first_ + std::strlen(first_), '\n', ' ');
    }

    std::string first_error() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return first_[0] == '\0' ? "no reason given" : first_;
    }

  private:
    std::mutex mutex_;
    char first_[256] = {};
};

// What a plan of ours may take and give. Bytes: for each pixel, or in all.
struct Tensor {
    const char* name;
    bool is_input, is_optional;
    DataType type;
    std::size_t per_pixel, fixed;

    std::size_t bytes(int height, int width) const {
        return per_pixel * static_cast<std::size_t>(height) * static_cast<std::size_t>(width) + fixed;
    }
};

// Optional are uint8 sources, which are added to a and b, and uint8 results; this library leaves them at zero and unread.
const Tensor kTensors[] = {
    {"a", true, false, DataType::kFLOAT, 4, 0},
    {"b", true, false, DataType::kFLOAT, 4, 0},
    {"fused", false, false, DataType::kFLOAT, 4, 0},
    {"a_pixels", true, true, DataType::kUINT8, 1, 0},
    {"b_pixels", true, true, DataType::kUINT8, 1, 0},
    {"levels_stretch", false, true, DataType::kUINT8, 1, 0},
    {"levels_fixed", false, true, DataType::kUINT8, 1, 0},
    {"fused_mean", false, true, DataType::kFLOAT, 0, 4},
};
constexpr std::size_t kA = 0, kB = 1, kFused = 2;

std::string by(int height, int width) { return std::to_string(height) + "x" + std::to_string(width); }

class PlanEngine : public Engine {
  public:
    explicit PlanEngine(const PlanBundle& bundle) : network_(bundle.network), isa_("sm_" + std::to_string(driver_.architecture())) {
        const CudaDriver::Current current(driver_);
        try {
            stream_ = driver_.create_stream();
            owned_.push([this] { driver_.destroy_stream(stream_); });
            runtime_.reset(nvinfer1::createInferRuntime(log_));
            owned_.push([this] { runtime_.reset(); });
            if (runtime_ == nullptr) refuse("TensorRT does not start");
            if (bundle.holds_host_code) runtime_->setEngineHostCodeAllowed(true);
            engine_.reset(runtime_->deserializeCudaEngine(bundle.plan.data(), bundle.plan.size()));
            owned_.push([this] { engine_.reset(); });
            if (engine_ == nullptr) refuse("the plan of " + bundle.path + " does not load");
            find_tensors();
            // Scratch memory is allocated for the size in use, rather than for the largest of the plan.
            context_.reset(engine_->createExecutionContext(nvinfer1::ExecutionContextAllocationStrategy::kUSER_MANAGED));
            owned_.push([this] { context_.reset(); });
            if (context_ == nullptr) refuse("TensorRT cannot create a context");
        } catch (...) {
            release();
            throw;
        }
    }

    ~PlanEngine() override {
        try {
            const CudaDriver::Current current(driver_);
            release();
        } catch (const Failure&) {
            // The driver has shut down, as at the end of a process, and all memory went with it.
        }
    }

    void fuse(const PlaneView& a, const PlaneView& b, int height, int width, const double* statistics, const PlaneTarget& fused) override {
        if (statistics != nullptr) throw_no_statistics();
        require_sides(height, width);
        const std::lock_guard<std::mutex> lock(mutex_);
        const CudaDriver::Current current(driver_);
        log_.clear();
        prepare(height, width);
        pack_plane(a, height, width, hosts_[kA].data);
        pack_plane(b, height, width, hosts_[kB].data);
        try {
            run();
        } catch (...) {
            height_ = 0;  // the next image begins anew
            throw;
        }
        unpack_plane(reinterpret_cast<const float*>(hosts_[kFused].data), height, width, fused);
    }

    void statistics(const PlaneView&, const PlaneView&, int, int, double*) override { throw_no_statistics(); }
    const char* network() const override { return network_.c_str(); }
    const char* isa() const override { return isa_.c_str(); }
    int threads() const override { return 0; }

  private:
    [[noreturn]] static void throw_no_statistics() {
        throw Failure(REFUSION_EDGE_UNSUPPORTED, "a plan adapts to the pair by itself; pass NULL, or open weights of the network fast");
    }

    [[noreturn]] void refuse(const std::string& problem) {
        const std::string reason = log_.first_error();
        throw Failure(reason.find("emory") == std::string::npos ? REFUSION_EDGE_FAILED : REFUSION_EDGE_NO_MEMORY,
                      problem + " on " + driver_.device_name() + " (" + reason + "); build the bundle again on this machine");
    }

    void release() {
        sized_.now();
        owned_.now();
    }

    void find_tensors() {
        int known = 0;
        const int count = engine_->getNbIOTensors();
        for (const Tensor& tensor : kTensors) {
            bool is_there = false;
            for (int i = 0; i < count; ++i) is_there = is_there || std::strcmp(engine_->getIOTensorName(i), tensor.name) == 0;
            if (!is_there && tensor.is_optional) continue;
            const bool is_input = is_there && engine_->getTensorIOMode(tensor.name) == nvinfer1::TensorIOMode::kINPUT;
            if (!is_there || is_input != tensor.is_input || engine_->getTensorDataType(tensor.name) != tensor.type) throw_other_tensors();
            tensors_.push_back(&tensor);
            ++known;
        }
        if (known != count) throw_other_tensors();
    }

    [[noreturn]] static void throw_other_tensors() {
        throw Failure(REFUSION_EDGE_UNSUPPORTED, "the plan must have the float32 inputs a and b and the output fused; build it with refusion-edge build");
    }

    // Releases the memory and the graph of the last size, and makes the memory of this one.
    void prepare(int height, int width) {
        if (height == height_ && width == width_) return;
        require_size(height, width);
        height_ = 0;
        sized_.now();
        try {
            hosts_.assign(tensors_.size(), {});
            pointers_.assign(tensors_.size(), 0);
            const nvinfer1::Dims shape{4, {1, 1, height, width}};
            for (const Tensor* tensor : tensors_) {
                if (tensor->is_input && !context_->setInputShape(tensor->name, shape)) refuse("TensorRT refuses the size " + by(height, width));
            }
            for (std::size_t i = 0; i < tensors_.size(); ++i) bind(i, height, width);
            const std::size_t scratch = context_->updateDeviceMemorySizeForShapes();
            void* address = scratch == 0 ? nullptr : reinterpret_cast<void*>(allocate(scratch));
            context_->setDeviceMemoryV2(address, static_cast<std::int64_t>(scratch));
            driver_.synchronize(stream_);
        } catch (...) {
            sized_.now();
            throw;
        }
        height_ = height;
        width_ = width;
        graph_ = nullptr;
        can_record_ = true;
    }

    void require_size(int height, int width) const {
        nvinfer1::Dims least = engine_->getTensorShape(kTensors[kA].name), most = least;
        if (*std::min_element(least.d, least.d + least.nbDims) < 0) {
            least = engine_->getProfileShape(kTensors[kA].name, 0, nvinfer1::OptProfileSelector::kMIN);
            most = engine_->getProfileShape(kTensors[kA].name, 0, nvinfer1::OptProfileSelector::kMAX);
        }
        if (least.nbDims != 4 || most.nbDims != 4) throw_other_tensors();
        if (height >= least.d[2] && width >= least.d[3] && height <= most.d[2] && width <= most.d[3]) return;
        const auto side = [](auto one) { return static_cast<int>(one); };
        throw std::invalid_argument("the plan was built for images of " + by(side(least.d[2]), side(least.d[3])) + " to " +
                                    by(side(most.d[2]), side(most.d[3])) + " (height x width), but these are " + by(height, width) +
                                    "; build one with --size " + by(height, width));
    }

    void bind(std::size_t index, int height, int width) {
        const Tensor& tensor = *tensors_[index];
        const bool in_place = driver_.is_zero_copy();
        const CudaDriver::HostBuffer host = hosts_[index] = driver_.allocate_host(tensor.bytes(height, width), in_place);
        sized_.push([this, host] { driver_.free_host(host); });
        pointers_[index] = in_place ? host.pointer : allocate(host.size);
        // What is not used has to be zero.
        std::memset(host.data, 0, host.size);
        if (tensor.is_input && !in_place) driver_.upload(pointers_[index], host, stream_);
        if (!context_->setTensorAddress(tensor.name, reinterpret_cast<void*>(pointers_[index]))) refuse("TensorRT refuses an address");
    }

    CudaDriver::Pointer allocate(std::size_t size) {
        const CudaDriver::Pointer pointer = driver_.allocate(size);
        sized_.push([this, pointer] { driver_.free(pointer); });
        return pointer;
    }

    void run() {
        if (graph_ == nullptr) {
            start();
        } else {
            driver_.launch(graph_, stream_);
        }
        driver_.synchronize(stream_);
        if (graph_ == nullptr && can_record_) record();
    }

    // After a first run, whose setup in TensorRT cannot be captured. Without a graph, runs are started one by one.
    void record() {
        try {
            graph_ = driver_.capture(stream_, [this] { start(); });
            sized_.push([this] { driver_.destroy_graph(graph_); });
        } catch (const Failure&) {
            can_record_ = false;
        }
    }

    void start() {
        const bool in_place = driver_.is_zero_copy();
        for (const std::size_t i : {kA, kB}) {
            if (!in_place) driver_.upload(pointers_[i], hosts_[i], stream_);
        }
        if (!context_->enqueueV3(static_cast<cudaStream_t>(stream_))) refuse("TensorRT cannot run the plan");
        if (!in_place) driver_.download(hosts_[kFused], pointers_[kFused], stream_);
    }

    CudaDriver driver_;
    const std::string network_, isa_;
    std::mutex mutex_;
    Log log_;
    CudaDriver::Stream stream_ = nullptr;
    std::unique_ptr<nvinfer1::IRuntime> runtime_;
    std::unique_ptr<nvinfer1::ICudaEngine> engine_;
    std::unique_ptr<nvinfer1::IExecutionContext> context_;
    std::vector<const Tensor*> tensors_;  // in the order of kTensors
    Undo owned_;
    // Of the size in use.
    int height_ = 0, width_ = 0;
    std::vector<CudaDriver::HostBuffer> hosts_;
    std::vector<CudaDriver::Pointer> pointers_;
    CudaDriver::Graph graph_ = nullptr;
    bool can_record_ = true;
    Undo sized_;
};

}  // namespace

std::unique_ptr<Engine> make_plan_engine(const std::string& path, bool trust) {
    return std::make_unique<PlanEngine>(read_plan_bundle(path, trust));
}

}  // namespace refusion
