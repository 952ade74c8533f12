// The network `fast` on a tile: all its convolutions in one pass down the rows, which run through rings between them, and the
// composition of the result out of the sources.
#pragma once

#include "convolution.hpp"
#include "fast_kernels.hpp"
#include "tile.hpp"

namespace refusion::REFUSION_ISA {

inline constexpr int fast_halo = 16;  // columns in front of a tile; at least the number of layers
static_assert(fast_halo >= kFastMostLayers);

// How the scratch is cut for tiles of so many columns; without its start, only its size is found.
struct FastScratch {
    static constexpr int cache_line = 64;

    Ring rings[kFastMostLayers + 1];  // the input of each layer, and the result of the last
    Number* mixes;
    float* lines[3];  // rows of the planes
    float* results;   // a row of pixels of the planes of the last layer as floats; empty if they are floats already
    std::ptrdiff_t result_pitch;
    std::size_t bytes;

    FastScratch(const FastImage& image, int columns, void* start) {
        std::ptrdiff_t used = 0;
        const auto take = [&](auto*& piece, std::ptrdiff_t numbers) {
            piece = start ? reinterpret_cast<decltype(&*piece)>(static_cast<char*>(start) + used) : nullptr;
            used += (numbers * static_cast<std::ptrdiff_t>(sizeof *piece) + cache_line - 1) / cache_line * cache_line;
        };
        // Whole vectors are written, at most one more than fits. An odd number of cache lines keeps channels out of one set.
        constexpr int in_line = cache_line / static_cast<int>(sizeof(Number));
        const std::ptrdiff_t pitch = ((fast_halo + columns + image.layer_count + number_lanes + in_line - 1) / in_line | 1) * in_line;
        int most = 0;
        for (int i = 0; i < image.layer_count; ++i) {
            rings[i] = {nullptr, image.layers[i].inputs, pitch};
            if (rings[i].channels > most) most = rings[i].channels;
        }
        rings[image.layer_count] = {nullptr, image.layers[image.layer_count - 1].outputs, pitch};
        for (int i = 0; i <= image.layer_count; ++i) take(rings[i].data, rows_in_ring * rings[i].channels * pitch);
        take(mixes, static_cast<std::ptrdiff_t>(kConvolutionMixes) * (most / operand_depth) * mix_columns);
        for (float*& line : lines) take(line, image.factor * (columns + 2 * image.layer_count) + number_lanes);
        result_pitch = numbers_are_floats ? pitch : columns + number_lanes;
        take(results, numbers_are_floats ? 0 : 2 * image.factor * result_pitch);
        // May be read behind the last row.
        bytes = static_cast<std::size_t>(used) + (convolution_columns + 2 * number_lanes) * sizeof(Number);
    }
};

inline std::size_t fast_scratch(const FastImage& image, int columns) { return FastScratch(image, columns, nullptr).bytes; }

inline void round_numbers(const float* from, std::size_t count, void* to) {
    for (std::size_t i = 0; i < count; ++i) static_cast<Weight*>(to)[i] = to_weight(from[i]);
}

// The pixels of a row of cells, apart by their place in the cell.
template <int Factor>
inline void unshuffle(const Number* __restrict from, Number* __restrict to, std::ptrdiff_t pitch, int columns) {
    for (int x = 0; x < columns; ++x) {
#pragma GCC unroll 4
        for (int place = 0; place < Factor; ++place) to[place * pitch + x] = from[Factor * x + place];
    }
}

// One row of the result, in whole cells.
template <int Factor>
inline void compose(const float* __restrict a, const float* __restrict b, const float* __restrict s, const float* __restrict r,
                    std::ptrdiff_t pitch, float* __restrict to, int columns) {
    for (int x = 0; x < columns; ++x) {
#pragma GCC unroll 4
        for (int place = 0; place < Factor; ++place) {
            const float one = a[Factor * x + place], other = b[Factor * x + place];
            const float most = one > other ? one : other, least = one > other ? other : one;
            const float fused = most - s[place * pitch + x] * (most - least) + r[place * pitch + x];
            // NaN stays NaN: half precision may overflow with weights out of the ordinary.
            const float above = fused < 0.0f ? 0.0f : fused;
            to[Factor * x + place] = above > 1.0f ? 1.0f : above;
        }
    }
}

// Numbers in double precision, half as many as there are lanes.
#if REFUSION_LANES == 1
inline constexpr int doubles = 1;
typedef double DoubleVec;
REFUSION_INLINE DoubleVec load_as_double(const float* from) { return *from; }
#else
inline constexpr int doubles = lanes / 2;
typedef double DoubleVec __attribute__((vector_size(4 * REFUSION_LANES)));
typedef float LooseHalfVec __attribute__((vector_size(2 * REFUSION_LANES), aligned(4), may_alias));
REFUSION_INLINE DoubleVec load_as_double(const float* from) {
    return __builtin_convertvector(*reinterpret_cast<const LooseHalfVec*>(from), DoubleVec);
}
#endif

// Sums over every `stride`-th pixel of one row of the planes a, b, max(a, b) and |a - b|, of each its pixels and their squares.
inline void sum_fast_row(const PlaneView& a, const PlaneView& b, int row, int width, int stride, double* sums) {
    constexpr int planes = 4, chunk = 64;
    DoubleVec sum[planes] = {}, squares[planes] = {};
    const char* next[2] = {static_cast<const char*>(a.data) + row * a.row_stride, static_cast<const char*>(b.data) + row * b.row_stride};
    const std::ptrdiff_t steps[2] = {stride * a.column_stride, stride * b.column_stride};
    for (int left = (width + stride - 1) / stride; left > 0; left -= chunk) {
        float pixels[planes][chunk];
        for (int source = 0; source < 2; ++source) {
            for (int i = left; i < chunk; ++i) pixels[source][i] = 0.0f;
            for (int i = 0; i < left && i < chunk; ++i, next[source] += steps[source]) {
                std::memcpy(&pixels[source][i], next[source], sizeof(float));
            }
        }
        for (int i = 0; i < chunk; i += lanes) {
            const Vec x = load(pixels[0] + i), y = load(pixels[1] + i), larger = most(x, y);
            store(pixels[2] + i, larger);
            store(pixels[3] + i, larger - least(x, y));
        }
        for (int i = 0; i < chunk; i += doubles) {
#pragma GCC unroll 4
            for (int plane = 0; plane < planes; ++plane) {
                const DoubleVec x = load_as_double(pixels[plane] + i);
                sum[plane] += x;
                squares[plane] += x * x;
            }
        }
    }
    for (int plane = 0; plane < planes; ++plane) {
        double of_lanes[2][doubles];
        std::memcpy(of_lanes[0], &sum[plane], sizeof of_lanes[0]);
        std::memcpy(of_lanes[1], &squares[plane], sizeof of_lanes[1]);
        for (int i = 0; i < 2; ++i) {
            sums[2 * plane + i] = 0;
            for (int lane = 0; lane < doubles; ++lane) sums[2 * plane + i] += of_lanes[i][lane];
        }
    }
}

// One run down a tile.
class FastRun {
  public:
    FastRun(const Tile& tile, const FastImage& image, void* scratch)
        : tile_(tile), pixels_{image.height, image.width, 0, 0, 0, 0}, image_(image), scratch_(image, tile.right - tile.left, scratch) {}

