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
REFUSION_INLINE Dual gelu(Dual x) { return {gelu(x.value), gelu_slope(x.value) * x.tangent}; }

// What a pass is for: the values, or the derivatives next to them.
REFUSION_INLINE Vec wanted(Vec x) { return x; }
REFUSION_INLINE Vec wanted(Dual x) { return x.tangent; }

// A row of pixels at some channels; the step is 0 where every pixel is the same.
struct PixelRow {
    const float* data;
    std::ptrdiff_t step;
    std::ptrdiff_t below;  // numbers from a pixel to the one below, 0 at the end

    REFUSION_INLINE Vec at(int column) const { return load(data + column * step); }
    // What the next row will read: the channels of one vector lie too far apart for the processor to foresee it.
    REFUSION_INLINE void fetch_below(int column) const { __builtin_prefetch(data + column * step + below); }
};
template <class Number>
struct RowOf;
template <>
struct RowOf<Vec> {
    PixelRow value;
    REFUSION_INLINE Vec at(int column) const { return value.at(column); }
    REFUSION_INLINE void fetch_below(int column) const { value.fetch_below(column); }
};
template <>
struct RowOf<Dual> {
    PixelRow value, tangent;
    REFUSION_INLINE Dual at(int column) const { return {value.at(column), tangent.at(column)}; }
    REFUSION_INLINE void fetch_below(int column) const {
        value.fetch_below(column);
        tangent.fetch_below(column);
    }
};

// The nine taps of `lanes` channels.
template <class Number>
struct Taps {
    Number at[3][3];
};

// Above and below the picture there is nothing but zeros.
alignas(64) inline constexpr float no_pixel[REFUSION_LANES] = {};

REFUSION_INLINE PixelRow pixel_row(const float* data, std::ptrdiff_t pitch, const SpreadBand& band, int row, int channel) {
    if (row < 0 || row >= band.height) return {no_pixel, 0, 0};
    const std::ptrdiff_t below = band.width * pitch;
    return {data + row * below + channel, pitch, row + 1 < band.height ? below : 0};
}

template <class Number>
RowOf<Number> input_row(const SpreadBand& band, const SpreadOperand& operand, int row, int channel);
template <>
REFUSION_INLINE RowOf<Vec> input_row<Vec>(const SpreadBand& band, const SpreadOperand& operand, int row, int channel) {
    return {pixel_row(operand.x, operand.x_pitch, band, row, channel)};
}
template <>
REFUSION_INLINE RowOf<Dual> input_row<Dual>(const SpreadBand& band, const SpreadOperand& operand, int row, int channel) {
    return {pixel_row(operand.x, operand.x_pitch, band, row, channel),
            pixel_row(operand.x_tangent, operand.x_tangent_pitch, band, row, channel)};
}

// Packed taps: for every run of `lanes` channels, tap by tap, those of its channels.
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
                if (i == 2) rows[n][i].fetch_below(column);
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

// Adds to the gradient of the taps what one row of results contributes: floats along the row, doubles from row to row.
REFUSION_INLINE void add_taps_gradient(const RowOf<Vec> (&rows)[3], const RowOf<Vec>& slopes, int width, double* gradient) {
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
    for (int column = 0; column + 1 < width; ++column) add_column(column, slopes.at(column + 1));
    add_column(width - 1, Vec{});
    for (int i = 0; i < 9; ++i) {
        float along_row[lanes];
        store(along_row, sums[i / 3][i % 3]);
        for (int k = 0; k < lanes; ++k) gradient[i * lanes + k] += static_cast<double>(along_row[k]);
    }
}

template <int Operands>
struct Spread {
    static constexpr bool gated = Operands == 2;

    template <class Number>
    static REFUSION_INLINE void take_input_rows(const SpreadBand& band, int row, int channel, RowOf<Number> (&rows)[Operands][3]) {
        for (int n = 0; n < Operands; ++n) {
            for (int i = 0; i < 3; ++i) rows[n][i] = input_row<Number>(band, band.operands[n], row - 1 + i, channel);
        }
    }

    template <class Number>
    static REFUSION_INLINE void take_taps(const SpreadBand& band, int channel, Taps<Number> (&taps)[Operands]) {
        for (int n = 0; n < Operands; ++n) taps[n] = taps_of<Number>(band.operands[n], channel);
    }

