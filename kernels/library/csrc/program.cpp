#include "program.hpp"

#include <algorithm>
#include <tuple>
#include <utility>

namespace refusion {

std::size_t Program::kernel(const std::string& name) const {
    const auto found = std::find_if(kernels.begin(), kernels.end(), [&](const ProgramKernel& one) { return one.name == name; });
    return static_cast<std::size_t>(found - kernels.begin());
}

const ProgramBuffer* Program::buffer(const std::string& name) const {
    const auto found = std::find_if(buffers.begin(), buffers.end(), [&](const ProgramBuffer& one) { return one.name == name; });
    return found == buffers.end() ? nullptr : &*found;
}

std::size_t bytes_of(const std::string& dtype) {
    return dtype == "float64" ? 8 : dtype == "float32" ? 4 : dtype == "float16" ? 2 : 1;
}

std::size_t aligned(std::size_t size) { return (size + 255) / 256 * 256; }

std::size_t bytes_of(const ProgramBuffer& buffer, Size size, const Program& program, const ProgramTarget& target) {
    std::int64_t elements = std::int64_t{size.height} * size.width * buffer.per_pixel + buffer.fixed;
    if (!buffer.strips_of.empty()) {
        const ProgramTile& tile = target.binaries[program.kernel(buffer.strips_of)].tile;
        elements += std::int64_t{tile.across(size)} * tile.down(size) * buffer.per_strip;
    }
    return static_cast<std::size_t>(elements) * bytes_of(buffer.dtype);
}

Arena lay_out(const Program& program, Size size, const ProgramTarget& target) {
    struct Placed {
        const ProgramBuffer* buffer;
        std::size_t offset, size;
    };
    std::vector<Placed> left, placed;
    for (const ProgramBuffer& buffer : program.buffers) {
        if (buffer.role == "scratch") left.push_back({&buffer, 0, aligned(bytes_of(buffer, size, program, target))});
    }
    std::sort(left.begin(), left.end(), [](const Placed& a, const Placed& b) {
        return std::tie(b.size, a.buffer->first, a.buffer->name) < std::tie(a.size, b.buffer->first, b.buffer->name);
    });
    Arena arena;
    for (Placed& one : left) {
        std::vector<std::pair<std::size_t, std::size_t>> taken;
        for (const Placed& other : placed) {
            const bool together = other.buffer->first <= one.buffer->last && one.buffer->first <= other.buffer->last;
            if (together) taken.emplace_back(other.offset, other.offset + other.size);
        }
        std::sort(taken.begin(), taken.end());
        for (const auto& [start, end] : taken) {
            if (one.offset + one.size <= start) break;
            one.offset = std::max(one.offset, end);
        }
        placed.push_back(one);
        arena.offsets[one.buffer->name] = one.offset;
        arena.size = std::max(arena.size, one.offset + one.size);
    }
    return arena;
}

std::string pack(const std::vector<ProgramParameter>& parameters, const std::vector<std::uint64_t>& values, int hidden_pointers) {
    std::string block;
    const auto append = [&](std::uint64_t value, std::size_t size) {
        block.resize((block.size() + size - 1) / size * size, '\0');
        for (std::size_t i = 0; i < size; ++i) block += static_cast<char>(value >> 8 * i);
    };
    for (std::size_t i = 0; i < parameters.size(); ++i) append(values[i], parameters[i].is_pointer() ? 8 : 4);
    for (int i = 0; i < hidden_pointers; ++i) append(0, 8);
    return block;
}

}  // namespace refusion
