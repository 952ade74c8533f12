// Matrix products over the pixels of a batch of images: what attention between channels is made of in training.
#pragma once

#include <cstddef>
#include <string>

#include "kernels.hpp"

namespace refusion {

// Features (images, pixels, channels) in somebody else's memory, without gaps between images.
struct BatchShape {
    int images;
    std::ptrdiff_t pixels;
};

// None of the results depends on the number of threads, bit for bit. All throw std::invalid_argument for an unknown
// instruction set, std::system_error where the system gives no more threads, std::bad_alloc.

// y = x weights^T + factors * added, with weights, outputs x inputs, and factors, outputs, of each image. What is added
// may be absent, and so may be its factors.
void multiply(const BatchShape& shape, int inputs, int outputs, const Pixels<const float>& x, const float* weights,
              const Pixels<const float>& added, const float* factors, const Pixels<float>& y, int threads, const std::string& isa);

// sums = a^T b of each image, rows x columns: the channels of a and of b.
void inner_products(const BatchShape& shape, int rows, int columns, const Pixels<const float>& a, const Pixels<const float>& b,
                    float* sums, int threads, const std::string& isa);

// sums = the sum over the pixels of a * b of each image, channel by channel.
void dot_products(const BatchShape& shape, int channels, const Pixels<const float>& a, const Pixels<const float>& b, float* sums,
                  int threads, const std::string& isa);

}  // namespace refusion
