// Vectors of REFUSION_LANES floats over the compiler's vector extensions (GCC, Clang).
//
// Included only by the files that build one instruction set; everything lives in a namespace of that set's own, so
// that the linker never takes a function compiled for one set where another was meant. For the same reason nothing
// from the standard library that has linkage is used below this header.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define REFUSION_INLINE inline __attribute__((always_inline))

namespace refusion::REFUSION_ISA {

inline constexpr int lanes = REFUSION_LANES;
inline constexpr bool few_registers = REFUSION_REGISTERS < 32;  // so few that copies to start sums cost time
// Whether a depthwise convolution is a loop of its own with its taps in registers, and neighbors are loaded. Wide vectors
// would cross too many cache lines: they are shuffled.
inline constexpr bool taps_in_registers = lanes > 1 && lanes < 16;
// Whether weights stay in the lanes of a register, which one instruction multiplies by: one register per weight would leave too
// few for the sums.
#if defined(__ARM_NEON) && REFUSION_LANES == 4
inline constexpr bool weights_in_lanes = true;
#else
inline constexpr bool weights_in_lanes = false;
#endif

#if REFUSION_LANES == 1
typedef float Vec;
typedef std::int32_t IntVec;
typedef float LooseVec;

REFUSION_INLINE float lane(Vec x, int) { return x; }
REFUSION_INLINE void set_lane(Vec& x, int, float value) { x = value; }
#else
typedef float Vec __attribute__((vector_size(4 * REFUSION_LANES)));
typedef std::int32_t IntVec __attribute__((vector_size(4 * REFUSION_LANES)));
typedef float LooseVec __attribute__((vector_size(4 * REFUSION_LANES), aligned(4), may_alias));

REFUSION_INLINE float lane(Vec x, int i) { return x[i]; }
REFUSION_INLINE void set_lane(Vec& x, int i, float value) { x[i] = value; }
#endif

REFUSION_INLINE Vec load(const float* from) { return *reinterpret_cast<const LooseVec*>(from); }
REFUSION_INLINE void store(float* to, Vec x) { *reinterpret_cast<LooseVec*>(to) = x; }
REFUSION_INLINE Vec broadcast(float x) { return x - Vec{}; }

// Fetches `count` numbers into the second cache before they are needed.
REFUSION_INLINE void prefetch(const float* from, int count) {
    constexpr int line = 16;
    for (int i = 0; i < count + line - 1; i += line) __builtin_prefetch(from + i, 0, 2);
}

// x in a register. Where it is used twice, GCC otherwise reads it from memory twice.
REFUSION_INLINE Vec in_register(Vec x) {
#if defined(__SSE2__) && REFUSION_LANES > 1
    asm("" : "+x"(x));
#endif
    return x;
}

// Stores the first `count` lanes, all of them where it is larger.
REFUSION_INLINE void store_first(float* to, Vec x, int count) {
    if (count >= lanes) {
        store(to, x);
        return;
    }
#if defined(__AVX512F__) && REFUSION_LANES == 16
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1u), reinterpret_cast<__m512>(x));
#else
    for (int i = 0; i < count; ++i) to[i] = lane(x, i);
#endif
}

REFUSION_INLINE IntVec as_int(Vec x) {
    IntVec bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}
REFUSION_INLINE Vec as_float(IntVec bits) {
    Vec x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
// Of NaN as the first argument, both make NaN.
#if defined(__AVX2__) && REFUSION_LANES == 8
// What GCC makes of the plain form is a comparison and a blend.
REFUSION_INLINE Vec least(Vec x, Vec y) { return reinterpret_cast<Vec>(_mm256_min_ps(reinterpret_cast<__m256>(y), reinterpret_cast<__m256>(x))); }
REFUSION_INLINE Vec most(Vec x, Vec y) { return reinterpret_cast<Vec>(_mm256_max_ps(reinterpret_cast<__m256>(y), reinterpret_cast<__m256>(x))); }
#elif defined(__ARM_NEON) && REFUSION_LANES == 4
REFUSION_INLINE Vec least(Vec x, Vec y) { return reinterpret_cast<Vec>(vminq_f32(reinterpret_cast<float32x4_t>(x), reinterpret_cast<float32x4_t>(y))); }
REFUSION_INLINE Vec most(Vec x, Vec y) { return reinterpret_cast<Vec>(vmaxq_f32(reinterpret_cast<float32x4_t>(x), reinterpret_cast<float32x4_t>(y))); }
#else
REFUSION_INLINE Vec least(Vec x, Vec y) { return x > y ? y : x; }
REFUSION_INLINE Vec most(Vec x, Vec y) { return x < y ? y : x; }
#endif

REFUSION_INLINE Vec square_root(Vec x) {
#if defined(__AVX512F__) && REFUSION_LANES == 16
    // The form with a mask, all set: GCC 12 warns about its own header in the plain one.
    return reinterpret_cast<Vec>(_mm512_maskz_sqrt_ps(0xffff, reinterpret_cast<__m512>(x)));
#else
    Vec root{};
    for (int i = 0; i < lanes; ++i) set_lane(root, i, __builtin_sqrtf(lane(x, i)));
    return root;
#endif
}

#if defined(REFUSION_BF16)
// Lanes of two bf16 numbers: `low` and `high` rounded to the nearest, ties to even.
REFUSION_INLINE Vec pair_of_bf16(Vec low, Vec high) {
#if defined(__ARM_NEON)
    const bfloat16x8_t halves = vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(reinterpret_cast<float32x4_t>(low)), reinterpret_cast<float32x4_t>(high));
    const uint16x8_t words = vreinterpretq_u16_bf16(halves);
    return reinterpret_cast<Vec>(vzip1q_u16(words, vextq_u16(words, words, 4)));
#else
    const __m512i halves = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(high), reinterpret_cast<__m512>(low)));
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4,
                                           19, 3, 18, 2, 17, 1, 16, 0);
    return reinterpret_cast<Vec>(_mm512_permutexvar_epi16(order, halves));
