// 3x3 convolution of one channel, two rows at a time.
#pragma once

#include "simd.hpp"

namespace refusion::REFUSION_ISA {

// Four consecutive rows of one channel; the column to the left of the first result is column 0.
struct Rows {
    const float* row[4];
};

// A ring of four rows of one channel: the rows that end with the one in `last_slot`, oldest first.
REFUSION_INLINE Rows ring_rows(const float* ring, int pitch, int last_slot) {
    return {{ring + ((last_slot + 1) & 3) * pitch, ring + ((last_slot + 2) & 3) * pitch, ring + ((last_slot + 3) & 3) * pitch,
             ring + (last_slot & 3) * pitch}};
}

struct RowPair {
    Vec top, bottom;
};

// The convolution at rows 1 and 2 of the four, for the vector of results that starts at `column`.
//
// Every result is summed in the same order whether it is the top or the bottom one of its pair.
REFUSION_INLINE RowPair depthwise(const Rows& rows, int column, const float* taps) {
    RowPair sum{};
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
        const Neighbors x = neighbors(rows.row[i] + column);
        if (i < 3) {
            sum.top += x.left * taps[3 * i];
            sum.top += x.middle * taps[3 * i + 1];
            sum.top += x.right * taps[3 * i + 2];
        }
        if (i > 0) {
            sum.bottom += x.left * taps[3 * i - 3];
            sum.bottom += x.middle * taps[3 * i - 2];
            sum.bottom += x.right * taps[3 * i - 1];
        }
    }
    return sum;
}

// The same for `Vectors` vectors of results from `column` on; out(vector, pair) takes them.
template <int Vectors, class Out>
REFUSION_INLINE void depthwise_block(const Rows& rows, int column, const Vec (&taps)[9], const Out& out) {
    RowPair sums[Vectors];
#pragma GCC unroll 4
    for (int row = 0; row < 4; ++row) {
#pragma GCC unroll 3
        for (int i = 0; i < 3; ++i) {
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) {
                const Vec x = in_register(load(rows.row[row] + column + i + v * lanes));
                if (row < 3) sums[v].top = row == 0 && i == 0 ? taps[0] * x : sums[v].top + taps[3 * row + i] * x;
                if (row > 0) sums[v].bottom = row == 1 && i == 0 ? taps[0] * x : sums[v].bottom + taps[3 * row - 3 + i] * x;
            }
        }
    }
#pragma GCC unroll 4
    for (int v = 0; v < Vectors; ++v) out(column / lanes + v, sums[v]);
}

// One vector of results with few registers. The products of each row are added up on their own: what waits for one another is
// a third as long, and x86 adds beside its multiply-adds.
REFUSION_INLINE RowPair depthwise_vector(const Rows& rows, int column, const Vec (&taps)[9]) {
    RowPair sum;
#pragma GCC unroll 4
    for (int row = 0; row < 4; ++row) {
        const float* x = rows.row[row] + column;
        const Vec left = in_register(load(x)), middle = in_register(load(x + 1)), right = in_register(load(x + 2));
        const auto products = [&](int tap) { return taps[tap] * left + taps[tap + 1] * middle + taps[tap + 2] * right; };
        if (row < 3) sum.top = row == 0 ? products(0) : sum.top + products(3 * row);
        if (row > 0) sum.bottom = row == 1 ? products(0) : sum.bottom + products(3 * row - 3);
    }
    return sum;
}

// The same along the rows, for `vectors` vectors of results.
template <class Out>
REFUSION_INLINE void depthwise_rows(const Rows& rows, int vectors, const float* taps, const Out& out) {
    Vec kept[9];
#pragma GCC unroll 9
    for (int i = 0; i < 9; ++i) kept[i] = broadcast(taps[i]);
    if constexpr (few_registers) {
#pragma GCC unroll 1
        for (int v = 0; v < vectors; ++v) out(v, depthwise_vector(rows, v * lanes, kept));
        return;
    }
    int v = 0;
#pragma GCC unroll 1
    for (; v + 2 <= vectors; v += 2) depthwise_block<2>(rows, v * lanes, kept, out);
    if (v < vectors) depthwise_block<1>(rows, v * lanes, kept, out);
}

}  // namespace refusion::REFUSION_ISA
