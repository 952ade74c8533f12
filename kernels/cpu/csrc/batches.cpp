#include "batches.hpp"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "buffer.hpp"
#include "isa.hpp"
#include "matrix.hpp"
#include "thread_pool.hpp"

namespace refusion {

namespace {

// Pixels of a band, and of a piece of it: a piece is added up in float, pieces and bands in double.
constexpr std::ptrdiff_t kBand = 4096, kPiece = 256;

template <class Number>
Pixels<Number> from(const Pixels<Number>& features, std::ptrdiff_t pixel) {
    return {features.data ? features.at(pixel) : nullptr, features.pitch};
}

// Calls work(image, first pixel of it, number of pixels, number of the band) for all bands. Which pixels form a band
// follows from the image alone.
template <class Work>
void for_each_band(const BatchShape& shape, int threads, const Work& work) {
    const int bands = static_cast<int>((shape.pixels + kBand - 1) / kBand), units = bands * shape.images;
    ThreadPool(std::max(1, std::min(threads, units))).run(units, [&](int unit, int) {
        const std::ptrdiff_t first = unit % bands * kBand;
        work(unit / bands, first, std::min(kBand, shape.pixels - first), unit);
    });
}

// Sums over the pixels of each image: add(first pixel of the batch, number of pixels, sums) adds those of a piece.
template <class Add>
void sum_over_pixels(const BatchShape& shape, std::size_t count, float* sums, int threads, const Add& add) {
    const auto bands = static_cast<std::size_t>((shape.pixels + kBand - 1) / kBand), units = bands * static_cast<std::size_t>(shape.images);
    std::vector<double> found(units * count);
    std::vector<float> pieces(units * count);
    for_each_band(shape, threads, [&](int image, std::ptrdiff_t first, std::ptrdiff_t pixels, int unit) {
        double* own = found.data() + static_cast<std::size_t>(unit) * count;
        float* piece = pieces.data() + static_cast<std::size_t>(unit) * count;
        for (std::ptrdiff_t start = 0; start < pixels; start += kPiece) {
            std::fill(piece, piece + count, 0.0f);
            add(image * shape.pixels + first + start, std::min(kPiece, pixels - start), piece);
            for (std::size_t i = 0; i < count; ++i) own[i] += static_cast<double>(piece[i]);
        }
    });
    for (std::size_t i = 0; i < count * static_cast<std::size_t>(shape.images); ++i) {
        double sum = 0.0;
        for (std::size_t band = 0; band < bands; ++band) sum += found[(i / count * bands + band) * count + i % count];
        sums[i] = static_cast<float>(sum);
    }
}

}  // namespace

void multiply(const BatchShape& shape, int inputs, int outputs, const Pixels<const float>& x, const float* weights,
              const Pixels<const float>& added, const float* factors, const Pixels<float>& y, int threads, const std::string& isa) {
    const Kernels& kernels = kernels_that_fill(isa, {outputs});
    std::vector<Buffer> turned;
    for (int image = 0; image < shape.images; ++image) {
        turned.push_back(transposed(weights + static_cast<std::ptrdiff_t>(image) * outputs * inputs, outputs, inputs));
    }
    for_each_band(shape, threads, [&](int image, std::ptrdiff_t first, std::ptrdiff_t pixels, int) {
        const std::ptrdiff_t pixel = image * shape.pixels + first;
        kernels.product({pixels, inputs, outputs, from(x, pixel), turned[static_cast<std::size_t>(image)].data(), from(added, pixel),
                         factors ? factors + static_cast<std::ptrdiff_t>(image) * outputs : nullptr, from(y, pixel)});
    });
}

void inner_products(const BatchShape& shape, int rows, int columns, const Pixels<const float>& a, const Pixels<const float>& b,
                    float* sums, int threads, const std::string& isa) {
    const Kernels& kernels = kernels_that_fill(isa, {columns});
    sum_over_pixels(shape, static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns), sums, threads,
                    [&](std::ptrdiff_t pixel, std::ptrdiff_t pixels, float* piece) {
                        kernels.add_outer_products({pixels, rows, columns, from(a, pixel), from(b, pixel), piece});
                    });
}

void dot_products(const BatchShape& shape, int channels, const Pixels<const float>& a, const Pixels<const float>& b, float* sums,
                  int threads, const std::string& isa) {
    const Kernels& kernels = kernels_that_fill(isa, {channels});
    sum_over_pixels(shape, static_cast<std::size_t>(channels), sums, threads,
                    [&](std::ptrdiff_t pixel, std::ptrdiff_t pixels, float* piece) {
                        kernels.add_dot_products({pixels, channels, from(a, pixel), from(b, pixel), piece});
                    });
}

}  // namespace refusion
