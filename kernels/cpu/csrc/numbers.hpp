// The numbers that 3x3 convolutions are computed in, float or half precision, and vectors of them.
#pragma once

#include "kernels.hpp"
#include "operand.hpp"

namespace refusion::REFUSION_ISA {

#if defined(REFUSION_FP16)

inline constexpr Precision fast_precision = Precision::fp16;
inline constexpr int number_lanes = 2 * lanes;

typedef __fp16 Number;
typedef Number Numbers __attribute__((vector_size(2 * number_lanes)));
typedef Number LooseNumbers __attribute__((vector_size(2 * number_lanes), aligned(2), may_alias));

REFUSION_INLINE Numbers load(const Number* from) { return *reinterpret_cast<const LooseNumbers*>(from); }
REFUSION_INLINE void store(Number* to, Numbers x) { *reinterpret_cast<LooseNumbers*>(to) = x; }
REFUSION_INLINE Numbers repeated(float x) { return reinterpret_cast<Numbers>(vdupq_n_f16(static_cast<Number>(x))); }
REFUSION_INLINE Numbers most(Numbers x, Numbers y) {
    return reinterpret_cast<Numbers>(vmaxq_f16(reinterpret_cast<float16x8_t>(x), reinterpret_cast<float16x8_t>(y)));
}

// A row of pixels in the precision of the features, rounded into `buffer`. Whole vectors are read and written, at most one more
// than fits.
inline const Number* as_numbers(const float* from, int count, float* buffer) {
    Number* to = reinterpret_cast<Number*>(buffer);
    for (int i = 0; i < count; i += number_lanes) {
        const float16x4_t low = vcvt_f16_f32(reinterpret_cast<float32x4_t>(load(from + i)));
        store(to + i, reinterpret_cast<Numbers>(vcvt_high_f16_f32(low, reinterpret_cast<float32x4_t>(load(from + i + lanes)))));
    }
    return to;
}

// Rows of features as floats, converted into `buffer`, likewise.
inline const float* as_floats(const Number* from, std::ptrdiff_t pitch, int rows, int count, float* buffer, std::ptrdiff_t buffer_pitch) {
    for (int row = 0; row < rows; ++row) {
        float* to = buffer + row * buffer_pitch;
        for (int i = 0; i < count; i += number_lanes) {
            const auto x = reinterpret_cast<float16x8_t>(load(from + row * pitch + i));
            store(to + i, reinterpret_cast<Vec>(vcvt_f32_f16(vget_low_f16(x))));
            store(to + i + lanes, reinterpret_cast<Vec>(vcvt_high_f32_f16(x)));
        }
    }
    return buffer;
}

// sum + x * one lane of `weights`. GCC 12 has no form of its own for the instruction, and would copy the lane first.
template <int Lane>
REFUSION_INLINE Numbers add_product(Numbers sum, Numbers weights, Numbers x) {
    asm("fmla %0.8h, %1.8h, %2.h[%3]" : "+w"(sum) : "w"(x), "x"(weights), "i"(Lane));
    return sum;
}
REFUSION_INLINE Numbers add_product(Numbers sum, Numbers weights, int lane, Numbers x) {
    switch (lane) {  // has to be a constant for the instruction
        case 0: return add_product<0>(sum, weights, x);
        case 1: return add_product<1>(sum, weights, x);
        case 2: return add_product<2>(sum, weights, x);
        case 3: return add_product<3>(sum, weights, x);
        case 4: return add_product<4>(sum, weights, x);
        case 5: return add_product<5>(sum, weights, x);
        case 6: return add_product<6>(sum, weights, x);
        default: return add_product<7>(sum, weights, x);
    }
}

// Adds the products of x and the weights of all outputs of a register block.
template <int Outputs, int Vectors>
REFUSION_INLINE void add_products(Numbers (&sums)[Outputs][Vectors], const Number* weights, const Numbers (&x)[Vectors]) {
    static_assert(Outputs == number_lanes);
    const Numbers of_outputs = load(weights);
#pragma GCC unroll 8
    for (int o = 0; o < Outputs; ++o) {
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) sums[o][v] = add_product(sums[o][v], of_outputs, o, x[v]);
    }
}

#else

inline constexpr Precision fast_precision = Precision::fp32;
inline constexpr int number_lanes = lanes;

typedef float Number;
typedef Vec Numbers;

REFUSION_INLINE Numbers repeated(float x) { return broadcast(x); }
REFUSION_INLINE const Number* as_numbers(const float* from, int, float*) { return from; }
REFUSION_INLINE const float* as_floats(const Number* from, std::ptrdiff_t, int, int, float*, std::ptrdiff_t) { return from; }

template <int Outputs, int Vectors>
REFUSION_INLINE void add_products(Numbers (&sums)[Outputs][Vectors], const Number* weights, const Numbers (&x)[Vectors]) {
    if constexpr (weights_in_lanes) {
        add_products_by_lane<SingleOperand>(sums, weights, x);
        return;
    }
#pragma GCC unroll 8
    for (int o = 0; o < Outputs; ++o) {
        const Vec weight = broadcast(weights[o]);
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) sums[o][v] += weight * x[v];
    }
}

#endif

inline constexpr bool numbers_are_floats = sizeof(Number) == sizeof(float);

}  // namespace refusion::REFUSION_ISA
