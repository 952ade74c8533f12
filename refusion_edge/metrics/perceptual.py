"""Metrics built on models of human contrast vision: Qcb and Qcv."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from refusion_edge.metrics.planes import Plane, filter_same, sobel, stretch

# Chen and Blum: cycles per image that make one unit of the sensitivity's argument, and its constants.
_CHEN_BLUM_CYCLES = 15.0
_CHEN_BLUM_WIDE, _CHEN_BLUM_NARROW, _CHEN_BLUM_SHARE = 15.3870, 1.3456, 0.7622
_CONTRAST_SIGMAS = (2.0, 4.0)
_CONTRAST_SIZE = 31
_MASKING_FLOOR = 1e-4

# Chen and Varshney: the same for the sensitivity of Mannos and Sakrison.
_CHEN_VARSHNEY_CYCLES = 4.0
_BLOCK = 16
_SALIENCY_EXPONENT = 5


def chen_blum(a: Plane, b: Plane, fused: Plane) -> float:
    """Chen-Blum quality, Qcb: the mean of l_A Q_A + l_B Q_B over all pixels.

    Images are stretched to 0..255 and filtered by the contrast sensitivity exp(-(r/15.387)^2) - 0.7622
    exp(-(r/1.3456)^2). C = |G_2 * x / (G_4 * x) - 1| is the local contrast, C' = C^3 / (C^2 + 1e-4) the masked one,
    Q_X = min / max of C'_X and C'_F, l_X = C'_X^2 / (C'_A^2 + C'_B^2).

    Args:
        a: Source a, (H, W).
        b: Source b, (H, W).
        fused: (H, W).

    Returns:
        [0, 1], higher is better; undefined (NaN) if one of the three is constant, or if a pixel has no value.
        Conventions ``vifb`` and ``survey``: r in units of 15 cycles per image; Gaussians of 31x31 samples with
        factor 1 / (2 pi sigma^2), outside is 0.

    Source:
        Chen, Blum: A new automated quality assessment algorithm for image fusion, Image Vis. Comput. 27(10), 2009;
        parameters as in the VIFB benchmark (metricsQcb.m).
    """
    radius = _radial_frequency(fused.shape, _CHEN_BLUM_CYCLES)
    sensitivity = np.exp(-((radius / _CHEN_BLUM_WIDE) ** 2)) - _CHEN_BLUM_SHARE * np.exp(-((radius / _CHEN_BLUM_NARROW) ** 2))
    # A constant image has no contrast: 0 / 0 here, NaN in the end.
    with np.errstate(divide="ignore", invalid="ignore"):
        contrast_a, contrast_b, contrast_fused = (_masked_contrast(plane, sensitivity) for plane in (a, b, fused))
        ratio_a, ratio_b = (
            np.minimum(contrast, contrast_fused) / np.maximum(contrast, contrast_fused) for contrast in (contrast_a, contrast_b)
        )
        saliency_a, saliency_b = contrast_a**2, contrast_b**2
        return float(np.mean((saliency_a * ratio_a + saliency_b * ratio_b) / (saliency_a + saliency_b)))


def chen_varshney(a: Plane, b: Plane, fused: Plane) -> float:
    """Chen-Varshney quality, Qcv: sum(l_A D_A + l_B D_B) / sum(l_A + l_B) over 16x16 blocks.

    Images are stretched to 0..255. D_X is the mean square, over a block, of X - F filtered by the contrast
    sensitivity 2.6 (0.0192 + 0.144 r) exp(-(0.144 r)^1.1); l_X is the sum of the Sobel strength of X to the power 5.

    Args:
        a: Source a, (H, W).
        b: Source b, (H, W).
        fused: (H, W).

    Returns:
        At least 0, lower is better; undefined (NaN) if both sources are constant, or if a pixel has no value. Conventions
        ``vifb`` and ``survey``: r in units of 4 cycles per image; blocks that reach over the image are filled with
        0, for sums and for means.

    Source:
        Chen, Varshney: A human perception inspired quality metric for image fusion based on regional information, Inf.
        Fusion 8(2), 2007; parameters as in the VIFB benchmark (metricsQcv.m).
    """
    radius = 0.144 * _radial_frequency(fused.shape, _CHEN_VARSHNEY_CYCLES)
    sensitivity = 2.6 * (0.0192 + radius) * np.exp(-(radius**1.1))
    stretched = stretch(fused)
    error = weight = 0.0
    for source in (stretch(a), stretch(b)):
        x, y = sobel(source, cv2.BORDER_CONSTANT)
        saliency = _block_sums(np.hypot(x, y) ** _SALIENCY_EXPONENT)
        difference = _block_sums(_filter_frequencies(source - stretched, sensitivity) ** 2) / _BLOCK**2
        error += float(np.sum(saliency * difference))
        weight += float(np.sum(saliency))
    return error / weight if weight > 0 else math.nan


def _radial_frequency(shape: tuple[int, ...], cycles: float) -> NDArray[np.float64]:
    """Frequencies of ``numpy.fft.rfft2`` in units of ``cycles`` per image (not per degree), (H, W // 2 + 1)."""
    height, width = shape
    y, x = np.fft.fftfreq(height, 1 / height), np.fft.rfftfreq(width, 1 / width)
    return np.asarray(np.hypot(y[:, None], x[None, :]) / cycles)


def _filter_frequencies(plane: Plane, response: NDArray[np.float64]) -> Plane:
    return np.fft.irfft2(np.fft.rfft2(plane) * response, plane.shape)


def _masked_contrast(plane: Plane, sensitivity: NDArray[np.float64]) -> Plane:
    seen = _filter_frequencies(stretch(plane), sensitivity)
    fine, coarse = (filter_same(seen, _analytic_gaussian(sigma)) for sigma in _CONTRAST_SIGMAS)
    contrast = np.abs(fine / coarse - 1)
    return np.asarray(contrast**3 / (contrast**2 + _MASKING_FLOOR))


def _analytic_gaussian(sigma: float) -> NDArray[np.float64]:
    """Samples of the density itself: their sum is not quite 1."""
    positions = np.arange(_CONTRAST_SIZE) - _CONTRAST_SIZE // 2
    return np.exp(-(positions**2) / (2 * sigma**2)) / (math.sqrt(2 * math.pi) * sigma)


def _block_sums(plane: Plane) -> Plane:
    height, width = plane.shape
    whole = np.pad(plane, ((0, -height % _BLOCK), (0, -width % _BLOCK)))
    return np.asarray(whole.reshape(whole.shape[0] // _BLOCK, _BLOCK, -1, _BLOCK).sum(axis=(1, 3)))
