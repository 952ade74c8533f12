"""Structural similarity and metrics built on it: variants of SSIM, MS-SSIM, Qy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refusion_edge.metrics.planes import WHITE, Plane, filter_inside, fits, gaussian, halve, mean, sum_inside

_K1, _K2 = 0.01, 0.03

_UNIFORM_SIZE = 7
# scikit-image up to 0.19 assumed float images to span [-1, 1], whatever they held.
_ASSUMED_RANGE = 2.0

_GAUSSIAN = gaussian(11, 1.5)
# Wang, Simoncelli, Bovik, 2003: exponents from the finest to the coarsest scale.
_SCALE_EXPONENTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)

_YANG_WINDOW = gaussian(7, 1.5)
_YANG_SIMILAR = 0.75
_YANG_STABILIZER = 2e-16
# Rounding leaves variances of this size in flat windows; the stabilizer above is smaller still.
_FLAT_VARIANCE = 1e-8


@dataclass(frozen=True, slots=True)
class _Moments:
    """Local means, variances and covariance of two planes, one value per window."""

    mean_x: NDArray[np.floating]
    mean_y: NDArray[np.floating]
    variance_x: NDArray[np.floating]
    variance_y: NDArray[np.floating]
    covariance: NDArray[np.floating]

    def luminance(self, stabilizer: float) -> NDArray[np.floating]:
        """First factor of SSIM: (2 mx my + C) / (mx^2 + my^2 + C)."""
        return (2 * self.mean_x * self.mean_y + stabilizer) / (self.mean_x**2 + self.mean_y**2 + stabilizer)

    def contrast_structure(self, stabilizer: float) -> NDArray[np.floating]:
        """Second factor of SSIM: (2 sxy + C) / (sx^2 + sy^2 + C)."""
        return (2 * self.covariance + stabilizer) / (self.variance_x + self.variance_y + stabilizer)


def structural_similarity(a: Plane, b: Plane, fused: Plane) -> float:
    """Structural similarity as fusion papers print it: SSIM(A,F) + SSIM(B,F) with a data range of 2.

    SSIM is the mean of (2 mx my + C1)(2 sxy + C2) / ((mx^2 + my^2 + C1)(sx^2 + sy^2 + C2)) over 7x7 windows inside the
    image, sample covariances, C1 = (0.01 L)^2, C2 = (0.03 L)^2.

    Args:
        a: Source a, (H, W).
        b: Source b, (H, W).
        fused: (H, W).

    Returns:
        [-2, 2], higher is better; undefined (NaN) below 7x7 pixels. Convention ``evaluator``: L = 2 although the
        images span 255, which leaves flat windows without a stabilizer; some papers print the mean of the two.

    Source:
        Wang, Bovik, Sheikh, Simoncelli, IEEE TIP 13(4), 2004; parameters are the defaults of scikit-image 0.19 on
        float images, which the Evaluator of the CDDFuse repository relies on.
    """
    return _uniform_similarity(a, fused, _ASSUMED_RANGE) + _uniform_similarity(b, fused, _ASSUMED_RANGE)


def structural_similarity_255(a: Plane, b: Plane, fused: Plane) -> float:
    """Structural similarity with the true data range: as ``structural_similarity`` with L = 255.

    Args:
        a: Source a, (H, W).
        b: Source b, (H, W).
        fused: (H, W).

    Returns:
        [-2, 2], higher is better; undefined (NaN) below 7x7 pixels. Convention ``evaluator`` (SSIM255).

    Source:
        Wang, Bovik, Sheikh, Simoncelli, IEEE TIP 13(4), 2004; windows as in ``structural_similarity``.
    """
    return _uniform_similarity(a, fused, WHITE) + _uniform_similarity(b, fused, WHITE)


def structural_similarity_gaussian(a: Plane, b: Plane, fused: Plane) -> float:
    """Structural similarity with Gaussian windows: SSIM(A,F) + SSIM(B,F), 11x11, sigma 1.5, L = 255.

    Args:
        a: Source a, (H, W).
        b: Source b, (H, W).
        fused: (H, W).

    Returns:
        [-2, 2], higher is better; undefined (NaN) below 11x11 pixels. Convention ``vifb`` (Ssim): population moments,
        windows inside the image.

    Source:
        Wang, Bovik, Sheikh, Simoncelli: Image quality assessment: from error visibility to structural similarity,
        IEEE TIP 13(4), 2004; sum as in the VIFB benchmark (metricsSsim.m).
    """
    return _gaussian_similarity(a, fused) + _gaussian_similarity(b, fused)


def multi_scale_similarity(a: Plane, b: Plane, fused: Plane) -> float:
    """Multi-scale structural similarity: MS(A,F) + MS(B,F), MS = l_5^0.1333 prod cs_j^w_j over five scales.

    cs_j is the mean contrast-structure factor at scale j, at the coarsest the mean of the whole SSIM map; scales are
    halved by 2x2 means; w = 0.0448, 0.2856, 0.3001, 0.2363, 0.1333. A negative factor counts as 0.

    Args:
        a: Source a, (H, W).
        b: Source b, (H, W).
        fused: (H, W).

    Returns:
        [0, 2], higher is better; undefined (NaN) below 161x161 pixels, where the coarsest scale has no 11x11 window.
        Convention ``survey`` (MS-SSIM).

    Source:
        Wang, Simoncelli, Bovik: Multi-scale structural similarity for image quality assessment, Asilomar 2003.
    """
    return _multi_scale(a, fused) + _multi_scale(b, fused)


def yang_similarity(a: Plane, b: Plane, fused: Plane) -> float:
    """Yang's Qy: the mean over windows of l SSIM(A,F) + (1 - l) SSIM(B,F) where the sources agree, else of the larger.

    The sources agree where SSIM(A,B) >= 0.75; l = s_A^2 / (s_A^2 + s_B^2). Windows in which both sources are flat and
    agree have no l and are left out. 7x7 Gaussian windows, sigma 1.5, without stabilizers.

    Args:
        a: Source a, (H, W).
        b: Source b, (H, W).
        fused: (H, W).

    Returns:
        [-1, 1], higher is better; undefined (NaN) below 7x7 pixels or if no window is left. Convention ``survey`` (Qy).

    Source:
        Yang, Zhang, Wang, Liu: A novel similarity based quality metric for image fusion, Inf. Fusion 9(2), 2008;
        window as in Liu et al., IEEE TPAMI 34(1), 2012.
    """
    if not fits(fused, len(_YANG_WINDOW)):
        return math.nan
    sources, with_a, with_b = (_yang_moments(x, y) for x, y in ((a, b), (a, fused), (b, fused)))
    similarity, similarity_a, similarity_b = (_unstabilized(moments) for moments in (sources, with_a, with_b))
    texture = sources.variance_x + sources.variance_y
    share = np.divide(sources.variance_x, texture, out=np.full_like(texture, math.nan), where=texture > 0)
    weighted = share * similarity_a + (1 - share) * similarity_b
    quality = np.where(similarity >= _YANG_SIMILAR, weighted, np.maximum(similarity_a, similarity_b))
    return mean(quality)


def _uniform_similarity(x: Plane, y: Plane, data_range: float) -> float:
    if not fits(x, _UNIFORM_SIZE):
        return math.nan
    mean_x, mean_y = _float32_means(x), _float32_means(y)
    sample = np.float32(_UNIFORM_SIZE**2 / (_UNIFORM_SIZE**2 - 1))
    moments = _Moments(
        mean_x,
        mean_y,
        sample * (_float32_means(x * x) - mean_x * mean_x),
        sample * (_float32_means(y * y) - mean_y * mean_y),
        sample * (_float32_means(x * y) - mean_x * mean_y),
    )
    return _similarity(moments, data_range)


def _float32_means(plane: Plane) -> NDArray[np.float32]:
    """Means over 7x7 windows inside the plane, rounded to float32 after the columns and again after the rows."""
    columns = sum_inside(plane, 1, _UNIFORM_SIZE) / _UNIFORM_SIZE
    rows = sum_inside(columns.astype(np.float32).astype(np.float64), _UNIFORM_SIZE, 1) / _UNIFORM_SIZE
    return rows.astype(np.float32)


def _gaussian_similarity(x: Plane, y: Plane) -> float:
    return _similarity(_moments(x, y, _GAUSSIAN), WHITE) if fits(x, len(_GAUSSIAN)) else math.nan


def _similarity(moments: _Moments, data_range: float) -> float:
    quality = moments.luminance((_K1 * data_range) ** 2) * moments.contrast_structure((_K2 * data_range) ** 2)
    return mean(quality)


def _multi_scale(x: Plane, y: Plane) -> float:
    product = 1.0
    for scale, exponent in enumerate(_SCALE_EXPONENTS):
        if scale > 0:
            x, y = halve(x), halve(y)
        if not fits(x, len(_GAUSSIAN)):
            return math.nan
        moments = _moments(x, y, _GAUSSIAN)
        coarsest = scale == len(_SCALE_EXPONENTS) - 1
        factor = _similarity(moments, WHITE) if coarsest else mean(moments.contrast_structure((_K2 * WHITE) ** 2))
        product *= max(factor, 0.0) ** exponent
    return product


def _moments(x: Plane, y: Plane, window: Plane) -> _Moments:
    """Population moments in windows inside the image."""
    mean_x, mean_y = filter_inside(x, window), filter_inside(y, window)
    return _Moments(
        mean_x,
        mean_y,
        filter_inside(x * x, window) - mean_x * mean_x,
        filter_inside(y * y, window) - mean_y * mean_y,
        filter_inside(x * y, window) - mean_x * mean_y,
    )


def _yang_moments(x: Plane, y: Plane) -> _Moments:
    moments = _moments(x, y, _YANG_WINDOW)
    for variance in (moments.variance_x, moments.variance_y):
        flat = variance < _FLAT_VARIANCE
        variance[flat], moments.covariance[flat] = 0, 0
    return moments


def _unstabilized(moments: _Moments) -> Plane:
    return moments.luminance(_YANG_STABILIZER) * moments.contrast_structure(_YANG_STABILIZER)
