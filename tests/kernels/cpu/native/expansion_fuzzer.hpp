// Blocks of training, of random forms and sizes, against their formulas in double precision.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <random>
#include <string>
#include <vector>

#include "blocks.hpp"
#include "closeness.hpp"
#include "exact.hpp"
#include "expansion.hpp"

namespace expansion_fuzzer {

using blocks::Block;
using blocks::Numbers;
using exact::Exact;
using refusion::Expansion;
using refusion::ExpansionInput;
using refusion::ExpansionPass;
using refusion::Pixels;
using refusion::TrainedParameter;

// Gradients come furthest, where the slopes of a gate are multiplied by inputs of 256 channels: 4.0e-6 in 3000 blocks.
constexpr double kTolerance = 1e-5;

enum class Residual { none, own, input };

struct Shape {
    int images, height, width;
    std::vector<int> inputs;  // channels of each
    int channels, outputs;    // of every operand, of what is made of a gated pair
    int operands;
    bool norm, gated;
    Residual residual;

    std::size_t pixels() const { return static_cast<std::size_t>(images) * height * width; }
    std::size_t input_of(std::size_t operand) const { return inputs.size() == 1 ? 0 : operand; }
    int result_channels() const { return gated ? outputs : channels; }
    std::size_t results() const { return gated ? 1 : static_cast<std::size_t>(operands); }

    std::string name() const {
        std::string text;
        for (const int side : {images, height, width}) text += std::to_string(side) + " ";
        for (const int side : inputs) text += std::to_string(side) + " ";
        text += "to " + std::to_string(operands) + " of " + std::to_string(channels);
        if (gated) text += " gated to " + std::to_string(outputs);
        const char* residuals[] = {"", ", residual", ", residual of the input"};
        return text + (norm ? ", norm" : "") + residuals[static_cast<int>(residual)];
    }
};

// What an expansion is made of, or directions or gradients of it: kind by kind, each with its arrays.
enum Kind { kInputs, kNorm, kWeights, kTaps, kOut, kResidual, kKinds };
template <class List>
using Point = std::array<std::vector<List>, kKinds>;

// Numbers and their derivatives along a direction.
struct Moving {
    Exact value, tangent;

    explicit Moving(std::size_t count) : value(count), tangent(count) {}
    Moving(const Numbers& numbers, const Numbers& along) : value(numbers.begin(), numbers.end()), tangent(along.begin(), along.end()) {}
};

inline Point<Moving> moving(const Point<Numbers>& point, const Point<Numbers>& along) {
    Point<Moving> all;
    for (int kind = 0; kind < kKinds; ++kind) {
        for (std::size_t n = 0; n < point[kind].size(); ++n) all[kind].emplace_back(point[kind][n], along[kind][n]);
    }
    return all;
}

template <class Products>
Moving product(const Products& products, const Moving& a, const Moving& b, std::size_t count) {
    Moving y(count);
    exact::add_products(products, a.value, b.value, y.value);
    exact::add_products(products, a.tangent, b.value, y.tangent);
    exact::add_products(products, a.value, b.tangent, y.tangent);
    return y;
}

// 3x3 convolution of every channel on its own: y and a are features, b is channels x 9.
struct Depthwise {
    int images, height, width, channels;

    template <class Visit>
    void operator()(const Visit& visit) const {
        for (int image = 0; image < images; ++image) {
            for (int row = 0; row < height; ++row) {
                for (int column = 0; column < width; ++column) {
                    for (int tap = 0; tap < 9; ++tap) {
                        const int above = row + tap / 3 - 1, beside = column + tap % 3 - 1;
                        if (above < 0 || above >= height || beside < 0 || beside >= width) continue;
                        const std::size_t y = first(image, row, column), x = first(image, above, beside);
                        for (std::size_t k = 0; k < static_cast<std::size_t>(channels); ++k) visit(y + k, x + k, 9 * k + tap);
                    }
                }
            }
        }
    }

