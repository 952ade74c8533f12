#include "expansion.hpp"

#include <algorithm>
#include <climits>
#include <cstddef>

#include "buffer.hpp"
#include "isa.hpp"
#include "matrix.hpp"
#include "thread_pool.hpp"

namespace refusion {

namespace {

// Rows of a band; one of gradients computes up to four more.
constexpr int kBandRows = 64;
constexpr int kTaps = 9;
constexpr int kRing = 3;  // rows that a 3x3 convolution sees

std::size_t size(int first, int second) { return static_cast<std::size_t>(first) * static_cast<std::size_t>(second); }

// Of everything that the vectors run along.
std::vector<int> channels_of(const Expansion& job) {
    std::vector<int> channels{job.channels, job.outputs};
    for (const ExpansionInput& input : job.inputs) channels.push_back(input.channels);
    return channels;
}

// Where the taps of SpreadOperand lie.
std::size_t packed_tap(int channel, int tap, int lanes) {
    return size(channel / lanes * kTaps + tap, lanes) + static_cast<std::size_t>(channel % lanes);
}

Buffer packed_taps(const float* taps, int channels, int lanes) {
    if (!taps) return {};
    Buffer result(size(channels, kTaps));
    for (int channel = 0; channel < channels; ++channel) {
        for (int tap = 0; tap < kTaps; ++tap) result.data()[packed_tap(channel, tap, lanes)] = *taps++;
    }
    return result;
}

// Parameters as the kernels take them, and their tangents.
struct Packed {
    struct Operand {
        Buffer weights, weights_tangent;  // channels of the input x channels
        Buffer taps, taps_tangent;
    };
    std::vector<Operand> operands;
    Buffer out, out_tangent;  // channels x outputs

    Packed(const Expansion& job, int lanes)
        : out(transposed(job.out.value, job.outputs, job.channels)), out_tangent(transposed(job.out.tangent, job.outputs, job.channels)) {
        for (const ExpansionOperand& operand : job.operands) {
            const int inputs = job.inputs[operand.input].channels;
            operands.push_back({transposed(operand.weights.value, job.channels, inputs), transposed(operand.weights.tangent, job.channels, inputs),
                                packed_taps(operand.taps.value, job.channels, lanes), packed_taps(operand.taps.tangent, job.channels, lanes)});
        }
    }
};

// What one band adds to the gradients of the parameters: matrices in float, which a band adds up row by row, the rest in double.
struct Sums {
    struct Operand {
        std::vector<float> weights;
        std::vector<double> taps;
    };
    std::vector<Operand> operands;
    std::vector<float> out;
    std::vector<double> norm_weight, norm_bias;

    explicit Sums(const Expansion& job) : out(size(job.outputs, job.channels)) {
        for (const ExpansionOperand& operand : job.operands) {
            operands.push_back({std::vector<float>(size(job.channels, job.inputs[operand.input].channels)),
                                std::vector<double>(size(job.channels, kTaps))});
        }
        if (job.norm_weight.value) {
            norm_weight.resize(static_cast<std::size_t>(job.inputs[0].channels));
            norm_bias.resize(norm_weight.size());
        }
    }
};

// Rows of scratch.
class Rows {
  public:
    Rows() = default;
    Rows(int rows, int width, int channels)
        : memory_(size(rows, width) * static_cast<std::size_t>(channels)),
          view_{memory_.data(), width * static_cast<std::ptrdiff_t>(channels), channels, rows} {}

    const RowsView& view() const { return view_; }
    Pixels<float> row(int row) const { return {view_.at(row, 0), view_.pitch}; }

