// Planes of any layout in memory that ends where they end.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "plane.hpp"

constexpr auto kPixel = static_cast<std::ptrdiff_t>(sizeof(float));

inline refusion::PlaneView contiguous(const std::vector<float>& plane, int width) { return {plane.data(), width * kPixel, kPixel}; }

// A plane in a block of memory of exactly its extent, so that one byte beyond it is beyond the block.
struct Strided {
    std::unique_ptr<char[]> memory;
    refusion::PlaneView view{};

    Strided(const std::vector<float>& plane, int height, int width, std::mt19937& random) {
        const auto pick = [&](int low, int high) { return std::uniform_int_distribution<std::ptrdiff_t>(low, high)(random); };
        std::ptrdiff_t column = kPixel * pick(1, 3) + (pick(0, 3) == 0 ? pick(0, 3) : 0);
        std::ptrdiff_t row = column * (width - 1) + kPixel + pick(0, 9);
        if (pick(0, 2) == 0) {  // columns first
            row = kPixel + pick(0, 5);
            column = row * (height - 1) + kPixel + pick(0, 5);
        }
        if (pick(0, 2) == 0) column = -column;
        if (pick(0, 2) == 0) row = -row;
        const std::ptrdiff_t rows = row * (height - 1), columns = column * (width - 1);
        const std::ptrdiff_t lowest = std::min<std::ptrdiff_t>(rows, 0) + std::min<std::ptrdiff_t>(columns, 0);
        const std::ptrdiff_t extent = std::abs(rows) + std::abs(columns) + kPixel, shift = pick(0, 3);
        memory.reset(new char[static_cast<std::size_t>(extent + shift)]());
        char* first = memory.get() + shift - lowest;
        for (int r = 0; r < height; ++r) {
            for (int c = 0; c < width; ++c) std::memcpy(first + r * row + c * column, &plane[static_cast<std::size_t>(r * width + c)], sizeof(float));
        }
        view = {first, row, column};
    }
};

// Rows apart, at any address, with a canary behind each.
class Target {
  public:
    Target(int height, int width) : height_(height), width_(width), memory_(static_cast<std::size_t>(stride() * height), 'c') {}

    refusion::PlaneTarget view() { return {memory_.data(), stride()}; }

    // Whether it holds these numbers, bit for bit, and nothing beside them has changed.
    bool holds(const std::vector<float>& expected) const {
        for (int row = 0; row < height_; ++row) {
            const char* at = memory_.data() + row * stride();
            if (std::memcmp(at, &expected[static_cast<std::size_t>(row * width_)], static_cast<std::size_t>(width_ * kPixel)) != 0) return false;
            if (!std::all_of(at + width_ * kPixel, at + stride(), [](char byte) { return byte == 'c'; })) return false;
        }
        return true;
    }

  private:
    std::ptrdiff_t stride() const { return width_ * kPixel + 3; }

    int height_, width_;
    std::vector<char> memory_;
};
