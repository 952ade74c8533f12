// The layouts and parameters of the network `fast`; the same as in refusion_edge/network/fast.py.
#pragma once

#include <cstddef>
#include <vector>

#include "parameters.hpp"

namespace refusion {

inline constexpr int kFastStatistics = 8;
inline constexpr int kFastHidden = 24;
inline constexpr int kFastStride = 2;  // from one pixel that the statistics see to the next
inline constexpr float kFastLeak = 0.1f;
inline constexpr int kFastLeastLayers = 2;
inline constexpr int kFastMostChannels = 64;

struct FastLayout {
    int channels;  // between the convolutions
    int convolutions;
    int factor;  // of the pixel-unshuffle

    int planes() const { return 2 * factor * factor; }
    int inputs(int layer) const { return layer == 0 ? planes() : channels; }
    int outputs(int layer) const { return layer == convolutions - 1 ? planes() : channels; }
};

// Throws std::invalid_argument for sizes that the network cannot have.
void require_layout(const FastLayout& layout);

// All parameters in order.
std::vector<Parameter> fast_parameters(const FastLayout& layout);

}  // namespace refusion
