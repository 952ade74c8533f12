#include "strips.hpp"

#include <algorithm>

namespace refusion {
namespace {

// Time of a row of a stage in vectors; the register blocks of three vectors leave a remainder that costs more.
double row_cost(int columns, int lanes) {
    const int vectors = (columns + lanes - 1) / lanes;
    constexpr double remainder_cost[3] = {0.0, 0.4, 0.15};
    return vectors + remainder_cost[vectors % 3];
}

}  // namespace

std::vector<Span> cut_strips(int width, int lanes, int overlap, int most) {
    constexpr int narrowest = 32;
    int best = 0;
    double best_cost = 0;
    for (int strips = 1; strips == 1 || width / strips >= narrowest; ++strips) {
        const int core = (width + strips - 1) / strips;
        if ((core + overlap + lanes - 1) / lanes * lanes > std::max(most, narrowest + overlap + lanes)) continue;
        const double cost = strips * (row_cost(core + overlap, lanes) + row_cost(core + overlap / 2, lanes) + row_cost(core, lanes));
        if (best == 0 || cost < best_cost) {
            best = strips;
            best_cost = cost;
        }
    }
    std::vector<Span> spans;
    for (int i = 0; i < best; ++i) {
        spans.push_back({static_cast<int>(static_cast<long long>(width) * i / best), static_cast<int>(static_cast<long long>(width) * (i + 1) / best)});
    }
    return spans;
}

std::vector<Span> cut_bands(int height, int count) {
    const int rows = std::max(2, ((height + count - 1) / count + 1) / 2 * 2);
    std::vector<Span> spans;
    for (int first = 0; first < height; first += rows) spans.push_back({first, std::min(height, first + rows)});
    return spans;
}

}  // namespace refusion
