// What one instruction set offers: the passes over a strip of the image, as plain functions of plain structures.
//
// Layout of features in memory: row by row, in a row channel by channel, in a channel pixel by pixel ("planar rows").
// A layer norm then needs no shuffles, and a strip of a few rows is a handful of short contiguous pieces.
#pragma once

#include <cstddef>

#include "convolution_weights.hpp"
#include "plane.hpp"

namespace refusion {

// Where the pixels of some channels lie. Columns left of 0 and right of the width may be read: they belong to the
// buffer (another channel, or its margin), hold anything, and never influence a result.
struct FeatureView {
    float* data;               // channel 0 of row 0, column 0
    std::ptrdiff_t pitch;      // numbers from one channel to the next
    std::ptrdiff_t row_pitch;  // numbers from one row to the next

    float* at(std::ptrdiff_t row, std::ptrdiff_t column) const { return data + row * row_pitch + column; }
};

// The piece of an image that one call works on: columns [left, right), rows [top, bottom).
struct Tile {
    int height, width;  // of the image
    int left, right;
    int top, bottom;
};

// The three shapes of a transformer block. The fusion module is one, too: two groups of channels (the sources) attend
// crosswise, its gates see both and its updates one, and it has no layer norm.
struct EncoderShape {
    static constexpr int channels = 16, groups = 1, hidden = 32;
    static constexpr bool norm = true;
};
struct DecoderShape {
    static constexpr int channels = 32, groups = 1, hidden = 64;
    static constexpr bool norm = true;
};
struct FusionShape {
    static constexpr int channels = 32, groups = 2, hidden = 128;
    static constexpr bool norm = false;
};

// Products of queries and keys of one head: dim * dim of both, dim squares of the queries, dim of the keys.
template <class Shape>
struct HeadLayout {
    static constexpr int heads_per_group = 8;
    static constexpr int heads = heads_per_group * Shape::groups;
    static constexpr int dim = Shape::channels / heads;
    static constexpr int products = dim * dim + 2 * dim;
};

// Weights of a block. Pointwise weights are packed: for every run of `output_block` outputs, input by input, the
// weights of those outputs; in bf16 the 32 bits of a number hold those of two inputs, the first in the lower half. Biases
// are absent (null) where the block has no layer norm.
struct BlockWeights {
    const float *query, *query_bias;    // groups x (channels / groups)^2
    const float *key, *key_bias;
    const float *query_taps, *key_taps;  // channels x 9
    const float *value, *value_bias, *value_taps;
    const float *mix;  // attention and the projection behind it, one matrix per group; made anew for every image
    const float *gate, *gate_bias;    // hidden x channels
    const float *update, *update_bias;  // groups x (hidden / groups) x (channels / groups)
    const float *gate_taps, *update_taps;
    const float *out;  // channels x hidden
};

// Weights of the 3x3 convolutions.
struct DenseWeights {
    const float* lift_a;  // 1 -> 16, packed like pointwise ones over the taps
    const float* lift_b;
    Convolution narrow;  // 32 -> 16
    const float* last;   // 16 -> 1, not packed
};

// What kernels compute in. bf16: the operands of matrix products and of 3x3 convolutions between several channels; their sums
// and everything else are fp32.
// fp16: features, weights and sums of the network `fast`; its statistics and the composition of the result are fp32.
enum class Precision { fp32, bf16, fp16 };

// How kernels want their packed weights.
struct Packing {
    Precision precision;
    int output_block;
    ConvolutionPacking convolution;
};

// Pixels one after another, each with its channels side by side; a pitch counts the numbers from one pixel to the next.
template <class Number>
struct Pixels {
    Number* data;
    std::ptrdiff_t pitch;

