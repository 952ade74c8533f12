// The two passes of a transformer block over a tile.
//
// Rows come in pairs and run through rings of four rows: a step adds two rows to a ring and takes the two rows of
// results that have all three of their rows by then. Column 0 of a tile's rows is the leftmost column that its stage
// needs, so every 3x3 convolution reads columns c, c + 1, c + 2 for its result c. Tiles overlap by the two pixels
// (pass 1: one) around them; what the overlap costs is computed twice, so that no tile waits for another.
#pragma once

#include "activation.hpp"
#include "depthwise.hpp"
#include "layer_norm.hpp"
#include "operand.hpp"
#include "pointwise.hpp"
#include "tile.hpp"

namespace refusion::REFUSION_ISA {

// Rows of operands, one after another.
struct OperandRows {
    const float* first;
    std::ptrdiff_t pitch;

    OperandRows from_channel(int channel) const { return {first + channel / Operand::depth * pitch, pitch}; }
};

// The channels of a row as the operands of a block's products: normed where the block norms them. They are written to
// `room`, unless they can be read where they are.
template <class Shape>
REFUSION_INLINE OperandRows operands(const float* x, std::ptrdiff_t x_pitch, float* room, std::ptrdiff_t room_pitch, int vectors) {
    if constexpr (Shape::norm) {
        layer_norm<Shape::channels>(x, x_pitch, room, room_pitch, vectors);
    } else if constexpr (Operand::depth == 1) {
        return {x, x_pitch};
    } else {
        for (int k = 0; k < Shape::channels / Operand::depth; ++k) {
            copy_operands(x + k * Operand::depth * x_pitch, x_pitch, room + k * room_pitch, vectors);
        }
    }
    return {room, room_pitch};
}

// The rings of the channels that make one row of operands.
struct OperandRings {
    Rows channel[Operand::depth];

    OperandRings(const float* rings, int pitch, int last_slot) {
        for (int i = 0; i < Operand::depth; ++i) channel[i] = ring_rows(rings + i * 4 * pitch, pitch, last_slot);
    }

    // Two rows of each channel in one place and the next two in another.
    OperandRings(const float* before, const float* now, int pitch) {
        for (int i = 0; i < Operand::depth; ++i) {
            const int top = 2 * i * pitch, bottom = top + pitch;
            channel[i] = {{before + top, before + bottom, now + top, now + bottom}};
        }
    }
};

static_assert(output_block <= kMostOutputBlock);

// Numbers that the packed weights of a product take: two of bf16 share one.
constexpr int weight_count(int outputs, int inputs) { return outputs * inputs / Operand::depth; }

// A pointwise convolution of `Inputs` channels to one row of each output, `to_pitch` numbers apart.
template <int Inputs>
REFUSION_INLINE void fill_rows(OperandRows from, const float* weights, const float* bias, int outputs, int vectors, float* to,
                               std::ptrdiff_t to_pitch, const Outside& outside) {
    pointwise<Operand, Inputs>(
        outputs, vectors, weights, bias, [=](int k) { return from.first + k * from.pitch; },
        [=](int o, int v, Vec sum) { store(to + o * to_pitch + v * lanes, sum); });
    if (outside.any()) {
        for (int o = 0; o < outputs; ++o) outside.clear(to + o * to_pitch);
    }
}

// Pass 1: products of queries and keys, per head, over the tile.
//
// Sums run in float over 16 rows of one lane, then in double.
template <class Shape>
struct Statistics {
    using Head = HeadLayout<Shape>;
    static constexpr int C = Shape::channels, G = Shape::groups, CG = C / G, D = Head::dim;

