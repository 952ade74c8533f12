// Half precision and bits of floats, without instructions that only some processors have.
#pragma once

#include <cstdint>
#include <cstring>

namespace emulator {

inline float as_float(std::uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline std::uint32_t as_bits(float value) {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// PTX ISA, "Floating Point Instructions": a NaN that an instruction produces is this one.
inline constexpr std::uint32_t kNan = 0x7fffffff;
inline constexpr std::uint16_t kHalfNan = 0x7fff;

inline std::uint32_t canonical(float value) { return value != value ? kNan : as_bits(value); }

// The value of all 65 536 halves.
struct HalfTable {
    float value[1 << 16];

    HalfTable() {
        for (std::uint32_t half = 0; half < 1u << 16; ++half) {
            const std::uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, fraction = half & 0x3ff;
            if (exponent == 31) {
                value[half] = as_float(fraction ? kNan : sign | 0x7f800000u);
            } else if (exponent == 0) {
                const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
                value[half] = sign ? -magnitude : magnitude;
            } else {
                value[half] = as_float(sign | (exponent + 112) << 23 | fraction << 13);
            }
        }
    }
};

extern const HalfTable kHalves;

inline float from_half(std::uint32_t half) { return kHalves.value[half & 0xffff]; }

// To the nearest half, ties to even.
inline std::uint16_t to_half(float value) {
    std::uint32_t bits = as_bits(value);
    const std::uint16_t sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return kHalfNan;
    if (bits >= 0x477ff000) return sign | 0x7c00;  // from 65520, halfway between the largest half and the next power of two
    // Below 2^-14 halves are 2^-24 apart, as floats are just above 0.5: adding 0.5 rounds.
    if (bits < 0x38800000) return static_cast<std::uint16_t>(sign | (as_bits(as_float(bits) + 0.5f) - 0x3f000000));
    bits += 0xfff + (bits >> 13 & 1);
    return static_cast<std::uint16_t>(sign | (bits - (112u << 23)) >> 13);
}

}  // namespace emulator
