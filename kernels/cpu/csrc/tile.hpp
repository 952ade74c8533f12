// What the passes share: cutting scratch, counting vectors, the zeros around the image, and reading planes.
#pragma once

#include "kernels.hpp"
#include "simd.hpp"

namespace refusion::REFUSION_ISA {

REFUSION_INLINE int vectors_for(int columns) { return (columns + lanes - 1) / lanes; }

// Cuts pieces off the scratch; pieces are multiples of a tile's row, so all stay aligned.
class Scratch {
  public:
    explicit Scratch(float* next) : next_(next) {}

    float* take(std::ptrdiff_t count) {
        float* piece = next_;
        next_ += count;
        return piece;
    }

  private:
    float* next_;
};

// The columns of a tile's rows that lie outside the image: there a convolution must see zeros.
struct Outside {
    int left;   // columns [0, left) are outside
    int right;  // and [right, pitch)

    // `first` is the image's column at column 0 of the tile's rows.
    Outside(const Tile& tile, int first, int pitch)
        : left(first < 0 ? -first : 0), right(tile.width - first < pitch ? tile.width - first : pitch), pitch_(pitch) {}

    bool any() const { return left > 0 || right < pitch_; }

    void clear(float* row) const {
        for (int i = 0; i < left; ++i) row[i] = 0.0f;
        for (int i = right; i < pitch_; ++i) row[i] = 0.0f;
    }

  private:
    int pitch_;
};

REFUSION_INLINE bool inside(const Tile& tile, int row) { return row >= 0 && row < tile.height; }

// Clears one slot of the rings of `channels` channels: a row above or below the image.
REFUSION_INLINE void clear_slot(float* rings, int channels, int pitch, int slot) {
    for (int c = 0; c < channels; ++c) std::memset(rings + (4 * c + slot) * pitch, 0, sizeof(float) * static_cast<unsigned>(pitch));
}

// Copies one row of a plane, columns [first, first + count), zeros outside the image. Returns whether all are finite.
inline bool gather_row(const PlaneView& plane, const Tile& tile, int row, int first, int count, float* to) {
    const int begin = first < 0 ? -first : 0;
    const int end = tile.width - first < count ? tile.width - first : count;
    for (int i = 0; i < begin; ++i) to[i] = 0.0f;
    for (int i = end; i < count; ++i) to[i] = 0.0f;
    const char* from = static_cast<const char*>(plane.data) + row * plane.row_stride + (first + begin) * plane.column_stride;
    if (plane.column_stride == static_cast<std::ptrdiff_t>(sizeof(float))) {
        std::memcpy(to + begin, from, sizeof(float) * static_cast<unsigned>(end - begin));
    } else {
        for (int i = begin; i < end; ++i, from += plane.column_stride) std::memcpy(to + i, from, sizeof(float));
    }
    std::uint32_t broken = 0;
    for (int i = begin; i < end; ++i) {
        std::uint32_t bits;
        std::memcpy(&bits, to + i, sizeof bits);
        broken |= (bits & 0x7f800000u) == 0x7f800000u;
    }
    return broken == 0;
}

}  // namespace refusion::REFUSION_ISA