  private:
    std::size_t first(int image, int row, int column) const {
        return ((static_cast<std::size_t>(image) * height + row) * width + column) * static_cast<std::size_t>(channels);
    }
};

// The normalized channels of each pixel, which are along the direction what the product rule says.
inline Moving normalized(const Moving& x, std::size_t channels) {
    Moving y(x.value.size());
    for (std::size_t first = 0; first < x.value.size(); first += channels) {
        double mean = 0, moved = 0, variance = 0, along = 0;
        for (std::size_t i = first; i < first + channels; ++i) {
            mean += x.value[i] / static_cast<double>(channels);
            moved += x.tangent[i] / static_cast<double>(channels);
        }
        for (std::size_t i = first; i < first + channels; ++i) {
            variance += (x.value[i] - mean) * (x.value[i] - mean) / static_cast<double>(channels);
            along += 2 * (x.value[i] - mean) * (x.tangent[i] - moved) / static_cast<double>(channels);
        }
        const double root = std::sqrt(variance + 1e-5), scale = 1 / root, slope = -along / (2 * root * root * root);
        for (std::size_t i = first; i < first + channels; ++i) {
            y.value[i] = (x.value[i] - mean) * scale;
            y.tangent[i] = (x.tangent[i] - moved) * scale + (x.value[i] - mean) * slope;
        }
    }
    return y;
}

// Every channel of every pixel times its weight.
struct Scaling {
    std::size_t numbers, channels;

    template <class Visit>
    void operator()(const Visit& visit) const {
        for (std::size_t i = 0; i < numbers; ++i) visit(i, i, i % channels);
    }
};

inline double normal_share(double x) { return 0.5 * std::erfc(-x * std::sqrt(0.5)); }
inline double gelu(double x) { return x * normal_share(x); }
inline double gelu_slope(double x) { return normal_share(x) + x * std::exp(-0.5 * x * x) / std::sqrt(2 * std::acos(-1.0)); }

// What the passes must find at a point: the values, the tangents along the directions, the gradients from the slopes.
class Expected {
  public:
    Expected(const Shape& shape, const Point<Moving>& at, const std::vector<Exact>& slopes) : shape_(shape), at_(at) {
        for (int kind = 0; kind < kKinds; ++kind) {
            for (const Moving& list : at[kind]) gradient_[kind].emplace_back(list.value.size());
        }
        normalize();
        std::vector<Moving> sums;
        for (std::size_t n = 0; n < at[kWeights].size(); ++n) {
            wide_.push_back(product(expansion(n), narrow_[shape.input_of(n)], at[kWeights][n], numbers(shape.channels)));
            sums.push_back(product(spread(), wide_[n], at[kTaps][n], numbers(shape.channels)));
        }
        differentiate(shape.gated ? gate(sums, slopes[0]) : slopes);
        if (shape.gated) return;
        for (const Moving& sum : sums) {
            values_.push_back(sum.value);
            tangents_.push_back(sum.tangent);
        }
    }

    // The arrays of one pass, in the order in which the kernels return theirs.
    std::vector<Exact> of(ExpansionPass pass) const {
        if (pass != ExpansionPass::gradients) return pass == ExpansionPass::values ? values_ : tangents_;
        std::vector<Exact> all;
        for (int kind = 0; kind < kResidual; ++kind) all.insert(all.end(), gradient_[kind].begin(), gradient_[kind].end());
        return all;
    }

  private:
    std::size_t numbers(int channels) const { return shape_.pixels() * static_cast<std::size_t>(channels); }
    exact::Pointwise pointwise(int inputs, int outputs) const {
        return {shape_.pixels(), static_cast<std::size_t>(inputs), static_cast<std::size_t>(outputs)};
    }
    exact::Pointwise expansion(std::size_t operand) const { return pointwise(shape_.inputs[shape_.input_of(operand)], shape_.channels); }
    Depthwise spread() const { return {shape_.images, shape_.height, shape_.width, shape_.channels}; }
    Scaling scaling() const { return {numbers(shape_.inputs[0]), static_cast<std::size_t>(shape_.inputs[0])}; }

    void normalize() {
        narrow_ = at_[kInputs];
        if (!shape_.norm) return;
        const Moving &weight = at_[kNorm][0], &bias = at_[kNorm][1];
        narrow_[0] = product(scaling(), normalized(at_[kInputs][0], bias.value.size()), weight, numbers(shape_.inputs[0]));
        for (std::size_t i = 0; i < narrow_[0].value.size(); ++i) {
            narrow_[0].value[i] += bias.value[i % bias.value.size()];
            narrow_[0].tangent[i] += bias.tangent[i % bias.value.size()];
        }
    }

