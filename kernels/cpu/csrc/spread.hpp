// 3x3 convolution of every channel on its own, alone or gated, with the channels innermost; its forward mode and its gradient.
//
// Vectors run along the channels. A row is convolved from left to right: every column of three numbers is read once and adds
// to the results to its left, at it, and to its right, so that the running sums are all that has to stay in registers.
#pragma once

#include <cstddef>

#include "activation.hpp"
#include "kernels.hpp"
#include "simd.hpp"

namespace refusion::REFUSION_ISA {

// A number and its derivative along one direction.
struct Dual {
    Vec value, tangent;
};

REFUSION_INLINE Dual operator*(Dual x, Dual y) { return {x.value * y.value, x.tangent * y.value + x.value * y.tangent}; }
REFUSION_INLINE void add_product(Vec& sum, Vec x, Vec y) { sum += x * y; }
REFUSION_INLINE void add_product(Dual& sum, Dual x, Dual y) {
    sum.value += x.value * y.value;
    sum.tangent += x.tangent * y.value;
    sum.tangent += x.value * y.tangent;
}
REFUSION_INLINE Dual gelu(Dual x) {
    const GeluWithSlope activated = gelu_with_slope(x.value);
    return {activated.value, activated.slope * x.tangent};
}

// A row of pixels at some channels; the step is 0 where every pixel is the same.
struct PixelRow {
    const float* data;
    std::ptrdiff_t step;

    REFUSION_INLINE Vec at(int column) const { return load(data + column * step); }
};
template <class Number>
struct RowOf;
template <>
struct RowOf<Vec> {
    PixelRow value;
    REFUSION_INLINE Vec at(int column) const { return value.at(column); }
};
template <>
struct RowOf<Dual> {
    PixelRow value, tangent;
    REFUSION_INLINE Dual at(int column) const { return {value.at(column), tangent.at(column)}; }
};

// The nine taps of `lanes` channels.
template <class Number>
struct Taps {
    Number at[3][3];
};

// Above and below the image there is nothing but zeros.
alignas(64) inline constexpr float no_pixel[REFUSION_LANES] = {};

REFUSION_INLINE PixelRow pixel_row(const RowsView& rows, int height, int row, int channel) {
    if (row < 0 || row >= height) return {no_pixel, 0};
    return {rows.at(row, channel), rows.pitch};
}

template <class Number>
RowOf<Number> input_row(const SpreadOperand& operand, int height, int row, int channel);
template <>
REFUSION_INLINE RowOf<Vec> input_row<Vec>(const SpreadOperand& operand, int height, int row, int channel) {
    return {pixel_row(operand.x, height, row, channel)};
}
template <>
REFUSION_INLINE RowOf<Dual> input_row<Dual>(const SpreadOperand& operand, int height, int row, int channel) {
    return {pixel_row(operand.x, height, row, channel), pixel_row(operand.x_tangent, height, row, channel)};
}

// Out of packed taps, see kernels.hpp.
template <class Number>
Taps<Number> taps_of(const SpreadOperand& operand, int channel);
template <>
REFUSION_INLINE Taps<Vec> taps_of<Vec>(const SpreadOperand& operand, int channel) {
    Taps<Vec> taps;
    for (int i = 0; i < 9; ++i) taps.at[i / 3][i % 3] = load(operand.taps + 9 * channel + i * lanes);
    return taps;
}
template <>
REFUSION_INLINE Taps<Dual> taps_of<Dual>(const SpreadOperand& operand, int channel) {
    Taps<Dual> taps;
    for (int i = 0; i < 9; ++i) {
        const std::ptrdiff_t offset = 9 * channel + i * lanes;
        taps.at[i / 3][i % 3] = {load(operand.taps + offset), load(operand.taps_tangent + offset)};
    }
    return taps;
}

// The transposed convolution is one with the taps turned by 180 degrees.
REFUSION_INLINE Taps<Vec> turned(const Taps<Vec>& taps) {
    Taps<Vec> result;
    for (int i = 0; i < 9; ++i) result.at[i / 3][i % 3] = taps.at[2 - i / 3][2 - i % 3];
    return result;
}

// Calls sink(column, sums) for every pixel of a row, with the sums of all operands.
template <int Operands, class Number, class Sink>
REFUSION_INLINE void convolve_row(const RowOf<Number> (&rows)[Operands][3], const Taps<Number> (&taps)[Operands], int width,
                                  const Sink& sink) {
    Number left[Operands]{}, here[Operands]{};
#pragma GCC unroll 1
    for (int column = 0; column < width; ++column) {
        Number right[Operands]{};
#pragma GCC unroll 2
        for (int n = 0; n < Operands; ++n) {
#pragma GCC unroll 3
            for (int i = 0; i < 3; ++i) {
                const Number x = rows[n][i].at(column);
                add_product(left[n], x, taps[n].at[i][2]);
                add_product(here[n], x, taps[n].at[i][1]);
                add_product(right[n], x, taps[n].at[i][0]);
            }
        }
        if (column > 0) sink(column - 1, left);
#pragma GCC unroll 2
        for (int n = 0; n < Operands; ++n) {
            left[n] = here[n];
            here[n] = right[n];
        }
    }
    sink(width - 1, left);
}

// Stores what a pass makes of a pixel: the value, or the value and its tangent.
struct Target {
    float *value, *change;
    std::ptrdiff_t step, change_step;

