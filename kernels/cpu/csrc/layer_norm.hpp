// Layer norm over the channels of every pixel, without its scale and shift: those are folded into the next layer.
#pragma once

#include "kernels.hpp"
#include "operand.hpp"

namespace refusion::REFUSION_ISA {

// y = (x - mean) / sqrt(variance + epsilon) for `vectors` vectors of pixels, as operands of a product.
template <int Channels>
REFUSION_INLINE void layer_norm(const float* x, std::ptrdiff_t x_pitch, float* y, std::ptrdiff_t y_pitch, int vectors) {
    for (int v = 0; v < vectors; ++v, x += lanes, y += lanes) {
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