    // Values and tangents of a gated pair, and the slopes by both of its sums.
    std::vector<Exact> gate(const std::vector<Moving>& sums, const Exact& slopes) {
        const exact::Pointwise back = pointwise(shape_.channels, shape_.outputs);
        Moving gated(numbers(shape_.channels));
        for (std::size_t i = 0; i < gated.value.size(); ++i) {
            const double first = sums[0].value[i], second = sums[1].value[i];
            gated.value[i] = gelu(first) * second;
            gated.tangent[i] = gelu_slope(first) * sums[0].tangent[i] * second + gelu(first) * sums[1].tangent[i];
        }
        Moving y = product(back, gated, at_[kOut][0], numbers(shape_.outputs));
        const std::vector<Moving>& added = at_[shape_.residual == Residual::input ? kInputs : kResidual];
        for (std::size_t i = 0; shape_.residual != Residual::none && i < y.value.size(); ++i) {
            y.value[i] += added[0].value[i];
            y.tangent[i] += added[0].tangent[i];
            if (shape_.residual == Residual::input) gradient_[kInputs][0][i] += slopes[i];
        }
        values_ = {y.value};
        tangents_ = {y.tangent};
        Exact by_gated(gated.value.size());
        exact::add_gradients(back, gated.value, at_[kOut][0].value, slopes, by_gated, gradient_[kOut][0]);
        std::vector<Exact> by_sums(2, by_gated);
        for (std::size_t i = 0; i < by_gated.size(); ++i) {
            by_sums[0][i] *= gelu_slope(sums[0].value[i]) * sums[1].value[i];
            by_sums[1][i] *= gelu(sums[0].value[i]);
        }
        return by_sums;
    }

    // Takes the gradients from the slopes of the depthwise convolutions.
    void differentiate(const std::vector<Exact>& slopes) {
        std::vector<Exact> by_narrow;
        for (const Moving& list : narrow_) by_narrow.emplace_back(list.value.size());
        for (std::size_t n = 0; n < slopes.size(); ++n) {
            const std::size_t input = shape_.input_of(n);
            Exact by_wide(slopes[n].size());
            exact::add_gradients(spread(), wide_[n].value, at_[kTaps][n].value, slopes[n], by_wide, gradient_[kTaps][n]);
            exact::add_gradients(expansion(n), narrow_[input].value, at_[kWeights][n].value, by_wide, by_narrow[input], gradient_[kWeights][n]);
        }
        if (shape_.norm) {
            for (std::size_t i = 0; i < by_narrow[0].size(); ++i) gradient_[kNorm][1][i % gradient_[kNorm][1].size()] += by_narrow[0][i];
            // The derivatives of a pixel's normalized channels by its channels are symmetric: gradients are tangents along slopes.
            const std::size_t channels = gradient_[kNorm][0].size();
            Moving x = at_[kInputs][0];
            std::fill(x.tangent.begin(), x.tangent.end(), 0.0);
            const Exact seen = normalized(x, channels).value;
            exact::add_gradients(scaling(), seen, at_[kNorm][0].value, by_narrow[0], x.tangent, gradient_[kNorm][0]);
            by_narrow[0] = normalized(x, channels).tangent;
        }
        for (std::size_t n = 0; n < by_narrow.size(); ++n) {
            for (std::size_t i = 0; i < by_narrow[n].size(); ++i) gradient_[kInputs][n][i] += by_narrow[n][i];
        }
    }

    const Shape& shape_;
    const Point<Moving>& at_;
    std::vector<Moving> narrow_, wide_;
    std::vector<Exact> values_, tangents_;
    Point<Exact> gradient_;
};

// One call of the kernels: what they read and what they write, each in a block of its own.
class Call {
  public:
    Call(const Shape& shape, unsigned seed) : shape_(shape), random_(seed) {
        job_.images = shape.images;
        job_.height = shape.height;
        job_.width = shape.width;
        job_.channels = shape.channels;
        job_.gated = shape.gated;
        job_.outputs = shape.gated ? shape.outputs : 0;
        job_.residual_is_input = shape.residual == Residual::input;
        for (const int channels : shape.inputs) job_.inputs.push_back({channels, {}, {}, {}});
        for (std::size_t n = 0; n < static_cast<std::size_t>(shape.operands); ++n) job_.operands.push_back({shape.input_of(n), {}, {}});
    }

