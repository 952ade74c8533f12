// Parameters as the kernels want them: norms folded in, outputs of a register block side by side.
#pragma once

#include <string>
#include <vector>

#include "kernels.hpp"

namespace refusion {

// Attention of one group of channels: what turns its products into its mixing matrix.
struct AttentionWeights {
    const float* temperature;  // one per head
    const float* projection;   // (channels / groups)^2
};

// All weights of the network for one instruction set. Keeps its own copy.
class PackedWeights {
  public:
    PackedWeights(const float* flat, Packing packing);
    PackedWeights(const PackedWeights&) = delete;
    PackedWeights& operator=(const PackedWeights&) = delete;

    struct Block {
        BlockKind kind;
        BlockWeights weights;
        AttentionWeights attention[2];
        float* mix;  // where weights.mix points, to be filled for every image
    };

    std::vector<Block> encoder_a, encoder_b, decoder;
    Block fusion;
    DenseWeights dense;

    // Turns the products of an image into the block's mixing matrices.
    void set_mix(Block& block, const double* products) const;

  private:
    float* keep(std::vector<float> numbers);
    const float* packed(const float* weights, int outputs, int inputs);
    const float* parameter(const std::string& name) const;
    Block block(const std::string& name, BlockKind kind);
    Block fusion_module();

    std::vector<float> flat_;
    Packing packing_;
    std::vector<std::vector<float>> kept_;
};

}  // namespace refusion
