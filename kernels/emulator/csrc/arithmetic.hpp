// What single lanes compute, for everything that C++ has no operator for. Source: PTX ISA, section of each instruction.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "half.hpp"

namespace emulator {

// .ftz: subnormal values are zeros of the same sign.
inline float flushed(float value) { return std::fabs(value) < 0x1p-126f ? std::copysign(0.0f, value) : value; }

inline std::uint32_t shift_left(std::uint32_t value, std::uint32_t by) { return by > 31 ? 0 : value << by; }
inline std::uint32_t shift_right(std::uint32_t value, std::uint32_t by) { return by > 31 ? 0 : value >> by; }
inline std::uint64_t shift_left(std::uint64_t value, std::uint32_t by) { return by > 63 ? 0 : value << by; }

// bfe: a field of `length` bits from bit `start`; signed ones repeat the field's upper bit, or bit 31 beyond the word.
inline std::uint32_t bit_field(std::uint32_t value, std::uint32_t start, std::uint32_t length, bool is_signed) {
    start &= 0xff;
    length &= 0xff;
    const std::uint32_t top = std::min(start + length - 1, 31u);
    const std::uint32_t fill = is_signed && length > 0 && (value >> top & 1) ? 0xffffffff : 0;
    const std::uint32_t mask = length > 31 ? 0xffffffff : (1u << length) - 1;
    const std::uint32_t field = shift_right(value, start) & mask;
    if (start > 31) return fill;
    const std::uint32_t present = top - start + 1;
    return length == 0 ? 0 : present > 31 ? field : field | (fill << present);
}

// prmt: each digit of the selector names one of eight bytes, or with its upper bit, eight copies of that byte's sign.
inline std::uint32_t permuted(std::uint32_t a, std::uint32_t b, std::uint32_t selector) {
    const std::uint64_t bytes = a | static_cast<std::uint64_t>(b) << 32;
    std::uint32_t result = 0;
    for (int k = 0; k < 4; ++k) {
        const std::uint32_t digit = selector >> 4 * k & 0xf;
        std::uint32_t byte = static_cast<std::uint32_t>(bytes >> 8 * (digit & 7)) & 0xff;
        if (digit & 8) byte = byte & 0x80 ? 0xff : 0;
        result |= byte << 8 * k;
    }
    return result;
}

// min and max: a NaN loses against a number, and -0 is less than +0.
inline float least(float a, float b) {
    if (a == b) return as_float(as_bits(a) | as_bits(b));
    return a < b || b != b ? a : b;
}
inline float most(float a, float b) {
    if (a == b) return as_float(as_bits(a) & as_bits(b));
    return a > b || b != b ? a : b;
}
// max.NaN: a NaN wins.
inline float most_or_nan(float a, float b) { return a != a || b != b ? as_float(kNan) : most(a, b); }

// div.approx: computed as a * (1 / b), and 1 / b is subnormal and zero for large b.
inline float approximate_quotient(float a, float b) {
    const float magnitude = std::fabs(b);
    if (magnitude > 0x1p126f && !std::isinf(b)) return std::isinf(a) || a != a ? as_float(kNan) : std::copysign(0.0f, a) * std::copysign(1.0f, b);
    return a / b;
}

inline std::uint32_t to_uint16(float value) {
    if (value != value) return 0;
    return static_cast<std::uint32_t>(std::min(std::max(std::trunc(value), 0.0f), 65535.0f));
}

}  // namespace emulator