    // y, or its derivative.
    template <class Number>
    static void run(const SpreadBand& band) {
        for (int row = band.top; row < band.bottom; ++row) {
            for (int channel = 0; channel < band.channels; channel += lanes) {
                RowOf<Number> rows[Operands][3];
                Taps<Number> taps[Operands];
                take_input_rows(band, row, channel, rows);
                take_taps(band, channel, taps);
                const PixelRow target = pixel_row(band.y, band.y_pitch, band, row, channel);
                float* y = band.y + static_cast<std::ptrdiff_t>(row) * band.width * band.y_pitch + channel;
                convolve_row(rows, taps, band.width, [&](int column, const Number(&sums)[Operands]) {
                    target.fetch_below(column);
                    if constexpr (gated) {
                        store(y + column * band.y_pitch, wanted(gelu(sums[0]) * sums[1]));
                    } else {
                        store(y + column * band.y_pitch, wanted(sums[0]));
                    }
                });
            }
        }
    }

    // The slopes of the convolutions at one row, out of that of y: what they were is computed again.
    static REFUSION_INLINE void make_slopes(const SpreadBand& band, int row, int channel, float* const (&slopes)[Operands]) {
        RowOf<Vec> rows[Operands][3];
        Taps<Vec> taps[Operands];
        take_input_rows(band, row, channel, rows);
        take_taps(band, channel, taps);
        const PixelRow outer = pixel_row(band.y, band.y_pitch, band, row, channel);
        convolve_row(rows, taps, band.width, [&](int column, const Vec(&sums)[Operands]) {
            const Vec slope = outer.at(column);
            outer.fetch_below(column);
            const GeluWithSlope activated = gelu_with_slope(sums[0]);
            store(slopes[0] + column * lanes, slope * sums[Operands - 1] * activated.slope);
            store(slopes[Operands - 1] + column * lanes, slope * activated.value);
        });
    }

    // Gradients of the inputs and of the taps, one row behind the other: row by row, all that is needed is still in the
    // caches. The scratch is a ring of three rows of slopes for each operand.
    static void gradient(const SpreadBand& band, float* scratch) {
        const std::ptrdiff_t row_size = static_cast<std::ptrdiff_t>(band.width) * band.channels;
        const auto ring_row = [&](int n, int row, int channel) {
            return scratch + (3 * n + (row + 3) % 3) * row_size + static_cast<std::ptrdiff_t>(channel) * band.width;
        };
        const auto slope_row = [&](int n, int row, int channel) -> RowOf<Vec> {
            if (!gated || row < 0 || row >= band.height) return {pixel_row(band.y, band.y_pitch, band, row, channel)};
            return {{ring_row(n, row, channel), lanes, 0}};
        };
        for (int row = band.top - 1; row <= band.bottom; ++row) {
            for (int channel = 0; channel < band.channels; channel += lanes) {
                if constexpr (gated) {
                    if (row >= 0 && row < band.height) {
                        make_slopes(band, row, channel, {ring_row(0, row, channel), ring_row(1, row, channel)});
                    }
                }
                for (int n = 0; n < Operands; ++n) {
                    const SpreadOperand& operand = band.operands[n];
                    if (row >= band.top && row < band.bottom) {
                        RowOf<Vec> rows[3];
                        for (int i = 0; i < 3; ++i) rows[i] = input_row<Vec>(band, operand, row - 1 + i, channel);
                        add_taps_gradient(rows, slope_row(n, row, channel), band.width, operand.taps_gradient + 9 * channel);
                    }
                    if (row > band.top) {
                        RowOf<Vec> rows[1][3];
                        for (int i = 0; i < 3; ++i) rows[0][i] = slope_row(n, row - 2 + i, channel);
                        const Taps<Vec> taps[1] = {turned(taps_of<Vec>(operand, channel))};
                        const std::ptrdiff_t pitch = operand.x_gradient_pitch;
                        const PixelRow target = pixel_row(operand.x_gradient, pitch, band, row - 1, channel);
                        float* to = operand.x_gradient + static_cast<std::ptrdiff_t>(row - 1) * band.width * pitch + channel;
                        convolve_row(rows, taps, band.width, [&](int column, const Vec(&sums)[1]) {
                            target.fetch_below(column);
                            store(to + column * pitch, sums[0]);
                        });
                    }
                }
            }
        }
    }
};

}  // namespace refusion::REFUSION_ISA
