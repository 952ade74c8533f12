#include "fast_parameters.hpp"

#include <stdexcept>
#include <string>
#include <utility>

#include "fast_kernels.hpp"

namespace refusion {

void require_layout(const FastLayout& layout) {
    const auto require = [](bool met, int got, const char* what, const char* choice) {
        if (met) return;
        throw std::invalid_argument("the network fast cannot have " + std::string(what) + " " + std::to_string(got) + "; choose " + choice);
    };
    require(layout.channels >= 8 && layout.channels <= kFastMostChannels && layout.channels % 8 == 0, layout.channels, "the channels",
            "a multiple of 8 from 8 to 64");
    require(layout.convolutions >= kFastLeastLayers && layout.convolutions <= kFastMostLayers, layout.convolutions, "the convolutions", "2 to 16");
    require(layout.factor == 2 || layout.factor == 4, layout.factor, "the factor", "2 or 4");
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
