// Depthwise convolutions of training, of random sizes, against their formulas in double precision.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <future>
#include <initializer_list>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "isa.hpp"
#include "require.hpp"
#include "spreading.hpp"

namespace spread_fuzzer {

using refusion::BatchShape;
using refusion::Features;
using refusion::SpreadPass;
using Numbers = std::vector<float>;
using Exact = std::vector<double>;

// Of the largest number of a result, which counts as 1 at least; what the tests in Python allow is 3e-6 on their own sizes.
constexpr double kTolerance = 5e-6;
constexpr float kCanary = -77.0f;

// The rows and taps of one input, in order and without gaps: a point, a direction, or a gradient.
template <class List>
struct Point {
    List x, taps;
};

// Calls visit(number of y, number of x, number of taps) for all products that the convolution adds up.
template <class Visit>
void for_each_product(const BatchShape& shape, const Visit& visit) {
    const auto number = [&](int picture, int row, int column) {
        return ((static_cast<std::size_t>(picture) * shape.height + row) * shape.width + column) * shape.channels;
    };
    for (int picture = 0; picture < shape.pictures; ++picture) {
        for (int row = 0; row < shape.height; ++row) {
            for (int column = 0; column < shape.width; ++column) {
                for (int tap = 0; tap < 9; ++tap) {
                    const int above = row + tap / 3 - 1, beside = column + tap % 3 - 1;
                    if (above < 0 || above >= shape.height || beside < 0 || beside >= shape.width) continue;
                    const std::size_t y = number(picture, row, column), x = number(picture, above, beside);
                    for (std::size_t k = 0; k < static_cast<std::size_t>(shape.channels); ++k) visit(y + k, x + k, 9 * k + tap);
                }
            }
        }
    }
}

inline void add_convolution(Exact& y, const BatchShape& shape, const Exact& x, const Exact& taps) {
    for_each_product(shape, [&](std::size_t to, std::size_t from, std::size_t tap) { y[to] += x[from] * taps[tap]; });
}

inline double normal_share(double x) { return 0.5 * std::erfc(-x * std::sqrt(0.5)); }
inline double gelu_slope(double x) { return normal_share(x) + x * std::exp(-0.5 * x * x) / std::sqrt(2 * std::acos(-1.0)); }

// What the passes must find at some points: the values, the tangents along the directions, the gradients from the slopes.
struct Expected {
    Exact values, tangents;
    std::vector<Point<Exact>> gradients;

    Expected(const BatchShape& shape, const std::vector<Point<Exact>>& points, const std::vector<Point<Exact>>& along, const Exact& slopes) {
        std::vector<Exact> sums, moved, outer(points.size(), slopes);
        for (std::size_t n = 0; n < points.size(); ++n) {
            sums.emplace_back(slopes.size());
            moved.emplace_back(slopes.size());
            add_convolution(sums[n], shape, points[n].x, points[n].taps);
            add_convolution(moved[n], shape, along[n].x, points[n].taps);
            add_convolution(moved[n], shape, points[n].x, along[n].taps);
        }
        values = sums[0];
        tangents = moved[0];
        for (std::size_t i = 0; points.size() == 2 && i < slopes.size(); ++i) {
            const double share = normal_share(sums[0][i]), slope = gelu_slope(sums[0][i]);
            values[i] = sums[0][i] * share * sums[1][i];
            tangents[i] = slope * moved[0][i] * sums[1][i] + sums[0][i] * share * moved[1][i];
            outer[0][i] = slopes[i] * slope * sums[1][i];
            outer[1][i] = slopes[i] * sums[0][i] * share;
        }
        for (std::size_t n = 0; n < points.size(); ++n) {
            Point<Exact> gradient{Exact(slopes.size()), Exact(points[n].taps.size())};
            for_each_product(shape, [&](std::size_t to, std::size_t from, std::size_t tap) {
                gradient.x[from] += outer[n][to] * points[n].taps[tap];
                gradient.taps[tap] += outer[n][to] * points[n].x[from];
            });
            gradients.push_back(gradient);
        }
    }

