// 3x3 convolutions with zeros around the image, four rows at a time, by Winograd's F(4, 3) down the columns.
#pragma once

#include "convolution_weights.hpp"
#include "numbers.hpp"

namespace refusion::REFUSION_ISA {

inline constexpr int convolution_outputs = REFUSION_CONVOLUTION_OUTPUTS;
inline constexpr int convolution_vectors = REFUSION_CONVOLUTION_VECTORS;

// Register blocks side by side whose mixed inputs fit into the first cache together.
inline constexpr int convolution_block_bytes = convolution_vectors * static_cast<int>(sizeof(Numbers));
inline constexpr int convolution_blocks = 128 / convolution_block_bytes < 1 ? 1 : 128 / convolution_block_bytes;
inline constexpr int convolution_columns = convolution_blocks * convolution_vectors * number_lanes;
inline constexpr int mix_columns = (convolution_columns + 2 + number_lanes - 1) / number_lanes * number_lanes;  // with a neighbor at both sides

inline constexpr int rows_in_ring = kConvolutionRows + 2;  // rows that the next layer sees at a time

inline constexpr float convolution_root = 0.70710678118654752f;  // 1/sqrt 2, the first of the points; the other is twice as much

// The last rows of some channels, those of a row one after the other.
struct Ring {
    Number* data;
    int channels;
    std::ptrdiff_t pitch;

