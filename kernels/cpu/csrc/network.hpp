// The whole network on one image.
#pragma once

#include <atomic>
#include <mutex>
#include <string>

#include "buffer.hpp"
#include "kernels.hpp"
#include "packing.hpp"
#include "plane.hpp"
#include "thread_pool.hpp"

namespace refusion {

inline constexpr int kMinSide = 8;
inline constexpr int kMaxSide = 16384;
inline constexpr int kMaxThreads = 256;

// The number of threads. Throws std::invalid_argument if it is out of range.
int require_threads(int threads);

// Throws std::invalid_argument for the size of an image that is out of range.
void require_sides(int height, int width);

// What a pixel of a source that is not finite makes of the result.
void fill_with_nan(const PlaneTarget& fused, int height, int width);

// Fuses images. Calls from several threads wait for one another.
class Network {
  public:
    // `flat`: all parameters in the order of the table; `isa`: name, or empty for the fastest.
    // Throws std::invalid_argument, std::bad_alloc or std::system_error.
    Network(const float* flat, int threads, const std::string& isa, Precision precision);

    // Fuses two planes into `fused`. The result does not depend on the number of threads. If a pixel of a source is not
    // finite, every pixel of the result is NaN. Throws std::invalid_argument for a size out of range, std::bad_alloc.
    void fuse(const PlaneView& a, const PlaneView& b, int height, int width, const PlaneTarget& fused);

    const char* isa() const { return kernels_.isa; }
    int threads() const { return pool_.threads(); }

  private:
    struct Image;
    using Block = PackedWeights::Block;

    void reserve(int height, int width);
    bool lift(const Image& image, const PlaneView& a, const PlaneView& b);
    void run_blocks(const Image& image, Block* const* blocks, int count, bool forth);
    void project(const Image& image, const PlaneTarget& fused);

    const Kernels& kernels_;
    PackedWeights weights_;
    ThreadPool pool_;
    std::mutex mutex_;
    Buffer here_, there_, scratch_;
};

}  // namespace refusion
