// Fuses two 8-bit PGM files without Python:  fuse_pgm ENGINE infrared.pgm visible.pgm fused.pgm [threads [precision]]
// ENGINE: the weights of either network (.safetensors), for the CPU, in the precision fp32, bf16 or fp16; or, for an NVIDIA
// GPU and without threads and precision, a program (.rfx) or the folder of an engine bundle for TensorRT.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "refusion_edge.hpp"

using namespace refusion::edge;

struct Picture {
    int height = 0, width = 0;
    std::vector<std::uint8_t> levels;
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
    picture.levels.resize(sound ? static_cast<std::size_t>(picture.height) * static_cast<std::size_t>(picture.width) : 0);
    if (!sound || !file.read(reinterpret_cast<char*>(picture.levels.data()), static_cast<std::streamsize>(picture.levels.size()))) {
        throw std::runtime_error(path + " is not an 8-bit binary PGM file without comments");
    }
    return picture;
}

Precision to_precision(const std::string& word) {
    if (word == "fp32") return Precision::fp32;
    if (word == "bf16") return Precision::bf16;
    if (word == "fp16") return Precision::fp16;
    throw std::runtime_error("unknown precision '" + word + "'; choose fp32, bf16 or fp16");
}

// `settings`: threads and precision, as far as they are given.
Engine open_engine(const std::string& path, const std::vector<std::string>& settings) {
    const bool is_bundle = std::filesystem::is_directory(path), is_program = std::filesystem::path(path).extension() == ".rfx";
    if ((is_bundle || is_program) && !settings.empty()) {
        throw std::runtime_error("THREADS and PRECISION are for weights, and " + path + " is for a GPU; leave them out");
    }
    if (is_bundle) return Engine::plan(path);
    if (is_program) return Engine::program(path);
    return Engine(path, settings.empty() ? 0 : std::atoi(settings[0].c_str()), settings.size() < 2 ? Precision::fp32 : to_precision(settings[1]));
}

int main(int count, char** words) try {
    if (count < 5 || count > 7) throw std::runtime_error("usage: fuse_pgm ENGINE A.pgm B.pgm FUSED.pgm [THREADS [PRECISION]]");
    Picture a = read_pgm(words[2]), b = read_pgm(words[3]);
    if (a.height != b.height || a.width != b.width) throw std::runtime_error("the two images have different sizes");

    Engine engine = open_engine(words[1], std::vector<std::string>(words + 5, words + count));
    Picture fused{a.height, a.width, std::vector<std::uint8_t>(a.levels.size())};
    const auto view = [](Picture& picture) { return plane(picture.levels.data(), picture.width); };
    engine.fuse(view(a), view(b), a.height, a.width, view(fused), Range::stretch);

    std::ofstream file(words[4], std::ios::binary);
    file << "P5\n" << fused.width << " " << fused.height << "\n255\n";
    file.write(reinterpret_cast<const char*>(fused.levels.data()), static_cast<std::streamsize>(fused.levels.size()));
    if (!file.flush()) throw std::runtime_error(std::string("cannot write ") + words[4]);
    return 0;
} catch (const std::exception& error) {
    std::fprintf(stderr, "fuse_pgm: %s\n", error.what());
    return 1;
}
