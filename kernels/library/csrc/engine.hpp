// What fuses behind the C interface.
#pragma once

#include <memory>
#include <string>

#include "plane.hpp"
#include "weights_file.hpp"

namespace refusion {

// Calls from several threads wait for one another.
class Engine {
  public:
    virtual ~Engine() = default;

    // Throws Failure, std::invalid_argument for a size out of range or unusable statistics, std::bad_alloc. `statistics`: those
    // to adapt to, or null for those of the pair. If a pixel of a source is not finite, all of the result is NaN.
    virtual void fuse(const PlaneView& a, const PlaneView& b, int height, int width, const double* statistics, const PlaneTarget& fused) = 0;

    // Takes the statistics of a pair. Throws as above.
    virtual void statistics(const PlaneView& a, const PlaneView& b, int height, int width, double* taken) = 0;

    virtual const char* network() const = 0;
    virtual const char* isa() const = 0;
    virtual int threads() const = 0;
};

// `threads`: 0 for one per processor; `precision`: of refusion_edge.h.
std::unique_ptr<Engine> make_cpu_engine(const Weights& weights, int threads, int precision);

// `data`: bytes of a program file; `name`: what to call it in messages.
std::unique_ptr<Engine> make_gpu_engine(const std::string& data, const std::string& name);

// `path`: folder of a bundle; `trust`: whether its plan may run without being on the list of trusted engines.
std::unique_ptr<Engine> make_plan_engine(const std::string& path, bool trust);

}  // namespace refusion
