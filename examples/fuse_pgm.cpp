// Fuses two 8-bit PGM files without Python:  fuse_pgm weights.safetensors infrared.pgm visible.pgm fused.pgm [threads]
// The weights may be those of either network.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "refusion_edge.h"

struct Picture {
    int height = 0, width = 0;
    std::vector<float> luma;  // [0, 1]
};

Picture read_pgm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    Picture picture;
    int most = 0;
    file >> magic >> picture.width >> picture.height >> most;
    file.get();
    const bool sound = file && magic == "P5" && most == 255 && std::min(picture.width, picture.height) > 0 &&
                       std::max(picture.width, picture.height) <= 16384;
    std::vector<std::uint8_t> levels(sound ? static_cast<std::size_t>(picture.height) * static_cast<std::size_t>(picture.width) : 0);
    if (!sound || !file.read(reinterpret_cast<char*>(levels.data()), static_cast<std::streamsize>(levels.size()))) {
        throw std::runtime_error(path + " is not an 8-bit binary PGM file without comments");
    }
    for (std::uint8_t level : levels) picture.luma.push_back(static_cast<float>(level) / 255.0f);
    return picture;
}

int main(int count, char** words) try {
    if (count != 5 && count != 6) throw std::runtime_error("usage: fuse_pgm WEIGHTS A.pgm B.pgm FUSED.pgm [THREADS]");
    const Picture a = read_pgm(words[2]), b = read_pgm(words[3]);
    if (a.height != b.height || a.width != b.width) throw std::runtime_error("the two images have different sizes");
    const int threads = count == 6 ? std::atoi(words[5]) : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));

    refusion_edge* engine = refusion_edge_create(words[1], threads, REFUSION_EDGE_FP32);
    if (engine == nullptr) throw std::runtime_error(refusion_edge_error());
    std::vector<float> fused(a.luma.size());
    std::vector<std::uint8_t> levels(a.luma.size());
    const std::ptrdiff_t stride = a.width * static_cast<std::ptrdiff_t>(sizeof(float));
    const int failed = refusion_edge_fuse(engine, a.luma.data(), stride, b.luma.data(), stride, a.height, a.width, fused.data(), stride) ||
                       refusion_edge_to_uint8(fused.data(), stride, a.height, a.width, 1, levels.data(), a.width);
    refusion_edge_destroy(engine);
    if (failed) throw std::runtime_error(refusion_edge_error());

    std::ofstream file(words[4], std::ios::binary);
    file << "P5\n" << a.width << " " << a.height << "\n255\n";
    file.write(reinterpret_cast<const char*>(levels.data()), static_cast<std::streamsize>(levels.size()));
    if (!file.flush()) throw std::runtime_error(std::string("cannot write ") + words[4]);
    return 0;
} catch (const std::exception& error) {
    std::fprintf(stderr, "fuse_pgm: %s\n", error.what());
    return 1;
}