    Number* at(std::ptrdiff_t pixel) const { return data + pixel * pitch; }
};

// y = x weights + factors * added, pixel by pixel: weights are inputs x outputs, outputs a multiple of the lanes.
struct Product {
    std::ptrdiff_t pixels;
    int inputs, outputs;
    Pixels<const float> x;
    const float* weights;
    Pixels<const float> added;  // absent: nothing is added; may be y itself
    const float* factors;       // one per output; absent: 1
    Pixels<float> y;
};

// sums += the outer products of a and b over all pixels, rows x columns: their channels. Columns are a multiple of the lanes.
struct OuterProducts {
    std::ptrdiff_t pixels;
    int rows, columns;
    Pixels<const float> a, b;
    float* sums;
};

// sums += the products of a and b over all pixels, channel by channel, a multiple of the lanes.
struct DotProducts {
    std::ptrdiff_t pixels;
    int channels;
    Pixels<const float> a, b;
    float* sums;
};

// Most channels of a layer norm of training.
inline constexpr int kNormChannels = 256;

// Layer norm over the channels of each pixel, a multiple of the lanes: y = normalized x * weight + bias.
struct Norm {
    std::ptrdiff_t pixels;
    int channels;
    Pixels<const float> x, x_tangent;
    const float *weight, *bias, *weight_tangent, *bias_tangent;
    Pixels<float> y, y_tangent;  // for the gradient y_tangent is read: it is that by y then
    Pixels<const float> added;   // to the gradient by x; may be absent
    Pixels<float> x_gradient;
    double *weight_gradient, *bias_gradient;  // are added to
};

// Rows of an image, or a ring of the last `period` of them.
struct RowsView {
    float* data;
    std::ptrdiff_t row_pitch, pitch;  // numbers from one row, from one pixel to the next; channels lie side by side
    int period;

    float* at(int row, int channel) const { return data + row % period * row_pitch + channel; }
};

// What one 3x3 convolution of every channel on its own reads and, for its derivatives, reads and writes besides. Taps are
// packed: for every run of `lanes` channels, tap by tap, those of its channels.
struct SpreadOperand {
    RowsView x, x_tangent;
    RowsView slopes;  // gradient by the result of the convolution
    RowsView x_gradient;
    const float *taps, *taps_tangent;
    double* taps_gradient;  // is added to
};

// One row of y, the convolution of one operand, or gelu(that of the first) * that of the second. Channels are a multiple of the lanes.
struct SpreadRow {
    int height, width, channels;
    int row;
    SpreadOperand operands[2];
    RowsView y, y_change;  // y_change: the tangent, which is written, or the gradient by y, which is read
};

struct Kernels {
    const char* isa;
    int lanes;
    Packing packing;
    int scratch_bytes;  // of one thread, at most: wider strips overlap less, and narrower ones stay in a smaller cache

    // First convolution of one source. Returns whether all pixels it read are finite.
    bool (*lift)(const Tile&, const PlaneView& from, const FeatureView& to, const float* weights, float* scratch);
    // Pass 1 of a block: products of queries and keys over the tile, added up in double; see HeadLayout.
    void (*statistics[3])(const Tile&, const FeatureView& from, const BlockWeights&, double* products, float* scratch);
    // Pass 2 of a block: everything else.
    void (*transform[3])(const Tile&, const FeatureView& from, const FeatureView& to, const BlockWeights&, float* scratch);
    // Last two convolutions, and the numbers of scratch that they need for tiles of so many columns.
    std::size_t (*project_scratch)(int columns);
    void (*project)(const Tile&, const FeatureView& from, const PlaneTarget& to, const DenseWeights&, float* scratch);
    // What training is made of. `spread*`: by the number of operands less one.
    void (*product)(const Product&);
    void (*add_outer_products)(const OuterProducts&);
    void (*add_dot_products)(const DotProducts&);
    void (*norm)(const Norm&);                    // y
    void (*norm_tangent)(const Norm&);            // y and y_tangent
    void (*norm_gradient)(const Norm&);           // x_gradient, and what is added to the others
    void (*spread[2])(const SpreadRow&);          // y
    void (*spread_tangent[2])(const SpreadRow&);  // y and y_change
    void (*gate_slopes)(const SpreadRow&);        // slopes of both operands, and y
    void (*taps_gradient)(const SpreadRow&);      // of the first operand, what this row contributes
    void (*spread_gradient)(const SpreadRow&);    // one row of x_gradient of the first operand
    // Multiply-adds that depend on nothing but arithmetic: `rounds` times a fixed count, which is returned.
    double (*multiply_adds)(long rounds);
};

enum BlockKind { kEncoder = 0, kDecoder = 1, kFusion = 2 };

// Most outputs of a register block of the paper's network.
inline constexpr int kMostOutputBlock = 8;

// Numbers of scratch per column of a tile that any pass of a block may need.
template <class Shape>
constexpr int block_scratch_per_column() {
    constexpr int c = Shape::channels, h = Shape::hidden;
    return c + c * 4 + c * 2 + c * 4 + 2 * (h + kMostOutputBlock) * 2 + h * 2;
}

// Margin before and behind a feature buffer, and behind the scratch, that vectors may read into.
inline constexpr int kMargin = 64;

const Kernels& scalar_kernels();
const Kernels& sse2_kernels();
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
const Kernels& avx512_bf16_kernels();
const Kernels& neon_kernels();
const Kernels& neon_bf16_kernels();

}  // namespace refusion
