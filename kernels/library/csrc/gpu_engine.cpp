// Runs a program file as refusion_edge/backends/fused.py does: one allocation and one graph of all launches for each image size.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "cuda_driver.hpp"
#include "engine.hpp"
#include "failure.hpp"
#include "network.hpp"
#include "packed_planes.hpp"
#include "program.hpp"
#include "program_file.hpp"
#include "undo.hpp"

namespace refusion {
namespace {

constexpr const char* kVisible[] = {"planes", "fused", "levels"};

// The target whose kernels run best on a device: its own architecture or, on 8.x, the highest one below it.
const ProgramTarget& choose_target(const Program& program, const CudaDriver& driver) {
    const int here = driver.architecture();
    const ProgramTarget* chosen = nullptr;
    std::string known;
    for (const ProgramTarget& target : program.targets) {
        const int one = target.architecture;
        const bool runs = one == here || (one / 10 == 8 && here / 10 == 8 && one < here);
        if (runs && (chosen == nullptr || one > chosen->architecture)) chosen = &target;
        known += (known.empty() ? "sm_" : ", sm_") + std::to_string(one);
    }
    if (chosen == nullptr) {
        throw Failure(REFUSION_EDGE_UNSUPPORTED, "the program has kernels for " + known + " but none for this device (" + driver.device_name() +
                                                     ", sm_" + std::to_string(here) + "); build it with --arch for this device");
    }
    if (driver.driver_version() < chosen->driver_version) {
        const auto cuda = [](int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); };
        throw Failure(REFUSION_EDGE_UNSUPPORTED, "these kernels need a driver for CUDA " + cuda(chosen->driver_version) +
                                                     " or newer, but this one is for " + cuda(driver.driver_version()) + "; update the driver");
    }
    return *chosen;
}

class GpuEngine : public Engine {
  public:
    GpuEngine(const std::string& data, const std::string& name) : program_(parse_program(data, name)), target_(choose_target(program_, driver_)) {
        const CudaDriver::Current current(driver_);
        try {
            owned_.push([this] { driver_.unload(); });
            stream_ = driver_.create_stream();
            owned_.push([this] { driver_.destroy_stream(stream_); });
            for (const ProgramBinary& binary : target_.binaries) {
                functions_.push_back(driver_.load(binary.image, binary.symbol, binary.shared_bytes));
            }
            upload_weights();
            test_itself();
        } catch (...) {
            release();
            throw;
        }
        isa_ = "sm_" + std::to_string(target_.architecture);
    }

    ~GpuEngine() override {
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
        prepare({height, width});
        char* planes = visible_[0].data;
        pack_plane(a, height, width, planes);
        pack_plane(b, height, width, planes + visible_[0].size / 2);
        run();
        unpack_plane(reinterpret_cast<const float*>(visible_[1].data), height, width, fused);
    }

    void statistics(const PlaneView&, const PlaneView&, int, int, double*) override { throw_no_statistics(); }
    const char* network() const override { return program_.network.c_str(); }
    const char* isa() const override { return isa_.c_str(); }
    int threads() const override { return 0; }

  private:
    [[noreturn]] static void throw_no_statistics() {
        throw Failure(REFUSION_EDGE_UNSUPPORTED, "a program adapts to the pair by itself; pass NULL, or open weights of the network fast");
    }

    void release() {
        sized_.now();
        owned_.now();
    }

    void upload_weights() {
        std::size_t size = 0;
        for (const ProgramWeights& weights : program_.weights) size += aligned(weights.bytes.size());
        const CudaDriver::HostBuffer staging = driver_.allocate_host(size, false);
        Undo staged;
        staged.push([&] { driver_.free_host(staging); });
        const CudaDriver::Pointer start = driver_.allocate(size);
        owned_.push([this, start] { driver_.free(start); });
        std::size_t offset = 0;
        for (const ProgramWeights& weights : program_.weights) {
            std::memcpy(staging.data + offset, weights.bytes.data(), weights.bytes.size());
            weights_[weights.name] = start + offset;
            offset += aligned(weights.bytes.size());
        }
        driver_.upload(start, staging, stream_);
        driver_.synchronize(stream_);
    }

    // Fuses the images of the self-test, which finds kernels that compute wrongly on this very device.
    void test_itself() {
        const ProgramTest& test = program_.test;
        prepare(test.size);
        std::memcpy(visible_[0].data, test.planes.data(), test.planes.size() * sizeof(float));
        run();
        double error = 0;
        for (std::size_t i = 0; i < test.fused.size(); ++i) {
            float value;
            std::memcpy(&value, visible_[1].data + i * sizeof value, sizeof value);
            const double off = std::abs(static_cast<double>(value) - static_cast<double>(test.fused[i]));
            if (!(off <= error)) error = off;  // takes NaN, too
            if (std::isnan(error)) break;
        }
        if (error <= test.tolerance) return;
        throw Failure(REFUSION_EDGE_FAILED, "the kernels are off by " + std::to_string(error) + " on " + driver_.device_name() + ", more than the " +
                                                std::to_string(test.tolerance) + " allowed; fuse on the CPU with weights and report this");
    }

