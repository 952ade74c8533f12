// Reading a weights file of ours: safetensors with the parameters of one of the networks in float32.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "fast_parameters.hpp"

namespace refusion {

struct Weights {
    std::optional<FastLayout> fast;  // of the network `fast`; absent for the paper's network
    std::vector<float> flat;         // all parameters in their order
};

// Tells the networks apart by the names of their parameters. Throws std::runtime_error with one sentence for a file that is
// missing, damaged or holds something else.
Weights read_weights(const std::string& path);

}  // namespace refusion
