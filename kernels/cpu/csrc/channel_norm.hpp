// Layer norm of training: over the channels of every pixel, which lie side by side, with its forward mode and its gradient.
#pragma once

#include "kernels.hpp"
#include "simd.hpp"

namespace refusion::REFUSION_ISA {

struct Moments {
    Vec mean, scale;  // scale: 1 / sqrt(variance + epsilon)
};

REFUSION_INLINE Moments moments(const float* x, int channels) {
    const float share = 1.0f / static_cast<float>(channels);
    Vec sum{};
    for (int c = 0; c < channels; c += lanes) sum += load(x + c);
    const Vec mean = sum_of_lanes(sum) * share;
    Vec squares{};
    for (int c = 0; c < channels; c += lanes) {
        const Vec centered = load(x + c) - mean;
        squares += centered * centered;
    }
    return {mean, 1.0f / square_root(sum_of_lanes(squares) * share + 1e-5f)};
}

// Means over the channels of a change, and of its product with the normalized x: what the norm takes out of it.
struct Lost {
    Vec mean, projection;
};

template <class Change>
REFUSION_INLINE Lost lost(const float* x, int channels, const Moments& at, const Change& change) {
    const float share = 1.0f / static_cast<float>(channels);
    Vec sum{}, product{};
    for (int c = 0; c < channels; c += lanes) {
        const Vec moved = change(c);
        sum += moved;
        product += moved * ((load(x + c) - at.mean) * at.scale);
    }
    return {sum_of_lanes(sum) * share, sum_of_lanes(product) * share};
}

static void norm(const Norm& job) {
    for (std::ptrdiff_t pixel = 0; pixel < job.pixels; ++pixel) {
        const float* x = job.x.at(pixel);
        const Moments at = moments(x, job.channels);
        for (int c = 0; c < job.channels; c += lanes) {
            store(job.y.at(pixel) + c, (load(x + c) - at.mean) * at.scale * load(job.weight + c) + load(job.bias + c));
        }
    }
}

static void norm_tangent(const Norm& job) {
    for (std::ptrdiff_t pixel = 0; pixel < job.pixels; ++pixel) {
        const float *x = job.x.at(pixel), *along = job.x_tangent.at(pixel);
        const Moments at = moments(x, job.channels);
        const Lost less = lost(x, job.channels, at, [&](int c) { return load(along + c); });
        for (int c = 0; c < job.channels; c += lanes) {
            const Vec normalized = (load(x + c) - at.mean) * at.scale;
            const Vec moved = (load(along + c) - less.mean - normalized * less.projection) * at.scale;
            store(job.y.at(pixel) + c, normalized * load(job.weight + c) + load(job.bias + c));
            store(job.y_tangent.at(pixel) + c,
                  moved * load(job.weight + c) + normalized * load(job.weight_tangent + c) + load(job.bias_tangent + c));
        }
    }
}

// Floats along the pixels of a call, doubles from call to call.
static void norm_gradient(const Norm& job) {
    float weight_sums[kNormChannels], bias_sums[kNormChannels];
    for (int c = 0; c < job.channels; ++c) weight_sums[c] = bias_sums[c] = 0.0f;
    for (std::ptrdiff_t pixel = 0; pixel < job.pixels; ++pixel) {
        const float *x = job.x.at(pixel), *slope = job.y_tangent.at(pixel);
        const Moments at = moments(x, job.channels);
        const Lost less = lost(x, job.channels, at, [&](int c) { return load(slope + c) * load(job.weight + c); });
        for (int c = 0; c < job.channels; c += lanes) {
            const Vec normalized = (load(x + c) - at.mean) * at.scale, own = load(slope + c);
            store(weight_sums + c, load(weight_sums + c) + own * normalized);
            store(bias_sums + c, load(bias_sums + c) + own);
            Vec found = (own * load(job.weight + c) - less.mean - normalized * less.projection) * at.scale;
            if (job.added.data) found += load(job.added.at(pixel) + c);
            store(job.x_gradient.at(pixel) + c, found);
        }
    }
    for (int c = 0; c < job.channels; ++c) {
        job.weight_gradient[c] += static_cast<double>(weight_sums[c]);
        job.bias_gradient[c] += static_cast<double>(bias_sums[c]);
    }
}

}  // namespace refusion::REFUSION_ISA
