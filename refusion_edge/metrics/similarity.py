"""Metrics of pixelwise error and correlation between the fused image and its sources."""

from __future__ import annotations

import math

import numpy as np

from refusion_edge.metrics.planes import WHITE, Plane, defined, total


def mean_squared_error(a: Plane, b: Plane, fused: Plane) -> float:
    """Mean squared error: (MSE(A,F) + MSE(B,F)) / 2.

    Args:
        a: Source a, (H, W).
        b: Source b, (H, W).
        fused: (H, W).

    Returns:
        [0, 65025] squared gray levels, lower is better. Convention ``evaluator``.

    Source:
        Evaluator of the CDDFuse repository (Zhao et al., CVPR 2023).
    """
    return (_squared_distance(a, fused) + _squared_distance(b, fused)) / (2 * defined(fused).size)


def peak_signal_to_noise(a: Plane, b: Plane, fused: Plane) -> float:
    """Peak signal-to-noise ratio: 10 log10(max(F)^2 / MSE), MSE as in ``mean_squared_error``.

    Args:
        a: Source a, (H, W).
        b: Source b, (H, W).
        fused: (H, W).

    Returns:
        dB, higher is better. Undefined (infinite) where all three are equal or the fused image is black. Convention
        ``evaluator``: the peak is the maximum of the fused image, not 255.

    Source:
        Evaluator of the CDDFuse repository (Zhao et al., CVPR 2023).
    """
    error = mean_squared_error(a, b, fused)
    peak = float(defined(fused).max())
    if peak == 0:
        return -math.inf
    return 10 * math.log10(peak**2 / error) if error > 0 else math.inf


def norm_per_pixel(a: Plane, b: Plane, fused: Plane) -> float:
    """What VIFB calls RMSE: (||A - F|| / N + ||B - F|| / N) / 2 with Frobenius norms and N pixels.

    Args:
        a: Source a, (H, W).
        b: Source b, (H, W).
        fused: (H, W).

    Returns:
        [0, 255 / sqrt(N)], lower is better. Convention ``vifb`` (Rmse). It is the true RMSE divided by sqrt(N), so it
        depends on the size of the image; kept because it is what was published.

    Source:
        Zhang, Ye, Xiao: VIFB, CVPR Workshops 2020 (metricsRmse.m); Jagalingam, Hegde: A review of quality metrics for
        fused image, Aquat. Procedia 4, 2015.
    """
    return (math.sqrt(_squared_distance(a, fused)) + math.sqrt(_squared_distance(b, fused))) / (2 * defined(fused).size)


def peak_to_norm(a: Plane, b: Plane, fused: Plane) -> float:
    """What VIFB calls PSNR: 20 log10(255 / sqrt(m)), m as in ``norm_per_pixel``.

    Args:
        a: Source a, (H, W).
        b: Source b, (H, W).
        fused: (H, W).

    Returns:
        dB, higher is better; infinite where all three are equal. Convention ``vifb`` (Psnr). A norm stands where a mean
        square belongs, hence values near 60; not comparable with PSNR in any other paper.

    Source:
        Zhang, Ye, Xiao: VIFB, CVPR Workshops 2020 (metricsPsnr.m).
    """
    error = norm_per_pixel(a, b, fused)
    return 20 * math.log10(WHITE / math.sqrt(error)) if error > 0 else math.inf


def correlation(a: Plane, b: Plane, fused: Plane) -> float:
    """Correlation coefficient: (corr(A,F) + corr(B,F)) / 2, Pearson.

    Args:
        a: Source a, (H, W).
        b: Source b, (H, W).
        fused: (H, W).

    Returns:
        [-1, 1], higher is better; undefined (NaN) if one of the three is constant. Convention ``evaluator``.

    Source:
        Ma, Ma, Li: Infrared and visible image fusion methods and applications: a survey, Inf. Fusion 45, 2019.
    """
    return (_pearson(a, fused) + _pearson(b, fused)) / 2


def correlation_of_differences(a: Plane, b: Plane, fused: Plane) -> float:
    """Sum of the correlations of differences: corr(A, F - B) + corr(B, F - A).

    Args:
        a: Source a, (H, W).
        b: Source b, (H, W).
        fused: (H, W).

    Returns:
        [-2, 2], higher is better; undefined (NaN) if a source or a difference is constant. Convention ``evaluator``.

    Source:
        Aslantas, Bendes: A new image quality metric for image fusion: the sum of the correlations of differences,
        AEU 69(12), 2015.
    """
    return _pearson(a, fused - b) + _pearson(b, fused - a)


def _squared_distance(x: Plane, y: Plane) -> float:
    return total(np.square(x - y))


def _pearson(x: Plane, y: Plane) -> float:
    x, y = defined(x), defined(y)
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(np.sum(x * x)) * float(np.sum(y * y)))
    return float(np.sum(x * y)) / scale if scale > 0 else math.nan