    // Counts rows from -96 on.
    Number* row(int index) const { return data + (index + 96) % rows_in_ring * (channels * pitch); }
    void clear(int index) const { std::memset(row(index), 0, sizeof(Number) * static_cast<unsigned long>(channels * pitch)); }
};

// Six rows of one channel become six mixes, for one block of columns.
REFUSION_INLINE void mix_rows(const Number* const (&rows)[rows_in_ring], Number* mixes, std::ptrdiff_t mix_pitch) {
    for (int at = 0; at < mix_columns; at += number_lanes) {
        Numbers x[rows_in_ring];
#pragma GCC unroll 6
        for (int i = 0; i < rows_in_ring; ++i) x[i] = load(rows[i] + at);
        const Numbers even = x[4] - repeated(2.0f) * x[2], odd = x[3] - repeated(2.0f) * x[1];
        const Numbers even_2 = x[4] - repeated(0.5f) * x[2], odd_2 = x[3] - repeated(0.5f) * x[1];
        Number* y = mixes + at;
        store(y, x[0] + x[4] - repeated(2.5f) * x[2]);
        store(y + mix_pitch, even + repeated(convolution_root) * odd);
        store(y + 2 * mix_pitch, even - repeated(convolution_root) * odd);
        store(y + 3 * mix_pitch, even_2 + repeated(2 * convolution_root) * odd_2);
        store(y + 4 * mix_pitch, even_2 - repeated(2 * convolution_root) * odd_2);
        store(y + 5 * mix_pitch, x[1] + x[5] - repeated(2.5f) * x[3]);
    }
}

// A register block of a convolution: `Outputs` outputs in four rows of `Vectors` vectors.
template <int Outputs, int Vectors>
inline void convolve_block(const Number* __restrict mixes, int inputs, const Number* __restrict weights, const float* biases, float slope,
                           Number* const (&to)[kConvolutionRows], std::ptrdiff_t to_pitch) {
    Numbers products[kConvolutionMixes][Outputs][Vectors];
#pragma GCC unroll 1
    for (int mix = 0; mix < kConvolutionMixes; ++mix) {
        Numbers sums[Outputs][Vectors] = {};
#pragma GCC unroll 1
        for (int input = 0; input < inputs; ++input, mixes += mix_columns) {
            // Unrolled, GCC 12 keeps sums in memory.
#pragma GCC unroll 1
            for (int tap = 0; tap < 3; ++tap, weights += Outputs) {
                Numbers x[Vectors];
#pragma GCC unroll 8
                for (int v = 0; v < Vectors; ++v) x[v] = load(mixes + tap + v * number_lanes);
                add_products(sums, weights, x);
            }
        }
#pragma GCC unroll 8
        for (int o = 0; o < Outputs; ++o) {
#pragma GCC unroll 8
            for (int v = 0; v < Vectors; ++v) products[mix][o][v] = sums[o][v];
        }
    }
#pragma GCC unroll 1
    for (int o = 0; o < Outputs; ++o) {
        const Numbers bias = repeated(biases[o]), factor = repeated(slope);
#pragma GCC unroll 8
        for (int v = 0; v < Vectors; ++v) {
            const Numbers even = products[1][o][v] + products[2][o][v], odd = products[1][o][v] - products[2][o][v];
            const Numbers even_2 = products[3][o][v] + products[4][o][v], odd_2 = products[3][o][v] - products[4][o][v];
            const auto finish = [&](int row, Numbers y) { store(to[row] + o * to_pitch + v * number_lanes, most(y, factor * y)); };
            finish(0, products[0][o][v] + even + even_2 + bias);
            finish(1, repeated(convolution_root) * (odd + repeated(2.0f) * odd_2) + bias);
            finish(2, repeated(0.5f) * (even + repeated(4.0f) * even_2) + bias);
            finish(3, repeated(0.5f * convolution_root) * (odd + repeated(8.0f) * odd_2) + (products[5][o][v] + bias));
        }
    }
}

// `Outputs` outputs in four rows, columns [0, columns) of one block of columns.
template <int Outputs>
inline void convolve_columns(const Number* mixes, int inputs, const Number* weights, const float* biases, float slope,
                             Number* const (&to)[kConvolutionRows], std::ptrdiff_t to_pitch, int columns) {
    Number* rows[kConvolutionRows];
    for (int at = 0; at < columns && at < convolution_columns; at += convolution_vectors * number_lanes) {
        for (int i = 0; i < kConvolutionRows; ++i) rows[i] = to[i] + at;
        if (columns - at > (convolution_vectors - 1) * number_lanes) {
            convolve_block<Outputs, convolution_vectors>(mixes + at, inputs, weights, biases, slope, rows, to_pitch);
        } else if (convolution_vectors > 2 && columns - at > number_lanes) {
            convolve_block<Outputs, 2>(mixes + at, inputs, weights, biases, slope, rows, to_pitch);
        } else {
            convolve_block<Outputs, 1>(mixes + at, inputs, weights, biases, slope, rows, to_pitch);
        }
    }
}

// Four rows of one layer's result, columns [begin, end) of the rings.
inline void convolve_rows(const Convolution& layer, const Number* const (&from)[rows_in_ring], std::ptrdiff_t pitch, Number* mixes,
                          Number* const (&to)[kConvolutionRows], int begin, int end) {
    const std::ptrdiff_t mix_pitch = static_cast<std::ptrdiff_t>(layer.inputs) * mix_columns;
    for (int first = begin; first < end; first += convolution_columns) {
        for (int input = 0; input < layer.inputs; ++input) {
            const Number* rows[rows_in_ring];
            for (int i = 0; i < rows_in_ring; ++i) rows[i] = from[i] + input * pitch + first - 1;
            mix_rows(rows, mixes + input * mix_columns, mix_pitch);
        }
        const Number* weights = static_cast<const Number*>(layer.weights);
        const float* biases = layer.biases;
        for (int output = 0; output < layer.outputs;) {
            Number* rows[kConvolutionRows];
            for (int i = 0; i < kConvolutionRows; ++i) rows[i] = to[i] + output * pitch + first;
            const int count = next_output_block(layer.outputs - output, convolution_outputs);
            if (count == convolution_outputs) {
                convolve_columns<convolution_outputs>(mixes, layer.inputs, weights, biases, layer.slope, rows, pitch, end - first);
            } else if constexpr (8 % convolution_outputs != 0) {
                convolve_columns<4>(mixes, layer.inputs, weights, biases, layer.slope, rows, pitch, end - first);
            }
            output += count;
            weights += static_cast<std::ptrdiff_t>(kConvolutionMixes) * 3 * layer.inputs * count;
            biases += count;
        }
    }
}

}  // namespace refusion::REFUSION_ISA
