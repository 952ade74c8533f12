// The names, shapes and places of the fusion network's parameters; the same table as refusion_edge/network/parameters.py.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <vector>

namespace refusion {

inline constexpr int kDim = 16;
inline constexpr int kHeads = 8;
inline constexpr int kBlocks = 2;
inline constexpr int kExpansion = 2;
inline constexpr float kNormEpsilon = 1e-5f;
inline constexpr double kNormFloor = 1e-12;
inline constexpr float kLeak = 0.01f;

struct Parameter {
    std::string name;
    std::vector<int> shape;
    std::size_t offset;  // of its first number in a flat array of all parameters, in the order of the table
    std::size_t size;
};

// All 86 parameters in module order.
const std::vector<Parameter>& parameters();

// Count of all their numbers: 59,856.
std::size_t parameter_count();

// Finds the numbers of one parameter in a flat array. Throws std::logic_error for an unknown name.
const float* find_parameter(const float* flat, const std::string& name);

}  // namespace refusion
