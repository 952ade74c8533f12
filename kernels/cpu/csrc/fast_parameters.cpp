#include "fast_parameters.hpp"

#include <stdexcept>
#include <string>
#include <utility>

#include "kernels.hpp"

namespace refusion {

void require_layout(const FastLayout& layout) {
    const auto require = [](bool met, const char* expected, int got) {
        if (!met) throw std::invalid_argument(std::string("expected ") + expected + ", got " + std::to_string(got) + "; give parameters of the network fast.");
    };
    require(layout.channels >= 8 && layout.channels <= kFastMostChannels && layout.channels % 8 == 0, "channels in eights from 8 to 64", layout.channels);
    require(layout.convolutions >= kFastLeastLayers && layout.convolutions <= kFastMostLayers, "2 to 16 convolutions", layout.convolutions);
    require(layout.factor == 2 || layout.factor == 4, "an unshuffle factor of 2 or 4", layout.factor);
}

std::vector<Parameter> fast_parameters(const FastLayout& layout) {
    std::vector<Parameter> rows;
    std::size_t count = 0;
    const auto add = [&](std::string name, std::vector<int> shape) {
        std::size_t size = 1;
        for (int side : shape) size *= static_cast<std::size_t>(side);
        rows.push_back({std::move(name), std::move(shape), count, size});
        count += size;
    };
    add("statistics.0.weight", {kFastHidden, kFastStatistics});
    add("statistics.0.bias", {kFastHidden});
    add("statistics.1.weight", {2 * layout.channels, kFastHidden});
    add("statistics.1.bias", {2 * layout.channels});
    for (int i = 0; i < layout.convolutions; ++i) {
        const std::string prefix = "layers." + std::to_string(i) + ".";
        add(prefix + "weight", {layout.outputs(i), layout.inputs(i), 3, 3});
        add(prefix + "bias", {layout.outputs(i)});
    }
    return rows;
}

}  // namespace refusion
