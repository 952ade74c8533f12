// Small matrices of parameters.
#pragma once

#include <cstddef>

#include "buffer.hpp"

namespace refusion {

// Nothing of nothing. Throws std::bad_alloc.
inline Buffer transposed(const float* matrix, int rows, int columns) {
    if (!matrix) return {};
    Buffer result(static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns));
    for (int row = 0; row < rows; ++row) {
        for (int column = 0; column < columns; ++column) result.data()[static_cast<std::ptrdiff_t>(column) * rows + row] = *matrix++;
    }
    return result;
}

}  // namespace refusion
