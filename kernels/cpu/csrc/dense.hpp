// The 3x3 convolutions at both ends of the network.
#pragma once

#include "activation.hpp"
#include "convolution.hpp"
#include "pointwise.hpp"
#include "tile.hpp"

namespace refusion::REFUSION_ISA {

// One source to 16 channels of features.
inline bool lift(const Tile& tile, const PlaneView& from, const FeatureView& to, const float* weights, float* scratch) {
    const int core = tile.right - tile.left, vectors = vectors_for(core), pitch = vectors_for(core + 2) * lanes;
    float* ring = scratch;
    bool finite = true;
    for (int row = tile.top - 1; row <= tile.bottom; ++row) {
        float* slot = ring + (row & 3) * pitch;
        if (inside(tile, row)) {
            finite &= gather_row(from, tile, row, tile.left - 1, pitch, slot);
        } else {
            std::memset(slot, 0, sizeof(float) * static_cast<unsigned>(pitch));
        }
        if (row <= tile.top) continue;
        float* y = to.at(row - 1, tile.left);
        const std::ptrdiff_t y_pitch = to.pitch;
        pointwise<SingleOperand, 9>(
            EncoderShape::channels, vectors, weights, nullptr,
            [=](int k) { return ring + ((row - 2 + k / 3) & 3) * pitch + k % 3; },
            [=](int o, int v, Vec sum) { store_first(y + o * y_pitch + v * lanes, sum, core - v * lanes); });
    }
    return finite;
}

// How the scratch is cut for the last two convolutions of tiles of so many columns; without its start, only its size is found.
// Column 0 of the rings is two to the left of the tile.
struct ProjectScratch {
    Ring wide, narrow;  // what both convolutions read
    float* mixes;
    std::size_t count;

    ProjectScratch(int columns, float* start) {
        // The first convolution writes whole vectors from column 1 on. An odd number of cache lines keeps channels out of one set.
        constexpr int in_line = 16;
        const std::ptrdiff_t pitch = ((columns + 4 + lanes + in_line - 1) / in_line | 1) * in_line;
        std::ptrdiff_t used = 0;
        const auto take = [&](std::ptrdiff_t numbers) {
            float* piece = start ? start + used : nullptr;
            used += numbers;
            return piece;
        };
        wide = {take(rows_in_ring * DecoderShape::channels * pitch), DecoderShape::channels, pitch};
        narrow = {take(rows_in_ring * EncoderShape::channels * pitch), EncoderShape::channels, pitch};
        mixes = take(kConvolutionMixes * (DecoderShape::channels / operand_depth) * mix_columns);
        count = static_cast<std::size_t>(used);
    }
};

inline std::size_t project_scratch(int columns) { return ProjectScratch(columns, nullptr).count; }

// 32 channels of features to 16, leaky, to 1, sigmoid.
class Projection {
  public:
    Projection(const Tile& tile, const FeatureView& from, const PlaneTarget& to, const DenseWeights& weights, float* scratch)
        : tile_(tile),
          from_(from),
          to_(to),
          w_(weights),
          core_(tile.right - tile.left),
          scratch_(core_, scratch),
          outside_(tile, tile.left - 2, static_cast<int>(scratch_.wide.pitch)) {}

    // Step n makes the four rows between the convolutions from row 4 n - 1 on, wherever the tile begins, so that they do not
    // depend on it.
    void run() {
        const int first = tile_.top >> 2, last = (tile_.bottom + 1) >> 2;
        for (int row = 4 * first - 2; row < 4 * first; ++row) load_row(row);
        for (int step = first; step <= last; ++step) {
            for (int row = 4 * step; row < 4 * step + kConvolutionRows; ++row) load_row(row);
            convolve(4 * step - 1);
            write_rows(4 * step - 2);
        }
    }

  private:
    void clear_outside(const Ring& ring, int row) const {
        if (!outside_.any()) return;
        for (int c = 0; c < ring.channels; ++c) outside_.clear(ring.row(row) + c * ring.pitch);
    }

