// A program for a GPU: its kernels, its buffers and the schedule of launches. As refusion_edge/cuda/program.py, which says
// more; no device.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace refusion {

// Height and width of an image.
struct Size {
    int height, width;

    bool operator==(const Size& other) const { return height == other.height && width == other.width; }
};

// The part of an image that one block works on.
struct ProgramTile {
    int columns, rows, warps;

    int across(Size size) const { return (size.width + columns - 1) / columns; }
    int down(Size size) const { return (size.height + rows - 1) / rows; }
};

struct ProgramParameter {
    std::string name, type;  // int32, or of what a pointer points at: float16*
    bool written;

    bool is_pointer() const { return type.back() == '*'; }
};

struct ProgramKernel {
    std::string name;
    std::vector<ProgramParameter> parameters;
    bool in_strips;  // one block for each strip and stream; else one for each stream
    int streams;
};

struct ProgramArgument {
    enum class Kind { buffer, weights, size, strips };
    Kind kind;
    std::string name;
};

struct ProgramLaunch {
    std::size_t kernel;  // index
    std::vector<ProgramArgument> arguments;
};

struct ProgramBuffer {
    std::string name, dtype, role;
    std::int64_t per_pixel, per_strip;
    std::string strips_of;
    std::int64_t fixed;
    int first, last;  // launches that use it
};

struct ProgramBinary {
    std::string symbol;
    ProgramTile tile;
    int shared_bytes, hidden_pointers;
    std::string image;
};

struct ProgramTarget {
    int architecture, driver_version;
    std::vector<ProgramBinary> binaries;  // in the order of the kernels
};

struct ProgramWeights {
    std::string name, dtype, bytes;
};

struct ProgramTest {
    Size size;
    std::vector<float> planes, fused;
    double tolerance;
};

struct Program {
    std::string network;
    std::vector<ProgramKernel> kernels;
    std::vector<ProgramBuffer> buffers;
    std::vector<ProgramLaunch> launches;
    std::vector<ProgramWeights> weights;
    std::vector<ProgramTarget> targets;
    ProgramTest test;

    std::size_t kernel(const std::string& name) const;  // index, or the number of kernels
    const ProgramBuffer* buffer(const std::string& name) const;
};

// Bytes of one element.
std::size_t bytes_of(const std::string& dtype);

// Rounds up to the alignment of buffers, 256 bytes.
std::size_t aligned(std::size_t size);

std::size_t bytes_of(const ProgramBuffer& buffer, Size size, const Program& program, const ProgramTarget& target);

// Offsets of the scratch buffers of one image size within one allocation.
struct Arena {
    std::map<std::string, std::size_t> offsets;
    std::size_t size = 0;
};

// Two buffers share bytes only if they are never in use at the same time. Large ones come first, each at the lowest offset
// that is free while it is in use.
Arena lay_out(const Program& program, Size size, const ProgramTarget& target);

// The block of arguments of a launch: values in order, each at a multiple of its size, and then null pointers.
std::string pack(const std::vector<ProgramParameter>& parameters, const std::vector<std::uint64_t>& values, int hidden_pointers);

}  // namespace refusion
