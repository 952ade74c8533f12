// Reading a weights file of ours: safetensors with the parameters of one of the networks in float32.
#pragma once

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "fast_parameters.hpp"

namespace refusion {

struct Weights {
    std::optional<FastLayout> fast;  // of the network `fast`; absent for the paper's network
    std::vector<float> flat;         // all parameters in their order
};

// Each says so in one sentence.
struct UnreadableWeights : std::runtime_error {
    using std::runtime_error::runtime_error;
};
struct DamagedWeights : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// Tells the networks apart by the names of their parameters. Throws UnreadableWeights for a file that is missing or far too
// large, DamagedWeights for one that is damaged or holds something else.
Weights read_weights(const std::string& path);

// The same from the bytes of a file; `name`: what to call it in messages. Throws DamagedWeights.
Weights parse_weights(const std::string& data, const std::string& name);

}  // namespace refusion
