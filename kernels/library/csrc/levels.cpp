#include "levels.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "failure.hpp"
#include "output_range.hpp"

namespace refusion {
namespace {

constexpr std::ptrdiff_t kBytes[] = {sizeof(float), sizeof(std::uint8_t), sizeof(std::uint16_t)};
constexpr float kMost[] = {1.0f, 255.0f, 65535.0f};

struct Scale {
    float black, white;
};

Scale scale_of(const refusion_edge_plane& plane) {
    if (plane.black == 0 && plane.white == 0) return {0, kMost[plane.type]};
    return {plane.black, plane.white};
}

char* row_of(const refusion_edge_plane& plane, int row) { return static_cast<char*>(plane.pixels) + row * plane.pitch; }

template <class Level>
void read_row(const char* from, int width, const Scale& scale, float* to) {
    const float range = scale.white - scale.black;
    for (int column = 0; column < width; ++column) {
        Level level;
        std::memcpy(&level, from + column * static_cast<std::ptrdiff_t>(sizeof level), sizeof level);
        to[column] = std::clamp((static_cast<float>(level) - scale.black) / range, 0.0f, 1.0f);
    }
}

template <class Level>
void write_row(const float* from, int width, const Scale& scale, const Ends& ends, char* to) {
    for (int column = 0; column < width; ++column) {
        const double value = std::clamp(static_cast<double>(from[column] - ends.low) / ends.width, 0.0, 1.0);
        const double level = scale.black + value * (static_cast<double>(scale.white) - scale.black);
        const auto rounded = static_cast<Level>(level + 0.5);
        std::memcpy(to + column * static_cast<std::ptrdiff_t>(sizeof rounded), &rounded, sizeof rounded);
    }
}

void write_floats(const float* from, int width, bool stretch, const Ends& ends, char* to) {
    for (int column = 0; column < width; ++column) {
        // A plane of NaN stays so.
        const float value = stretch ? (from[column] - ends.low) / ends.width : from[column];
        std::memcpy(to + column * static_cast<std::ptrdiff_t>(sizeof value), &value, sizeof value);
    }
}

}  // namespace

void require_plane(const refusion_edge_plane* plane, int width) {
    require(plane != nullptr && plane->pixels != nullptr, "a plane is NULL; pass the addresses of its pixels");
    require(plane->type >= REFUSION_EDGE_FLOAT && plane->type <= REFUSION_EDGE_UINT16,
            "the type of a plane is unknown; pass REFUSION_EDGE_FLOAT, _UINT8 or _UINT16");
    const std::ptrdiff_t row = width * kBytes[plane->type];
    require(plane->pitch >= row || plane->pitch <= -row, "the pitch of a plane is shorter than its rows; pass the bytes from one row to the next");
    const Scale scale = scale_of(*plane);
    require(scale.black >= 0 && scale.black < scale.white && scale.white <= kMost[plane->type],
            "black and white of a plane are out of order or of range; pass 0 and 0 for the whole range of the type");
    require(plane->type != REFUSION_EDGE_FLOAT || (scale.black == 0 && scale.white == 1),
            "the levels of a float plane are always 0 to 1; pass 0 and 0 as black and white");
}

void read_levels(const refusion_edge_plane& plane, int height, int width, std::vector<float>& to) {
    to.resize(static_cast<std::size_t>(height) * static_cast<std::size_t>(width));
    const Scale scale = scale_of(plane);
    for (int row = 0; row < height; ++row) {
        const char* from = row_of(plane, row);
        float* out = to.data() + static_cast<std::ptrdiff_t>(row) * width;
        if (plane.type == REFUSION_EDGE_FLOAT) std::memcpy(out, from, static_cast<std::size_t>(width) * sizeof(float));
        if (plane.type == REFUSION_EDGE_UINT8) read_row<std::uint8_t>(from, width, scale, out);
        if (plane.type == REFUSION_EDGE_UINT16) read_row<std::uint16_t>(from, width, scale, out);
    }
}

void write_levels(const std::vector<float>& from, int height, int width, bool stretch, const refusion_edge_plane& plane) {
    const Scale scale = scale_of(plane);
    const auto [least, most] = std::minmax_element(from.begin(), from.end());
    // The sum of a plane with a number that is not finite is not finite.
    double sum = 0;
    for (const float value : from) sum += value;
    require(plane.type == REFUSION_EDGE_FLOAT || std::isfinite(sum),
            "a pixel of the result is NaN, which its type cannot hold; repair pixels of the sources that are NaN or infinite, or "
            "compute in fp32");
    if (plane.type == REFUSION_EDGE_UINT8 && scale.black == 0 && scale.white == kMost[REFUSION_EDGE_UINT8]) {
        to_uint8(from.data(), width * static_cast<std::ptrdiff_t>(sizeof(float)), height, width, stretch,
                 static_cast<std::uint8_t*>(plane.pixels), plane.pitch);
        return;
    }
    const Ends ends = stretch ? stretched_ends(*least, *most) : Ends{0.0f, 1.0f};
    for (int row = 0; row < height; ++row) {
        const float* in = from.data() + static_cast<std::ptrdiff_t>(row) * width;
        char* to = row_of(plane, row);
        if (plane.type == REFUSION_EDGE_FLOAT) write_floats(in, width, stretch, ends, to);
        if (plane.type == REFUSION_EDGE_UINT8) write_row<std::uint8_t>(in, width, scale, ends, to);
        if (plane.type == REFUSION_EDGE_UINT16) write_row<std::uint16_t>(in, width, scale, ends, to);
    }
}

}  // namespace refusion
