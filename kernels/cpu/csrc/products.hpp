// Matrix products of features with the channels innermost: pointwise convolutions, attention between channels, and their
// gradients.
//
// Vectors run along the channels of the result. A register block is `output_block` pixels (or rows) by `vector_block` vectors.
#pragma once

#include <cstddef>

#include "kernels.hpp"
#include "register_block.hpp"
#include "simd.hpp"

namespace refusion::REFUSION_ISA {

// Some pixels of a product: `Vectors` vectors of their outputs, from `channel` on.
template <int Pixels, int Vectors>
REFUSION_INLINE void run_block(const Product& product, std::ptrdiff_t pixel, int channel) {
    const float* x = product.x.at(pixel);
    const float* weights = product.weights + channel;
    Vec sums[Pixels][Vectors]{};
#pragma GCC unroll 1
    for (int input = 0; input < product.inputs; ++input, weights += product.outputs) {
        Vec row[Vectors];
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) row[v] = load(weights + v * lanes);
#pragma GCC unroll 8
        for (int p = 0; p < Pixels; ++p) {
            const Vec number = broadcast(x[p * product.x.pitch + input]);
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) sums[p][v] += number * row[v];
        }
    }
#pragma GCC unroll 8
    for (int p = 0; p < Pixels; ++p) {
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) {
            const int first = channel + v * lanes;
            if (product.added.data) {
                const Vec added = load(product.added.at(pixel + p) + first);
                sums[p][v] += product.factors ? added * load(product.factors + first) : added;
            }
            store(product.y.at(pixel + p) + first, sums[p][v]);
        }
    }
}

// Some rows, channels of a, of a sum of outer products: `Vectors` vectors of columns, channels of b, from `column` on.
template <int Rows, int Vectors>
REFUSION_INLINE void run_block(const OuterProducts& outer, std::ptrdiff_t row, int column) {
    const float *a = outer.a.data + row, *b = outer.b.data + column;
    Vec sums[Rows][Vectors]{};
#pragma GCC unroll 1
    for (std::ptrdiff_t pixel = 0; pixel < outer.pixels; ++pixel, a += outer.a.pitch, b += outer.b.pitch) {
        Vec columns[Vectors];
#pragma GCC unroll 4
        for (int v = 0; v < Vectors; ++v) columns[v] = load(b + v * lanes);
#pragma GCC unroll 8
        for (int r = 0; r < Rows; ++r) {
            const Vec number = broadcast(a[r]);
#pragma GCC unroll 4
            for (int v = 0; v < Vectors; ++v) sums[r][v] += number * columns[v];
        }
    }
    for (int r = 0; r < Rows; ++r) {
        for (int v = 0; v < Vectors; ++v) {
            float* to = outer.sums + (row + r) * outer.columns + column + v * lanes;
            store(to, load(to) + sums[r][v]);
        }
    }
}

// Calls run_block<Rows, Vectors>(job, row, column) until `rows` rows by `columns` columns, a multiple of the lanes, are covered.
template <int Vectors, class Job>
REFUSION_INLINE void cover_rows(const Job& job, std::ptrdiff_t rows, int column) {
    std::ptrdiff_t row = 0;
    for (; row + output_block <= rows; row += output_block) run_block<output_block, Vectors>(job, row, column);
    for (; row < rows; ++row) run_block<1, Vectors>(job, row, column);
}
template <class Job>
REFUSION_INLINE void cover(const Job& job, std::ptrdiff_t rows, int columns) {
    static_assert(vector_block == 2 || vector_block == 3);
    int column = 0;
    for (; column + vector_block * lanes <= columns; column += vector_block * lanes) cover_rows<vector_block>(job, rows, column);
    if constexpr (vector_block > 2) {
        if (column + 2 * lanes <= columns) {
            cover_rows<2>(job, rows, column);
            column += 2 * lanes;
        }
    }
    if (column < columns) cover_rows<1>(job, rows, column);
}

static void run_product(const Product& product) { cover(product, product.pixels, product.outputs); }
static void add_outer_products(const OuterProducts& outer) { cover(outer, outer.rows, outer.columns); }

static void add_dot_products(const DotProducts& dot) {
    constexpr int chains = 4;
    for (int channel = 0; channel < dot.channels; channel += lanes) {
        Vec sums[chains]{};
        const auto add = [&](std::ptrdiff_t pixel, int chain) { sums[chain] += load(dot.a.at(pixel) + channel) * load(dot.b.at(pixel) + channel); };
        std::ptrdiff_t pixel = 0;
#pragma GCC unroll 1
        for (; pixel + chains <= dot.pixels; pixel += chains) {
#pragma GCC unroll 4
            for (int chain = 0; chain < chains; ++chain) add(pixel + chain, chain);
        }
        for (; pixel < dot.pixels; ++pixel) add(pixel, 0);
        store(dot.sums + channel, load(dot.sums + channel) + ((sums[0] + sums[1]) + (sums[2] + sums[3])));
    }
}

}  // namespace refusion::REFUSION_ISA
