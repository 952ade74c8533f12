// Depthwise 3x3 convolutions over a batch, alone or gated, with their forward mode and their gradients: what training needs.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace refusion {

// Features (pictures, height, width, channels) in somebody else's memory; pixels follow one another without gaps, `pitch`
// numbers apart.
struct Features {
    float* data = nullptr;
    std::ptrdiff_t pitch = 0;
};

struct BatchShape {
    int pictures, height, width, channels;
};

// An input and its taps, channels x 9. The tangents are those of the forward mode, the gradients are overwritten.
struct SpreadInput {
    Features x, x_tangent, x_gradient;
    const float *taps = nullptr, *taps_tangent = nullptr;
    float* taps_gradient = nullptr;
};

enum class SpreadPass { values, tangents, gradients };

// One convolution of one input, or of two inputs gelu(first) * second. `y` is what the pass is about: the values or the
// tangents, which are written, or the gradient by the values, which is read.
//
// The result does not depend on the number of threads, bit for bit. Throws std::invalid_argument for an unknown
// instruction set, std::system_error where the system gives no more threads, std::bad_alloc.
void spread(SpreadPass pass, const BatchShape& shape, const std::vector<SpreadInput>& inputs, const Features& y, int threads,
            const std::string& isa);

}  // namespace refusion
