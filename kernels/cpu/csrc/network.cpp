#include "network.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "isa.hpp"
#include "parameters.hpp"
#include "strips.hpp"

namespace refusion {
namespace {

constexpr int kChannels = 2 * kDim;

// Rows whose products are added up by one thread. Fixed, so that the sums are, too.
constexpr int kStatisticsRows = 64;
// Fewer rows would spend too much on the rows above and below.
constexpr int kLeastBandRows = 32;
constexpr int kUnitsPerThread = 6;

int scratch_per_column(BlockKind kind) {
    switch (kind) {
        case kEncoder: return block_scratch_per_column<EncoderShape>();
        case kDecoder: return block_scratch_per_column<DecoderShape>();
        default: return block_scratch_per_column<FusionShape>();
    }
}

int product_count(BlockKind kind) {
    switch (kind) {
        case kEncoder: return HeadLayout<EncoderShape>::heads * HeadLayout<EncoderShape>::products;
        case kDecoder: return HeadLayout<DecoderShape>::heads * HeadLayout<DecoderShape>::products;
        default: return HeadLayout<FusionShape>::heads * HeadLayout<FusionShape>::products;
    }
}

}  // namespace

// One image under way: its size, how it is cut, and where its features are.
struct Network::Image {
    int height, width;
    std::ptrdiff_t pitch;
    float *here, *there;
    float* scratch;
    std::size_t scratch_per_thread;
    std::vector<Span> strips[3];  // by kind of block
    std::vector<Span> wide_strips;
    std::vector<Span> statistics_bands;

    Image(int height_, int width_, const Kernels& kernels) : height(height_), width(width_) {
        // An odd number of cache lines from channel to channel: a power of two would put them all into one set.
        pitch = (width + 15) / 16 | 1;
        pitch *= 16;
        const int lanes = kernels.lanes;
        std::size_t most = 0;
        for (const BlockKind kind : {kEncoder, kDecoder, kFusion}) {
            const int per_column = scratch_per_column(kind);
            strips[kind] = cut_strips(width, lanes, 4, kernels.scratch_bytes / static_cast<int>(sizeof(float)) / per_column);
            most = std::max(most, static_cast<std::size_t>(per_column) * columns(strips[kind], lanes));
        }
        most = std::max(most, kernels.project_scratch(widest(strips[kDecoder])));
        wide_strips = cut_strips(width, lanes, 2, 1024);
        most = std::max(most, 4 * columns(wide_strips, lanes));
        scratch_per_thread = (most + kMargin + 15) / 16 * 16;
        statistics_bands = cut_bands(height, (height + kStatisticsRows - 1) / kStatisticsRows);
    }

    // Numbers of one buffer of features.
    std::size_t feature_count() const {
        return static_cast<std::size_t>(height) * static_cast<std::size_t>(kChannels * pitch) + 2 * kMargin;
    }

    static int widest(const std::vector<Span>& spans) {
        int most = 0;
        for (const Span& span : spans) most = std::max(most, span.last - span.first);
        return most;
    }

    // The widest strip with its overlap, in whole vectors.
    static std::size_t columns(const std::vector<Span>& spans, int lanes) {
        return static_cast<std::size_t>((widest(spans) + 4 + lanes - 1) / lanes * lanes);
    }

    FeatureView view(float* buffer, int first_channel) const {
        return {buffer + kMargin + first_channel * pitch, pitch, kChannels * pitch};
    }

    float* scratch_of(int worker) const { return scratch + scratch_per_thread * static_cast<std::size_t>(worker); }

    Tile tile(const Span& strip, const Span& band) const { return {height, width, strip.first, strip.last, band.first, band.last}; }

