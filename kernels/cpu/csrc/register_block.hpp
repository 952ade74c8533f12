// What a matrix product keeps in registers at a time.
#pragma once

namespace refusion::REFUSION_ISA {

inline constexpr int output_block = REFUSION_OUTPUT_BLOCK;  // outputs
inline constexpr int vector_block = REFUSION_VECTOR_BLOCK;  // vectors of pixels

}  // namespace refusion::REFUSION_ISA