    // Layer i makes its four rows at step n from row 4 n - i - 1 on: the rows that it sees are two of the step before, and
    // four that have just been made. So every layer begins one step before the next.
    bool run() {
        const int layers = image_.layer_count;
        const int first = floor_4(tile_.top + layers), last = floor_4(tile_.bottom - 1 + layers);
        for (int i = 0; i <= layers && tile_.left == 0; ++i) clear_left_of_image(scratch_.rings[i]);
        bool finite = true;
        for (int step = first - layers; step <= last; ++step) {
            for (int row = 4 * step; row < 4 * step + kConvolutionRows; ++row) finite &= load_row(row);
            for (int i = 0; i < layers; ++i) {
                if (step >= first - (layers - 1 - i)) convolve(i, 4 * step - i - 1);
            }
            if (step < first) continue;
            for (int row = 4 * step - layers; row < 4 * step - layers + kConvolutionRows; ++row) {
                if (row >= tile_.top && row < tile_.bottom) write_row(row);
            }
        }
        return finite;
    }

  private:
    static int floor_4(int row) { return row >> 2; }
    int place(int column) const { return column - tile_.left + fast_halo; }
    static int larger(int x, int y) { return x > y ? x : y; }
    static int smaller(int x, int y) { return x < y ? x : y; }

    void clear_left_of_image(const Ring& ring) const {
        for (int row = 0; row < rows_in_ring * ring.channels; ++row) ring.data[row * ring.pitch + place(-1)] = Number(0);
    }
    void clear_right_of_image(const Ring& ring, int row) const {
        for (int channel = 0; channel < ring.channels; ++channel) ring.row(row)[channel * ring.pitch + place(tile_.width)] = Number(0);
    }

