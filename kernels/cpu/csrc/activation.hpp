// GELU with the accurate error function, and the sigmoid.
#pragma once

#include "simd.hpp"

namespace refusion::REFUSION_ISA {

// The normal distribution at x, (1 + erf(x / sqrt(2))) / 2, which is GELU's share of x.
//
// erf(x / sqrt(2)) / 2 = x P(x^2) / Q(x^2) on |x| <= 5.4, beyond which it is 1/2 in float. The ten coefficients are a
// weighted minimax fit of our own with error 1.9e-8, scaled so that the highest one of Q is 1; all are positive, so no
// digit is lost in the sums. In float the GELU is within 1.3e-6 of the exact one on [-8, 8], as is PyTorch's.
REFUSION_INLINE Vec normal_share(Vec x) {
    const Vec bounded = least(most(x, broadcast(-5.4f)), broadcast(5.4f));
    const Vec u = bounded * bounded;
    Vec p = broadcast(1.922314846e-02f);
    p = p * u + 5.227745625e+00f;
    p = p * u + 1.350679197e+02f;
    p = p * u + 3.822863110e+03f;
    p = p * u + 2.743101404e+04f;
    p = p * u + 3.279185664e+05f;
    Vec q = u + 5.951089337e+01f;
    q = q * u + 1.528029557e+03f;
    q = q * u + 2.332645592e+04f;
    q = q * u + 2.057538914e+05f;
    q = q * u + 8.219700498e+05f;
    return bounded * p / q + 0.5f;
}

// x * (1 + erf(x / sqrt(2))) / 2.
REFUSION_INLINE Vec gelu(Vec x) { return x * normal_share(x); }

// e^x for x in [-87, 87], within 2 ulp: x = n ln 2 + r, a polynomial for e^r (Cephes, expf), n into the exponent.
REFUSION_INLINE Vec exponential(Vec x) {
    const Vec shifter = broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const Vec rounded = x * 1.44269504088896341f + shifter;
    const Vec n = rounded - shifter;
    Vec r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    Vec p = broadcast(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const IntVec exponent = (as_int(rounded) - as_int(shifter)) + 127;
    return p * as_float(exponent << 23);
}

struct GeluWithSlope {
    Vec value, slope;
};

// GELU and its derivative, the normal distribution plus x times its density. Beyond 13 the density is none in float.
REFUSION_INLINE GeluWithSlope gelu_with_slope(Vec x) {
    const Vec share = normal_share(x);
    const Vec bounded = least(most(x, broadcast(-13.0f)), broadcast(13.0f));
    const Vec density = 0.3989422804f * exponential(-0.5f * bounded * bounded);
    return {x * share, share + bounded * density};
}

// 1 / (1 + e^-x), from 1.6e-38 to 1.
REFUSION_INLINE Vec sigmoid(Vec x) {
    const Vec bounded = least(most(x, broadcast(-87.0f)), broadcast(87.0f));
    return 1.0f / (1.0f + exponential(-bounded));
}

}  // namespace refusion::REFUSION_ISA