    static void run(const Tile& tile, const FeatureView& from, const BlockWeights& w, double* products, float* scratch_start) {
        const int core = tile.right - tile.left;
        const int vectors = vectors_for(core + 2), pitch = vectors * lanes, core_vectors = vectors_for(core);
        const Outside outside(tile, tile.left - 1, pitch);
        Scratch scratch(scratch_start);
        float* normed = scratch.take(C * pitch);
        float* queries = scratch.take(C * 4 * pitch);
        float* keys = scratch.take(C * 4 * pitch);
        float* gathered = scratch.take(2 * D * 2 * pitch);
        Vec sums[Head::heads][Head::products] = {};
        const int steps = (tile.bottom - tile.top + 1) / 2;
        for (int t = 0; t <= steps; ++t) {
            for (int i = 0; i < 2; ++i) {
                const int row = tile.top + 2 * t - 1 + i, slot = (2 * t + i) & 3;
                if (!inside(tile, row)) {
                    clear_slot(queries, C, pitch, slot);
                    clear_slot(keys, C, pitch, slot);
                    continue;
                }
                const OperandRows x = operands<Shape>(from.at(row, tile.left - 1), from.pitch, normed, pitch, vectors);
                for (int g = 0; g < G; ++g) {
                    const int weights = g * weight_count(CG, CG);
                    // Crossed where there are two sources: the queries of one ask the keys of the other.
                    fill_rows<CG>(x.from_channel((G - 1 - g) * CG), w.query + weights, w.query_bias, CG, vectors,
                                  queries + (4 * g * CG + slot) * pitch, 4 * pitch, outside);
                    fill_rows<CG>(x.from_channel(g * CG), w.key + weights, w.key_bias, CG, vectors,
                                  keys + (4 * g * CG + slot) * pitch, 4 * pitch, outside);
                }
            }
            if (t == 0) continue;
            const int last_slot = 2 * t + 1;
            const int rows = tile.bottom - (tile.top + 2 * t - 2) < 2 ? 1 : 2;
            for (int head = 0; head < Head::heads; ++head) {
                for (int d = 0; d < 2 * D; ++d) {
                    const bool query = d < D;
                    const int channel = head * D + (query ? d : d - D);
                    const Rows ring = ring_rows((query ? queries : keys) + channel * 4 * pitch, pitch, last_slot);
                    const float* taps = (query ? w.query_taps : w.key_taps) + 9 * channel;
                    float* to = gathered + 2 * d * pitch;
                    // Every convolution prefetches one channel of one of the two rows of the next step: there are as many.
                    // A strip has only short pieces of each row.
                    const int convolution = head * 2 * D + d, next_row = tile.top + 2 * t + 1 + convolution / C;
                    if (next_row < tile.height) prefetch(from.at(next_row, tile.left - 1) + convolution % C * from.pitch, pitch);
                    if constexpr (taps_in_registers) {
                        depthwise_rows(ring, core_vectors, taps, [=](int v, RowPair pair) {
                            store(to + v * lanes, pair.top);
                            store(to + pitch + v * lanes, pair.bottom);
                        });
                        const int last = (core_vectors - 1) * lanes;
                        const IntVec mask = lanes_below(last, core);
                        store(to + last, as_float(as_int(load(to + last)) & mask));
                        store(to + pitch + last, as_float(as_int(load(to + pitch + last)) & mask));
                        continue;
                    }
                    for (int v = 0; v < core_vectors; ++v) {
                        RowPair pair = depthwise(ring, v * lanes, taps);
                        if (v == core_vectors - 1) {
                            const IntVec mask = lanes_below(v * lanes, core);
                            pair.top = as_float(as_int(pair.top) & mask);
                            pair.bottom = as_float(as_int(pair.bottom) & mask);
                        }
                        store(to + v * lanes, pair.top);
                        store(to + pitch + v * lanes, pair.bottom);
                    }
                }
                accumulate(gathered, pitch, rows, core_vectors, sums[head]);
            }
            if (t % 8 == 0 || t == steps) flush(sums, products);
        }
    }

