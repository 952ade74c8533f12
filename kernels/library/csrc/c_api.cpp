#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "engine.hpp"
#include "failure.hpp"
#include "levels.hpp"
#include "network.hpp"
#include "output_range.hpp"
#include "refusion_edge.h"
#include "weights_file.hpp"
#include "whole_file.hpp"

struct refusion_edge {
    std::unique_ptr<refusion::Engine> engine;
    std::mutex mutex;
    std::vector<float> a, b, fused;  // planes of the last size whose levels had to be converted
};

namespace {

using refusion::Failure;
using refusion::require;

// A text of fixed size: saying that there is no memory must not need any.
thread_local char last_error[512];
thread_local int last_code = REFUSION_EDGE_OK;

int fail(int code, const char* text) noexcept {
    std::size_t i = 0;
    for (; text[i] != '\0' && i + 1 < sizeof last_error; ++i) last_error[i] = text[i];
    last_error[i] = '\0';
    return last_code = code;
}

// Runs `work`; turns what it throws into the text and the code of the last error, and returns the code.
template <class Work>
int attempt(const Work& work) noexcept {
    try {
        work();
        return REFUSION_EDGE_OK;
    } catch (const std::bad_alloc&) {
        return fail(REFUSION_EDGE_NO_MEMORY, "there is not enough memory; fuse smaller images");
    } catch (const Failure& error) {
        return fail(error.code, error.what());
    } catch (const refusion::UnreadableWeights& error) {
        return fail(REFUSION_EDGE_UNREADABLE, error.what());
    } catch (const refusion::DamagedWeights& error) {
        return fail(REFUSION_EDGE_DAMAGED, error.what());
    } catch (const std::invalid_argument& error) {
        return fail(REFUSION_EDGE_INVALID, error.what());
    } catch (const std::exception& error) {
        return fail(REFUSION_EDGE_FAILED, error.what());
    } catch (...) {
        return fail(REFUSION_EDGE_FAILED, "unknown failure; report this");
    }
}

// An instance around the engine that `make` returns.
template <class Make>
refusion_edge* create(const Make& make) noexcept {
    refusion_edge* made = nullptr;
    attempt([&] {
        auto instance = std::make_unique<refusion_edge>();
        instance->engine = make();
        made = instance.release();
    });
    return made;
}

void require_instance(const refusion_edge* instance) {
    require(instance != nullptr, "the instance is NULL; read refusion_edge_error after creating it");
}

void require_pixels(bool given) { require(given, "a plane is NULL; pass the addresses of its pixels"); }

std::string bytes(const void* data, size_t size, const char* missing) {
    require(data != nullptr && size > 0, missing);
    return {static_cast<const char*>(data), size};
}

// A program of ours has 0.7 MB for two architectures.
constexpr std::size_t kMostProgramBytes = std::size_t{64} << 20;

std::string read_program(const char* path) {
    std::optional<std::string> data = refusion::read_whole_file(path, kMostProgramBytes);
    if (!data) throw Failure(REFUSION_EDGE_UNREADABLE, std::string(path) + " cannot be read; give the program.rfx of a bundle");
    return *std::move(data);
}

constexpr auto kPixel = static_cast<std::ptrdiff_t>(sizeof(float));

}  // namespace

