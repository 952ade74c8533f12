// Between the planes of the caller and memory without gaps, which a device reads and writes.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstring>

#include "network.hpp"
#include "plane.hpp"

namespace refusion {

inline void pack_plane(const PlaneView& view, int height, int width, char* to) {
    const auto row_bytes = static_cast<std::size_t>(width) * sizeof(float);
    for (int row = 0; row < height; ++row, to += row_bytes) {
        std::memcpy(to, static_cast<const char*>(view.data) + row * view.row_stride, row_bytes);
    }
}

// All of the target becomes NaN if a pixel of the result is not finite.
inline void unpack_plane(const float* result, int height, int width, const PlaneTarget& target) {
    double sum = 0;
    for (std::ptrdiff_t i = 0; i < static_cast<std::ptrdiff_t>(height) * width; ++i) sum += static_cast<double>(result[i]);
    if (!std::isfinite(sum)) {
        fill_with_nan(target, height, width);
        return;
    }
    for (int row = 0; row < height; ++row, result += width) {
        std::memcpy(target.row(row), result, static_cast<std::size_t>(width) * sizeof(float));
    }
}

}  // namespace refusion