  private:
    static REFUSION_INLINE void accumulate(const float* gathered, int pitch, int rows, int vectors, Vec* sums) {
        Vec total[Head::products];
#pragma GCC unroll 32
        for (int p = 0; p < Head::products; ++p) total[p] = sums[p];
        for (int row = 0; row < rows; ++row) {
            for (int v = 0; v < vectors; ++v) {
                const float* at = gathered + row * pitch + v * lanes;
                Vec q[D], k[D];
#pragma GCC unroll 4
                for (int d = 0; d < D; ++d) {
                    q[d] = load(at + 2 * d * pitch);
                    k[d] = load(at + 2 * (D + d) * pitch);
                }
#pragma GCC unroll 4
                for (int i = 0; i < D; ++i) {
#pragma GCC unroll 4
                    for (int j = 0; j < D; ++j) total[i * D + j] += q[i] * k[j];
                    total[D * D + i] += q[i] * q[i];
                    total[D * D + D + i] += k[i] * k[i];
                }
            }
        }
#pragma GCC unroll 32
        for (int p = 0; p < Head::products; ++p) sums[p] = total[p];
    }

    static void flush(Vec (&sums)[Head::heads][Head::products], double* products) {
        for (int head = 0; head < Head::heads; ++head) {
            for (int p = 0; p < Head::products; ++p) {
                double total = 0;
                for (int i = 0; i < lanes; ++i) total += static_cast<double>(lane(sums[head][p], i));
                products[head * Head::products + p] += total;
                sums[head][p] = Vec{};
            }
        }
    }
};

// Pass 2: values, attention, residual, feed-forward, residual.
template <class Shape>
struct Transform {
    static constexpr int C = Shape::channels, G = Shape::groups, CG = C / G, H = Shape::hidden, HG = H / G;

    static void run(const Tile& tile, const FeatureView& from, const FeatureView& to, const BlockWeights& w, float* scratch) {
        Transform(tile, from, to, w, scratch).march();
    }

  private:
    Transform(const Tile& tile, const FeatureView& from, const FeatureView& to, const BlockWeights& weights, float* scratch_start)
        : tile_(tile),
          from_(from),
          to_(to),
          w_(weights),
          core_(tile.right - tile.left),
          value_vectors_(vectors_for(core_ + 4)),
          hidden_vectors_(vectors_for(core_ + 2)),
          core_vectors_(vectors_for(core_)),
          pitch_(value_vectors_ * lanes),
          outside_values_(tile, tile.left - 2, pitch_),
          outside_hidden_(tile, tile.left - 1, pitch_) {
        Scratch scratch(scratch_start);
        normed_ = scratch.take(C * pitch_);
        values_ = scratch.take(C * 4 * pitch_);
        gathered_ = scratch.take(C * 2 * pitch_);
        mixed_ = scratch.take(C * 4 * pitch_);
        gates_ = scratch.take((H + output_block) * 2 * pitch_);
        updates_ = scratch.take((H + output_block) * 2 * pitch_);
        gated_ = scratch.take(H * 2 * pitch_);
    }

    void march() {
        const int steps = (tile_.bottom - tile_.top + 1) / 2 + 1;
        for (int t = 0; t <= steps; ++t) {
            add_values(t);
            if (t == 0) continue;
            mix(t);
            feed(t);
            if (t >= 2) finish(t);
        }
    }

    // Rows top + 2t - 2 and top + 2t - 1 of the values, before their depthwise convolution.
    void add_values(int t) {
        for (int i = 0; i < 2; ++i) {
            const int row = tile_.top + 2 * t - 2 + i, slot = (2 * t + i) & 3;
            if (!inside(tile_, row)) {
                clear_slot(values_, C, pitch_, slot);
                continue;
            }
            const OperandRows x = operands<Shape>(from_.at(row, tile_.left - 2), from_.pitch, normed_, pitch_, value_vectors_);
            for (int g = 0; g < G; ++g) {
                fill_rows<CG>(x.from_channel(g * CG), w_.value + g * weight_count(CG, CG), w_.value_bias, CG, value_vectors_,
                              values_ + (4 * g * CG + slot) * pitch_, 4 * pitch_, outside_values_);
            }
        }
    }