extern "C" {

const char* refusion_edge_version(void) { return REFUSION_EDGE_VERSION; }

refusion_edge* refusion_edge_create(const char* weights_path, int threads, int precision) {
    return create([&] {
        require(weights_path != nullptr, "the path of the weights file is NULL; pass one");
        return refusion::make_cpu_engine(refusion::read_weights(weights_path), threads, precision);
    });
}

refusion_edge* refusion_edge_create_from_memory(const void* weights, size_t size, int threads, int precision) {
    return create([&] {
        const std::string data = bytes(weights, size, "there are no weights; pass the bytes of a weights file");
        return refusion::make_cpu_engine(refusion::parse_weights(data, "memory"), threads, precision);
    });
}

refusion_edge* refusion_edge_create_program(const char* program_path) {
    return create([&] {
        require(program_path != nullptr, "the path of the program file is NULL; pass one");
        return refusion::make_gpu_engine(read_program(program_path), program_path);
    });
}

refusion_edge* refusion_edge_create_program_from_memory(const void* program, size_t size) {
    return create([&] {
        return refusion::make_gpu_engine(bytes(program, size, "there is no program; pass the bytes of a program file"), "the program");
    });
}

refusion_edge* refusion_edge_create_plan(const char* bundle_path, int trust) {
    return create([&] {
        require(bundle_path != nullptr, "the path of the bundle is NULL; pass one");
        return refusion::make_plan_engine(bundle_path, trust != 0);
    });
}

int refusion_edge_fuse(refusion_edge* instance, const float* a, ptrdiff_t a_row_stride, const float* b, ptrdiff_t b_row_stride,
                       int height, int width, float* fused, ptrdiff_t fused_row_stride) {
    return refusion_edge_fuse_adapted(instance, a, a_row_stride, b, b_row_stride, height, width, nullptr, fused, fused_row_stride);
}

int refusion_edge_fuse_planes(refusion_edge* instance, const refusion_edge_plane* a, const refusion_edge_plane* b, int height, int width,
                              int stretch, const refusion_edge_plane* fused) {
    return attempt([&] {
        require_instance(instance);
        refusion::require_sides(height, width);
        for (const refusion_edge_plane* plane : {a, b, fused}) refusion::require_plane(plane, width);
        const std::lock_guard<std::mutex> lock(instance->mutex);
        const std::ptrdiff_t stride = width * kPixel;
        refusion::read_levels(*a, height, width, instance->a);
        refusion::read_levels(*b, height, width, instance->b);
        instance->fused.resize(instance->a.size());
        instance->engine->fuse({instance->a.data(), stride, kPixel}, {instance->b.data(), stride, kPixel}, height, width, nullptr,
                               {instance->fused.data(), stride});
        refusion::write_levels(instance->fused, height, width, stretch != 0, *fused);
    });
}

int refusion_edge_fuse_adapted(refusion_edge* instance, const float* a, ptrdiff_t a_row_stride, const float* b,
                               ptrdiff_t b_row_stride, int height, int width, const double* statistics, float* fused,
                               ptrdiff_t fused_row_stride) {
    return attempt([&] {
        require_instance(instance);
        require_pixels(a != nullptr && b != nullptr && fused != nullptr);
        instance->engine->fuse({a, a_row_stride, kPixel}, {b, b_row_stride, kPixel}, height, width, statistics, {fused, fused_row_stride});
    });
}

int refusion_edge_statistics(refusion_edge* instance, const float* a, ptrdiff_t a_row_stride, const float* b, ptrdiff_t b_row_stride,
                             int height, int width, double* statistics) {
    return attempt([&] {
        require_instance(instance);
        require_pixels(a != nullptr && b != nullptr && statistics != nullptr);
        instance->engine->statistics({a, a_row_stride, kPixel}, {b, b_row_stride, kPixel}, height, width, statistics);
    });
}

const char* refusion_edge_network(const refusion_edge* instance) { return instance == nullptr ? "" : instance->engine->network(); }

int refusion_edge_to_uint8(const float* fused, ptrdiff_t fused_row_stride, int height, int width, int stretch, uint8_t* image,
                           ptrdiff_t image_row_stride) {
    return attempt([&] {
        require_pixels(fused != nullptr && image != nullptr);
        require(height > 0 && width > 0, "the plane has no pixels; pass its size");
        refusion::to_uint8(fused, fused_row_stride, height, width, stretch != 0, image, image_row_stride);
    });
}

const char* refusion_edge_isa(const refusion_edge* instance) { return instance == nullptr ? "" : instance->engine->isa(); }

int refusion_edge_threads(const refusion_edge* instance) { return instance == nullptr ? 0 : instance->engine->threads(); }

void refusion_edge_destroy(refusion_edge* instance) { delete instance; }

const char* refusion_edge_error(void) { return last_error; }

int refusion_edge_error_code(void) { return last_code; }

}  // extern "C"
