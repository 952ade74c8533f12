// Small matrix products: pointwise convolutions, and 3x3 convolutions seen as one over (tap, input).
#pragma once

#include "simd.hpp"

namespace refusion::REFUSION_ISA {

// `outputs` sums over `inputs` rows of pixels, for a register block of pixels.
//
// in(k) is the address of column 0 of input k; out(output, vector, sum) takes the result.
template <int Outputs, int Vectors, int Inputs, class In, class Out>
REFUSION_INLINE void pointwise_block(int first_output, int first_vector, const float* __restrict weights, const float* bias,
                                     const In& in, const Out& out) {
    Vec sums[Outputs][Vectors];
#pragma GCC unroll 8
    for (int o = 0; o < Outputs; ++o) {
        const Vec start = bias ? broadcast(bias[first_output + o]) : Vec{};
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) sums[o][v] = start;
    }
#pragma GCC unroll 1
    for (int k = 0; k < Inputs; ++k) {
        const float* row = in(k) + first_vector * lanes;
        Vec x[Vectors];
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) x[v] = load(row + v * lanes);
#pragma GCC unroll 8
        for (int o = 0; o < Outputs; ++o) {
            const Vec weight = broadcast(weights[k * Outputs + o]);
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) sums[o][v] += weight * x[v];
        }
    }
#pragma GCC unroll 8
    for (int o = 0; o < Outputs; ++o) {
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) out(first_output + o, first_vector + v, sums[o][v]);
    }
}

// The same for `vectors` vectors of pixels and any multiple of the register block's outputs.
template <int Inputs, class In, class Out>
REFUSION_INLINE void pointwise(int outputs, int vectors, const float* weights, const float* bias, const In& in, const Out& out) {
    static_assert(vector_block <= 3);
    for (int o = 0; o < outputs; o += output_block) {
        const float* block = weights + o * Inputs;
        int v = 0;
        for (; v + vector_block <= vectors; v += vector_block) {
            pointwise_block<output_block, vector_block, Inputs>(o, v, block, bias, in, out);
        }
        if constexpr (vector_block > 2) {
            if (v + 2 <= vectors) {
                pointwise_block<output_block, 2, Inputs>(o, v, block, bias, in, out);
                v += 2;
            }
        }
        if (v < vectors) pointwise_block<output_block, 1, Inputs>(o, v, block, bias, in, out);
    }
}

}  // namespace refusion::REFUSION_ISA