    // Bands for passes whose results do not depend on them: enough units for all threads.
    std::vector<Span> bands(std::size_t strip_count, int threads) const {
        const int wanted = threads == 1 ? 1 : (threads * kUnitsPerThread + static_cast<int>(strip_count) - 1) / static_cast<int>(strip_count);
        return cut_bands(height, std::clamp(wanted, 1, std::max(1, height / kLeastBandRows)));
    }
};

int require_threads(int threads) {
    if (threads >= 1 && threads <= kMaxThreads) return threads;
    throw std::invalid_argument(std::to_string(threads) + " threads are out of range; choose from 1 to " + std::to_string(kMaxThreads));
}

void require_sides(int height, int width) {
    if (std::min(height, width) < kMinSide || std::max(height, width) > kMaxSide) {
        throw std::invalid_argument("the planes are " + std::to_string(width) + "x" + std::to_string(height) +
                                    " (width x height); resize them to sides from " + std::to_string(kMinSide) + " to " +
                                    std::to_string(kMaxSide) + " pixels");
    }
}

void fill_with_nan(const PlaneTarget& fused, int height, int width) {
    const float nan = NAN;
    for (int row = 0; row < height; ++row) {
        for (int column = 0; column < width; ++column) std::memcpy(fused.row(row) + 4 * static_cast<std::ptrdiff_t>(column), &nan, 4);
    }
}

Network::Network(const float* flat, int threads, const std::string& isa, Precision precision)
    : kernels_(find_kernels(isa, precision)),
      weights_(flat, kernels_.packing),
      pool_(require_threads(threads)) {}

void Network::fuse(const PlaneView& a, const PlaneView& b, int height, int width, const PlaneTarget& fused) {
    require_sides(height, width);
    const std::lock_guard<std::mutex> lock(mutex_);
    Image image(height, width, kernels_);
    const auto grow = [](Buffer& buffer, std::size_t count) {
        if (buffer.count() == count) return;
        buffer = Buffer();
        buffer = Buffer(count);
    };
    grow(here_, image.feature_count());
    grow(there_, image.feature_count());
    grow(scratch_, image.scratch_per_thread * static_cast<std::size_t>(pool_.threads()));
    image.here = here_.data();
    image.there = there_.data();
    image.scratch = scratch_.data();

    if (!lift(image, a, b)) {
        fill_with_nan(fused, height, width);
        return;
    }
    bool forth = true;
    for (int index = 0; index < kBlocks; ++index, forth = !forth) {
        Block* both[] = {&weights_.encoder_a[static_cast<std::size_t>(index)], &weights_.encoder_b[static_cast<std::size_t>(index)]};
        run_blocks(image, both, 2, forth);
    }
    Block* fusion[] = {&weights_.fusion};
    run_blocks(image, fusion, 1, forth);
    forth = !forth;
    for (Block& block : weights_.decoder) {
        Block* one[] = {&block};
        run_blocks(image, one, 1, forth);
        forth = !forth;
    }
    if (!forth) std::swap(image.here, image.there);
    project(image, fused);
}

bool Network::lift(const Image& image, const PlaneView& a, const PlaneView& b) {
    const std::vector<Span>& strips = image.wide_strips;
    const std::vector<Span> bands = image.bands(2 * strips.size(), pool_.threads());
    const int per_source = static_cast<int>(strips.size() * bands.size());
    std::atomic<bool> finite{true};
    pool_.run(2 * per_source, [&](int unit, int worker) {
        const bool second = unit >= per_source;
        const auto index = static_cast<std::size_t>(unit % per_source);
        const Tile tile = image.tile(strips[index % strips.size()], bands[index / strips.size()]);
        const float* weights = second ? weights_.dense.lift_b : weights_.dense.lift_a;
        const FeatureView to = image.view(image.here, second ? kDim : 0);
        if (!kernels_.lift(tile, second ? b : a, to, weights, image.scratch_of(worker))) finite = false;
    });
    return finite;
}

// Runs `count` blocks of one kind side by side on as many parts of the channels, from one buffer to the other.
void Network::run_blocks(const Image& image, Block* const* blocks, int count, bool forth) {
    float *source = forth ? image.here : image.there, *target = forth ? image.there : image.here;
    const BlockKind kind = blocks[0]->kind;
    const std::vector<Span>& strips = image.strips[kind];
    const auto run = [&](const std::vector<Span>& bands, const auto& pass) {
        const std::size_t per_block = strips.size() * bands.size();
        pool_.run(count * static_cast<int>(per_block), [&](int unit, int worker) {
            const std::size_t index = static_cast<std::size_t>(unit) % per_block;
            const Tile tile = image.tile(strips[index % strips.size()], bands[index / strips.size()]);
            pass(unit, static_cast<std::size_t>(unit) / per_block, tile, image.scratch_of(worker));
        });
    };

    const auto products_per_unit = static_cast<std::size_t>(product_count(kind));
    const std::size_t units_per_block = strips.size() * image.statistics_bands.size();
    std::vector<double> products(static_cast<std::size_t>(count) * units_per_block * products_per_unit);
    run(image.statistics_bands, [&](int unit, std::size_t block, const Tile& tile, float* scratch) {
        kernels_.statistics[kind](tile, image.view(source, static_cast<int>(block) * kDim), blocks[block]->weights,
                                  products.data() + static_cast<std::size_t>(unit) * products_per_unit, scratch);
    });
    for (int block = 0; block < count; ++block) {
        // Always in the order of the units, whoever worked on them.
        double* total = products.data() + static_cast<std::size_t>(block) * units_per_block * products_per_unit;
        for (std::size_t unit = 1; unit < units_per_block; ++unit) {
            for (std::size_t p = 0; p < products_per_unit; ++p) total[p] += total[unit * products_per_unit + p];
        }
        weights_.set_mix(*blocks[block], total);
    }
    run(image.bands(static_cast<std::size_t>(count) * strips.size(), pool_.threads()),
        [&](int, std::size_t block, const Tile& tile, float* scratch) {
            const int first = static_cast<int>(block) * kDim;
            kernels_.transform[kind](tile, image.view(source, first), image.view(target, first), blocks[block]->weights, scratch);
        });
}

void Network::project(const Image& image, const PlaneTarget& fused) {
    const std::vector<Span>& strips = image.strips[kDecoder];
    const std::vector<Span> bands = image.bands(strips.size(), pool_.threads());
    pool_.run(static_cast<int>(strips.size() * bands.size()), [&](int unit, int worker) {
        const auto index = static_cast<std::size_t>(unit);
        const Tile tile = image.tile(strips[index % strips.size()], bands[index / strips.size()]);
        kernels_.project(tile, image.view(image.here, 0), fused, weights_.dense, image.scratch_of(worker));
    });
}

}  // namespace refusion
