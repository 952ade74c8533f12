"""Visual information fidelity in the pixel domain (VIF)."""

from __future__ import annotations

import math

import numpy as np

from refusion_edge.metrics.planes import Plane, filter_inside, fits, gaussian, total

# One Gaussian window for each of the four scales; sigma is a fifth of the size.
_WINDOWS = (17, 9, 5, 3)
_NOISE_VARIANCE = 2.0
_TINY = 1e-10


def visual_information_fidelity(a: Plane, b: Plane, fused: Plane) -> float:
    """Visual information fidelity: VIFp(A,F) + VIFp(B,F).

    VIFp = sum log(1 + g^2 s_X^2 / (s_V^2 + 2)) / sum log(1 + s_X^2 / 2) over all windows of four scales, where
    F = g X + V locally: g = s_XF / s_X^2, s_V^2 = s_F^2 - g s_XF.

    Args:
        a: Source a, (H, W).
        b: Source b, (H, W).
        fused: (H, W).

    Returns:
        At least 0, about [0, 2], higher is better; above 1 per source where F raises its contrast. Undefined (NaN) below
        41x41 pixels, where the coarsest scales have no window. A source without any texture counts as 1. Convention
        ``evaluator``: a sum; some papers print the mean.

    Source:
        Sheikh, Bovik: Image information and visual quality, IEEE TIP 15(2), 2006; pixel-domain version (vifp_mscale).
    """
    return _fidelity(a, fused) + _fidelity(b, fused)


def _fidelity(reference: Plane, distorted: Plane) -> float:
    kept = whole = 0.0
    for scale, size in enumerate(_WINDOWS):
        window = gaussian(size, size / 5)
        if scale > 0:
            if not fits(reference, size):
                return math.nan
            reference, distorted = filter_inside(reference, window)[::2, ::2], filter_inside(distorted, window)[::2, ::2]
        if not fits(reference, size):
            return math.nan
        at_scale = _information(reference, distorted, window)
        kept, whole = kept + at_scale[0], whole + at_scale[1]
    return 1.0 if whole == 0 else kept / whole


def _information(reference: Plane, distorted: Plane, window: Plane) -> tuple[float, float]:
    """Information in nat of the reference that is preserved, and in total; NaN if no window has a value."""
    mean_r, mean_d = filter_inside(reference, window), filter_inside(distorted, window)
    if np.isnan(mean_d).all():
        return math.nan, math.nan
    variance_r = np.maximum(filter_inside(reference * reference, window) - mean_r * mean_r, 0)
    variance_d = np.maximum(filter_inside(distorted * distorted, window) - mean_d * mean_d, 0)
    covariance = filter_inside(reference * distorted, window) - mean_r * mean_d

    gain = covariance / (variance_r + _TINY)
    noise = variance_d - gain * covariance
    # The order of these corrections is part of the definition.
    flat_r, flat_d = variance_r < _TINY, variance_d < _TINY
    gain[flat_r], noise[flat_r], variance_r[flat_r] = 0, variance_d[flat_r], 0
    gain[flat_d], noise[flat_d] = 0, 0
    inverted = gain < 0
    noise[inverted], gain[inverted] = variance_d[inverted], 0
    noise = np.maximum(noise, _TINY)

    kept = total(np.log1p(gain * gain * variance_r / (noise + _NOISE_VARIANCE)))
    return kept, total(np.log1p(variance_r / _NOISE_VARIANCE))
