"""MEF-SSIM: structural similarity of a multi-exposure fusion to an ideal fusion of the patches."""

from __future__ import annotations

import math

import numpy as np

from refusion_edge.metrics.planes import WHITE, Plane, filter_inside, fits, gaussian, halve, mean, sum_inside

_SIZE = 11
_COUNT = _SIZE**2
_WINDOW = gaussian(_SIZE, 1.5)
_STABILIZER = (0.03 * WHITE) ** 2
# The first three exponents of MS-SSIM; they are divided by their sum.
_SCALE_EXPONENTS = (0.0448, 0.2856, 0.3001)
_LARGEST_POWER = 10.0
_LEAST_CONTRAST = 0.001
_EPS = float(np.finfo(np.float64).eps)


def exposure_similarity(a: Plane, b: Plane, fused: Plane) -> float:
    """MEF-SSIM: prod Q_j^w_j over three scales, Q the mean over 11x11 windows of (2 s_RF + C) / (s_R^2 + s_F^2 + C).

    R is the desired patch: a mix of the mean-removed patches of A and B in units of their own contrast, weighted by
    contrast^p and scaled to the larger contrast, where p = tan(pi R_c / 2) grows with the consistency R_c =
    |a + b| / (|a| + |b|) of the two patches. Mean levels do not count. Moments of R and F are Gaussian (sigma 1.5),
    C = (0.03 * 255)^2, w = 0.0448, 0.2856, 0.3001 divided by their sum. A negative Q counts as 0.

    Args:
        a: Source a, (H, W).
        b: Source b, (H, W).
        fused: (H, W).

    Returns:
        [0, 1], higher is better; undefined (NaN) below 41x41 pixels, where the coarsest scale has no window. Convention
        ``survey`` (MEF-SSIM); meaningful for multi-exposure fusion.

    Source:
        Ma, Zeng, Wang: Perceptual quality assessment for multi-exposure image fusion, IEEE TIP 24(11), 2015.
    """
    product = 1.0
    for scale, exponent in enumerate(_SCALE_EXPONENTS):
        if scale > 0:
            a, b, fused = halve(a), halve(b), halve(fused)
        if not fits(fused, _SIZE):
            return math.nan
        product *= max(_similarity(a, b, fused), 0.0) ** (exponent / sum(_SCALE_EXPONENTS))
    return product


def _similarity(a: Plane, b: Plane, fused: Plane) -> float:
    share_a, share_b = _desired_mix(a, b)
    mean_a, mean_b, mean_fused = (filter_inside(plane, _WINDOW) for plane in (a, b, fused))

    def covariance(x: Plane, mean_x: Plane, y: Plane, mean_y: Plane) -> Plane:
        return filter_inside(x * y, _WINDOW) - mean_x * mean_y

    variance_desired = (
        share_a**2 * covariance(a, mean_a, a, mean_a)
        + share_b**2 * covariance(b, mean_b, b, mean_b)
        + 2 * share_a * share_b * covariance(a, mean_a, b, mean_b)
    )
    with_fused = share_a * covariance(a, mean_a, fused, mean_fused) + share_b * covariance(b, mean_b, fused, mean_fused)
    variance_fused = covariance(fused, mean_fused, fused, mean_fused)
    return mean((2 * with_fused + _STABILIZER) / (variance_desired + variance_fused + _STABILIZER))


def _desired_mix(a: Plane, b: Plane) -> tuple[Plane, Plane]:
    """Factors with which the mean-removed patches of a and b add up to the desired patch, one pair per window."""
    sum_a, sum_b = sum_inside(a, _SIZE, _SIZE), sum_inside(b, _SIZE, _SIZE)

    def inner(x: Plane, sum_x: Plane, y: Plane, sum_y: Plane) -> Plane:
        """Inner product of the mean-removed patches; whole numbers until the division, so exactly 0 if one is flat."""
        return (_COUNT * sum_inside(x * y, _SIZE, _SIZE) - sum_x * sum_y) / _COUNT

    aa, bb, ab = inner(a, sum_a, a, sum_a), inner(b, sum_b, b, sum_b), inner(a, sum_a, b, sum_b)
    norm_a, norm_b = np.sqrt(aa), np.sqrt(bb)
    norm_sum = np.sqrt(np.maximum(aa + bb + 2 * ab, 0))
    consistency = np.minimum((norm_sum + _EPS) / (norm_a + norm_b + _EPS), 1 - _EPS)
    power = np.minimum(np.tan(math.pi / 2 * consistency), _LARGEST_POWER)

    contrast_a, contrast_b = norm_a + _LEAST_CONTRAST, norm_b + _LEAST_CONTRAST
    weight_a, weight_b = (contrast_a / _SIZE) ** power + _EPS, (contrast_b / _SIZE) ** power + _EPS
    share_a = weight_a / (weight_a + weight_b) / contrast_a
    share_b = weight_b / (weight_a + weight_b) / contrast_b
    norm = np.sqrt(np.maximum(share_a**2 * aa + share_b**2 * bb + 2 * share_a * share_b * ab, 0))
    scale = np.divide(np.maximum(contrast_a, contrast_b), norm, out=np.ones_like(norm), where=norm > 0)
    return share_a * scale, share_b * scale
