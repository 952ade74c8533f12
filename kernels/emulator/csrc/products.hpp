// The matrix products of tensor cores on plain arrays, and where their operands lie. Source: PTX ISA, "Matrix Fragments for
// mma.m16n8k16", "Register Fragments and Shared Memory Matrix Layouts" of wgmma, "Matrix Descriptor Format".
#pragma once

#include <cstdint>

namespace emulator {

// c (16 x n) += a (16 x 16) b (16 x n). Products of halves are exact in double, and the sum is rounded once.
void multiply(const float* a, const double* b, float* c, int n);

// A register of a 16-row fragment of half pairs (a of mma and wgmma): row and first column of a lane's pair.
struct Place {
    int row, column;
};
inline Place place_in_a(int register_index, int lane) { return {lane / 4 + 8 * (register_index & 1), 2 * (lane % 4) + 8 * (register_index >> 1)}; }
// Rows are k and columns n; a lane holds two rows.
inline Place place_in_b(int register_index, int lane) { return {2 * (lane % 4) + 8 * register_index, lane / 4}; }
// Accumulators, also those of wgmma beyond the first four registers.
inline Place place_in_c(int register_index, int lane) {
    return {lane / 4 + 8 * (register_index >> 1 & 1), 8 * (register_index / 4) + 2 * (lane % 4) + (register_index & 1)};
}

// Address in shared memory of element (major, k) of an operand of wgmma. Without transposition, k is innermost. `major` is the row
// of A or the column of B. In the layouts with a swizzle, bits 4 to 6 of an address are exclusive-ored with bits 7 to 9.
inline std::uint32_t descriptor_address(std::uint64_t descriptor, bool transposed, int major, int k) {
    const auto field = [descriptor](int shift) { return static_cast<std::uint32_t>(descriptor >> shift & 0x3fff) << 4; };
    const std::uint32_t start = field(0), leading = field(16), stride = field(32);
    const int mode = static_cast<int>(descriptor >> 62);            // 0: none. 1, 2, 3: 128, 64, 32 bytes
    const std::uint32_t row_bytes = mode == 0 ? 16 : 256u >> mode;  // of one row of a swizzle atom
    const auto m = static_cast<std::uint32_t>(major), n = static_cast<std::uint32_t>(k);
    std::uint32_t address = start;
    if (!transposed) {
        address += m % 8 * row_bytes + m / 8 * stride + (mode ? n * 2 : n % 8 * 2 + n / 8 * leading);
    } else {
        const std::uint32_t across = row_bytes / 2;
        address += m % across * 2 + n % 8 * row_bytes;
        address += mode ? m / across * leading + n / 8 * stride : m / across * stride + n / 8 * leading;
    }
    if (mode) address ^= (address >> 7 & ((1u << (4 - mode)) - 1)) << 4;
    return address;
}

}  // namespace emulator