  private:
    Buffer memory_;
    RowsView view_{};
};

Pixels<const float> read(const Pixels<float>& pixels) { return {pixels.data, pixels.pitch}; }

// Works on one band after the other, with its own scratch.
class Worker {
  public:
    Worker(ExpansionPass pass, const Expansion& job, const Kernels& kernels, const Packed& packed)
        : pass_(pass), job_(job), kernels_(kernels), packed_(packed) {
        const int width = job.width, channels = job.channels;
        const bool tangents = pass == ExpansionPass::tangents, gradients = pass == ExpansionPass::gradients;
        if (job.norm_weight.value) {
            normalized_ = Rows(kRing, width, job.inputs[0].channels);
            if (tangents) normalized_tangent_ = Rows(kRing, width, job.inputs[0].channels);
            if (gradients) normalized_gradient_ = Rows(1, width, job.inputs[0].channels);
        }
        for (std::size_t n = 0; n < job.operands.size(); ++n) {
            wide_.emplace_back(kRing, width, channels);
            if (tangents) wide_tangent_.emplace_back(kRing, width, channels);
            if (gradients && job.gated) slopes_.emplace_back(kRing, width, channels);
        }
        if (gradients) wide_gradient_ = Rows(1, width, channels);
        spread_ = Rows(1, width, channels);
        if (tangents || gradients) spread_change_ = Rows(1, width, channels);
    }

    void run(int image, int top, int bottom, Sums* sums) {
        first_ = static_cast<std::ptrdiff_t>(image) * job_.height * job_.width;
        const int reach = pass_ == ExpansionPass::gradients ? 2 : 1;
        for (int next = top - reach; next < bottom + reach; ++next) {
            if (inside(next)) widen(next);
            const int row = next - 1;
            if (pass_ == ExpansionPass::gradients) {
                if (row >= top - 1 && inside(row)) take_slopes(row, row >= top && row < bottom, *sums);
                if (row - 1 >= top) make_gradients(row - 1, *sums);
            } else if (row >= top) {
                make_result(row);
            }
        }
    }

  private:
    bool inside(int row) const { return row >= 0 && row < job_.height; }

    Pixels<float> at(const Pixels<float>& features, int row) const {
        if (!features.data) return features;
        return {features.at(first_ + static_cast<std::ptrdiff_t>(row) * job_.width), features.pitch};
    }
    // The rows of a whole image.
    RowsView rows_of(const Pixels<float>& features) const {
        if (!features.data) return {};
        return {features.at(first_), job_.width * features.pitch, features.pitch, INT_MAX};
    }

    void multiply(int inputs, int outputs, const Pixels<float>& x, const float* weights, const Pixels<float>& added, const Pixels<float>& y) const {
        kernels_.product({job_.width, inputs, outputs, read(x), weights, read(added), nullptr, y});
    }

    // What the convolutions read: the input behind its norm.
    Pixels<float> narrow(std::size_t input, int row) const {
        return job_.norm_weight.value ? normalized_.row(row) : at(job_.inputs[input].x, row);
    }
    Pixels<float> narrow_tangent(std::size_t input, int row) const {
        return job_.norm_weight.value ? normalized_tangent_.row(row) : at(job_.inputs[input].x_tangent, row);
    }
    Norm norm_of(int row) const {
        const ExpansionInput& input = job_.inputs[0];
        Norm norm{};
        norm.pixels = job_.width;
        norm.channels = input.channels;
        norm.x = read(at(input.x, row));
        norm.weight = job_.norm_weight.value;
        norm.bias = job_.norm_bias.value;
        return norm;
    }

    // Makes one row of what the depthwise convolutions see.
    void widen(int row) {
        const bool tangents = pass_ == ExpansionPass::tangents;
        if (job_.norm_weight.value) {
            Norm norm = norm_of(row);
            norm.y = normalized_.row(row);
            if (tangents) {
                norm.x_tangent = read(at(job_.inputs[0].x_tangent, row));
                norm.weight_tangent = job_.norm_weight.tangent;
                norm.bias_tangent = job_.norm_bias.tangent;
                norm.y_tangent = normalized_tangent_.row(row);
            }
            (tangents ? kernels_.norm_tangent : kernels_.norm)(norm);
        }
        for (std::size_t n = 0; n < job_.operands.size(); ++n) {
            const std::size_t input = job_.operands[n].input;
            const int inputs = job_.inputs[input].channels;
            const Packed::Operand& packed = packed_.operands[n];
            multiply(inputs, job_.channels, narrow(input, row), packed.weights.data(), {}, wide_[n].row(row));
            if (tangents) {
                const Pixels<float> to = wide_tangent_[n].row(row);
                multiply(inputs, job_.channels, narrow_tangent(input, row), packed.weights.data(), {}, to);
                multiply(inputs, job_.channels, narrow(input, row), packed.weights_tangent.data(), to, to);
            }
        }
    }