    REFUSION_INLINE void take(int column, Vec x) const { store(value + column * step, x); }
    REFUSION_INLINE void take(int column, Dual x) const {
        store(value + column * step, x.value);
        store(change + column * change_step, x.tangent);
    }
};

template <int Operands>
struct Spread {
    static constexpr bool gated = Operands == 2;

    // y, and its tangent if Number has one.
    template <class Number>
    static void run(const SpreadRow& job) {
        for (int channel = 0; channel < job.channels; channel += lanes) {
            RowOf<Number> rows[Operands][3];
            Taps<Number> taps[Operands];
            take_operands(job, channel, rows, taps);
            const Target y{job.y.at(job.row, channel), job.y_change.data ? job.y_change.at(job.row, channel) : nullptr, job.y.pitch,
                           job.y_change.pitch};
            convolve_row(rows, taps, job.width, [&](int column, const Number(&sums)[Operands]) {
                if constexpr (gated) {
                    y.take(column, gelu(sums[0]) * sums[1]);
                } else {
                    y.take(column, sums[0]);
                }
            });
        }
    }

    template <class Number>
    static REFUSION_INLINE void take_operands(const SpreadRow& job, int channel, RowOf<Number> (&rows)[Operands][3],
                                              Taps<Number> (&taps)[Operands]) {
        for (int n = 0; n < Operands; ++n) {
            for (int i = 0; i < 3; ++i) rows[n][i] = input_row<Number>(job.operands[n], job.height, job.row - 1 + i, channel);
            taps[n] = taps_of<Number>(job.operands[n], channel);
        }
    }
};

// The slopes of both convolutions of a gate at one row, out of that of y: what they were is computed again, and y with it.
static void gate_slopes(const SpreadRow& job) {
    for (int channel = 0; channel < job.channels; channel += lanes) {
        RowOf<Vec> rows[2][3];
        Taps<Vec> taps[2];
        Spread<2>::take_operands(job, channel, rows, taps);
        const PixelRow outer{job.y_change.at(job.row, channel), job.y_change.pitch};
        const RowsView &gate = job.operands[0].slopes, &update = job.operands[1].slopes;
        float *y = job.y.at(job.row, channel), *of_gate = gate.at(job.row, channel), *of_update = update.at(job.row, channel);
        convolve_row(rows, taps, job.width, [&](int column, const Vec(&sums)[2]) {
            const Vec slope = outer.at(column);
            const GeluWithSlope activated = gelu_with_slope(sums[0]);
            store(y + column * job.y.pitch, activated.value * sums[1]);
            store(of_gate + column * gate.pitch, slope * sums[1] * activated.slope);
            store(of_update + column * update.pitch, slope * activated.value);
        });
    }
}

// Adds to the gradient of the taps what one row of results contributes: floats along the row, doubles from row to row.
static void taps_gradient(const SpreadRow& job) {
    const SpreadOperand& operand = job.operands[0];
    for (int channel = 0; channel < job.channels; channel += lanes) {
        RowOf<Vec> rows[3];
        for (int i = 0; i < 3; ++i) rows[i] = input_row<Vec>(operand, job.height, job.row - 1 + i, channel);
        const PixelRow slopes{operand.slopes.at(job.row, channel), operand.slopes.pitch};
        Vec sums[3][3]{};
        Vec before{}, here = slopes.at(0);
        const auto add_column = [&](int column, Vec after) {
#pragma GCC unroll 3
            for (int i = 0; i < 3; ++i) {
                const Vec x = rows[i].at(column);
                add_product(sums[i][0], x, after);
                add_product(sums[i][1], x, here);
                add_product(sums[i][2], x, before);
            }
            before = here;
            here = after;
        };
#pragma GCC unroll 1
        for (int column = 0; column + 1 < job.width; ++column) add_column(column, slopes.at(column + 1));
        add_column(job.width - 1, Vec{});
        double* gradient = operand.taps_gradient + 9 * channel;
        for (int i = 0; i < 9; ++i) {
            float along_row[lanes];
            store(along_row, sums[i / 3][i % 3]);
            for (int k = 0; k < lanes; ++k) gradient[i * lanes + k] += static_cast<double>(along_row[k]);
        }
    }
}

// One row of the gradient by x, out of the slopes of three.
static void spread_gradient(const SpreadRow& job) {
    const SpreadOperand& operand = job.operands[0];
    for (int channel = 0; channel < job.channels; channel += lanes) {
        RowOf<Vec> rows[1][3];
        for (int i = 0; i < 3; ++i) rows[0][i] = {pixel_row(operand.slopes, job.height, job.row - 1 + i, channel)};
        const Taps<Vec> taps[1] = {turned(taps_of<Vec>(operand, channel))};
        float* to = operand.x_gradient.at(job.row, channel);
        convolve_row(rows, taps, job.width,
                     [&](int column, const Vec(&sums)[1]) { store(to + column * operand.x_gradient.pitch, sums[0]); });
    }
}

}  // namespace refusion::REFUSION_ISA