    // Releases memory and graph of the last size, and makes those of this one.
    void prepare(Size size) {
        if (size == size_) return;
        size_ = {0, 0};
        sized_.now();
        try {
            const Arena scratch = lay_out(program_, size, target_);
            const bool in_place = driver_.is_zero_copy();
            std::size_t sizes[3], total = scratch.size;
            for (std::size_t i = 0; i < 3; ++i) {
                sizes[i] = bytes_of(*program_.buffer(kVisible[i]), size, program_, target_);
                if (!in_place) total += aligned(sizes[i]);
            }
            const CudaDriver::Pointer arena = driver_.allocate(total);
            sized_.push([this, arena] { driver_.free(arena); });
            std::map<std::string, CudaDriver::Pointer> addresses;
            for (const auto& [name, offset] : scratch.offsets) addresses[name] = arena + offset;
            CudaDriver::Pointer after = arena + scratch.size;
            for (std::size_t i = 0; i < 3; ++i) {
                const CudaDriver::HostBuffer buffer = visible_[i] = driver_.allocate_host(sizes[i], in_place);
                sized_.push([this, buffer] { driver_.free_host(buffer); });
                addresses[kVisible[i]] = in_place ? buffer.pointer : after;
                after += aligned(sizes[i]);
            }
            graph_ = driver_.capture(stream_, [&] { start(size, addresses, in_place); });
            sized_.push([this] { driver_.destroy_graph(graph_); });
        } catch (...) {
            sized_.now();
            throw;
        }
        size_ = size;
    }

    void start(Size size, const std::map<std::string, CudaDriver::Pointer>& addresses, bool in_place) {
        if (!in_place) driver_.upload(addresses.at(kVisible[0]), visible_[0], stream_);
        for (const ProgramLaunch& launch : program_.launches) {
            const ProgramKernel& kernel = program_.kernels[launch.kernel];
            const ProgramBinary& binary = target_.binaries[launch.kernel];
            std::vector<std::uint64_t> values;
            for (const ProgramArgument& argument : launch.arguments) values.push_back(value(argument, size, addresses));
            const auto streams = static_cast<unsigned>(kernel.streams);
            const CudaDriver::Grid grid = kernel.in_strips
                                              ? CudaDriver::Grid{static_cast<unsigned>(binary.tile.across(size)), static_cast<unsigned>(binary.tile.down(size)), streams}
                                              : CudaDriver::Grid{streams, 1, 1};
            driver_.launch_kernel(functions_[launch.kernel], grid, 32 * static_cast<unsigned>(binary.tile.warps), binary.shared_bytes,
                                  pack(kernel.parameters, values, binary.hidden_pointers), stream_);
        }
        if (in_place) return;
        for (const std::size_t i : {1, 2}) driver_.download(visible_[i], addresses.at(kVisible[i]), stream_);
    }

    std::uint64_t value(const ProgramArgument& argument, Size size, const std::map<std::string, CudaDriver::Pointer>& addresses) const {
        switch (argument.kind) {
            case ProgramArgument::Kind::size:
                return static_cast<std::uint64_t>(argument.name == "height" ? size.height : size.width);
            case ProgramArgument::Kind::strips: {
                const ProgramTile& tile = target_.binaries[program_.kernel(argument.name)].tile;
                return static_cast<std::uint64_t>(tile.across(size)) * static_cast<std::uint64_t>(tile.down(size));
            }
            case ProgramArgument::Kind::weights:
                return weights_.at(argument.name);
            case ProgramArgument::Kind::buffer:
                break;
        }
        return addresses.at(argument.name);
    }

    void run() {
        driver_.launch(graph_, stream_);
        driver_.synchronize(stream_);
    }

    const Program program_;
    CudaDriver driver_;
    const ProgramTarget& target_;
    std::mutex mutex_;
    std::string isa_;
    CudaDriver::Stream stream_ = nullptr;
    std::vector<CudaDriver::Function> functions_;  // in the order of the kernels
    std::map<std::string, CudaDriver::Pointer> weights_;
    Undo owned_;
    // Of the size in use.
    Size size_{0, 0};
    CudaDriver::HostBuffer visible_[3];
    CudaDriver::Graph graph_ = nullptr;
    Undo sized_;
};

}  // namespace

std::unique_ptr<Engine> make_gpu_engine(const std::string& data, const std::string& name) { return std::make_unique<GpuEngine>(data, name); }

}  // namespace refusion