#endif
}

// sum + low half of `weights` * low halves of x + the same of the high ones, in fp32.
REFUSION_INLINE Vec add_pair_products(Vec sum, float weights, Vec x) {
    std::int32_t bits;
    std::memcpy(&bits, &weights, sizeof bits);
    const IntVec pairs = bits - IntVec{};
#if defined(__ARM_NEON)
    return reinterpret_cast<Vec>(
        vbfdotq_f32(reinterpret_cast<float32x4_t>(sum), reinterpret_cast<bfloat16x8_t>(pairs), reinterpret_cast<bfloat16x8_t>(x)));
#else
    return reinterpret_cast<Vec>(
        _mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(pairs), reinterpret_cast<__m512bh>(x)));
#endif
}

#if defined(__ARM_NEON)
// The same with the weights in one lane of a vector.
REFUSION_INLINE Vec add_pair_products(Vec sum, Vec weights, int lane, Vec x) {
    const auto total = reinterpret_cast<float32x4_t>(sum);
    const auto pairs = reinterpret_cast<bfloat16x8_t>(x), factors = reinterpret_cast<bfloat16x8_t>(weights);
    switch (lane) {  // has to be a constant for the instruction
        case 0: return reinterpret_cast<Vec>(vbfdotq_laneq_f32(total, pairs, factors, 0));
        case 1: return reinterpret_cast<Vec>(vbfdotq_laneq_f32(total, pairs, factors, 1));
        case 2: return reinterpret_cast<Vec>(vbfdotq_laneq_f32(total, pairs, factors, 2));
        default: return reinterpret_cast<Vec>(vbfdotq_laneq_f32(total, pairs, factors, 3));
    }
}
#endif
#endif

// All bits set in the lanes whose column, counted from `first`, is below `end`.
REFUSION_INLINE IntVec lanes_below(int first, int end) {
#if REFUSION_LANES == 1
    return first < end ? -1 : 0;
#else
    IntVec column;
    for (int i = 0; i < lanes; ++i) column[i] = first + i;
    return column < end;
#endif
}

// The three pixels that a 3x3 convolution sees in one row: at a column, and one and two to its right.
struct Neighbors {
    Vec left, middle, right;
};

// Lanes `Shift` to `Shift + lanes - 1` of two vectors one after the other.
#if REFUSION_LANES == 16
#define REFUSION_SHIFTED(shift, x, y)                                                                                   \
    REFUSION_SHUFFLE(x, y, shift, shift + 1, shift + 2, shift + 3, shift + 4, shift + 5, shift + 6, shift + 7, shift + 8, \
                     shift + 9, shift + 10, shift + 11, shift + 12, shift + 13, shift + 14, shift + 15)
#elif REFUSION_LANES == 4 && defined(__ARM_NEON)
#define REFUSION_SHIFTED(shift, x, y) REFUSION_SHUFFLE(x, y, shift, shift + 1, shift + 2, shift + 3)
#endif
#if defined(__clang__)
#define REFUSION_SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
#define REFUSION_SHUFFLE(x, y, ...) __builtin_shuffle(x, y, IntVec{__VA_ARGS__})
#endif

REFUSION_INLINE Neighbors neighbors(const float* row) {
#if defined(REFUSION_SHIFTED)
    // Shuffles instead of loads that cross cache lines.
    const Vec here = load(row), next = load(row + lanes);
    return {here, REFUSION_SHIFTED(1, here, next), REFUSION_SHIFTED(2, here, next)};
#else
    return {load(row), load(row + 1), load(row + 2)};
#endif
}

// The sum of all lanes, in every lane.
REFUSION_INLINE Vec sum_of_lanes(Vec x) {
#if REFUSION_LANES == 16
    x += REFUSION_SHUFFLE(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    x += REFUSION_SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    x += REFUSION_SHUFFLE(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    x += REFUSION_SHUFFLE(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#elif REFUSION_LANES == 8
    x += REFUSION_SHUFFLE(x, x, 4, 5, 6, 7, 0, 1, 2, 3);
    x += REFUSION_SHUFFLE(x, x, 2, 3, 0, 1, 6, 7, 4, 5);
    x += REFUSION_SHUFFLE(x, x, 1, 0, 3, 2, 5, 4, 7, 6);
#elif REFUSION_LANES == 4
    x += REFUSION_SHUFFLE(x, x, 2, 3, 0, 1);
    x += REFUSION_SHUFFLE(x, x, 1, 0, 3, 2);
#endif
    return x;
}

}  // namespace refusion::REFUSION_ISA
