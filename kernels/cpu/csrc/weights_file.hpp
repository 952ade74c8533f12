// Reading a weights file of ours: safetensors with the 86 parameters in float32.
#pragma once

#include <string>
#include <vector>

namespace refusion {

// Returns all parameters in the order of the table. Throws std::runtime_error with one sentence for a file that is
// missing, damaged or holds something else.
std::vector<float> read_weights(const std::string& path);

}  // namespace refusion
