// Between the levels of cameras and the numbers of the networks.
#pragma once

#include <vector>

#include "refusion_edge.h"

namespace refusion {

// Throws Failure for a plane that is NULL, of unknown type, with rows that overlap, or with black and white out of order.
void require_plane(const refusion_edge_plane* plane, int width);

// Brings a plane to float in [0, 1], row by row without gaps. Pixels of float are copied as they are.
void read_levels(const refusion_edge_plane& plane, int height, int width, std::vector<float>& to);

// Writes fused numbers. uint8 of the whole range has the digits of refusion_edge_to_uint8; other levels are rounded to the
// nearest.
void write_levels(const std::vector<float>& from, int height, int width, bool stretch, const refusion_edge_plane& plane);

}  // namespace refusion
