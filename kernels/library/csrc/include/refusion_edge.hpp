// refusion-edge from C++17: the functions of refusion_edge.h as a class that owns the engine and throws on failure.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>

#include "refusion_edge.h"

namespace refusion::edge {

// A failure: its code from refusion_edge.h, and a sentence that says what is wrong and what to do.
class Error : public std::runtime_error {
  public:
    Error(int code, const char* sentence) : std::runtime_error(sentence), code_(code) {}
    int code() const noexcept { return code_; }

  private:
    int code_;
};

enum class Precision { fp32 = REFUSION_EDGE_FP32, bf16 = REFUSION_EDGE_BF16, fp16 = REFUSION_EDGE_FP16 };

enum class Range { fixed = 0, stretch = 1 };

// Mean and deviation of a, b, max(a, b) and |a - b|.
using Statistics = std::array<double, REFUSION_EDGE_STATISTICS>;

// Views of planes in the caller's memory; `pitch`: bytes from one row to the next. Sources are only read.
using Plane = refusion_edge_plane;

inline Plane plane(const float* pixels, std::ptrdiff_t pitch) {
    return {const_cast<float*>(pixels), pitch, REFUSION_EDGE_FLOAT, 0, 0};
}
inline Plane plane(const std::uint8_t* pixels, std::ptrdiff_t pitch, float black = 0, float white = 0) {
    return {const_cast<std::uint8_t*>(pixels), pitch, REFUSION_EDGE_UINT8, black, white};
}
inline Plane plane(const std::uint16_t* pixels, std::ptrdiff_t pitch, float black = 0, float white = 0) {
    return {const_cast<std::uint16_t*>(pixels), pitch, REFUSION_EDGE_UINT16, black, white};
}

// Version of the loaded library.
inline std::string version() { return refusion_edge_version(); }

// An engine. It can be moved. Any thread may call any function; calls run one at a time.
class Engine {
  public:
    // From a weights file; 0 threads: one per processor.
    explicit Engine(const std::string& weights_path, int threads = 0, Precision precision = Precision::fp32)
        : Engine(refusion_edge_create(weights_path.c_str(), threads, static_cast<int>(precision))) {}

    // From the bytes of a weights file.
    static Engine from_memory(std::string_view weights, int threads = 0, Precision precision = Precision::fp32) {
        return Engine(refusion_edge_create_from_memory(weights.data(), weights.size(), threads, static_cast<int>(precision)));
    }

    // From a program file, on a GPU.
    static Engine program(const std::string& program_path) { return Engine(refusion_edge_create_program(program_path.c_str())); }

    // From the bytes of a program file, on a GPU.
    static Engine program_from_memory(std::string_view program) {
        return Engine(refusion_edge_create_program_from_memory(program.data(), program.size()));
    }

    // From a bundle for TensorRT, on a GPU; see refusion_edge_create_plan.
    static Engine plan(const std::string& bundle_path, bool trust = false) {
        return Engine(refusion_edge_create_plan(bundle_path.c_str(), trust ? 1 : 0));
    }

    // See refusion_edge_fuse_planes.
    void fuse(const Plane& a, const Plane& b, int height, int width, const Plane& fused, Range range = Range::fixed) {
        check(refusion_edge_fuse_planes(instance_.get(), &a, &b, height, width, static_cast<int>(range), &fused));
    }

    // See refusion_edge_fuse_adapted; all planes are float.
    void fuse_adapted(const Plane& a, const Plane& b, int height, int width, const Statistics& statistics, const Plane& fused) {
        check(refusion_edge_fuse_adapted(instance_.get(), floats(a), a.pitch, floats(b), b.pitch, height, width, statistics.data(),
                                         floats(fused), fused.pitch));
    }

    // See refusion_edge_statistics; both planes are float.
    Statistics statistics(const Plane& a, const Plane& b, int height, int width) {
        Statistics taken{};
        check(refusion_edge_statistics(instance_.get(), floats(a), a.pitch, floats(b), b.pitch, height, width, taken.data()));
        return taken;
    }

    std::string network() const { return refusion_edge_network(instance_.get()); }
    std::string isa() const { return refusion_edge_isa(instance_.get()); }
    int threads() const { return refusion_edge_threads(instance_.get()); }

    // For functions of refusion_edge.h; the engine keeps ownership.
    refusion_edge* get() const noexcept { return instance_.get(); }

  private:
    struct Destroy {
        void operator()(refusion_edge* instance) const noexcept { refusion_edge_destroy(instance); }
    };

    explicit Engine(refusion_edge* made) : instance_(made) {
        if (made == nullptr) throw Error(refusion_edge_error_code(), refusion_edge_error());
    }
    static void check(int code) {
        if (code != REFUSION_EDGE_OK) throw Error(code, refusion_edge_error());
    }
    static float* floats(const Plane& plane) {
        if (plane.type != REFUSION_EDGE_FLOAT) throw Error(REFUSION_EDGE_INVALID, "statistics need float planes; convert this one");
        return static_cast<float*>(plane.pixels);
    }

    std::unique_ptr<refusion_edge, Destroy> instance_;
};

}  // namespace refusion::edge
