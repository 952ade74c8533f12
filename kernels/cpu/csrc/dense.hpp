// The 3x3 convolutions at both ends of the network.
#pragma once

#include "activation.hpp"
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

// 32 channels of features to 16, leaky, to 1, sigmoid.
inline void project(const Tile& tile, const FeatureView& from, const PlaneTarget& to, const DenseWeights& w,
                    float* scratch_start) {
    constexpr int N = EncoderShape::channels, rows = DecoderShape::channels / Operand::depth;
    const int core = tile.right - tile.left;
    const int vectors = vectors_for(core + 4), narrow_vectors = vectors_for(core + 2), core_vectors = vectors_for(core);
    const int pitch = vectors * lanes;
    const Outside outside(tile, tile.left - 2, pitch), outside_narrow(tile, tile.left - 1, pitch);
    Scratch scratch(scratch_start);
    float* wide = scratch.take(rows * 4 * pitch);
    float* narrow = scratch.take(N * 4 * pitch);
    const float* taps[9 * rows];
    for (int row = tile.top - 2; row < tile.bottom + 2; ++row) {
        const int slot = row & 3;
        if (inside(tile, row)) {
            for (int k = 0; k < rows; ++k) {
                const float* x = from.at(row, tile.left - 2) + k * Operand::depth * from.pitch;
                float* y = wide + (4 * k + slot) * pitch;
                copy_operands(x, from.pitch, y, vectors);
                if (outside.any()) outside.clear(y);
            }
        } else {
            clear_slot(wide, rows, pitch, slot);
        }
        if (row < tile.top) continue;
        const int middle = row - 1, middle_slot = middle & 3;
        if (inside(tile, middle)) {
            for (int tap = 0; tap < 9; ++tap) {
                const float* x = wide + ((middle - 1 + tap / 3) & 3) * pitch + tap % 3;
                for (int k = 0; k < rows; ++k) taps[tap * rows + k] = x + 4 * k * pitch;
            }
            const float* const* inputs = taps;
            pointwise<Operand, 9 * DecoderShape::channels>(
                N, narrow_vectors, w.narrow, nullptr, [=](int k) { return inputs[k]; },
                [=](int o, int v, Vec sum) {
                    store(narrow + (4 * o + middle_slot) * pitch + v * lanes, sum > 0.0f ? sum : sum * 0.01f);
                });
            if (outside_narrow.any()) {
                for (int o = 0; o < N; ++o) outside_narrow.clear(narrow + (4 * o + middle_slot) * pitch);
            }
        } else {
            clear_slot(narrow, N, pitch, middle_slot);
        }
        if (row < tile.top + 2) continue;
        char* target = to.row(row - 2) + static_cast<std::ptrdiff_t>(sizeof(float)) * tile.left;
        for (int v = 0; v < core_vectors; ++v) {
            Vec sums[3] = {};
            for (int c = 0; c < N; ++c) {
#pragma GCC unroll 3
                for (int dy = 0; dy < 3; ++dy) {
                    const Neighbors x = neighbors(narrow + (4 * c + ((row - 3 + dy) & 3)) * pitch + v * lanes);
                    const float* weight = w.last + 9 * c + 3 * dy;
                    sums[dy] += x.left * weight[0];
                    sums[dy] += x.middle * weight[1];
                    sums[dy] += x.right * weight[2];
                }
            }
            const Vec fused = sigmoid(sums[0] + sums[1] + sums[2]);
            const int count = core - v * lanes < lanes ? core - v * lanes : lanes;
            // The target may lie at any address.
            std::memcpy(target + v * static_cast<int>(sizeof(Vec)), &fused, sizeof(float) * static_cast<unsigned>(count));
        }
    }
}

}  // namespace refusion::REFUSION_ISA
