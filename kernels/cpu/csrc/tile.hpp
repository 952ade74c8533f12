// What the passes share: cutting scratch, counting vectors, and the zeros around the image.
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

}  // namespace refusion::REFUSION_ISA
