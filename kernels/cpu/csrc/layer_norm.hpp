// Layer norm over the channels of every pixel, without its scale and shift: those are folded into the next layer.
#pragma once

#include "kernels.hpp"
#include "operand.hpp"

namespace refusion::REFUSION_ISA {

inline constexpr int norm_vectors = REFUSION_NORM_VECTORS;  // vectors of pixels side by side

// For `Vectors` vectors side by side. Even and odd channels are summed apart: one sum would wait for every addition before
// the next.
template <int Channels, int Vectors>
REFUSION_INLINE void layer_norm_block(const float* x, std::ptrdiff_t x_pitch, float* y, std::ptrdiff_t y_pitch) {
    const auto pixels = [=](int c, int v) { return load(x + c * x_pitch + v * lanes); };
    Vec mean[2][Vectors] = {}, scale[2][Vectors] = {};
#pragma GCC unroll 1
    for (int c = 0; c < Channels; c += 2) {
#pragma GCC unroll 2
        for (int odd = 0; odd < 2; ++odd) {
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) mean[odd][v] += pixels(c + odd, v);
        }
    }
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) mean[0][v] = (mean[0][v] + mean[1][v]) * (1.0f / Channels);
#pragma GCC unroll 1
    for (int c = 0; c < Channels; c += 2) {
#pragma GCC unroll 2
        for (int odd = 0; odd < 2; ++odd) {
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) {
                const Vec centered = pixels(c + odd, v) - mean[0][v];
                scale[odd][v] += centered * centered;
            }
        }
    }
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) scale[0][v] = 1.0f / square_root((scale[0][v] + scale[1][v]) * (1.0f / Channels) + 1e-5f);
#pragma GCC unroll 1
    for (int k = 0; k < Channels / Operand::depth; ++k) {
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) {
            store(y + k * y_pitch + v * lanes, Operand::of([=](int i) { return (pixels(k * Operand::depth + i, v) - mean[0][v]) * scale[0][v]; }));
        }
    }
}

// y = (x - mean) / sqrt(variance + epsilon) for `vectors` vectors of pixels, as operands of a product.
template <int Channels>
REFUSION_INLINE void layer_norm(const float* x, std::ptrdiff_t x_pitch, float* y, std::ptrdiff_t y_pitch, int vectors) {
    for (; vectors >= norm_vectors; vectors -= norm_vectors, x += norm_vectors * lanes, y += norm_vectors * lanes) {
        layer_norm_block<Channels, norm_vectors>(x, x_pitch, y, y_pitch);
    }
    for (; vectors > 0; --vectors, x += lanes, y += lanes) layer_norm_block<Channels, 1>(x, x_pitch, y, y_pitch);
}

}  // namespace refusion::REFUSION_ISA