    // The arrays of one pass, in the order of Fuzzer::results.
    std::vector<Exact> of(SpreadPass pass) const {
        if (pass != SpreadPass::gradients) return {pass == SpreadPass::values ? values : tangents};
        std::vector<Exact> all;
        for (const Point<Exact>& gradient : gradients) all.insert(all.end(), {gradient.x, gradient.taps});
        return all;
    }
};

// Features in memory that ends with the last channel of the last pixel, so that one number behind it is beyond the block.
// What lies before the first pixel and between two is `gap`.
class Block {
  public:
    Block(const BatchShape& shape, std::mt19937& random, float gap)
        : channels_(static_cast<std::size_t>(shape.channels)),
          pixels_(static_cast<std::size_t>(shape.pictures) * shape.height * shape.width),
          pitch_(channels_ + random() % 3 * (random() % 20)),
          shift_(random() % 17),
          gap_(gap),
          memory_(shift_ + (pixels_ - 1) * pitch_ + channels_, gap) {}

    Features features() { return {memory_.data() + shift_, static_cast<std::ptrdiff_t>(pitch_)}; }

    void write(const Numbers& numbers) {
        for (std::size_t i = 0; i < numbers.size(); ++i) memory_[place(i)] = numbers[i];
    }

    // The features; requires that the gaps are what they were.
    Numbers read() {
        Numbers numbers(pixels_ * channels_);
        for (std::size_t i = 0; i < numbers.size(); ++i) numbers[i] = std::exchange(memory_[place(i)], gap_);
        require(std::all_of(memory_.begin(), memory_.end(), [&](float number) { return number == gap_; }), "written between the pixels");
        return numbers;
    }

  private:
    std::size_t place(std::size_t number) const { return shift_ + number / channels_ * pitch_ + number % channels_; }

    std::size_t channels_, pixels_, pitch_, shift_;
    float gap_;
    Numbers memory_;
};

class Fuzzer {
  public:
    explicit Fuzzer(unsigned seed) : random_(seed) {}

    // A batch of a random size in every instruction set, on one thread, and on several by two callers at once.
    void turn() {
        draw();
        const Expected expected(shape_, exact(points_), exact(along_), Exact(slopes_.begin(), slopes_.end()));
        for (const refusion::Kernels* kernels : refusion::usable_kernels(refusion::Precision::fp32)) {
            for (const SpreadPass pass : {SpreadPass::values, SpreadPass::tangents, SpreadPass::gradients}) {
                const std::string what = describe(pass, kernels->isa);
                const auto work = [&](int threads, unsigned seed) { return results(pass, threads, kernels->isa, seed); };
                const std::vector<Numbers> alone = work(1, random_());
                require_close(alone, expected.of(pass), what);
                auto other = std::async(std::launch::async, work, pick(2, 5), random_());
                const std::vector<Numbers> here = work(pick(2, 5), random_());
                require(same_bits(alone, here) && same_bits(alone, other.get()), what + ": not what one thread makes of it");
            }
        }
        ++turns;
    }

    long turns = 0;

  private:
    int pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

    void draw() {
        // Pictures without a neighbour on some side, small ones, and those of several bands of rows.
        const int kind = pick(0, 5);
        const bool flat = kind == 0 || kind == 1, narrow = kind == 0 || kind == 2, high = kind == 3;
        shape_ = {pick(1, 3), flat ? 1 : high ? pick(60, 200) : pick(2, 20), narrow ? 1 : high ? pick(1, 4) : pick(2, 30), pick(1, 45)};
        const std::size_t numbers = static_cast<std::size_t>(shape_.pictures) * shape_.height * shape_.width * shape_.channels;
        const std::size_t taps = static_cast<std::size_t>(shape_.channels) * 9;
        points_.clear();
        along_.clear();
        for (int n = pick(1, refusion::kSpreadForms); n > 0; --n) {
            points_.push_back({normal(numbers), normal(taps)});
            along_.push_back({normal(numbers), normal(taps)});
        }
        slopes_ = normal(numbers);
    }

