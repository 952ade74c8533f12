#include <algorithm>
#include <string>
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
    FastEngine(const FastLayout& layout, const float* flat, int threads, Precision precision) : network_(layout, flat, threads, "", precision) {}

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

Precision to_precision(int precision) {
    switch (precision) {
        case REFUSION_EDGE_FP32: return Precision::fp32;
        case REFUSION_EDGE_BF16: return Precision::bf16;
        case REFUSION_EDGE_FP16: return Precision::fp16;
        default: throw Failure(REFUSION_EDGE_INVALID, "unknown precision; pass REFUSION_EDGE_FP32, REFUSION_EDGE_BF16 or REFUSION_EDGE_FP16");
    }
}

// On Linux, the C++ library counts those that the process may use.
int all_processors() { return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMaxThreads); }

}  // namespace

std::unique_ptr<Engine> make_cpu_engine(const Weights& weights, int threads, int precision) {
    const Precision chosen = to_precision(precision);
    if (weights.fast ? usable_fast_kernels(chosen).empty() : usable_kernels(chosen).empty()) {
        throw Failure(REFUSION_EDGE_UNSUPPORTED, std::string("this processor does not compute the network ") +
                                                     (weights.fast ? "fast" : "refusion") + " in this precision; pass REFUSION_EDGE_FP32");
    }
    if (threads == 0) threads = all_processors();
    if (!weights.fast) return std::make_unique<PaperEngine>(weights.flat.data(), threads, chosen);
    return std::make_unique<FastEngine>(*weights.fast, weights.flat.data(), threads, chosen);
}

}  // namespace refusion
