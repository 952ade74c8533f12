// The whole network in double precision, written straight down: what the fast kernels are held against.
#pragma once

#include "plane.hpp"

namespace refusion {

// Fuses two planes of height x width pixels; writes height * width numbers to `fused`, row by row.
//
// `flat` holds all parameters in the order of the table. Slow and hungry (some 3 kB per pixel) on purpose: one loop
// per equation of refusion_edge/network/model.py, no layout tricks, no threads.
void fuse_reference(const float* flat, const PlaneView& a, const PlaneView& b, int height, int width, double* fused);

}  // namespace refusion
