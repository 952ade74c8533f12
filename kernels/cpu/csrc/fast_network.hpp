// The network `fast` on one image; see refusion_edge/network/fast.py for its definition.
#pragma once

#include <array>
#include <mutex>
#include <string>
#include <vector>

#include "buffer.hpp"
#include "fast_parameters.hpp"
#include "fast_kernels.hpp"
#include "plane.hpp"
#include "thread_pool.hpp"

namespace refusion {

// Mean and deviation of a, b, max(a, b) and |a - b|.
using FastStatistics = std::array<double, kFastStatistics>;

// Fuses images. Calls from several threads wait for one another. Allocates nothing for a size and layout of planes that it
// has fused before.
class FastNetwork {
  public:
    // `flat`: all parameters in the order of `fast_parameters`; `isa`: name, or empty for the fastest; `precision`: fp32 or fp16.
    // Throws std::invalid_argument, std::bad_alloc or std::system_error.
    FastNetwork(const FastLayout& layout, const float* flat, int threads, const std::string& isa, Precision precision);

    // Fuses two planes into `fused`, with the given statistics, or with those of the pair if they are absent. The result does
    // not depend on the number of threads. If a pixel of a source is not finite, every pixel of the result is NaN. Throws
    // std::invalid_argument for a size out of range or statistics that are not finite, std::bad_alloc.
    void fuse(const PlaneView& a, const PlaneView& b, int height, int width, const PlaneTarget& fused, const FastStatistics* given);

    // The statistics of a pair. Throws std::invalid_argument for a size out of range, std::bad_alloc.
    FastStatistics statistics(const PlaneView& a, const PlaneView& b, int height, int width);

    const char* isa() const { return kernels_.isa; }
    int threads() const { return pool_.threads(); }

  private:
    struct Layer {
        Buffer weights;  // packed, rounded to the numbers of the kernels
        std::vector<float> biases;
    };
    struct Plan {
        int height = 0, width = 0;  // of the image
        std::vector<Tile> tiles;
        std::size_t scratch_per_thread = 0;  // in floats
    };

    void plan(int height, int width);
    FastStatistics measure(const PlaneView& a, const PlaneView& b, int height, int width);
    void adapt(const FastStatistics& statistics);

    const FastKernels& kernels_;
    const FastLayout layout_;
    std::vector<float> dense_;  // parameters of the layers behind the statistics
    Buffer plain_weights_, adapted_weights_;  // of the first layer, packed: as they are, and adapted to the image
    std::vector<float> plain_biases_;
    std::vector<Layer> layers_;  // the first one adapted to the image
    std::vector<Convolution> views_;
    ThreadPool pool_;
    std::mutex mutex_;
    Plan plan_;
    std::vector<double> sums_;  // by row
    Buffer scratch_;
};

}  // namespace refusion
