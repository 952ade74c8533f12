// What the small matrix products read and multiply: rows of fp32 channels, or rows of pairs of channels in bf16.
#pragma once

#include <cstddef>

#include "simd.hpp"

namespace refusion::REFUSION_ISA {

// One channel to a row, as it is.
struct SingleOperand {
    static constexpr int depth = 1;  // channels to a row

    // The vector of a row that holds channel(0).
    template <class Channel>
    static REFUSION_INLINE Vec of(const Channel& channel) {
        return channel(0);
    }

    static REFUSION_INLINE Vec multiply_add(Vec sum, float weight, Vec x) { return sum + broadcast(weight) * x; }
    static REFUSION_INLINE Vec multiply_add(Vec sum, Vec weights, int i, Vec x) { return multiply_add(sum, lane(weights, i), x); }
};

#if defined(REFUSION_BF16)
// Two channels to a row: the 32 bits of a pixel hold both, rounded to bf16, the first in the lower half. One instruction
// multiplies both by the two halves of a weight and adds the products up in fp32.
struct PairOperand {
    static constexpr int depth = 2;

    template <class Channel>
    static REFUSION_INLINE Vec of(const Channel& channel) {
        return pair_of_bf16(channel(0), channel(1));
    }

    static REFUSION_INLINE Vec multiply_add(Vec sum, float weights, Vec x) { return add_pair_products(sum, weights, x); }
#if defined(__ARM_NEON)
    static REFUSION_INLINE Vec multiply_add(Vec sum, Vec weights, int i, Vec x) { return add_pair_products(sum, weights, i, x); }
#endif
};
using Operand = PairOperand;
#else
using Operand = SingleOperand;
#endif

// Adds the products of one row of operands and the weights of all outputs of a register block, with the weights in lanes.
template <class Kind, int Outputs, int Vectors>
REFUSION_INLINE void add_products_by_lane(Vec (&sums)[Outputs][Vectors], const float* weights, const Vec (&x)[Vectors]) {
    static_assert(Outputs % lanes == 0);
    Vec of_outputs[Outputs / lanes];
#pragma GCC unroll 8
    for (int i = 0; i < Outputs / lanes; ++i) {
        of_outputs[i] = load(weights + i * lanes);
#if defined(__ARM_NEON)  // elsewhere, Clang refuses the constraint, though nothing calls this
        asm("" : "+w"(of_outputs[i]));  // GCC otherwise loads every lane into a register of its own
#endif
    }
#pragma GCC unroll 8
    for (int o = 0; o < Outputs; ++o) {
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) sums[o][v] = Kind::multiply_add(sums[o][v], of_outputs[o / lanes], o % lanes, x[v]);
    }
}

// One row of operands, `vectors` vectors long, out of channels that lie `x_pitch` numbers apart.
REFUSION_INLINE void copy_operands(const float* x, std::ptrdiff_t x_pitch, float* y, int vectors) {
    for (int v = 0; v < vectors; ++v, x += lanes, y += lanes) {
        store(y, Operand::of([=](int i) { return load(x + i * x_pitch); }));
    }
}

}  // namespace refusion::REFUSION_ISA
