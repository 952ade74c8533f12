#include "fast_network.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <utility>

#include "isa.hpp"
#include "network.hpp"

namespace refusion {
namespace {

// Scratch of one thread. Its rows are read and written once in as many cycles as there are bytes: the last cache is fast enough.
constexpr std::size_t kScratchBytes = std::size_t{1536} << 10;
constexpr int kNarrowest = 32;      // columns of features
constexpr int kRowsOfStatistics = 16;  // that one thread sums up at a time

bool all_finite(const FastStatistics& statistics) {
    return std::all_of(statistics.begin(), statistics.end(), [](double figure) { return std::isfinite(figure); });
}

// Equal parts of [0, length), the i-th of `count`.
int cut(int length, int i, int count) { return static_cast<int>(static_cast<long long>(length) * i / count); }

}  // namespace

FastNetwork::FastNetwork(const FastLayout& layout, const float* flat, int threads, const std::string& isa, Precision precision)
    : kernels_(find_fast_kernels(isa, precision)),
      layout_((require_layout(layout), layout)),
      pool_(require_threads(threads)) {
    const std::vector<Parameter> rows = fast_parameters(layout_);
    constexpr std::size_t dense_rows = 4;
    dense_.assign(flat, flat + rows[dense_rows].offset);
    for (int i = 0; i < layout_.convolutions; ++i) {
        const Parameter &weight = rows[dense_rows + 2 * static_cast<std::size_t>(i)], &bias = rows[dense_rows + 2 * static_cast<std::size_t>(i) + 1];
        Buffer packed(packed_count(layout_.inputs(i), layout_.outputs(i)));
        pack_convolution(flat + weight.offset, layout_.inputs(i), layout_.outputs(i), kernels_.output_block, packed.data());
        layers_.push_back({Buffer(packed.count()), {flat + bias.offset, flat + bias.offset + bias.size}});
        kernels_.round(packed.data(), packed.count(), layers_.back().weights.data());
        if (i == 0) plain_weights_ = std::move(packed);
    }
    plain_biases_ = layers_[0].biases;
    adapted_weights_ = Buffer(plain_weights_.count());
    for (int i = 0; i < layout_.convolutions; ++i) {
        const Layer& layer = layers_[static_cast<std::size_t>(i)];
        views_.push_back({layout_.inputs(i), layout_.outputs(i), layer.weights.data(), layer.biases.data(),
                          i == layout_.convolutions - 1 ? 1.0f : kFastLeak});
    }
}

void FastNetwork::fuse(const PlaneView& a, const PlaneView& b, int height, int width, const PlaneTarget& fused, const FastStatistics* given) {
    require_sides(height, width);
    if (given && !all_finite(*given)) throw std::invalid_argument("the statistics contain NaN or infinity; give those of an image");
    const std::lock_guard<std::mutex> lock(mutex_);
    plan(height, width);
    const FastStatistics own = given ? *given : measure(a, b, height, width);
    struct Job {
        FastNetwork& network;
        FastImage image;
        std::atomic<bool> finite;
    } job{*this, {a, b, height, width, fused, layout_.factor, views_.data(), layout_.convolutions}, {all_finite(own)}};
    if (job.finite) {
        adapt(own);
        // What it captures fits into the function itself: nothing is allocated.
        pool_.run(static_cast<int>(plan_.tiles.size()), [&job](int unit, int worker) {
            float* scratch = job.network.scratch_.data() + job.network.plan_.scratch_per_thread * static_cast<std::size_t>(worker);
            if (!job.network.kernels_.fuse(job.network.plan_.tiles[static_cast<std::size_t>(unit)], job.image, scratch)) job.finite = false;
        });
    }
    if (!job.finite) fill_with_nan(fused, height, width);
}

FastStatistics FastNetwork::statistics(const PlaneView& a, const PlaneView& b, int height, int width) {
    require_sides(height, width);
    const std::lock_guard<std::mutex> lock(mutex_);
    return measure(a, b, height, width);
}

FastStatistics FastNetwork::measure(const PlaneView& a, const PlaneView& b, int height, int width) {
    const int rows = (height + kFastStride - 1) / kFastStride, columns = (width + kFastStride - 1) / kFastStride;
    if (sums_.size() < static_cast<std::size_t>(rows) * kFastStatistics) sums_.resize(static_cast<std::size_t>(rows) * kFastStatistics);
    struct Job {
        const FastKernels& kernels;
        const PlaneView &a, &b;
        int rows, width;
        double* sums;
    } job{kernels_, a, b, rows, width, sums_.data()};
    pool_.run((rows + kRowsOfStatistics - 1) / kRowsOfStatistics, [&job](int unit, int) {
        for (int row = unit * kRowsOfStatistics; row < std::min(job.rows, (unit + 1) * kRowsOfStatistics); ++row) {
            double* sums = job.sums + static_cast<std::ptrdiff_t>(row) * kFastStatistics;
            job.kernels.sum_row(job.a, job.b, kFastStride * row, job.width, kFastStride, sums);
        }
    });
    FastStatistics totals{};
    // Always in the order of the rows, whoever summed them up.
    for (int row = 0; row < rows; ++row) {
        for (std::size_t i = 0; i < kFastStatistics; ++i) totals[i] += sums_[static_cast<std::size_t>(row) * kFastStatistics + i];
    }
    const double count = static_cast<double>(rows) * columns;
    for (std::size_t i = 0; i < kFastStatistics; i += 2) {
        const double mean = totals[i] / count, variance = totals[i + 1] / count - mean * mean;
        totals[i] = mean;
        totals[i + 1] = variance < 0 ? 0 : std::sqrt(variance);
    }
    return totals;
}

// Folds the statistics into the first convolution.
void FastNetwork::adapt(const FastStatistics& statistics) {
    const auto dense = [](const float*& next, const double* inputs, int input_count, double* outputs, int output_count) {
        const float* biases = next + static_cast<std::ptrdiff_t>(input_count) * output_count;
        for (int output = 0; output < output_count; ++output) {
            outputs[output] = biases[output];
            for (int input = 0; input < input_count; ++input) outputs[output] += *next++ * inputs[input];
        }
        next = biases + output_count;
    };
    double hidden[kFastHidden], changes[2 * kFastMostChannels];
    const float* next = dense_.data();
    dense(next, statistics.data(), kFastStatistics, hidden, kFastHidden);
    for (double& unit : hidden) unit = unit < 0 ? kFastLeak * unit : unit;
    const int channels = layout_.channels;
    dense(next, hidden, kFastHidden, changes, 2 * channels);
    for (int i = 0; i < channels; ++i) {
        layers_[0].biases[static_cast<std::size_t>(i)] =
            static_cast<float>(plain_biases_[static_cast<std::size_t>(i)] * (1 + changes[i]) + changes[channels + i]);
    }
    const float* weights = plain_weights_.data();
    visit_packed(layout_.planes(), channels, kernels_.output_block, [&](std::size_t at, int output, int, int, int) {
        adapted_weights_.data()[at] = static_cast<float>(weights[at] * (1 + changes[output]));
    });
    kernels_.round(adapted_weights_.data(), adapted_weights_.count(), layers_[0].weights.data());
}

// Cuts the image so that the thread with the most work has the least. A tile computes, besides its own pixels, what its layers
// see around them: on average half a layer's reach in the columns, and twice as much in the rows, which come in fours.
void FastNetwork::plan(int height, int width) {
    if (plan_.height == height && plan_.width == width) return;
    plan_.height = 0;
    const int h = (height + layout_.factor - 1) / layout_.factor, w = (width + layout_.factor - 1) / layout_.factor;
    const FastImage image{{}, {}, height, width, {}, layout_.factor, views_.data(), layout_.convolutions};
    const int reach = layout_.convolutions - 1, threads = pool_.threads();
    int best_strips = 0, best_bands = 0;
    double least = 0;
    for (int strips = 1; strips == 1 || w / strips >= kNarrowest; ++strips) {
        const int columns = (w + strips - 1) / strips;
        const bool fits = kernels_.scratch(image, columns) <= kScratchBytes;
        if (!fits && w / (strips + 1) >= kNarrowest) continue;
        const int lanes = kernels_.lanes, computed = (columns + std::min(strips - 1, 2) * reach / 2 + lanes - 1) / lanes * lanes;
        for (int bands = 1; bands == 1 || (bands <= threads && h / bands >= kNarrowest); ++bands) {
            const int rows = (h + bands - 1) / bands + std::min(bands - 1, 2) * reach + kConvolutionRows - 1;
            const double cost = static_cast<double>((strips * bands + threads - 1) / threads) * computed * rows;
            if (best_strips == 0 || cost < least) {
                best_strips = strips;
                best_bands = bands;
                least = cost;
            }
        }
    }
    plan_.tiles.clear();
    int widest = 0;
    for (int strip = 0; strip < best_strips; ++strip) {
        const int left = cut(w, strip, best_strips), right = cut(w, strip + 1, best_strips);
        widest = std::max(widest, right - left);
        for (int band = 0; band < best_bands; ++band) {
            plan_.tiles.push_back({h, w, left, right, cut(h, band, best_bands), cut(h, band + 1, best_bands)});
        }
    }
    plan_.scratch_per_thread = (kernels_.scratch(image, widest) + sizeof(float) - 1) / sizeof(float);
    const std::size_t count = plan_.scratch_per_thread * static_cast<std::size_t>(threads);
    if (scratch_.count() != count) {
        scratch_ = Buffer();
        scratch_ = Buffer(count);
        std::fill_n(scratch_.data(), count, 0.0f);
    }
    plan_.height = height;
    plan_.width = width;
}

}  // namespace refusion
