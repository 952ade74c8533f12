// The network `fast` of random layouts, on planes of random sizes, strides and alignments, against double precision.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "allocations.hpp"
#include "fast_network.hpp"
#include "fast_oracle.hpp"
#include "isa.hpp"
#include "require.hpp"
#include "strided.hpp"

namespace fast_fuzzer {

using refusion::FastLayout;
using refusion::FastNetwork;
using refusion::FastStatistics;
using refusion::PlaneView;

constexpr double kTolerance = 2e-5;
// In dB. Random weights of up to 16 layers lose more than trained ones; a fault costs far more.
constexpr double kBf16Psnr = 30.0, kFp16Psnr = 40.0;

class Fuzzer {
  public:
    // Results in reduced precision that were compared, and the least PSNR in dB.
    struct Reduced {
        long turns = 0;
        double worst = INFINITY;
    };

    explicit Fuzzer(unsigned seed) : random_(seed) {}

    void turn() {
        const bool large = pick(0, 3) == 0;
        const int height = large ? pick(8, 300) : pick(8, 40), width = large ? pick(8, 400) : pick(8, 60);
        const FastLayout layout{8 * pick(1, large ? 3 : 8), pick(2, pick(0, 5) == 0 ? 16 : 6), 2 * pick(1, 2)};
        const std::vector<float> flat = parameters(layout), a = plane(height, width), b = plane(height, width);
        std::vector<const refusion::FastKernels*> all;
        for (refusion::Precision each : {refusion::Precision::fp32, refusion::Precision::bf16, refusion::Precision::fp16}) {
            for (const refusion::FastKernels* kernels : refusion::usable_fast_kernels(each)) all.push_back(kernels);
        }
        const refusion::FastKernels& kernels = *all[static_cast<std::size_t>(pick(0, static_cast<int>(all.size()) - 1))];
        const std::string isa = kernels.isa;
        const std::string what = std::to_string(height) + "x" + std::to_string(width) + " in " + std::to_string(layout.channels) + "x" +
                                 std::to_string(layout.convolutions) + "/" + std::to_string(layout.factor) + " with " + isa;
        const bool given = pick(0, 2) == 0;
        const FastStatistics other{0.4, 0.2, 0.5, 0.1, 0.6, 0.15, 0.2, 0.1};
        const FastStatistics* statistics = given ? &other : nullptr;

        const PlaneView plain_a = contiguous(a, width), plain_b = contiguous(b, width);
        FastNetwork alone(layout, flat.data(), 1, isa, kernels.precision);
        std::vector<float> fused(a.size(), NAN);
        alone.fuse(plain_a, plain_b, height, width, {fused.data(), width * kPixel}, statistics);
        if (!large) {
            std::vector<double> exact(a.size());
            const FastStatistics own = refusion::fast_statistics_reference(plain_a, plain_b, height, width);
            refusion::fuse_fast_reference(layout, flat.data(), plain_a, plain_b, height, width, given ? other : own, exact.data());
            if (kernels.precision == refusion::Precision::fp32) {
                double error = 0;
                for (std::size_t i = 0; i < exact.size(); ++i) error = larger(error, std::abs(fused[i] - exact[i]));
                require(error <= kTolerance, what + ": error " + std::to_string(error));
                worst = std::max(worst, error);
            } else {
                double squares = 0;
                for (std::size_t i = 0; i < exact.size(); ++i) squares += (fused[i] - exact[i]) * (fused[i] - exact[i]);
                const double psnr = -10 * std::log10(squares / static_cast<double>(exact.size()));
                const bool is_bf16 = kernels.precision == refusion::Precision::bf16;
                require(psnr >= (is_bf16 ? kBf16Psnr : kFp16Psnr), what + ": PSNR " + std::to_string(psnr) + " dB");
                Reduced& reduced = is_bf16 ? bf16 : fp16;
                reduced.worst = std::min(reduced.worst, psnr);
                ++reduced.turns;
            }
        }
        const Strided strided_a(a, height, width, random_), strided_b(b, height, width, random_);
        FastNetwork network(layout, flat.data(), pick(1, 5), isa, kernels.precision);
        std::atomic<bool> equal{true};
        const auto work = [&] {
            Target target(height, width);
            network.fuse(strided_a.view, strided_b.view, height, width, target.view(), statistics);
            if (!target.holds(fused)) equal = false;
        };
        std::thread beside(work);
        work();
        beside.join();
        require(equal, what + ": not what one thread makes of contiguous planes");

        // Overflows everywhere, and leaves NaN in all buffers.
        const std::vector<float> huge(a.size(), 3e38f), expected = fused;
        alone.fuse(contiguous(huge, width), contiguous(huge, width), height, width, {fused.data(), width * kPixel}, statistics);
        alone.fuse(plain_a, plain_b, height, width, {fused.data(), width * kPixel}, statistics);
        require(fused == expected, what + ": what was fused before matters");

        const long before = allocation_count();
        alone.fuse(plain_a, plain_b, height, width, {fused.data(), width * kPixel}, statistics);
        network.fuse(strided_a.view, strided_b.view, height, width, {fused.data(), width * kPixel}, statistics);
        const bool none = allocation_count() == before;
        require(none, what + ": a second image of one size allocates memory");
        ++turns;
    }

    long turns = 0;
    double worst = 0;  // error in fp32
    Reduced bf16, fp16;

  private:
    // Of NaN, NaN.
    static double larger(double x, double y) { return y <= x ? x : y; }
    int pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

    std::vector<float> plane(int height, int width) {
        std::vector<float> pixels(static_cast<std::size_t>(height) * static_cast<std::size_t>(width));
        for (float& pixel : pixels) pixel = std::uniform_real_distribution<float>(0, 1)(random_);
        return pixels;
    }

    // Features of about one size in all layers.
    std::vector<float> parameters(const FastLayout& layout) {
        std::vector<float> flat;
        for (const refusion::Parameter& row : refusion::fast_parameters(layout)) {
            const double fan_in = row.shape.size() == 1 ? 16.0 : static_cast<double>(row.size) / row.shape[0];
            std::normal_distribution<float> draw(0, static_cast<float>(std::sqrt(1.6 / fan_in)));
            for (std::size_t i = 0; i < row.size; ++i) flat.push_back(draw(random_));
        }
        return flat;
    }

    std::mt19937 random_;
};

}  // namespace fast_fuzzer
