// Runs the kernels without Python, for sanitizers and for other processors.
//
//   native_driver VECTORS SECONDS [SEED]
//
// VECTORS is a folder made by `python -m tests.kernels.cpu.native.vectors`. Every NAME.vector is fused with every instruction set and
// must be within 2e-5, or within 50 dB PSNR in bf16, or 54 dB in fp16. Then, for SECONDS, planes of random sizes, strides and alignments are
// fused by both networks with random numbers of threads, from two threads at once, damaged weights files are read, and the
// blocks of training and the products over their pixels are computed.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "batches_fuzzer.hpp"
#include "expansion_fuzzer.hpp"
#include "fast_fuzzer.hpp"
#include "fast_network.hpp"
#include "isa.hpp"
#include "network.hpp"
#include "network_oracle.hpp"
#include "refusion_edge.h"
#include "require.hpp"
#include "strided.hpp"
#include "weights_file.hpp"

namespace fs = std::filesystem;
using namespace refusion;

namespace {

constexpr double kTolerance = 2e-5;
// The gate's limits, in dB.
constexpr double kBf16Psnr = 50.0, kFp16Psnr = 54.0;

struct Vector {
    std::string name;
    int height = 0, width = 0;
    std::vector<float> a, b, fused;
};

Vector read_vector(const fs::path& path) {
    std::ifstream file(path, std::ios::binary);
    std::int32_t sides[2];
    file.read(reinterpret_cast<char*>(sides), sizeof sides);
    Vector vector;
    vector.name = path.stem().string();
    vector.height = sides[0];
    vector.width = sides[1];
    for (std::vector<float>* plane : {&vector.a, &vector.b, &vector.fused}) {
        plane->resize(static_cast<std::size_t>(sides[0]) * static_cast<std::size_t>(sides[1]));
        file.read(reinterpret_cast<char*>(plane->data()), static_cast<std::streamsize>(plane->size() * sizeof(float)));
    }
    require(static_cast<bool>(file), "cannot read " + path.string());
    return vector;
}

// All that this processor has, in any precision.
std::vector<const Kernels*> all_kernels() {
    std::vector<const Kernels*> all = usable_kernels(Precision::fp32);
    for (const Kernels* kernels : usable_kernels(Precision::bf16)) all.push_back(kernels);
    return all;
}

// Requires that a result is as close to the expected one as its precision allows, and returns the largest error.
template <class Expected>
double require_close(const std::vector<float>& fused, const std::vector<Expected>& expected, Precision precision, const std::string& what) {
    double worst = 0, squares = 0;
    for (std::size_t i = 0; i < fused.size(); ++i) {
        const double error = std::abs(static_cast<double>(fused[i]) - static_cast<double>(expected[i]));
        worst = error <= worst ? worst : error;  // takes NaN, too
        squares += error * error;
    }
    const double psnr = -10 * std::log10(squares / static_cast<double>(fused.size()));
    const bool close = precision == Precision::fp32 ? worst <= kTolerance : psnr >= (precision == Precision::bf16 ? kBf16Psnr : kFp16Psnr);
    require(close, what + ": error " + std::to_string(worst) + ", PSNR " + std::to_string(psnr) + " dB");
    return worst;
}

// Fuses it with every instruction set of a precision and returns the largest error; negative if there is no such set.
double check_vector(const Vector& vector, const Weights& weights, Precision precision) {
    std::vector<std::string> isas;
    if (weights.fast) {
        for (const FastKernels* kernels : usable_fast_kernels(precision)) isas.emplace_back(kernels->isa);
    } else {
        for (const Kernels* kernels : usable_kernels(precision)) isas.emplace_back(kernels->isa);
    }
    double worst = -1;
    for (const std::string& isa : isas) {
        for (int threads : {1, 3}) {
            std::vector<float> fused(vector.fused.size(), NAN);
            const PlaneView a = contiguous(vector.a, vector.width), b = contiguous(vector.b, vector.width);
            const PlaneTarget target{fused.data(), vector.width * kPixel};
            if (weights.fast) {
                FastNetwork(*weights.fast, weights.flat.data(), threads, isa, precision).fuse(a, b, vector.height, vector.width, target, nullptr);
            } else {
                Network(weights.flat.data(), threads, isa, precision).fuse(a, b, vector.height, vector.width, target);
            }
            worst = std::max(worst, require_close(fused, vector.fused, precision, vector.name + " with " + isa));
        }
    }
    return worst;
}

class Fuzzer {
  public:
    // Weights of the paper's network.
    Fuzzer(const fs::path& weights, unsigned seed) : flat_(read_weights(weights.string()).flat), random_(seed) {}

    void turn() {
        const bool large = pick(0, 3) == 0;
        const int height = large ? pick(8, 200) : pick(8, 30), width = large ? pick(8, 300) : pick(8, 40);
        const std::vector<const Kernels*> all = all_kernels();
        const Kernels& kernels = *all[static_cast<std::size_t>(pick(0, static_cast<int>(all.size()) - 1))];
        const std::string what = std::to_string(height) + "x" + std::to_string(width);
        const std::vector<float> a = plane(height, width), b = plane(height, width);
        const std::vector<float> alone = fuse_alone(a, b, height, width, kernels);
        if (!large) {
            std::vector<double> exact(a.size());
            fuse_reference(flat_.data(), contiguous(a, width), contiguous(b, width), height, width, exact.data());
            require_close(alone, exact, kernels.packing.precision, what + " with " + kernels.isa);
        }
        const Strided strided_a(a, height, width, random_), strided_b(b, height, width, random_);
        Network network(flat_.data(), pick(1, 4), kernels.isa, kernels.packing.precision);
        std::atomic<bool> equal{true};
        const auto work = [&] {
            Target target(height, width);
            network.fuse(strided_a.view, strided_b.view, height, width, target.view());
            if (!target.holds(alone)) equal = false;
        };
        std::thread other(work);
        work();
        other.join();
        require(equal, what + " with " + kernels.isa + ": not what one thread makes of contiguous planes");
        ++turns;
    }

