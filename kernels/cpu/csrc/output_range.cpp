#include "output_range.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace refusion {
namespace {

// The official script adds this much before it cuts off the fraction; not quite a half.
constexpr double kRounding = 0.499999999;

float pixel(const float* plane, std::ptrdiff_t stride, int row, int column) {
    float value;
    std::memcpy(&value, reinterpret_cast<const char*>(plane) + row * stride + column * static_cast<std::ptrdiff_t>(sizeof value),
                sizeof value);
    return value;
}

}  // namespace

void to_uint8(const float* fused, std::ptrdiff_t fused_stride, int height, int width, bool stretch, std::uint8_t* image,
              std::ptrdiff_t image_stride) {
    float low = 0.0f, range = 1.0f;
    if (stretch) {
        float high = low = pixel(fused, fused_stride, 0, 0);
        for (int row = 0; row < height; ++row) {
            for (int column = 0; column < width; ++column) {
                low = std::min(low, pixel(fused, fused_stride, row, column));
                high = std::max(high, pixel(fused, fused_stride, row, column));
            }
        }
        range = high - low;
    }
    for (int row = 0; row < height; ++row) {
        for (int column = 0; column < width; ++column) {
            const float value = pixel(fused, fused_stride, row, column);
            const float level = (stretch ? (range > 0 ? (value - low) / range : 0.0f) : std::clamp(value, 0.0f, 1.0f)) * 255.0f;
            std::uint8_t& to = image[row * image_stride + column];
            to = 0;
            if (std::isfinite(level)) to = static_cast<std::uint8_t>(std::clamp(static_cast<double>(level), 0.0, 255.0) + kRounding);
        }
    }
}

}  // namespace refusion
