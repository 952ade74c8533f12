// Which instruction sets this build holds and this processor has.
#pragma once

#include <string>
#include <vector>

#include "fast_kernels.hpp"
#include "kernels.hpp"

namespace refusion {

// Usable here in one precision, the fastest first; never empty for fp32.
std::vector<const Kernels*> usable_kernels(Precision precision);
std::vector<const FastKernels*> usable_fast_kernels(Precision precision);

// The kernels of one name, or the fastest if it is empty. Throws std::invalid_argument that says what is usable.
const Kernels& find_kernels(const std::string& isa, Precision precision);
const FastKernels& find_fast_kernels(const std::string& isa, Precision precision);

// The fastest in fp32, out of the named one and those of shorter vectors, whose vectors all these channels fill. Throws as above.
const Kernels& kernels_that_fill(const std::string& isa, const std::vector<int>& channels);

// fp32, bf16 or fp16. Throws std::invalid_argument for another word.
Precision find_precision(const std::string& word);

}  // namespace refusion