    // A weights file with some bytes changed or the end cut off is read or refused, never more.
    void damage(const fs::path& weights) {
        std::ifstream file(weights, std::ios::binary);
        std::string data((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
        const int header = static_cast<int>(std::min<std::size_t>(data.size(), 9000)) - 1;
        for (int i = pick(1, 8); i > 0; --i) data[static_cast<std::size_t>(pick(0, header))] = static_cast<char>(pick(0, 255));
        if (pick(0, 3) == 0) data.resize(static_cast<std::size_t>(pick(0, static_cast<int>(data.size()))));
        const fs::path damaged = fs::temp_directory_path() / ("native_driver-" + std::to_string(random_()) + ".safetensors");
        std::ofstream(damaged, std::ios::binary) << data;
        refusion_edge* instance = refusion_edge_create(damaged.string().c_str(), 1, pick(REFUSION_EDGE_FP32, REFUSION_EDGE_FP16));
        fs::remove(damaged);
        if (instance == nullptr) {
            require(std::strstr(refusion_edge_error(), "; ") != nullptr, "an error without a remedy");
            ++refused;
        }
        refusion_edge_destroy(instance);
    }

    long turns = 0, refused = 0;

  private:
    int pick(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }

    std::vector<float> plane(int height, int width) {
        std::vector<float> pixels(static_cast<std::size_t>(height) * static_cast<std::size_t>(width));
        for (float& pixel : pixels) pixel = std::uniform_real_distribution<float>(0, 1)(random_);
        return pixels;
    }

    std::vector<float> fuse_alone(const std::vector<float>& a, const std::vector<float>& b, int height, int width, const Kernels& kernels) {
        Network network(flat_.data(), 1, kernels.isa, kernels.packing.precision);
        std::vector<float> fused(a.size(), NAN);
        network.fuse(contiguous(a, width), contiguous(b, width), height, width, {fused.data(), width * kPixel});
        return fused;
    }

    std::vector<float> flat_;
    std::mt19937 random_;
};

}  // namespace

int main(int count, char** words) try {
    require(count == 3 || count == 4, "expected: native_driver VECTORS SECONDS [SEED]");
    std::setvbuf(stdout, nullptr, _IOLBF, 0);
    std::string isas;
    for (const Kernels* kernels : all_kernels()) isas += std::string(" ") + kernels->isa;
    for (const FastKernels* kernels : usable_fast_kernels(Precision::fp16)) isas += std::string(" ") + kernels->isa;
    std::printf("instruction sets:%s\n", isas.c_str());
    fs::path weights, fast_weights;
    for (const fs::directory_entry& entry : fs::directory_iterator(words[1])) {
        if (entry.path().extension() != ".vector") continue;
        fs::path of_vector = entry.path();
        of_vector.replace_extension(".safetensors");
        const Weights read = read_weights(of_vector.string());
        (read.fast ? fast_weights : weights) = of_vector;
        const Vector vector = read_vector(entry.path());
        std::printf("%-24s %4dx%-4d max error %.1e", vector.name.c_str(), vector.height, vector.width, check_vector(vector, read, Precision::fp32));
        for (Precision precision : {Precision::bf16, Precision::fp16}) {
            const double reduced = check_vector(vector, read, precision);
            if (reduced >= 0) std::printf(", in %s %.1e", precision == Precision::bf16 ? "bf16" : "fp16", reduced);
        }
        std::printf("\n");
    }
    require(!weights.empty() && !fast_weights.empty(), std::string("no vectors of both networks in ") + words[1]);
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::atoi(words[2]));
    const unsigned seed = count == 4 ? static_cast<unsigned>(std::atoi(words[3])) : 1u;
    Fuzzer fuzzer(weights, seed);
    fast_fuzzer::Fuzzer fast(seed);
    expansion_fuzzer::Fuzzer expansions(seed);
    batches_fuzzer::Fuzzer batches(seed);
    while (std::chrono::steady_clock::now() < end) {
        fuzzer.turn();
        for (int i = 0; i < 3; ++i) fast.turn();
        for (int i = 0; i < 6; ++i) fuzzer.damage(i % 2 == 0 ? weights : fast_weights);
        for (int i = 0; i < 3; ++i) expansions.turn();
        batches.turn();
    }
    std::printf("%ld images of the network fast, in fp32 within %.1e", fast.turns, fast.worst);
    if (fast.bf16.turns > 0) std::printf(", %ld in bf16 from %.1f dB", fast.bf16.turns, fast.bf16.worst);
    if (fast.fp16.turns > 0) std::printf(", %ld in fp16 from %.1f dB", fast.fp16.turns, fast.fp16.worst);
    std::printf("\n");
    std::printf("fuzzed: %ld images, %ld damaged weights files refused\n", fuzzer.turns, fuzzer.refused);
    std::printf("%ld blocks of training within %.1e of the largest number, %ld products of batches within %.1e\n", expansions.turns,
                expansions.worst(), batches.turns, batches.worst());
    return 0;
} catch (const std::exception& error) {
    std::fprintf(stderr, "native_driver: %s\n", error.what());
    return 1;
}