    SpreadOperand operand(std::size_t n) const {
        SpreadOperand operand{};
        operand.x = wide_[n].view();
        operand.taps = packed_.operands[n].taps.data();
        if (pass_ == ExpansionPass::tangents) {
            operand.x_tangent = wide_tangent_[n].view();
            operand.taps_tangent = packed_.operands[n].taps_tangent.data();
        }
        if (pass_ == ExpansionPass::gradients) {
            operand.slopes = job_.gated ? slopes_[n].view() : rows_of(job_.y[n]);
            operand.x_gradient = wide_gradient_.view();
        }
        return operand;
    }
    SpreadRow spread_row(int row) const { return {job_.height, job_.width, job_.channels, row, {}, {}, {}}; }

    void make_result(int row) {
        const bool tangents = pass_ == ExpansionPass::tangents;
        SpreadRow spread = spread_row(row);
        if (!job_.gated) {
            for (std::size_t n = 0; n < job_.operands.size(); ++n) {
                spread.operands[0] = operand(n);
                spread.y = tangents ? spread_.view() : rows_of(job_.y[n]);
                if (tangents) spread.y_change = rows_of(job_.y[n]);
                (tangents ? kernels_.spread_tangent : kernels_.spread)[0](spread);
            }
            return;
        }
        spread.operands[0] = operand(0);
        spread.operands[1] = operand(1);
        spread.y = spread_.view();
        if (tangents) spread.y_change = spread_change_.view();
        (tangents ? kernels_.spread_tangent : kernels_.spread)[1](spread);
        const Pixels<float> y = at(job_.y[0], row);
        if (tangents) {
            multiply(job_.channels, job_.outputs, spread_change_.row(row), packed_.out.data(), at(job_.residual_tangent, row), y);
            multiply(job_.channels, job_.outputs, spread_.row(row), packed_.out_tangent.data(), y, y);
        } else {
            multiply(job_.channels, job_.outputs, spread_.row(row), packed_.out.data(), at(job_.residual, row), y);
        }
    }

    // What the slopes of one row of y say of the depthwise convolutions; of the parameters, too, where the row is of the band.
    void take_slopes(int row, bool own, Sums& sums) {
        SpreadRow spread = spread_row(row);
        if (job_.gated) {
            const Pixels<float> slopes = at(job_.y[0], row);
            multiply(job_.outputs, job_.channels, slopes, job_.out.value, {}, spread_change_.row(row));
            spread.operands[0] = operand(0);
            spread.operands[1] = operand(1);
            spread.y = spread_.view();
            spread.y_change = spread_change_.view();
            kernels_.gate_slopes(spread);
            if (own) add_outer(job_.outputs, job_.channels, slopes, spread_.row(row), sums.out);
        }
        for (std::size_t n = 0; own && n < job_.operands.size(); ++n) {
            spread.operands[0] = operand(n);
            spread.operands[0].taps_gradient = sums.operands[n].taps.data();
            kernels_.taps_gradient(spread);
        }
    }

