// Which instruction sets this build holds and this processor has.
#pragma once

#include <string>
#include <vector>

#include "kernels.hpp"

namespace refusion {

// Usable here, the fastest first; never empty.
std::vector<const Kernels*> usable_kernels();

// The kernels of one name. Throws std::invalid_argument that lists what is usable.
const Kernels& find_kernels(const std::string& isa);

}  // namespace refusion
