// Layer norm over the channels of every pixel, without its scale and shift: those are folded into the next layer.
#pragma once

#include "kernels.hpp"
#include "operand.hpp"

namespace refusion::REFUSION_ISA {

inline constexpr int norm_vectors = REFUSION_NORM_VECTORS;  // vectors of pixels side by side

// The same for `Vectors` vectors side by side, as one alone waits for every addition before the next.
template <int Channels, int Vectors>
REFUSION_INLINE void layer_norm_block(const float* x, std::ptrdiff_t x_pitch, float* y, std::ptrdiff_t y_pitch) {
    const auto pixels = [=](int c, int v) { return load(x + c * x_pitch + v * lanes); };
    Vec mean[Vectors] = {}, scale[Vectors] = {};
#pragma GCC unroll 1
    for (int c = 0; c < Channels; ++c) {
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) mean[v] += pixels(c, v);
    }
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) mean[v] *= 1.0f / Channels;
#pragma GCC unroll 1
    for (int c = 0; c < Channels; ++c) {
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) {
            const Vec centered = pixels(c, v) - mean[v];
            scale[v] += centered * centered;
        }
    }
#pragma GCC unroll 8
    for (int v = 0; v < Vectors; ++v) scale[v] = 1.0f / square_root(scale[v] * (1.0f / Channels) + 1e-5f);
#pragma GCC unroll 1
    for (int k = 0; k < Channels / Operand::depth; ++k) {
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) {
            store(y + k * y_pitch + v * lanes, Operand::of([=](int i) { return (pixels(k * Operand::depth + i, v) - mean[v]) * scale[v]; }));
        }
    }
}

// y = (x - mean) / sqrt(variance + epsilon) for `vectors` vectors of pixels, as operands of a product.
template <int Channels>
REFUSION_INLINE void layer_norm(const float* x, std::ptrdiff_t x_pitch, float* y, std::ptrdiff_t y_pitch, int vectors) {
    int done = 0;
    if constexpr (norm_vectors > 1) {
        for (; done + norm_vectors <= vectors; done += norm_vectors, x += norm_vectors * lanes, y += norm_vectors * lanes) {
            layer_norm_block<Channels, norm_vectors>(x, x_pitch, y, y_pitch);
        }
    }
    for (int v = done; v < vectors; ++v, x += lanes, y += lanes) {
        Vec sum{};
        for (int c = 0; c < Channels; ++c) sum += load(x + c * x_pitch);
        const Vec mean = sum * (1.0f / Channels);
        Vec squares{};
        for (int c = 0; c < Channels; ++c) {
            const Vec centered = load(x + c * x_pitch) - mean;
            squares += centered * centered;
        }
        const Vec scale = 1.0f / square_root(squares * (1.0f / Channels) + 1e-5f);
        for (int k = 0; k < Channels / Operand::depth; ++k) {
            const float* channels = x + k * Operand::depth * x_pitch;
            store(y + k * y_pitch, Operand::of([=](int i) { return (load(channels + i * x_pitch) - mean) * scale; }));
        }
    }
}

}  // namespace refusion::REFUSION_ISA
