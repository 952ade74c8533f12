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

}  // namespace refusion::REFUSION_ISA
