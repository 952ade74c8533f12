// The same as fuse.c, with the weights in memory; and what a wrong call throws.
#include <fstream>
#include <iostream>
#include <iterator>
#include <numeric>
#include <refusion_edge.hpp>
#include <string>
#include <utility>
#include <vector>

using namespace refusion::edge;

int main(int, char** words) {
    std::ifstream file(words[1], std::ios::binary);
    const std::string weights{std::istreambuf_iterator<char>(file), {}};
    std::vector<std::uint8_t> a(16 * 20), b(a.size()), fused(a.size());
    for (std::size_t i = 0; i < a.size(); ++i) a[i] = static_cast<std::uint8_t>(i * 37), b[i] = static_cast<std::uint8_t>(255 - i);
    Engine first = Engine::from_memory(weights), engine = std::move(first);
    engine.fuse(plane(a.data(), 20), plane(b.data(), 20), 16, 20, plane(fused.data(), 20));
    try {
        engine.fuse(plane(a.data(), 19), plane(b.data(), 20), 16, 20, plane(fused.data(), 20));
        return 1;
    } catch (const Error& error) {
        if (error.code() != REFUSION_EDGE_INVALID) return 1;
    }
    try {
        Engine::from_memory(weights.substr(0, 100));
        return 1;
    } catch (const Error& error) {
        if (error.code() != REFUSION_EDGE_DAMAGED) return 1;
    }
    std::cout << version() << " " << std::accumulate(fused.begin(), fused.end(), 0L) << "\n";
}
