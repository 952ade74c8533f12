// The weights of 3x3 convolutions by Winograd's F(4, 3) down the columns, as the kernels want them.
#pragma once

#include <cstddef>

namespace refusion {

// Four rows of a convolution are computed at a time: six products of mixed rows instead of twelve of plain ones. With the
// points 0, 1/sqrt 2, -1/sqrt 2, sqrt 2, -sqrt 2 and infinity the result is as accurate in fp32 as the plain sum.
inline constexpr int kConvolutionRows = 4, kConvolutionMixes = 6;

// Outputs of the next register block where `left` of a convolution are left, a multiple of 8 at first. Forced inline, as
// every set must have its own copy.
__attribute__((always_inline)) constexpr int next_output_block(int left, int most) { return left % most == 0 || left > 8 ? most : 4; }

// One 3x3 convolution, with zeros around the image. Weights are packed: for every register block of outputs, mix by mix,
// input by input, the three columns of a row of taps, each for the outputs of the block. They are numbers of the kernels'
// precision.
struct Convolution {
    int inputs, outputs;
    const void* weights;
    const float* biases;
    float slope;  // of negative results; 1 leaves them as they are
};

// Calls visit(packed, output, input, mix, column) in the order of the packed weights; `most` outputs to a register block.
template <class Visit>
void visit_packed(int inputs, int outputs, int most, const Visit& visit) {
    std::size_t packed = 0;
    for (int first = 0, count = 0; first < outputs; first += count) {
        count = next_output_block(outputs - first, most);
        for (int mix = 0; mix < kConvolutionMixes; ++mix) {
            for (int input = 0; input < inputs; ++input) {
                for (int column = 0; column < 3; ++column) {
                    for (int output = first; output < first + count; ++output) visit(packed++, output, input, mix, column);
                }
            }
        }
    }
}

// Numbers that the packed weights of a convolution take.
constexpr std::size_t packed_count(int inputs, int outputs) {
    return static_cast<std::size_t>(kConvolutionMixes) * 3 * static_cast<std::size_t>(inputs) * static_cast<std::size_t>(outputs);
}

// Packs weights, outputs x inputs x 3 x 3.
void pack_convolution(const float* weights, int inputs, int outputs, int most, float* packed);

}  // namespace refusion