    // Rows top + 2t - 3 and top + 2t - 2: attention's mix of the values, and the residual.
    void mix(int t) {
        for (int k = 0; k < C / Operand::depth; ++k) {
            const int c = k * Operand::depth;
            const OperandRings rings(values_ + c * 4 * pitch_, pitch_, 2 * t + 1);
            const float* taps = w_.value_taps + 9 * c;
            float* at = gathered_ + 2 * k * pitch_;
            if constexpr (taps_in_registers && Operand::depth == 1) {
                depthwise_rows(rings.channel[0], hidden_vectors_, taps, [=](int v, RowPair pair) { store_pair(at + v * lanes, pair); });
                continue;
            }
            for (int v = 0; v < hidden_vectors_; ++v) {
                store_operands(at + v * lanes, [=](int i) { return depthwise(rings.channel[i], v * lanes, taps + 9 * i); });
            }
        }
        for (int i = 0; i < 2; ++i) {
            const int row = tile_.top + 2 * t - 3 + i, slot = (2 * t + i) & 3;
            if (!inside(tile_, row)) continue;
            const int pitch = pitch_;
            for (int g = 0; g < G; ++g) {
                const float* in = gathered_ + (2 * g * CG / Operand::depth + i) * pitch;
                const float* x = from_.at(row, tile_.left - 1) + g * CG * from_.pitch;
                const std::ptrdiff_t x_pitch = from_.pitch;
                float* y = mixed_ + (4 * g * CG + slot) * pitch;
                pointwise<Operand, CG>(
                    CG, hidden_vectors_, w_.mix + g * weight_count(CG, CG), nullptr, [=](int k) { return in + 2 * k * pitch; },
                    [=](int o, int v, Vec sum) {
                        store(y + 4 * o * pitch + v * lanes, sum + load(x + o * x_pitch + v * lanes));
                    });
            }
        }
    }

    // The same rows into the feed-forward, and its depthwise convolution and gate for the two rows before the last.
    void feed(int t) {
        const int pitch = pitch_;
        OperandRows rows[2] = {};
        for (int i = 0; i < 2; ++i) {
            const int row = tile_.top + 2 * t - 3 + i, slot = (2 * t + i) & 3;
            if (!inside(tile_, row)) continue;
            // The values are done with: there is room where they were.
            rows[i] = operands<Shape>(mixed_ + slot * pitch, 4 * pitch, gathered_ + i * pitch, 2 * pitch, hidden_vectors_);
        }
        for (int h = 0; h < H; h += output_block) {
            const std::ptrdiff_t now = place(h, t), before = place(h, t - 1);
            for (int i = 0; i < 2; ++i) {
                float *gates = gates_ + now + i * pitch, *updates = updates_ + now + i * pitch;
                if (rows[i].first == nullptr) {
                    for (int o = 0; o < output_block; ++o) {
                        std::memset(gates + 2 * o * pitch, 0, sizeof(float) * static_cast<unsigned>(pitch));
                        std::memset(updates + 2 * o * pitch, 0, sizeof(float) * static_cast<unsigned>(pitch));
                    }
                    continue;
                }
                fill_rows<C>(rows[i], w_.gate + weight_count(h, C), w_.gate_bias ? w_.gate_bias + h : nullptr, output_block,
                             hidden_vectors_, gates, 2 * pitch, outside_hidden_);
                fill_rows<CG>(rows[i].from_channel(h / HG * CG), w_.update + weight_count(h, CG),
                              w_.update_bias ? w_.update_bias + h : nullptr, output_block, hidden_vectors_, updates, 2 * pitch,
                              outside_hidden_);
            }
            if (t < 2) continue;
            // While the new rows are still in the first cache.
            for (int o = 0; o < output_block; o += Operand::depth) {
                const int first = 2 * o * pitch;
                gate(h + o, {gates_ + before + first, gates_ + now + first, pitch},
                     {updates_ + before + first, updates_ + now + first, pitch});
            }
        }
    }

