// Rounding to bf16 without the instructions for it.
#pragma once

#include <cstdint>
#include <cstring>

namespace refusion {

// The upper half of a number, rounded to the nearest, ties to even. Forced inline, as every set must have its own copy.
__attribute__((always_inline)) inline std::uint16_t to_bf16(float number) {
    std::uint32_t bits;
    std::memcpy(&bits, &number, sizeof bits);
    if (number != number) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
    return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace refusion