    // Reads a row of cells from both sources. The last row and column of the image are repeated to fill its cells.
    bool load_row(int row) {
        const Ring& ring = scratch_.rings[0];
        if (!inside(tile_, row)) {
            ring.clear(row);
            return true;
        }
        const int factor = image_.factor, left = larger(0, tile_.left - image_.layer_count);
        const int right = smaller(tile_.width, tile_.right + image_.layer_count);
        bool finite = true;
        for (int source = 0; source < 2; ++source) {
            for (int y = 0; y < factor; ++y) {
                float* line = scratch_.lines[0];
                finite &= read(source == 0 ? image_.a : image_.b, smaller(factor * row + y, image_.height - 1), left, right, line);
                Number* to = ring.row(row) + (source * factor + y) * factor * ring.pitch + place(left);
                const Number* numbers = as_numbers(line, factor * (right - left), scratch_.lines[1]);
                if (factor == 2) {
                    unshuffle<2>(numbers, to, ring.pitch, right - left);
                } else {
                    unshuffle<4>(numbers, to, ring.pitch, right - left);
                }
            }
        }
        if (right == tile_.width) clear_right_of_image(ring, row);
        return finite;
    }

    // Whole cells of one row of a plane.
    bool read(const PlaneView& plane, int row, int left, int right, float* line) const {
        const int first = image_.factor * left, count = image_.factor * (right - left);
        const bool finite = gather_row(plane, pixels_, row, first, count, line);
        for (int i = image_.width - first; i < count; ++i) line[i] = line[image_.width - 1 - first];
        return finite;
    }

    void convolve(int index, int row) {
        const Ring &from = scratch_.rings[index], &to = scratch_.rings[index + 1];
        const Number* sources[rows_in_ring];
        Number* targets[kConvolutionRows];
        for (int i = 0; i < rows_in_ring; ++i) sources[i] = from.row(row - 1 + i);
        for (int i = 0; i < kConvolutionRows; ++i) targets[i] = to.row(row + i);
        if (row + kConvolutionRows > 0 && row < tile_.height) {
            const int halo = image_.layer_count - 1 - index;
            const int begin = larger(0, tile_.left - halo), end = smaller(tile_.width, tile_.right + halo);
            convolve_rows(image_.layers[index], sources, from.pitch, scratch_.mixes, targets, place(begin), place(end));
        }
        for (int i = row; i < row + kConvolutionRows; ++i) {
            if (!inside(tile_, i)) {
                to.clear(i);
            } else if (tile_.right + image_.layer_count > tile_.width) {
                clear_right_of_image(to, i);
            }
        }
    }

    void write_row(int row) {
        const int factor = image_.factor, first = factor * tile_.left;
        const int count = smaller(image_.width, factor * tile_.right) - first;
        const Ring& ring = scratch_.rings[image_.layer_count];
        for (int y = 0; y < factor && factor * row + y < image_.height; ++y) {
            float* const(&lines)[3] = scratch_.lines;
            read(image_.a, factor * row + y, tile_.left, tile_.right, lines[0]);
            read(image_.b, factor * row + y, tile_.left, tile_.right, lines[1]);
            const Number* planes = ring.row(row) + factor * y * ring.pitch + fast_halo;
            const std::ptrdiff_t pitch = scratch_.result_pitch;
            const int columns = tile_.right - tile_.left;
            const float* s = as_floats(planes, ring.pitch, factor, columns, scratch_.results, pitch);
            const float* r = as_floats(planes + factor * factor * ring.pitch, ring.pitch, factor, columns, scratch_.results + factor * pitch, pitch);
            if (factor == 2) {
                compose<2>(lines[0], lines[1], s, r, pitch, lines[2], columns);
            } else {
                compose<4>(lines[0], lines[1], s, r, pitch, lines[2], columns);
            }
            // The target may lie at any address.
            std::memcpy(image_.fused.row(factor * row + y) + static_cast<std::ptrdiff_t>(sizeof(float)) * first, lines[2],
                        sizeof(float) * static_cast<unsigned>(count));
        }
    }

    const Tile& tile_;
    const Tile pixels_;
    const FastImage& image_;
    const FastScratch scratch_;
};

inline bool fuse_fast(const Tile& tile, const FastImage& image, void* scratch) { return FastRun(tile, image, scratch).run(); }

}  // namespace refusion::REFUSION_ISA