    // Where a register block of hidden channels has its two rows of a step: where the block before it had those of the
    // step before, which are done with. So the rows of two steps take the room of one, and of one more block.
    std::ptrdiff_t place(int hidden, int step) const {
        constexpr int places = H / output_block + 1;
        const int index = (hidden / output_block + places - step % places) % places;
        return static_cast<std::ptrdiff_t>(index) * 2 * output_block * pitch_;
    }

    // One row of operands: the hidden channel, and with bf16 the next.
    void gate(int channel, const OperandRings& gates, const OperandRings& updates) {
        const float *gate_taps = w_.gate_taps + 9 * channel, *update_taps = w_.update_taps + 9 * channel;
        float* at = gated_ + 2 * (channel / Operand::depth) * pitch_;
        if constexpr (taps_in_registers && Operand::depth == 1) {
            // One after the other, so that the taps of each convolution, and the factors of the GELU, stay in registers.
            depthwise_rows(gates.channel[0], core_vectors_, gate_taps, [=](int v, RowPair pair) { store_pair(at + v * lanes, pair); });
#pragma GCC unroll 1
            for (int v = 0; v < core_vectors_; ++v) {
                float *top = at + v * lanes, *bottom = top + pitch_;
                store(top, gelu(load(top)));
                store(bottom, gelu(load(bottom)));
            }
            depthwise_rows(updates.channel[0], core_vectors_, update_taps, [=](int v, RowPair pair) {
                const float *top = at + v * lanes, *bottom = top + pitch_;
                store_pair(at + v * lanes, {load(top) * pair.top, load(bottom) * pair.bottom});
            });
            return;
        }
        for (int v = 0; v < core_vectors_; ++v) {
            store_operands(at + v * lanes, [=](int i) {
                const RowPair x = depthwise(gates.channel[i], v * lanes, gate_taps + 9 * i);
                const RowPair y = depthwise(updates.channel[i], v * lanes, update_taps + 9 * i);
                return RowPair{gelu(x.top) * y.top, gelu(x.bottom) * y.bottom};
            });
        }
    }

    REFUSION_INLINE void store_pair(float* to, RowPair rows) {
        store(to, rows.top);
        store(to + pitch_, rows.bottom);
    }

    // Stores operands for both rows of a pair, out of what channel(i) makes of them.
    template <class Channel>
    REFUSION_INLINE void store_operands(float* to, const Channel& channel) {
        RowPair rows[Operand::depth];
#pragma GCC unroll 2
        for (int i = 0; i < Operand::depth; ++i) rows[i] = channel(i);
        store(to, Operand::of([&](int i) { return rows[i].top; }));
        store(to + pitch_, Operand::of([&](int i) { return rows[i].bottom; }));
    }

    // Rows top + 2t - 4 and top + 2t - 3: the last projection and the residual, into the image.
    void finish(int t) {
        const int pitch = pitch_, core = core_;
        for (int i = 0; i < 2; ++i) {
            const int row = tile_.top + 2 * t - 4 + i;
            if (row >= tile_.bottom) continue;
            const float* in = gated_ + i * pitch;
            const float* x = mixed_ + ((2 * t - 1 + i) & 3) * pitch + 1;
            float* y = to_.at(row, tile_.left);
            const std::ptrdiff_t y_pitch = to_.pitch;
            pointwise<Operand, H>(
                C, core_vectors_, w_.out, nullptr, [=](int k) { return in + 2 * k * pitch; },
                [=](int o, int v, Vec sum) {
                    store_first(y + o * y_pitch + v * lanes, sum + load(x + 4 * o * pitch + v * lanes), core - v * lanes);
                });
        }
    }

    const Tile& tile_;
    const FeatureView& from_;
    const FeatureView& to_;
    const BlockWeights& w_;
    const int core_, value_vectors_, hidden_vectors_, core_vectors_, pitch_;
    const Outside outside_values_, outside_hidden_;
    float *normed_, *values_, *gathered_, *mixed_, *gates_, *updates_, *gated_;
};

}  // namespace refusion::REFUSION_ISA