    // Gradients by one row of the inputs.
    void make_gradients(int row, Sums& sums) {
        const bool norm = job_.norm_weight.value != nullptr;
        bool begun[2] = {};
        for (std::size_t n = 0; n < job_.operands.size(); ++n) {
            SpreadRow spread = spread_row(row);
            spread.operands[0] = operand(n);
            kernels_.spread_gradient(spread);
            const std::size_t input = job_.operands[n].input;
            const int inputs = job_.inputs[input].channels;
            const Pixels<float> slopes = wide_gradient_.row(row);
            const Pixels<float> to = norm ? normalized_gradient_.row(row) : at(job_.inputs[input].x_gradient, row);
            const bool onto = !norm && input == 0 && job_.residual_is_input;
            const Pixels<float> added = begun[input] ? to : onto ? at(job_.y[0], row) : Pixels<float>{};
            multiply(job_.channels, inputs, slopes, job_.operands[n].weights.value, added, to);
            add_outer(job_.channels, inputs, slopes, narrow(input, row), sums.operands[n].weights);
            begun[input] = true;
        }
        if (!norm) return;
        Norm gradient = norm_of(row);
        gradient.y_tangent = normalized_gradient_.row(row);
        if (job_.residual_is_input) gradient.added = read(at(job_.y[0], row));
        gradient.x_gradient = at(job_.inputs[0].x_gradient, row);
        gradient.weight_gradient = sums.norm_weight.data();
        gradient.bias_gradient = sums.norm_bias.data();
        kernels_.norm_gradient(gradient);
    }

    void add_outer(int rows, int columns, const Pixels<float>& a, const Pixels<float>& b, std::vector<float>& sums) const {
        kernels_.add_outer_products({job_.width, rows, columns, read(a), read(b), sums.data()});
    }

    const ExpansionPass pass_;
    const Expansion& job_;
    const Kernels& kernels_;
    const Packed& packed_;
    std::ptrdiff_t first_ = 0;  // pixel of the image
    Rows normalized_, normalized_tangent_, normalized_gradient_;
    std::vector<Rows> wide_, wide_tangent_, slopes_;
    Rows wide_gradient_, spread_, spread_change_;
};

// The sum of what all bands found, in their order.
template <class Of>
void add_up(const std::vector<Sums>& bands, float* target, const Of& of) {
    const std::size_t count = of(bands[0]).size();
    for (std::size_t i = 0; i < count; ++i) {
        double sum = 0.0;
        for (const Sums& band : bands) sum += static_cast<double>(of(band)[i]);
        target[i] = static_cast<float>(sum);
    }
}

}  // namespace

void expand(ExpansionPass pass, const Expansion& job, int threads, const std::string& isa) {
    const Kernels& kernels = kernels_that_fill(isa, channels_of(job));
    const Packed packed(job, kernels.lanes);
    // Which rows form a band follows from the image alone, and so does the order of all sums.
    const int bands = (job.height + kBandRows - 1) / kBandRows, band_rows = (job.height + bands - 1) / bands;
    const int units = job.images * bands;
    const bool gradients = pass == ExpansionPass::gradients;
    std::vector<Worker> workers;
    for (int worker = 0; worker < std::max(1, std::min(threads, units)); ++worker) workers.emplace_back(pass, job, kernels, packed);
    std::vector<Sums> sums(gradients ? static_cast<std::size_t>(units) : 0, Sums(job));

    ThreadPool(static_cast<int>(workers.size())).run(units, [&](int unit, int worker) {
        const int top = unit % bands * band_rows, bottom = std::min(top + band_rows, job.height);
        workers[static_cast<std::size_t>(worker)].run(unit / bands, top, bottom, gradients ? &sums[static_cast<std::size_t>(unit)] : nullptr);
    });

    if (!gradients) return;
    for (std::size_t n = 0; n < job.operands.size(); ++n) {
        add_up(sums, job.operands[n].weights.gradient, [n](const Sums& band) -> const auto& { return band.operands[n].weights; });
        std::vector<float> taps(size(job.channels, kTaps));
        add_up(sums, taps.data(), [n](const Sums& band) -> const auto& { return band.operands[n].taps; });
        float* to = job.operands[n].taps.gradient;
        for (int channel = 0; channel < job.channels; ++channel) {
            for (int tap = 0; tap < kTaps; ++tap) *to++ = taps[packed_tap(channel, tap, kernels.lanes)];
        }
    }
    add_up(sums, job.out.gradient, [](const Sums& band) -> const auto& { return band.out; });
    add_up(sums, job.norm_weight.gradient, [](const Sums& band) -> const auto& { return band.norm_weight; });
    add_up(sums, job.norm_bias.gradient, [](const Sums& band) -> const auto& { return band.norm_bias; });
}

}  // namespace refusion