    void load_row(int row) {
        const Ring& ring = scratch_.wide;
        if (!inside(tile_, row)) {
            ring.clear(row);
            return;
        }
        const float* from = from_.at(row, tile_.left - 2);
        for (int c = 0; c < ring.channels; ++c) {
            for (int v = 0; v < vectors_for(core_ + 4); ++v) {
                store(ring.row(row) + c * ring.pitch + v * lanes, load(from + c * from_.pitch + v * lanes));
            }
        }
        clear_outside(ring, row);
    }

    void convolve(int row) {
        const Ring &from = scratch_.wide, &to = scratch_.narrow;
        if (row + kConvolutionRows > 0 && row < tile_.height) {
            const float* sources[rows_in_ring];
            float* targets[kConvolutionRows];
            for (int i = 0; i < rows_in_ring; ++i) sources[i] = from.row(row - 1 + i);
            for (int i = 0; i < kConvolutionRows; ++i) targets[i] = to.row(row + i);
            convolve_rows(w_.narrow, sources, from.pitch, scratch_.mixes, targets, 1, core_ + 3);
        }
        for (int i = row; i < row + kConvolutionRows; ++i) {
            if (inside(tile_, i)) {
                clear_outside(to, i);
            } else {
                to.clear(i);
            }
        }
    }

    // Four rows, of which those inside the tile are kept: a weight that is in a register serves all of them.
    void write_rows(int row) {
        const Ring& from = scratch_.narrow;
        const float* rows[rows_in_ring];
        for (int i = 0; i < rows_in_ring; ++i) rows[i] = from.row(row - 1 + i) + 1;
        int v = 0;
        for (; v + 2 <= vectors_for(core_); v += 2) write_block<2>(rows, row, v);
        if (v < vectors_for(core_)) write_block<1>(rows, row, v);
    }

    template <int Vectors>
    void write_block(const float* const (&rows)[rows_in_ring], int row, int first) const {
        Vec sums[kConvolutionRows][Vectors] = {};
#pragma GCC unroll 1
        for (int c = 0; c < scratch_.narrow.channels; ++c) {
            const std::ptrdiff_t at = c * scratch_.narrow.pitch + first * lanes;
#pragma GCC unroll 3
            for (int dx = 0; dx < 3; ++dx) {
                const float* weights = w_.last + 9 * c + dx;
                const Vec taps[3] = {broadcast(weights[0]), broadcast(weights[3]), broadcast(weights[6])};
#pragma GCC unroll 6
                for (int i = 0; i < rows_in_ring; ++i) {
#pragma GCC unroll 4
                    for (int v = 0; v < Vectors; ++v) {
                        const Vec x = in_register(load(rows[i] + at + dx + v * lanes));
#pragma GCC unroll 3
                        for (int dy = 0; dy < 3; ++dy) {
                            if (i - dy >= 0 && i - dy < kConvolutionRows) sums[i - dy][v] += taps[dy] * x;
                        }
                    }
                }
            }
        }
        for (int i = 0; i < kConvolutionRows; ++i) {
            if (row + i < tile_.top || row + i >= tile_.bottom) continue;
            char* target = to_.row(row + i) + static_cast<std::ptrdiff_t>(sizeof(float)) * (tile_.left + first * lanes);
            for (int v = 0; v < Vectors; ++v) {
                const Vec fused = sigmoid(sums[i][v]);
                const int left = core_ - (first + v) * lanes, count = left < lanes ? left : lanes;
                // The target may lie at any address.
                std::memcpy(target + v * static_cast<int>(sizeof(Vec)), &fused, sizeof(float) * static_cast<unsigned>(count));
            }
        }
    }

    const Tile& tile_;
    const FeatureView& from_;
    const PlaneTarget& to_;
    const DenseWeights& w_;
    const int core_;
    const ProjectScratch scratch_;
    const Outside outside_;
};

inline void project(const Tile& tile, const FeatureView& from, const PlaneTarget& to, const DenseWeights& weights, float* scratch) {
    Projection(tile, from, to, weights, scratch).run();
}

}  // namespace refusion::REFUSION_ISA
