// What one instruction set offers for the network `fast`, in one precision.
#pragma once

#include "convolution_weights.hpp"
#include "kernels.hpp"

namespace refusion {

// Most convolutions of the network `fast`.
inline constexpr int kFastMostLayers = 16;

// What the network `fast` makes of two planes. Its features have 1 / `factor` of the height and width.
struct FastImage {
    PlaneView a, b;
    int height, width;
    PlaneTarget fused;
    int factor;
    const Convolution* layers;
    int layer_count;
};

struct FastKernels {
    const char* isa;
    Precision precision;
    int lanes;  // numbers of this precision in a vector
    ConvolutionPacking packing;

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
const FastKernels& avx512_bf16_fast_kernels();
const FastKernels& neon_fast_kernels();
const FastKernels& neon_bf16_fast_kernels();
const FastKernels& neon_fp16_fast_kernels();

}  // namespace refusion
