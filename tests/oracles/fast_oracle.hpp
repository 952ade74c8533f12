// The network `fast` in double precision, written straight down: what the kernels are held against.
#pragma once

#include <array>

#include "fast_parameters.hpp"
#include "plane.hpp"

namespace refusion {

// The statistics of a pair, in two passes.
std::array<double, kFastStatistics> fast_statistics_reference(const PlaneView& a, const PlaneView& b, int height, int width);

// Fuses two planes of height x width pixels; writes height * width numbers to `fused`, row by row. `flat` holds all parameters
// of the layout in their order.
void fuse_fast_reference(const FastLayout& layout, const float* flat, const PlaneView& a, const PlaneView& b, int height, int width,
                         const std::array<double, kFastStatistics>& statistics, double* fused);

}  // namespace refusion
