// Products over the pixels of a batch, of random sizes, against their formulas in double precision.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "batches.hpp"
#include "blocks.hpp"
#include "closeness.hpp"
#include "exact.hpp"

namespace batches_fuzzer {

using blocks::Block;
using blocks::Numbers;
using exact::Exact;

constexpr double kTolerance = 2e-6;

// One image of one of the products: a is features of `rows` channels, b of `columns`, or a matrix for each image.
struct InnerProducts {
    std::size_t pixels, rows, columns;

    template <class Visit>
    void operator()(const Visit& visit) const {
        for (std::size_t pixel = 0; pixel < pixels; ++pixel) {
            for (std::size_t i = 0; i < rows * columns; ++i) visit(i, pixel * rows + i / columns, pixel * columns + i % columns);
        }
    }
};
struct DotProducts {
    std::size_t pixels, channels;

    template <class Visit>
    void operator()(const Visit& visit) const {
        for (std::size_t i = 0; i < pixels * channels; ++i) visit(i % channels, i, i);
    }
};

// y += the products of every image.
template <class Products>
void add_images(const Products& products, std::size_t images, const Numbers& a, const Numbers& b, Exact& y) {
    for (std::size_t image = 0; image < images; ++image) {
        const auto part = [&](const auto& list) {
            const std::size_t count = list.size() / images;
            const auto first = list.begin() + static_cast<std::ptrdiff_t>(image * count);
            return Exact(first, first + static_cast<std::ptrdiff_t>(count));
        };
        Exact sums = part(y);
        exact::add_products(products, part(a), part(b), sums);
        std::copy(sums.begin(), sums.end(), y.begin() + static_cast<std::ptrdiff_t>(image * sums.size()));
    }
}

class Fuzzer {
  public:
    explicit Fuzzer(unsigned seed) : random_(seed) {}

    // All products of a batch of a random size.
    void turn() {
        draw();
        multiply();
        inner_products();
        dot_products();
        ++turns;
    }

    long turns = 0;
    double worst() const { return closeness_.worst(); }

  private:
    int pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
    Numbers normal(int channels) { return blocks::normal(pixels_ * static_cast<std::size_t>(channels), random_); }
    std::size_t images() const { return static_cast<std::size_t>(shape_.images); }

    void draw() {
        // Few pixels, those of several pieces of a sum, and those of several bands.
        const int kind = pick(0, 7);
        shape_ = {pick(1, 3), kind < 5 ? pick(1, 70) : kind < 7 ? pick(200, 800) : pick(4000, 8500)};
        pixels_ = images() * static_cast<std::size_t>(shape_.pixels);
        const int lanes[] = {16, 8, 4, 1}, step = lanes[pick(0, 3)], most = (kind < 7 ? 48 : 16) / step;
        rows_ = step * pick(1, most);
        columns_ = step * pick(1, most + (step == 16));
    }

    void multiply() {
        const Numbers x = normal(rows_), added = normal(columns_);
        const std::size_t inputs = static_cast<std::size_t>(rows_), outputs = static_cast<std::size_t>(columns_);
        const Numbers weights = blocks::normal(images() * outputs * inputs, random_, 1 / std::sqrt(static_cast<double>(rows_)));
        const Numbers factors = blocks::normal(images() * outputs, random_);
        const bool adds = pick(0, 3) > 0, scales = adds && pick(0, 1) == 1;
        Exact expected(added.size());
        for (std::size_t i = 0; adds && i < expected.size(); ++i) {
            const std::size_t factor = i / outputs / static_cast<std::size_t>(shape_.pixels) * outputs + i % outputs;
            expected[i] = static_cast<double>(added[i]) * (scales ? static_cast<double>(factors[factor]) : 1.0);
        }
        add_images(exact::Pointwise{static_cast<std::size_t>(shape_.pixels), inputs, outputs}, images(), x, weights, expected);
        const char* product = scales ? "x W^T + factors * added" : adds ? "x W^T + added" : "x W^T";
        check(expected, product, [&](int threads, const std::string& isa, unsigned seed) {
            std::mt19937 random(seed);
            const Block own_x(pixels_, inputs, random, x), own_added(pixels_, outputs, random, added);
            const Block own_weights(1, weights.size(), random, weights), own_factors(1, factors.size(), random, factors);
            Block y(pixels_, outputs, random);
            refusion::multiply(shape_, rows_, columns_, own_x.read_only(), own_weights.read_only().data,
                               adds ? own_added.read_only() : refusion::Pixels<const float>{}, scales ? own_factors.read_only().data : nullptr,
                               y.pixels(), threads, isa);
            for (const Block* block : {&own_x, &own_added, &own_weights, &own_factors}) block->require_unchanged();
            return y.found();
        });
    }

    void inner_products() {
        const Numbers a = normal(rows_), b = normal(columns_);
        const std::size_t rows = static_cast<std::size_t>(rows_), columns = static_cast<std::size_t>(columns_);
        Exact expected(images() * rows * columns);
        add_images(InnerProducts{static_cast<std::size_t>(shape_.pixels), rows, columns}, images(), a, b, expected);
        check(expected, "a^T b", [&](int threads, const std::string& isa, unsigned seed) {
            return sums_of(a, b, rows * columns, seed, [&](const Block& own_a, const Block& own_b, float* sums) {
                refusion::inner_products(shape_, rows_, columns_, own_a.read_only(), own_b.read_only(), sums, threads, isa);
            });
        });
    }

    void dot_products() {
        const Numbers a = normal(columns_), b = normal(columns_);
        const std::size_t channels = static_cast<std::size_t>(columns_);
        Exact expected(images() * channels);
        add_images(DotProducts{static_cast<std::size_t>(shape_.pixels), channels}, images(), a, b, expected);
        check(expected, "sum of a * b", [&](int threads, const std::string& isa, unsigned seed) {
            return sums_of(a, b, channels, seed, [&](const Block& own_a, const Block& own_b, float* sums) {
                refusion::dot_products(shape_, columns_, own_a.read_only(), own_b.read_only(), sums, threads, isa);
            });
        });
    }

    // What sum(a, b, sums) writes, `count` numbers for each image.
    template <class Sum>
    Numbers sums_of(const Numbers& a, const Numbers& b, std::size_t count, unsigned seed, const Sum& sum) const {
        std::mt19937 random(seed);
        const Block own_a(pixels_, a.size() / pixels_, random, a), own_b(pixels_, b.size() / pixels_, random, b);
        Block sums(1, images() * count, random);
        sum(own_a, own_b, sums.pixels().data);
        own_a.require_unchanged();
        own_b.require_unchanged();
        return sums.found();
    }

    void check(const Exact& expected, const std::string& product, const std::function<Numbers(int, const std::string&, unsigned)>& work) {
        std::string name = product + " of";
        for (const auto side : {static_cast<std::ptrdiff_t>(shape_.images), shape_.pixels}) name += " " + std::to_string(side);
        name += " pixels, " + std::to_string(rows_) + " and " + std::to_string(columns_) + " channels";
        const auto listed = [&](int threads, const std::string& isa, unsigned seed) { return std::vector<Numbers>{work(threads, isa, seed)}; };
        closeness_.check(listed, {expected}, name, random_);
    }

    std::mt19937 random_;
    Closeness closeness_{kTolerance};
    refusion::BatchShape shape_{};
    std::size_t pixels_ = 0;  // of all images
    int rows_ = 0, columns_ = 0;
};

}  // namespace batches_fuzzer
