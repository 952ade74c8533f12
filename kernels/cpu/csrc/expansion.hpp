// What the blocks of training consist of, row by row: a layer norm, pointwise convolutions to more channels, depthwise 3x3
// ones of these, and, where one of them gates another, the pointwise convolution back; with forward mode and gradients.
//
// A few rows of everything between the inputs and the result exist at a time, so that they never leave the caches.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "kernels.hpp"

namespace refusion {

// A parameter: its tangent is that of the forward mode, its gradient is overwritten.
struct TrainedParameter {
    const float *value = nullptr, *tangent = nullptr;
    float* gradient = nullptr;
};

// Features (images, height, width, channels) in somebody else's memory, without gaps between rows and images.
struct ExpansionInput {
    int channels = 0;
    Pixels<float> x{}, x_tangent{}, x_gradient{};
};

// One convolution to more channels: weights, channels x those of the input, and taps, channels x 9.
struct ExpansionOperand {
    std::size_t input = 0;
    TrainedParameter weights, taps;
};

enum class ExpansionPass { values, tangents, gradients };

struct Expansion {
    int images = 0, height = 0, width = 0;
    int channels = 0;                         // of every operand
    std::vector<ExpansionInput> inputs;       // one, or one for each of two operands; all gradients are overwritten
    TrainedParameter norm_weight, norm_bias;  // of the only input; without them it is taken as it is
    std::vector<ExpansionOperand> operands;
    // What the pass is about: values or tangents, which are written, or the gradients by the values, which are read. One for
    // each operand; where the first of two operands gates the second, one: out * (gelu(first) * second) + residual.
    std::vector<Pixels<float>> y;
    bool gated = false;
    int outputs = 0;
    TrainedParameter out;  // outputs x channels
    Pixels<float> residual{}, residual_tangent{};
    bool residual_is_input = false;  // so that the gradient by the input is one by the residual, too
};

// The result does not depend on the number of threads, bit for bit. Throws std::invalid_argument for an unknown
// instruction set, std::system_error where the system gives no more threads, std::bad_alloc.
void expand(ExpansionPass pass, const Expansion& expansion, int threads, const std::string& isa);

}  // namespace refusion
