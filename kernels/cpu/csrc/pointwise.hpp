// Small matrix products: pointwise convolutions, and 3x3 convolutions of one channel seen as one over the taps.
#pragma once

#include "operand.hpp"
#include "register_block.hpp"

namespace refusion::REFUSION_ISA {

// `Outputs` sums over `Rows` rows of operands, for a register block of pixels.
//
// in(k) is the address of column 0 of row k; out(output, vector, sum) takes the result.
template <class Kind, int Outputs, int Vectors, int Rows, class In, class Out>
REFUSION_INLINE void pointwise_block(int first_output, int first_vector, const float* weights, const float* bias,
                                     const In& in, const Out& out) {
    // Short loops are written out, which measured faster.
    constexpr bool written_out = few_registers && Rows <= 16;
    // One address for all weights; otherwise, GCC keeps one for each of them in memory.
    if constexpr (written_out) asm("" : "+r"(weights));
    Vec sums[Outputs][Vectors];
    if constexpr (few_registers) {
        // The first products start the sums, instead of copies of a zero register, which are slower.
        const float* row = in(0) + first_vector * lanes;
        Vec x[Vectors];
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) x[v] = load(row + v * lanes);
#pragma GCC unroll 8
        for (int o = 0; o < Outputs; ++o) {
            const Vec weight = broadcast(weights[o]);
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) sums[o][v] = weight * x[v];
        }
    } else {
#pragma GCC unroll 8
        for (int o = 0; o < Outputs; ++o) {
            const Vec start = bias ? broadcast(bias[first_output + o]) : Vec{};
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) sums[o][v] = start;
        }
    }
    const auto add_row = [&](int k) __attribute__((always_inline)) {
        const float* row = in(k) + first_vector * lanes;
        Vec x[Vectors];
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) x[v] = written_out ? in_register(load(row + v * lanes)) : load(row + v * lanes);
        if constexpr (weights_in_lanes) {
            add_products_by_lane<Kind>(sums, weights + k * Outputs, x);
            return;
        }
#pragma GCC unroll 8
        for (int o = 0; o < Outputs; ++o) {
            const float weight = weights[k * Outputs + o];
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) sums[o][v] = Kind::multiply_add(sums[o][v], weight, x[v]);
        }
    };
    if constexpr (written_out) {
#pragma GCC unroll 16
        for (int k = 1; k < Rows; ++k) add_row(k);
    } else {
#pragma GCC unroll 1
        for (int k = few_registers ? 1 : 0; k < Rows; ++k) add_row(k);
    }
    if (few_registers && bias) {
#pragma GCC unroll 8
        for (int o = 0; o < Outputs; ++o) {
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) sums[o][v] += broadcast(bias[first_output + o]);
        }
    }
#pragma GCC unroll 8
    for (int o = 0; o < Outputs; ++o) {
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) out(first_output + o, first_vector + v, sums[o][v]);
    }
}

template <int Vectors>
struct Count {
    static constexpr int vectors = Vectors;
};

// The same over `Inputs` channels for `vectors` vectors of pixels and any multiple of the register block's outputs.
template <class Kind, int Inputs, class In, class Out>
REFUSION_INLINE void pointwise(int outputs, int vectors, const float* weights, const float* bias, const In& in, const Out& out) {
    static_assert(vector_block <= 3 && Inputs % Kind::depth == 0);
    constexpr int rows = Inputs / Kind::depth;
    // Of four vectors left, two and two: a single one has too few sums to hide the latency of a multiply-add.
    constexpr bool halved = few_registers && vector_block == 3;
    if constexpr (few_registers && rows >= 64) {
        // All columns of so many rows do not fit into the first cache; those of a register block do, beside all weights.
        const auto run = [&](auto count, int v) {
            for (int o = 0; o < outputs; o += output_block) {
                pointwise_block<Kind, output_block, decltype(count)::vectors, rows>(o, v, weights + o * rows, bias, in, out);
            }
            return decltype(count)::vectors;
        };
        for (int v = 0; v < vectors;) {
            const int left = vectors - v;
            v += left >= vector_block && left != 4 ? run(Count<vector_block>{}, v) : left >= 2 ? run(Count<2>{}, v) : run(Count<1>{}, v);
        }
        return;
    }
    for (int o = 0; o < outputs; o += output_block) {
        const float* block = weights + o * rows;
        int v = 0;
        for (; v + vector_block <= vectors && (!halved || vectors - v != 4); v += vector_block) {
            pointwise_block<Kind, output_block, vector_block, rows>(o, v, block, bias, in, out);
        }
        if constexpr (vector_block > 2) {
            if (v + 2 <= vectors) {
                pointwise_block<Kind, output_block, 2, rows>(o, v, block, bias, in, out);
                v += 2;
            }
            if (halved && v + 2 <= vectors) {
                pointwise_block<Kind, output_block, 2, rows>(o, v, block, bias, in, out);
                v += 2;
            }
        }
        if (v < vectors) pointwise_block<Kind, output_block, 1, rows>(o, v, block, bias, in, out);
    }
}

}  // namespace refusion::REFUSION_ISA
