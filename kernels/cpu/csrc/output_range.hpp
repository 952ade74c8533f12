// From the network's output to 8 bits.
#pragma once

#include <cstddef>
#include <cstdint>

namespace refusion {

// The values that become black and, above them, white.
struct Ends {
    float low, width;
};

// From the least to the largest value, but widened to a quarter of [0, 1], so that no contrast is raised more than four times:
// as refusion_edge/images/color.py does.
Ends stretched_ends(float least, float largest);

// The same numbers as refusion_edge/images/color.py, digit for digit: to_output_range in float, then the official rounding.
// Pixels that are not finite become 0.
void to_uint8(const float* fused, std::ptrdiff_t fused_stride, int height, int width, bool stretch, std::uint8_t* image,
              std::ptrdiff_t image_stride);

}  // namespace refusion
