#include "spreading.hpp"

#include <algorithm>

#include "buffer.hpp"
#include "isa.hpp"
#include "thread_pool.hpp"

namespace refusion {

namespace {

// Rows of a band; the gradient computes two more.
constexpr int kBandRows = 64;
constexpr int kTaps = 9;

// Channels that one instruction set takes, a multiple of its lanes.
struct Share {
    const Kernels* kernels;
    int first, channels;
};

// The asked set takes as many channels as fill its vectors, the next narrower one those that are left, and so on.
std::vector<Share> shares_of(int channels, const std::string& isa) {
    const Kernels& widest = find_kernels(isa, Precision::fp32);
    std::vector<Share> shares;
    int first = 0;
    for (const Kernels* kernels : usable_kernels(Precision::fp32)) {
        if (kernels->lanes > widest.lanes) continue;
        const int taken = (channels - first) / kernels->lanes * kernels->lanes;
        if (taken > 0) shares.push_back({kernels, first, taken});
        first += taken;
    }
    return shares;
}

// Calls visit(number in (channels, 9), number in packed taps) for all taps: packed, the taps of each vector's channels lie tap by tap.
template <class Visit>
void for_each_tap(const std::vector<Share>& shares, const Visit& visit) {
    for (const Share& share : shares) {
        const int lanes = share.kernels->lanes;
        for (int channel = 0; channel < share.channels; ++channel) {
            for (int tap = 0; tap < kTaps; ++tap) {
                visit((share.first + channel) * kTaps + tap,
                      share.first * kTaps + (channel / lanes * kTaps + tap) * lanes + channel % lanes);
            }
        }
    }
}

Buffer packed(const std::vector<Share>& shares, int channels, const float* taps) {
    if (!taps) return {};
    Buffer result(static_cast<std::size_t>(channels) * kTaps);
    for_each_tap(shares, [&](int from, int to) { result.data()[to] = taps[from]; });
    return result;
}

}  // namespace

void spread(SpreadPass pass, const BatchShape& shape, const std::vector<SpreadInput>& inputs, const Features& y, int threads,
            const std::string& isa) {
    const std::vector<Share> shares = shares_of(shape.channels, isa);
    const std::size_t operands = inputs.size(), numbers_of_taps = static_cast<std::size_t>(shape.channels) * kTaps;
    std::vector<Buffer> taps, taps_tangents;
    for (const SpreadInput& input : inputs) {
        taps.push_back(packed(shares, shape.channels, input.taps));
        taps_tangents.push_back(packed(shares, shape.channels, input.taps_tangent));
    }

    // Which rows form a band follows from the picture alone, and so does the order of all sums.
    const int bands = (shape.height + kBandRows - 1) / kBandRows, band_rows = (shape.height + bands - 1) / bands;
    const int units = shape.pictures * bands;
    const int workers = std::max(1, std::min(threads, units));
    const bool gradients = pass == SpreadPass::gradients;
    std::vector<Buffer> scratch;
    const std::ptrdiff_t scratch_size = gradients && operands > 1 ? spread_scratch(shape.width, shape.channels) : 0;
    for (int worker = 0; worker < workers; ++worker) scratch.emplace_back(static_cast<std::size_t>(scratch_size));
    std::vector<double> taps_gradients(gradients ? numbers_of_taps * operands * static_cast<std::size_t>(units) : 0);

    const auto work = [&](int unit, int worker) {
        const std::ptrdiff_t pixel = static_cast<std::ptrdiff_t>(unit / bands) * shape.height * shape.width;
        const int top = unit % bands * band_rows, bottom = std::min(top + band_rows, shape.height);
        for (const Share& share : shares) {
            const auto start = [&](const Features& features) {
                return features.data ? features.data + pixel * features.pitch + share.first : nullptr;
            };
            SpreadBand band{shape.height, shape.width, share.channels, top, bottom, {}, start(y), y.pitch};
            for (std::size_t n = 0; n < operands; ++n) {
                const SpreadInput& input = inputs[n];
                SpreadOperand& operand = band.operands[n];
                operand.x = start(input.x);
                operand.x_tangent = start(input.x_tangent);
                operand.x_gradient = start(input.x_gradient);
                operand.x_pitch = input.x.pitch;
                operand.x_tangent_pitch = input.x_tangent.pitch;
                operand.x_gradient_pitch = input.x_gradient.pitch;
                operand.taps = taps[n].data() + share.first * kTaps;
                if (pass == SpreadPass::tangents) operand.taps_tangent = taps_tangents[n].data() + share.first * kTaps;
                if (gradients) {
                    operand.taps_gradient =
                        taps_gradients.data() + (static_cast<std::size_t>(unit) * operands + n) * numbers_of_taps + share.first * kTaps;
                }
            }
            switch (pass) {
                case SpreadPass::values: share.kernels->spread[operands - 1](band); break;
                case SpreadPass::tangents: share.kernels->spread_tangent[operands - 1](band); break;
                case SpreadPass::gradients: share.kernels->spread_gradient[operands - 1](band, scratch[static_cast<std::size_t>(worker)].data());
            }
        }
    };
    ThreadPool(workers).run(units, work);

    if (!gradients) return;
    for (std::size_t n = 0; n < operands; ++n) {
        for_each_tap(shares, [&](int to, int from) {
            double sum = 0.0;
            for (int unit = 0; unit < units; ++unit) {
                sum += taps_gradients[(static_cast<std::size_t>(unit) * operands + n) * numbers_of_taps + static_cast<std::size_t>(from)];
            }
            inputs[n].taps_gradient[to] = static_cast<float>(sum);
        });
    }
}

}  // namespace refusion
