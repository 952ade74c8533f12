#include <algorithm>
#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>

#include "fast_network.hpp"
#include "network.hpp"
#include "output_range.hpp"
#include "refusion_edge.h"
#include "weights_file.hpp"

// One of the networks.
struct refusion_edge {
    std::unique_ptr<refusion::Network> network;
    std::unique_ptr<refusion::FastNetwork> fast;
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
        set_error("there is not enough memory; fuse smaller images");
    } catch (const std::exception& error) {
        set_error(error.what());
    } catch (...) {
        set_error("unknown failure; report this");
    }
    return false;
}

void require(bool holds, const char* problem) {
    if (!holds) throw std::invalid_argument(problem);
}

constexpr const char* kNoInstance = "the instance is NULL; read refusion_edge_error after refusion_edge_create";
constexpr const char* kNoStatistics = "the paper's network does not adapt to statistics; pass NULL, or open weights of the network fast";
constexpr const char* kNoPlane = "a plane is NULL; pass the addresses of its pixels";

constexpr auto kPixel = static_cast<std::ptrdiff_t>(sizeof(float));

}  // namespace

extern "C" {

refusion_edge* refusion_edge_create(const char* weights_path, int threads, int precision) {
    refusion_edge* made = nullptr;
    attempt([&] {
        require(weights_path != nullptr, "the path of the weights file is NULL; pass one");
        require(precision == REFUSION_EDGE_FP32 || precision == REFUSION_EDGE_BF16,
                "unknown precision; pass REFUSION_EDGE_FP32 or REFUSION_EDGE_BF16");
        const auto products = precision == REFUSION_EDGE_BF16 ? refusion::Precision::bf16 : refusion::Precision::fp32;
        const refusion::Weights weights = refusion::read_weights(weights_path);
        auto instance = std::make_unique<refusion_edge>();
        if (weights.fast) {
            require(products == refusion::Precision::fp32,
                    "the network fast does not compute in bf16; pass REFUSION_EDGE_FP32");
            instance->fast = std::make_unique<refusion::FastNetwork>(*weights.fast, weights.flat.data(), threads, "");
        } else {
            instance->network = std::make_unique<refusion::Network>(weights.flat.data(), threads, "", products);
        }
        made = instance.release();
    });
    return made;
}

int refusion_edge_fuse(refusion_edge* instance, const float* a, ptrdiff_t a_row_stride, const float* b, ptrdiff_t b_row_stride,
                       int height, int width, float* fused, ptrdiff_t fused_row_stride) {
    return refusion_edge_fuse_adapted(instance, a, a_row_stride, b, b_row_stride, height, width, nullptr, fused, fused_row_stride);
}

int refusion_edge_fuse_adapted(refusion_edge* instance, const float* a, ptrdiff_t a_row_stride, const float* b,
                               ptrdiff_t b_row_stride, int height, int width, const double* statistics, float* fused,
                               ptrdiff_t fused_row_stride) {
    return attempt([&] {
        require(instance != nullptr, kNoInstance);
        require(a != nullptr && b != nullptr && fused != nullptr, kNoPlane);
        const refusion::PlaneView view_a{a, a_row_stride, kPixel}, view_b{b, b_row_stride, kPixel};
        const refusion::PlaneTarget target{fused, fused_row_stride};
        if (instance->network) {
            require(statistics == nullptr, kNoStatistics);
            instance->network->fuse(view_a, view_b, height, width, target);
            return;
        }
        refusion::FastStatistics given{};
        if (statistics != nullptr) std::copy_n(statistics, given.size(), given.begin());
        instance->fast->fuse(view_a, view_b, height, width, target, statistics == nullptr ? nullptr : &given);
    }) ? 0 : 1;
}

int refusion_edge_statistics(refusion_edge* instance, const float* a, ptrdiff_t a_row_stride, const float* b, ptrdiff_t b_row_stride,
                             int height, int width, double* statistics) {
    return attempt([&] {
        require(instance != nullptr, kNoInstance);
        require(a != nullptr && b != nullptr && statistics != nullptr, kNoPlane);
        require(instance->fast != nullptr, kNoStatistics);
        const refusion::FastStatistics taken =
            instance->fast->statistics({a, a_row_stride, kPixel}, {b, b_row_stride, kPixel}, height, width);
        std::copy(taken.begin(), taken.end(), statistics);
    }) ? 0 : 1;
}

const char* refusion_edge_network(const refusion_edge* instance) {
    return instance == nullptr ? "" : instance->fast ? "fast" : "refusion";
}

int refusion_edge_to_uint8(const float* fused, ptrdiff_t fused_row_stride, int height, int width, int stretch, uint8_t* image,
                           ptrdiff_t image_row_stride) {
    return attempt([&] {
        require(fused != nullptr && image != nullptr, kNoPlane);
        require(height > 0 && width > 0, "the plane has no pixels; pass its size");
        refusion::to_uint8(fused, fused_row_stride, height, width, stretch != 0, image, image_row_stride);
    }) ? 0 : 1;
}

const char* refusion_edge_isa(const refusion_edge* instance) { 
    return instance == nullptr ? "" : instance->fast ? instance->fast->isa() : instance->network->isa();
}

void refusion_edge_destroy(refusion_edge* instance) { delete instance; }

const char* refusion_edge_error(void) { return last_error; }

}  // extern "C"