    void read_point(const Point<Numbers>& point) {
        take(point, false, &ExpansionInput::x, &TrainedParameter::value, &Expansion::residual);
    }
    void read_tangents(const Point<Numbers>& along) {
        take(along, false, &ExpansionInput::x_tangent, &TrainedParameter::tangent, &Expansion::residual_tangent);
    }
    void read_slopes(const std::vector<Numbers>& slopes) {
        for (const Numbers& own : slopes) job_.y.push_back(features(own, shape_.result_channels(), false));
    }
    void write_gradients(const Point<Numbers>& sizes) { take(sizes, true, &ExpansionInput::x_gradient, &TrainedParameter::gradient, nullptr); }
    void write_results() {
        const Numbers size(shape_.pixels() * static_cast<std::size_t>(shape_.result_channels()));
        for (std::size_t n = 0; n < shape_.results(); ++n) job_.y.push_back(features(size, shape_.result_channels(), true));
    }

    // What the kernels write.
    std::vector<Numbers> run(ExpansionPass pass, int threads, const std::string& isa) const {
        refusion::expand(pass, job_, threads, isa);
        for (const Block& block : read_) block.require_unchanged();
        std::vector<Numbers> found;
        for (const Block& block : written_) found.push_back(block.found());
        return found;
    }

  private:
    template <class Number>
    void take(const Point<Numbers>& lists, bool written, Pixels<float> ExpansionInput::*input, Number TrainedParameter::*parameter,
              Pixels<float> Expansion::*residual) {
        for (std::size_t n = 0; n < job_.inputs.size(); ++n) job_.inputs[n].*input = features(lists[kInputs][n], job_.inputs[n].channels, written);
        const auto parameters = [&](const Numbers& list) { return pixels(list, list.size(), written).data; };
        if (shape_.norm) {
            job_.norm_weight.*parameter = parameters(lists[kNorm][0]);
            job_.norm_bias.*parameter = parameters(lists[kNorm][1]);
        }
        for (std::size_t n = 0; n < job_.operands.size(); ++n) job_.operands[n].weights.*parameter = parameters(lists[kWeights][n]);
        for (std::size_t n = 0; n < job_.operands.size(); ++n) job_.operands[n].taps.*parameter = parameters(lists[kTaps][n]);
        if (shape_.gated) job_.out.*parameter = parameters(lists[kOut][0]);
        if (residual && shape_.residual == Residual::own) job_.*residual = features(lists[kResidual][0], shape_.outputs, written);
        if (residual && shape_.residual == Residual::input) job_.*residual = job_.inputs[0].*input;
    }
    Pixels<float> features(const Numbers& numbers, int channels, bool written) {
        return pixels(numbers, static_cast<std::size_t>(channels), written);
    }
    Pixels<float> pixels(const Numbers& numbers, std::size_t channels, bool written) {
        if (written) return written_.emplace_back(numbers.size() / channels, channels, random_).pixels();
        return read_.emplace_back(numbers.size() / channels, channels, random_, numbers).pixels();
    }

    const Shape& shape_;
    std::mt19937 random_;
    std::vector<Block> read_, written_;
    Expansion job_;
};

class Fuzzer {
  public:
    explicit Fuzzer(unsigned seed) : random_(seed) {}

    // All passes over a batch of a random form and size.
    void turn() {
        draw();
        const Point<Moving> at = moving(point_, along_);
        std::vector<Exact> slopes;
        for (const Numbers& own : slopes_) slopes.emplace_back(own.begin(), own.end());
        const Expected expected(shape_, at, slopes);
        for (const ExpansionPass pass : {ExpansionPass::values, ExpansionPass::tangents, ExpansionPass::gradients}) {
            const char* passes[] = {"values", "tangents", "gradients"};
            const auto work = [&](int threads, const std::string& isa, unsigned seed) { return results(pass, threads, isa, seed); };
            closeness_.check(work, expected.of(pass), shape_.name() + ", " + passes[static_cast<int>(pass)], random_);
        }
        ++turns;
    }

    long turns = 0;
    double worst() const { return closeness_.worst(); }

  private:
    int pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

