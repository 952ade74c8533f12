#include "output_range.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace refusion {
namespace {

// The official script adds this much before it cuts off the fraction; not quite a half.
constexpr double kRounding = 0.499999999;
constexpr double kMaxGain = 4.0;

float pixel(const float* plane, std::ptrdiff_t stride, int row, int column) {
    float value;
    std::memcpy(&value, reinterpret_cast<const char*>(plane) + row * stride + column * static_cast<std::ptrdiff_t>(sizeof value),
                sizeof value);
    return value;
}

}  // namespace

Ends stretched_ends(float least, float largest) {
    constexpr double width = 1 / kMaxGain;
    const double low = least, high = largest, lacking = width - (high - low);
    if (lacking <= 0) return {least, static_cast<float>(high - low)};
    return {static_cast<float>(std::min(std::max(low - lacking / 2, std::min(low, 0.0)), std::max(high, 1.0) - width)), static_cast<float>(width)};
}

void to_uint8(const float* fused, std::ptrdiff_t fused_stride, int height, int width, bool stretch, std::uint8_t* image,
              std::ptrdiff_t image_stride) {
    Ends ends{0.0f, 1.0f};
    if (stretch) {
        float low = pixel(fused, fused_stride, 0, 0), high = low;
        for (int row = 0; row < height; ++row) {
            for (int column = 0; column < width; ++column) {
                low = std::min(low, pixel(fused, fused_stride, row, column));
                high = std::max(high, pixel(fused, fused_stride, row, column));
            }
        }
        ends = stretched_ends(low, high);
    }
    for (int row = 0; row < height; ++row) {
        for (int column = 0; column < width; ++column) {
            const float value = pixel(fused, fused_stride, row, column);
            const float level = (stretch ? (value - ends.low) / ends.width : std::clamp(value, 0.0f, 1.0f)) * 255.0f;
            std::uint8_t& to = image[row * image_stride + column];
            to = 0;
            if (std::isfinite(level)) to = static_cast<std::uint8_t>(std::clamp(static_cast<double>(level), 0.0, 255.0) + kRounding);
        }
    }
}

}  // namespace refusion
