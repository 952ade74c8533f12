#include <algorithm>
#include <thread>

#include "engine.hpp"
#include "failure.hpp"
#include "fast_network.hpp"
#include "isa.hpp"
#include "network.hpp"

namespace refusion {
namespace {

constexpr const char* kNoStatistics = "the paper's network does not adapt to statistics; pass NULL, or open weights of the network fast";

class PaperEngine : public Engine {
  public:
    PaperEngine(const float* flat, int threads, Precision precision) : network_(flat, threads, "", precision) {}

    void fuse(const PlaneView& a, const PlaneView& b, int height, int width, const double* statistics, const PlaneTarget& fused) override {
        if (statistics != nullptr) throw Failure(REFUSION_EDGE_UNSUPPORTED, kNoStatistics);
        network_.fuse(a, b, height, width, fused);
    }
    void statistics(const PlaneView&, const PlaneView&, int, int, double*) override { throw Failure(REFUSION_EDGE_UNSUPPORTED, kNoStatistics); }
    const char* network() const override { return "refusion"; }
    const char* isa() const override { return network_.isa(); }
    int threads() const override { return network_.threads(); }

  private:
    Network network_;
};

class FastEngine : public Engine {
  public:
    FastEngine(const FastLayout& layout, const float* flat, int threads) : network_(layout, flat, threads, "") {}

    void fuse(const PlaneView& a, const PlaneView& b, int height, int width, const double* statistics, const PlaneTarget& fused) override {
        FastStatistics given{};
        if (statistics != nullptr) std::copy_n(statistics, given.size(), given.begin());
        network_.fuse(a, b, height, width, fused, statistics == nullptr ? nullptr : &given);
    }
    void statistics(const PlaneView& a, const PlaneView& b, int height, int width, double* taken) override {
        const FastStatistics found = network_.statistics(a, b, height, width);
        std::copy(found.begin(), found.end(), taken);
    }
    const char* network() const override { return "fast"; }
    const char* isa() const override { return network_.isa(); }
    int threads() const override { return network_.threads(); }

  private:
    FastNetwork network_;
};

// On Linux, the C++ library counts those that the process may use.
int all_processors() { return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMaxThreads); }

}  // namespace

std::unique_ptr<Engine> make_cpu_engine(const Weights& weights, int threads, int precision) {
    require(precision == REFUSION_EDGE_FP32 || precision == REFUSION_EDGE_BF16,
            "unknown precision; pass REFUSION_EDGE_FP32 or REFUSION_EDGE_BF16");
    const Precision products = precision == REFUSION_EDGE_BF16 ? Precision::bf16 : Precision::fp32;
    if (usable_kernels(products).empty()) {
        throw Failure(REFUSION_EDGE_UNSUPPORTED, "this processor has no bf16 instructions; pass REFUSION_EDGE_FP32");
    }
    if (threads == 0) threads = all_processors();
    if (!weights.fast) return std::make_unique<PaperEngine>(weights.flat.data(), threads, products);
    if (products != Precision::fp32) {
        throw Failure(REFUSION_EDGE_UNSUPPORTED, "the network fast does not compute in bf16; pass REFUSION_EDGE_FP32");
    }
    return std::make_unique<FastEngine>(*weights.fast, weights.flat.data(), threads);
}

}  // namespace refusion
