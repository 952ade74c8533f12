// Views of luma planes in somebody else's memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace refusion {

// A plane of float32 with any strides in bytes, also negative ones, at any alignment. Does not own the memory.
struct PlaneView {
    const void* data;
    std::ptrdiff_t row_stride;
    std::ptrdiff_t column_stride;

    float at(std::ptrdiff_t row, std::ptrdiff_t column) const {
        float value;
        std::memcpy(&value, static_cast<const char*>(data) + row * row_stride + column * column_stride, sizeof value);
        return value;
    }
};

// A plane of float32 to write, with consecutive columns. Does not own the memory.
struct PlaneTarget {
    void* data;
    std::ptrdiff_t row_stride;  // in bytes

    char* row(std::ptrdiff_t index) const { return static_cast<char*>(data) + index * row_stride; }
};

}  // namespace refusion