    void draw() {
        draw_shape();
        draw_point();
        along_ = point_;
        for (std::vector<Numbers>& lists : along_) {
            for (Numbers& list : lists) list = blocks::normal(list.size(), random_);
        }
        slopes_.clear();
        for (std::size_t n = 0; n < shape_.results(); ++n) {
            slopes_.push_back(blocks::normal(shape_.pixels() * static_cast<std::size_t>(shape_.result_channels()), random_));
        }
    }

    void draw_shape() {
        // Images without a neighbor on some side, small ones, and those of several bands of rows.
        const int kind = pick(0, 5);
        const bool flat = kind == 0 || kind == 1, narrow = kind == 0 || kind == 2, high = kind == 3;
        shape_.images = pick(1, 3);
        shape_.height = flat ? 1 : high ? pick(60, 140) : pick(2, 10);
        shape_.width = narrow ? 1 : high ? pick(1, 3) : pick(2, 20);
        shape_.gated = pick(0, 1) == 1;
        shape_.operands = shape_.gated ? 2 : pick(1, 3);
        const bool apart = shape_.operands == 2 && pick(0, 2) == 0;
        shape_.norm = !apart && pick(0, 2) > 0;
        shape_.residual = shape_.gated ? static_cast<Residual>(pick(0, apart ? 1 : 2)) : Residual::none;
        // Whole vectors of every instruction set, and channels that fill no vector.
        const int lanes[] = {16, 8, 4, 1}, step = lanes[pick(0, 3)], most = (high ? 24 : 48) / step;
        const auto channels = [&] { return step * pick(1, most + (step == 16)); };
        shape_.inputs.clear();
        for (int n = apart ? shape_.operands : 1; n > 0; --n) shape_.inputs.push_back(channels());
        if (shape_.norm && pick(0, 9) == 0) shape_.inputs[0] = refusion::kNormChannels;
        shape_.channels = channels();
        shape_.outputs = shape_.residual == Residual::input ? shape_.inputs[0] : channels();
    }

    // Numbers that leave those of all stages at about 1.
    void draw_point() {
        for (std::vector<Numbers>& lists : point_) lists.clear();
        for (const int channels : shape_.inputs) point_[kInputs].push_back(input(static_cast<std::size_t>(channels)));
        const auto wide = static_cast<std::size_t>(shape_.channels), outputs = static_cast<std::size_t>(shape_.outputs);
        for (int n = 0; shape_.norm && n < 2; ++n) point_[kNorm].push_back(blocks::normal(static_cast<std::size_t>(shape_.inputs[0]), random_));
        for (std::size_t n = 0; n < static_cast<std::size_t>(shape_.operands); ++n) {
            point_[kWeights].push_back(matrix(wide, static_cast<std::size_t>(shape_.inputs[shape_.input_of(n)])));
            point_[kTaps].push_back(matrix(wide, 9));
        }
        if (shape_.gated) point_[kOut].push_back(matrix(outputs, wide));
        if (shape_.residual == Residual::own) point_[kResidual].push_back(blocks::normal(shape_.pixels() * outputs, random_));
    }
    Numbers matrix(std::size_t rows, std::size_t columns) {
        return blocks::normal(rows * columns, random_, 1 / std::sqrt(static_cast<double>(columns)));
    }
    // A norm loses digits in any arithmetic where there is little contrast: so there is some, even between two channels.
    Numbers input(std::size_t channels) {
        Numbers numbers = blocks::normal(shape_.pixels() * channels, random_);
        if (!shape_.norm) return numbers;
        for (std::size_t i = 0; i < numbers.size(); ++i) {
            const float bounded = std::min(std::max(numbers[i], -1.0f), 1.0f);
            numbers[i] = i % channels % 2 == 0 ? bounded + 1.5f : bounded - 1.5f;
        }
        return numbers;
    }

    std::vector<Numbers> results(ExpansionPass pass, int threads, const std::string& isa, unsigned seed) const {
        Call call(shape_, seed);
        call.read_point(point_);
        if (pass == ExpansionPass::gradients) {
            call.read_slopes(slopes_);
            call.write_gradients(point_);
        } else {
            if (pass == ExpansionPass::tangents) call.read_tangents(along_);
            call.write_results();
        }
        return call.run(pass, threads, isa);
    }

    std::mt19937 random_;
    Closeness closeness_{kTolerance};
    Shape shape_{};
    Point<Numbers> point_, along_;
    std::vector<Numbers> slopes_;
};

}  // namespace expansion_fuzzer
