#include "packing.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>

#include "parameters.hpp"

namespace refusion {
namespace {

using Numbers = std::vector<float>;

// The upper half of a number, rounded to the nearest, ties to even.
std::uint32_t to_bf16(float number) {
    std::uint32_t bits;
    std::memcpy(&bits, &number, sizeof bits);
    if (std::isnan(number)) return bits >> 16 | 0x40;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// Two numbers in the bits of one.
float pair_of_bf16(float low, float high) {
    const std::uint32_t bits = to_bf16(low) | to_bf16(high) << 16;
    float pair;
    std::memcpy(&pair, &bits, sizeof pair);
    return pair;
}

// Outputs x inputs to runs of a register block of outputs, input by input or pair of inputs by pair.
Numbers pack(const float* weights, int outputs, int inputs, Packing packing) {
    const bool pairs = packing.precision == Precision::bf16;
    Numbers packed;
    packed.reserve(static_cast<std::size_t>(outputs) * static_cast<std::size_t>(inputs));
    for (int first = 0; first < outputs; first += packing.output_block) {
        for (int input = 0; input < inputs; input += pairs ? 2 : 1) {
            for (int o = first; o < first + packing.output_block; ++o) {
                const float* weight = weights + o * inputs + input;
                packed.push_back(pairs ? pair_of_bf16(weight[0], weight[1]) : weight[0]);
            }
        }
    }
    return packed;
}

// A layer norm's scale and shift, taken over by the pointwise convolution behind it.
struct Folded {
    Numbers weights, bias;

    Folded(const float* pointwise, int outputs, int inputs, const float* scale, const float* shift) {
        for (int o = 0; o < outputs; ++o) {
            double sum = 0;
            for (int i = 0; i < inputs; ++i) {
                const double weight = pointwise[o * inputs + i];
                weights.push_back(static_cast<float>(weight * scale[i]));
                sum += weight * shift[i];
            }
            bias.push_back(static_cast<float>(sum));
        }
    }
};

Numbers joined(const float* first, std::size_t first_size, const float* second, std::size_t second_size) {
    Numbers all(first, first + first_size);
    all.insert(all.end(), second, second + second_size);
    return all;
}

template <class Shape>
void mixing_matrices(const AttentionWeights* attention, const double* products, Packing packing, float* mix) {
    using Head = HeadLayout<Shape>;
    constexpr int dim = Head::dim, size = Shape::channels / Shape::groups;
    for (int group = 0; group < Shape::groups; ++group) {
        Numbers matrix(static_cast<std::size_t>(size * size));
        for (int head = 0; head < Head::heads_per_group; ++head) {
            const double* gram = products + (group * Head::heads_per_group + head) * Head::products;
            const double *query_squares = gram + dim * dim, *key_squares = query_squares + dim;
            for (int i = 0; i < dim; ++i) {
                double scores[dim], most = -INFINITY, total = 0;
                for (int j = 0; j < dim; ++j) {
                    const double norms = std::max(std::sqrt(query_squares[i]), kNormFloor) * std::max(std::sqrt(key_squares[j]), kNormFloor);
                    scores[j] = gram[i * dim + j] / norms * static_cast<double>(attention[group].temperature[head]);
                    most = std::max(most, scores[j]);
                }
                for (double& score : scores) total += score = std::exp(score - most);
                for (double& score : scores) score /= total;
                // Rows of A, one at a time, into P A.
                for (int o = 0; o < size; ++o) {
                    const double factor = static_cast<double>(attention[group].projection[o * size + head * dim + i]);
                    for (int j = 0; j < dim; ++j) {
                        float& sum = matrix[static_cast<std::size_t>(o * size + head * dim + j)];
                        sum = static_cast<float>(static_cast<double>(sum) + factor * scores[j]);
                    }
                }
            }
        }
        const Numbers packed = pack(matrix.data(), size, size, packing);
        mix = std::copy(packed.begin(), packed.end(), mix);
    }
}

}  // namespace

PackedWeights::PackedWeights(const float* flat, Packing packing) : flat_(flat, flat + parameter_count()), packing_(packing) {
    for (int index = 0; index < kBlocks; ++index) {
        encoder_a.push_back(block("encoder1." + std::to_string(index), kEncoder));
        encoder_b.push_back(block("encoder2." + std::to_string(index), kEncoder));
        decoder.push_back(block("decoder." + std::to_string(index), kDecoder));
    }
    fusion = fusion_module();
    // One channel has nothing to be paired with.
    Packing single = packing;
    single.precision = Precision::fp32;
    dense.lift_a = keep(pack(parameter("project_in_1.weight"), kDim, 9, single));
    dense.lift_b = keep(pack(parameter("project_in_2.weight"), kDim, 9, single));
    Numbers narrow(packed_count(2 * kDim, kDim));
    pack_convolution(parameter("project_out_0.weight"), 2 * kDim, kDim, packing.convolution_outputs, narrow.data());
    dense.narrow = {2 * kDim, kDim, keep(std::move(narrow)), keep(Numbers(kDim)), kLeak};
    dense.last = parameter("project_out_1.weight");
}

void PackedWeights::set_mix(Block& block, const double* products) const {
    switch (block.kind) {
        case kEncoder: return mixing_matrices<EncoderShape>(block.attention, products, packing_, block.mix);
        case kDecoder: return mixing_matrices<DecoderShape>(block.attention, products, packing_, block.mix);
        case kFusion: return mixing_matrices<FusionShape>(block.attention, products, packing_, block.mix);
    }
}

float* PackedWeights::keep(Numbers numbers) {
    kept_.push_back(std::move(numbers));
    return kept_.back().data();
}

const float* PackedWeights::packed(const float* weights, int outputs, int inputs) {
    return keep(pack(weights, outputs, inputs, packing_));
}

const float* PackedWeights::parameter(const std::string& name) const { return find_parameter(flat_.data(), name); }

PackedWeights::Block PackedWeights::block(const std::string& name, BlockKind kind) {
    const int dim = kind == kEncoder ? kDim : 2 * kDim, hidden = dim * kExpansion;
    const auto at = [&](const char* rest) { return parameter(name + "." + rest); };
    Folded qkv(at("attn.qkv.weight"), 3 * dim, dim, at("norm1.body.weight"), at("norm1.body.bias"));
    Folded inner(at("ffn.project_in.weight"), 2 * hidden, dim, at("norm2.body.weight"), at("norm2.body.bias"));
    const float* qkv_bias = keep(qkv.bias);
    const float* inner_bias = keep(inner.bias);
    const float* qkv_taps = at("attn.qkv_dwconv.weight");
    const float* inner_taps = at("ffn.dwconv.weight");
    Block made{};
    made.kind = kind;
    made.mix = keep(Numbers(static_cast<std::size_t>(dim * dim)));
    made.attention[0] = {at("attn.temperature"), at("attn.project_out.weight")};
    BlockWeights& w = made.weights;
    w.query = packed(qkv.weights.data(), dim, dim);
    w.key = packed(qkv.weights.data() + dim * dim, dim, dim);
    w.value = packed(qkv.weights.data() + 2 * dim * dim, dim, dim);
    w.query_bias = qkv_bias;
    w.key_bias = qkv_bias + dim;
    w.value_bias = qkv_bias + 2 * dim;
    w.query_taps = qkv_taps;
    w.key_taps = qkv_taps + 9 * dim;
    w.value_taps = qkv_taps + 18 * dim;
    w.mix = made.mix;
    w.gate = packed(inner.weights.data(), hidden, dim);
    w.update = packed(inner.weights.data() + hidden * dim, hidden, dim);
    w.gate_bias = inner_bias;
    w.update_bias = inner_bias + hidden;
    w.gate_taps = inner_taps;
    w.update_taps = inner_taps + 9 * hidden;
    w.out = packed(at("ffn.project_out.weight"), dim, hidden);
    return made;
}

PackedWeights::Block PackedWeights::fusion_module() {
    constexpr int dim = kDim, hidden = 2 * kDim * kExpansion, square = dim * dim, taps = 9 * dim;
    const auto at = [&](const char* rest) { return parameter(std::string("FM.") + rest); };
    const auto both = [&](const char* first, const char* second, int offset, int size) {
        return joined(at(first) + offset, static_cast<std::size_t>(size), at(second) + offset, static_cast<std::size_t>(size));
    };
    Block made{};
    made.kind = kFusion;
    made.mix = keep(Numbers(2 * square));
    made.attention[0] = {at("temperature1"), at("project_mid1.weight")};
    made.attention[1] = {at("temperature2"), at("project_mid2.weight")};
    BlockWeights& w = made.weights;
    // Group 0 makes the queries of source 2 and the keys and values of source 1; group 1 the other way round.
    w.query = packed(both("qkv2.weight", "qkv1.weight", 0, square).data(), 2 * dim, dim);
    w.key = packed(both("qkv1.weight", "qkv2.weight", square, square).data(), 2 * dim, dim);
    w.value = packed(both("qkv1.weight", "qkv2.weight", 2 * square, square).data(), 2 * dim, dim);
    w.query_taps = keep(both("qkv2_dwconv.weight", "qkv1_dwconv.weight", 0, taps));
    w.key_taps = keep(both("qkv1_dwconv.weight", "qkv2_dwconv.weight", taps, taps));
    w.value_taps = keep(both("qkv1_dwconv.weight", "qkv2_dwconv.weight", 2 * taps, taps));
    w.mix = made.mix;
    w.gate = packed(at("project_E.weight"), 2 * hidden, 2 * dim);
    w.update = packed(both("project_E1.weight", "project_E2.weight", 0, hidden * dim).data(), 2 * hidden, dim);
    w.gate_taps = at("project_E_d.weight");
    w.update_taps = keep(both("project_E1_d.weight", "project_E2_d.weight", 0, 9 * hidden));
    // The two projections as one over both halves of the hidden channels.
    Numbers out;
    for (int o = 0; o < 2 * dim; ++o) {
        for (const char* name : {"project_out1.weight", "project_out2.weight"}) {
            const float* row = at(name) + o * hidden;
            out.insert(out.end(), row, row + hidden);
        }
    }
    w.out = packed(out.data(), 2 * dim, 2 * hidden);
    return made;
}

}  // namespace refusion