    Numbers normal(std::size_t count) {
        Numbers numbers(count);
        for (float& number : numbers) number = std::normal_distribution<float>()(random_);
        return numbers;
    }

    static std::vector<Point<Exact>> exact(const std::vector<Point<Numbers>>& points) {
        std::vector<Point<Exact>> all;
        for (const auto& [x, taps] : points) all.push_back({Exact(x.begin(), x.end()), Exact(taps.begin(), taps.end())});
        return all;
    }

    // What a pass writes: y, or the gradients of every input and of its taps.
    std::vector<Numbers> results(SpreadPass pass, int threads, const std::string& isa, unsigned seed) const {
        std::mt19937 random(seed);
        std::vector<Block> blocks;
        const auto block = [&](const Numbers* numbers) {
            blocks.emplace_back(shape_, random, numbers ? NAN : kCanary);
            if (numbers) blocks.back().write(*numbers);
            return blocks.back().features();  // stays where it is when the blocks move
        };
        const bool tangents = pass == SpreadPass::tangents, gradients = pass == SpreadPass::gradients;
        std::vector<Numbers> taps_gradients(points_.size(), Numbers(points_[0].taps.size(), kCanary));
        const Features y = block(gradients ? &slopes_ : nullptr);
        std::vector<refusion::SpreadInput> inputs(points_.size());
        for (std::size_t n = 0; n < inputs.size(); ++n) {
            inputs[n].x = block(&points_[n].x);
            inputs[n].taps = points_[n].taps.data();
            if (tangents) {
                inputs[n].x_tangent = block(&along_[n].x);
                inputs[n].taps_tangent = along_[n].taps.data();
            }
            if (gradients) {
                inputs[n].x_gradient = block(nullptr);
                inputs[n].taps_gradient = taps_gradients[n].data();
            }
        }
        refusion::spread(pass, shape_, inputs, y, threads, isa);
        if (!gradients) return {blocks[0].read()};
        std::vector<Numbers> all;
        for (std::size_t n = 0; n < inputs.size(); ++n) all.insert(all.end(), {blocks[2 * n + 2].read(), taps_gradients[n]});
        return all;
    }

    static void require_close(const std::vector<Numbers>& found, const std::vector<Exact>& expected, const std::string& what) {
        require(found.size() == expected.size(), what + ": another number of results");
        for (std::size_t n = 0; n < found.size(); ++n) {
            double worst = 0, largest = 1;
            for (std::size_t i = 0; i < expected[n].size(); ++i) {
                const double error = std::abs(static_cast<double>(found[n][i]) - expected[n][i]);
                worst = error <= worst ? worst : error;  // takes NaN, too
                largest = std::max(largest, std::abs(expected[n][i]));
            }
            require(worst <= kTolerance * largest, what + ", result " + std::to_string(n) + ": error " + std::to_string(worst) + " of " + std::to_string(largest));
        }
    }

    static bool same_bits(const std::vector<Numbers>& found, const std::vector<Numbers>& expected) {
        return std::equal(found.begin(), found.end(), expected.begin(), expected.end(), [](const Numbers& one, const Numbers& other) {
            return one.size() == other.size() && std::memcmp(one.data(), other.data(), one.size() * sizeof(float)) == 0;
        });
    }

    std::string describe(SpreadPass pass, const std::string& isa) const {
        std::string sides;
        for (const int side : {shape_.pictures, shape_.height, shape_.width, shape_.channels}) sides += std::to_string(side) + " ";
        const char* passes[] = {"values", "tangents", "gradients"};
        return sides + std::to_string(points_.size()) + " input(s), " + passes[static_cast<int>(pass)] + " with " + isa;
    }

    std::mt19937 random_;
    BatchShape shape_{};
    std::vector<Point<Numbers>> points_, along_;
    Numbers slopes_;
};

}  // namespace spread_fuzzer
