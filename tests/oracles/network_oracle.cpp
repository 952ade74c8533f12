#include "network_oracle.hpp"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "parameters.hpp"

namespace refusion {
namespace {

// Channels of an image, channel by channel, row by row.
struct Features {
    int channels, height, width;
    std::vector<double> values;

    Features(int channels_, int height_, int width_)
        : channels(channels_),
          height(height_),
          width(width_),
          values(static_cast<std::size_t>(channels_) * static_cast<std::size_t>(height_) * static_cast<std::size_t>(width_)) {}

    std::size_t pixels() const { return static_cast<std::size_t>(height) * static_cast<std::size_t>(width); }
    double* channel(int index) { return values.data() + static_cast<std::size_t>(index) * pixels(); }
    const double* channel(int index) const { return values.data() + static_cast<std::size_t>(index) * pixels(); }

    Features part(int first, int count) const {
        Features chosen(count, height, width);
        std::copy(channel(first), channel(first) + static_cast<std::size_t>(count) * pixels(), chosen.values.begin());
        return chosen;
    }
};

class Reference {
  public:
    explicit Reference(const float* flat) : flat_(flat) {}

    Features fuse(const Features& a, const Features& b) const {
        Features features_a = dense("project_in_1", a, kDim);
        Features features_b = dense("project_in_2", b, kDim);
        for (int index = 0; index < kBlocks; ++index) {
            features_a = block("encoder1." + std::to_string(index), features_a);
            features_b = block("encoder2." + std::to_string(index), features_b);
        }
        Features features = fusion_module(features_a, features_b);
        for (int index = 0; index < kBlocks; ++index) features = block("decoder." + std::to_string(index), features);
        features = dense("project_out_0", features, kDim);
        for (double& value : features.values) value = value < 0 ? kLeakExact * value : value;
        features = dense("project_out_1", features, 1);
        for (double& value : features.values) value = 1 / (1 + std::exp(-value));
        return features;
    }

  private:
    static constexpr double kLeakExact = 0.01;
    static constexpr double kEpsilonExact = 1e-5;

    const float* weights(const std::string& name) const { return find_parameter(flat_, name + ".weight"); }

    // 3x3, zero-padded; output o of group g sees the inputs of that group.
    Features convolution(const float* kernel, const Features& x, int outputs, int groups) const {
        Features y(outputs, x.height, x.width);
        const int inputs = x.channels / groups;
        for (int output = 0; output < outputs; ++output) {
            for (int input = 0; input < inputs; ++input) {
                const double* from = x.channel(output / (outputs / groups) * inputs + input);
                const float* taps = kernel + (output * inputs + input) * 9;
                for (int row = 0; row < x.height; ++row) {
                    for (int column = 0; column < x.width; ++column) {
                        double sum = 0;
                        for (int tap = 0; tap < 9; ++tap) {
                            const int r = row + tap / 3 - 1, c = column + tap % 3 - 1;
                            if (r < 0 || c < 0 || r >= x.height || c >= x.width) continue;
                            sum += taps[tap] * from[static_cast<std::ptrdiff_t>(r) * x.width + c];
                        }
                        y.channel(output)[static_cast<std::ptrdiff_t>(row) * x.width + column] += sum;
                    }
                }
            }
        }
        return y;
    }

    Features dense(const std::string& name, const Features& x, int outputs) const {
        return convolution(weights(name), x, outputs, 1);
    }

    Features depthwise(const std::string& name, const Features& x) const {
        return convolution(weights(name), x, x.channels, x.channels);
    }

    Features pointwise(const std::string& name, const Features& x, int outputs) const {
        const float* kernel = weights(name);
        Features y(outputs, x.height, x.width);
        for (int output = 0; output < outputs; ++output) {
            for (int input = 0; input < x.channels; ++input) {
                const double factor = kernel[output * x.channels + input];
                for (std::size_t i = 0; i < x.pixels(); ++i) y.channel(output)[i] += factor * x.channel(input)[i];
            }
        }
        return y;
    }

    Features norm(const std::string& name, const Features& x) const {
        const float* scale = find_parameter(flat_, name + ".body.weight");
        const float* shift = find_parameter(flat_, name + ".body.bias");
        Features y(x.channels, x.height, x.width);
        for (std::size_t i = 0; i < x.pixels(); ++i) {
            double mean = 0, variance = 0;
            for (int c = 0; c < x.channels; ++c) mean += x.channel(c)[i] / x.channels;
            for (int c = 0; c < x.channels; ++c) variance += std::pow(x.channel(c)[i] - mean, 2) / x.channels;
            for (int c = 0; c < x.channels; ++c) {
                y.channel(c)[i] = (x.channel(c)[i] - mean) / std::sqrt(variance + kEpsilonExact) * scale[c] + shift[c];
            }
        }
        return y;
    }

