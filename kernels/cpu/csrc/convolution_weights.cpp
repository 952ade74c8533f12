#include "convolution_weights.hpp"

#include <cmath>

namespace refusion {
namespace {

// The factors of the four plain rows in the product of each mix; see kConvolutionMixes.
void mixed_taps(const float* taps, double (&mixed)[kConvolutionMixes]) {
    const double root = std::sqrt(0.5);
    const auto value = [&](double point) { return taps[0] + point * taps[3] + point * point * taps[6]; };
    mixed[0] = taps[0];
    mixed[1] = value(root) / -1.5;
    mixed[2] = value(-root) / -1.5;
    mixed[3] = value(2 * root) / 6;
    mixed[4] = value(-2 * root) / 6;
    mixed[5] = taps[6];
}

}  // namespace

void pack_convolution(const float* weights, int inputs, int outputs, int most, float* packed) {
    visit_packed(inputs, outputs, most, [&](std::size_t at, int output, int input, int mix, int column) {
        double mixed[kConvolutionMixes];
        mixed_taps(weights + (static_cast<std::ptrdiff_t>(output) * inputs + input) * 9 + column, mixed);
        packed[at] = static_cast<float>(mixed[mix]);
    });
}

}  // namespace refusion
