#include "fast_oracle.hpp"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

namespace refusion {
namespace {

using Numbers = std::vector<double>;

class Reference {
  public:
    Reference(const FastLayout& layout, const float* flat) : layout_(layout), rows_(fast_parameters(layout)), flat_(flat) {}

    Numbers fuse(const PlaneView& a, const PlaneView& b, int height, int width, const std::array<double, kFastStatistics>& statistics) const {
        const int k = layout_.factor, h = (height + k - 1) / k, w = (width + k - 1) / k;
        Numbers features;
        for (const PlaneView* plane : {&a, &b}) {
            for (int place = 0; place < k * k; ++place) {
                for (int y = 0; y < h; ++y) {
                    for (int x = 0; x < w; ++x) {
                        features.push_back(plane->at(std::min(k * y + place / k, height - 1), std::min(k * x + place % k, width - 1)));
                    }
                }
            }
        }
        const int channels = layout_.channels;
        Numbers hidden = dense("statistics.0", {statistics.begin(), statistics.end()});
        for (double& unit : hidden) unit = leaky(unit);
        const Numbers changes = dense("statistics.1", hidden);
        for (int i = 0; i < layout_.convolutions; ++i) {
            features = convolution("layers." + std::to_string(i), features, layout_.inputs(i), layout_.outputs(i), h, w);
            // The gain is that of weights and bias, and so of their sum.
            for (std::size_t n = 0; i == 0 && n < features.size(); ++n) {
                const std::size_t channel = n / (static_cast<std::size_t>(h) * static_cast<std::size_t>(w));
                features[n] = features[n] * (1 + changes[channel]) + changes[static_cast<std::size_t>(channels) + channel];
            }
            for (std::size_t n = 0; i + 1 < layout_.convolutions && n < features.size(); ++n) features[n] = leaky(features[n]);
        }
        Numbers fused;
        for (int row = 0; row < height; ++row) {
            for (int column = 0; column < width; ++column) {
                const auto found = [&](int plane) {
                    const int channel = k * k * plane + row % k * k + column % k;
                    return features[(static_cast<std::size_t>(channel) * static_cast<std::size_t>(h) + static_cast<std::size_t>(row / k)) *
                                        static_cast<std::size_t>(w) + static_cast<std::size_t>(column / k)];
                };
                const double x = a.at(row, column), y = b.at(row, column);
                fused.push_back(std::clamp(std::max(x, y) - found(0) * std::abs(x - y) + found(1), 0.0, 1.0));
            }
        }
        return fused;
    }

  private:
    static double leaky(double x) { return x < 0 ? 0.1 * x : x; }

    const float* find(const std::string& name) const {
        return flat_ + std::find_if(rows_.begin(), rows_.end(), [&](const Parameter& row) { return row.name == name; })->offset;
    }

    Numbers dense(const std::string& name, const Numbers& x) const {
        const float *weight = find(name + ".weight"), *bias = find(name + ".bias");
        const auto outputs = static_cast<std::size_t>(bias - weight) / x.size();
        Numbers y(bias, bias + outputs);
        for (std::size_t o = 0; o < outputs; ++o) {
            for (std::size_t i = 0; i < x.size(); ++i) y[o] += weight[o * x.size() + i] * x[i];
        }
        return y;
    }

    Numbers convolution(const std::string& name, const Numbers& x, int inputs, int outputs, int h, int w) const {
        const float *weight = find(name + ".weight"), *bias = find(name + ".bias");
        Numbers y;
        for (int output = 0; output < outputs; ++output) {
            for (int row = 0; row < h; ++row) {
                for (int column = 0; column < w; ++column) {
                    double sum = bias[output];
                    for (int input = 0; input < inputs; ++input) {
                        for (int tap = 0; tap < 9; ++tap) {
                            const int r = row + tap / 3 - 1, c = column + tap % 3 - 1;
                            if (r < 0 || c < 0 || r >= h || c >= w) continue;
                            sum += weight[(output * inputs + input) * 9 + tap] * x[static_cast<std::size_t>((input * h + r) * w + c)];
                        }
                    }
                    y.push_back(sum);
                }
            }
        }
        return y;
    }

    const FastLayout layout_;
    const std::vector<Parameter> rows_;
    const float* flat_;
};

}  // namespace

std::array<double, kFastStatistics> fast_statistics_reference(const PlaneView& a, const PlaneView& b, int height, int width) {
    Numbers planes[kFastStatistics / 2];
    for (int row = 0; row < height; row += kFastStride) {
        for (int column = 0; column < width; column += kFastStride) {
            const double x = a.at(row, column), y = b.at(row, column), found[] = {x, y, std::max(x, y), std::abs(x - y)};
            for (std::size_t i = 0; i < std::size(planes); ++i) planes[i].push_back(found[i]);
        }
    }
    std::array<double, kFastStatistics> statistics{};
    for (std::size_t i = 0; i < std::size(planes); ++i) {
        const auto count = static_cast<double>(planes[i].size());
        double &mean = statistics[2 * i], &deviation = statistics[2 * i + 1];
        for (double pixel : planes[i]) mean += pixel / count;
        for (double pixel : planes[i]) deviation += (pixel - mean) * (pixel - mean) / count;
        deviation = std::sqrt(deviation);
    }
    return statistics;
}

void fuse_fast_reference(const FastLayout& layout, const float* flat, const PlaneView& a, const PlaneView& b, int height, int width,
                         const std::array<double, kFastStatistics>& statistics, double* fused) {
    const Numbers result = Reference(layout, flat).fuse(a, b, height, width, statistics);
    std::copy(result.begin(), result.end(), fused);
}

}  // namespace refusion