    Features attention(const Features& q, const Features& k, const Features& v, const std::string& temperature) const {
        const float* factors = find_parameter(flat_, temperature);
        const int dim = v.channels / kHeads;
        Features y(v.channels, v.height, v.width);
        const auto product = [&](const double* x, const double* z) {
            double sum = 0;
            for (std::size_t i = 0; i < v.pixels(); ++i) sum += x[i] * z[i];
            return sum;
        };
        for (int row = 0; row < v.channels; ++row) {
            const int head = row / dim;
            const double* query = q.channel(row);
            std::vector<double> scores(static_cast<std::size_t>(dim));
            for (int j = 0; j < dim; ++j) {
                const double* key = k.channel(head * dim + j);
                const double norms = std::max(std::sqrt(product(query, query)), kNormFloor) *
                                     std::max(std::sqrt(product(key, key)), kNormFloor);
                scores[static_cast<std::size_t>(j)] = product(query, key) / norms * factors[head];
            }
            const double most = *std::max_element(scores.begin(), scores.end());
            double total = 0;
            for (double& score : scores) total += score = std::exp(score - most);
            for (int j = 0; j < dim; ++j) {
                const double share = scores[static_cast<std::size_t>(j)] / total;
                for (std::size_t i = 0; i < v.pixels(); ++i) y.channel(row)[i] += share * v.channel(head * dim + j)[i];
            }
        }
        return y;
    }

    static void add(Features& x, const Features& y) {
        for (std::size_t i = 0; i < x.values.size(); ++i) x.values[i] += y.values[i];
    }

    static Features gated(const Features& gate, const Features& update) {
        Features y = update;
        for (std::size_t i = 0; i < y.values.size(); ++i) {
            const double x = gate.values[i];
            y.values[i] *= 0.5 * x * (1 + std::erf(x * std::sqrt(0.5)));
        }
        return y;
    }

    Features block(const std::string& name, Features x) const {
        const int dim = x.channels, hidden = dim * kExpansion;
        const Features qkv = depthwise(name + ".attn.qkv_dwconv", pointwise(name + ".attn.qkv", norm(name + ".norm1", x), 3 * dim));
        const Features mixed = attention(qkv.part(0, dim), qkv.part(dim, dim), qkv.part(2 * dim, dim), name + ".attn.temperature");
        add(x, pointwise(name + ".attn.project_out", mixed, dim));
        const Features both = depthwise(name + ".ffn.dwconv", pointwise(name + ".ffn.project_in", norm(name + ".norm2", x), 2 * hidden));
        add(x, pointwise(name + ".ffn.project_out", gated(both.part(0, hidden), both.part(hidden, hidden)), dim));
        return x;
    }

    Features fusion_module(Features x1, Features x2) const {
        const int hidden = 2 * kDim * kExpansion;
        const Features qkv1 = depthwise("FM.qkv1_dwconv", pointwise("FM.qkv1", x1, 3 * kDim));
        const Features qkv2 = depthwise("FM.qkv2_dwconv", pointwise("FM.qkv2", x2, 3 * kDim));
        const auto q = [](const Features& qkv) { return qkv.part(0, kDim); };
        const auto k = [](const Features& qkv) { return qkv.part(kDim, kDim); };
        const auto v = [](const Features& qkv) { return qkv.part(2 * kDim, kDim); };
        // Crossed: the queries of one source ask the keys of the other.
        add(x1, pointwise("FM.project_mid1", attention(q(qkv2), k(qkv1), v(qkv1), "FM.temperature1"), kDim));
        add(x2, pointwise("FM.project_mid2", attention(q(qkv1), k(qkv2), v(qkv2), "FM.temperature2"), kDim));
        Features both(2 * kDim, x1.height, x1.width);
        std::copy(x1.values.begin(), x1.values.end(), both.channel(0));
        std::copy(x2.values.begin(), x2.values.end(), both.channel(kDim));
        const Features gates = depthwise("FM.project_E_d", pointwise("FM.project_E", both, 2 * hidden));
        const Features update1 = depthwise("FM.project_E1_d", pointwise("FM.project_E1", x1, hidden));
        const Features update2 = depthwise("FM.project_E2_d", pointwise("FM.project_E2", x2, hidden));
        add(both, pointwise("FM.project_out1", gated(gates.part(0, hidden), update1), 2 * kDim));
        add(both, pointwise("FM.project_out2", gated(gates.part(hidden, hidden), update2), 2 * kDim));
        return both;
    }

    const float* flat_;
};

Features to_features(const PlaneView& plane, int height, int width) {
    Features features(1, height, width);
    for (int row = 0; row < height; ++row) {
        for (int column = 0; column < width; ++column) {
            features.values[static_cast<std::size_t>(row) * static_cast<std::size_t>(width) + static_cast<std::size_t>(column)] =
                plane.at(row, column);
        }
    }
    return features;
}

}  // namespace

void fuse_reference(const float* flat, const PlaneView& a, const PlaneView& b, int height, int width, double* fused) {
    const Features result = Reference(flat).fuse(to_features(a, height, width), to_features(b, height, width));
    std::copy(result.values.begin(), result.values.end(), fused);
}

}  // namespace refusion
