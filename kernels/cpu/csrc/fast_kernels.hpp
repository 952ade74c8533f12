// What one instruction set offers for the network `fast`, in one precision.
#pragma once

#include "kernels.hpp"

namespace refusion {

// The network `fast` computes four rows of a convolution at a time by Winograd's F(4, 3) down the columns: six products of
// mixed rows instead of twelve of plain ones. With the points 0, 1/sqrt 2, -1/sqrt 2, sqrt 2, -sqrt 2 and infinity the
// result is as accurate in fp32 as the plain sum.
inline constexpr int kFastRows = 4, kFastMixes = 6;

// Most convolutions of the network `fast`.
inline constexpr int kFastMostLayers = 16;

// Outputs of the next register block where `left` of a convolution are left, a multiple of 8 at first. Forced inline, as
// every set must have its own copy.
__attribute__((always_inline)) constexpr int fast_output_block(int left, int most) { return left % most == 0 || left > 8 ? most : 4; }

// One 3x3 convolution, with zeros around the image. Weights are packed: for every register block of outputs, mix by mix,
// input by input, the three columns of a row of taps, each for the outputs of the block. They are numbers of the precision.
struct FastLayer {
    int inputs, outputs;
    const void* weights;
    const float* biases;
    float slope;  // of negative results; 1 leaves them as they are
};

// What the network `fast` makes of two planes. Its features have 1 / `factor` of the height and width.
struct FastImage {
    PlaneView a, b;
    int height, width;
    PlaneTarget fused;
    int factor;
    const FastLayer* layers;
    int layer_count;
};

struct FastKernels {
    const char* isa;
    Precision precision;
    int lanes;         // numbers of this precision in a vector
    int output_block;  // outputs of a register block at most

    // Rounds packed weights to numbers of this precision.
    void (*round)(const float* from, std::size_t count, void* to);
    // Bytes of scratch for tiles of so many columns.
    std::size_t (*scratch)(const FastImage&, int columns);
    // A tile, in units of the features. Returns whether all pixels that were read are finite.
    bool (*fuse)(const Tile&, const FastImage&, void* scratch);
    // Sums over every `stride`-th pixel of one row of the planes a, b, max(a, b) and |a - b|, of each its pixels and their
    // squares: eight.
    void (*sum_row)(const PlaneView& a, const PlaneView& b, int row, int width, int stride, double* sums);
};

const FastKernels& scalar_fast_kernels();
const FastKernels& sse2_fast_kernels();
const FastKernels& avx2_fast_kernels();
const FastKernels& avx512_fast_kernels();
const FastKernels& neon_fast_kernels();
const FastKernels& neon_fp16_fast_kernels();

}  // namespace refusion
