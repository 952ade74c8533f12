#include <exception>
#include <new>
#include <stdexcept>
#include <string>

#include "network.hpp"
#include "output_range.hpp"
#include "refusion_edge.h"
#include "weights_file.hpp"

struct refusion_edge {
    refusion::Network network;
};

namespace {

// A text of fixed size: saying that there is no memory must not need any.
thread_local char last_error[512];

void set_error(const char* text) noexcept {
    std::size_t i = 0;
    for (; text[i] != '\0' && i + 1 < sizeof last_error; ++i) last_error[i] = text[i];
    last_error[i] = '\0';
}

// Runs `work`; turns what it throws into the text of the last error.
template <class Work>
bool attempt(const Work& work) noexcept {
    try {
        work();
        return true;
    } catch (const std::bad_alloc&) {
        set_error("expected enough memory, got none; fuse smaller images.");
    } catch (const std::exception& error) {
        set_error(error.what());
    } catch (...) {
        set_error("expected no unknown failure, got one; report this.");
    }
    return false;
}

void require(bool holds, const char* problem) {
    if (!holds) throw std::invalid_argument(problem);
}

constexpr const char* kNoInstance = "expected an instance, got NULL; see what refusion_edge_create said.";
constexpr const char* kNoPlane = "expected planes, got NULL; pass the addresses of pixels.";

}  // namespace

extern "C" {

refusion_edge* refusion_edge_create(const char* weights_path, int threads, int precision) {
    refusion_edge* made = nullptr;
    attempt([&] {
        require(weights_path != nullptr, "expected the path of a weights file, got NULL; pass one.");
        require(precision == REFUSION_EDGE_FP32 || precision == REFUSION_EDGE_BF16,
                "expected the precision REFUSION_EDGE_FP32 or REFUSION_EDGE_BF16, got neither; pass one of them.");
        const auto products = precision == REFUSION_EDGE_BF16 ? refusion::Precision::bf16 : refusion::Precision::fp32;
        made = new refusion_edge{refusion::Network(refusion::read_weights(weights_path).data(), threads, "", products)};
    });
    return made;
}

int refusion_edge_fuse(refusion_edge* instance, const float* a, ptrdiff_t a_row_stride, const float* b, ptrdiff_t b_row_stride,
                       int height, int width, float* fused, ptrdiff_t fused_row_stride) {
    return attempt([&] {
        require(instance != nullptr, kNoInstance);
        require(a != nullptr && b != nullptr && fused != nullptr, kNoPlane);
        constexpr auto pixel = static_cast<std::ptrdiff_t>(sizeof(float));
        instance->network.fuse({a, a_row_stride, pixel}, {b, b_row_stride, pixel}, height, width, {fused, fused_row_stride});
    }) ? 0 : 1;
}

int refusion_edge_to_uint8(const float* fused, ptrdiff_t fused_row_stride, int height, int width, int stretch, uint8_t* image,
                           ptrdiff_t image_row_stride) {
    return attempt([&] {
        require(fused != nullptr && image != nullptr, kNoPlane);
        require(height > 0 && width > 0, "expected a plane of at least one pixel, got none; pass its size.");
        refusion::to_uint8(fused, fused_row_stride, height, width, stretch != 0, image, image_row_stride);
    }) ? 0 : 1;
}

const char* refusion_edge_isa(const refusion_edge* instance) { return instance == nullptr ? "" : instance->network.isa(); }

void refusion_edge_destroy(refusion_edge* instance) { delete instance; }

const char* refusion_edge_error(void) { return last_error; }

}  // extern "C"
