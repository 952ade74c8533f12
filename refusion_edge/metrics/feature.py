"""Feature mutual information (FMI): mutual information of local feature distributions."""

from __future__ import annotations

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from refusion_edge.metrics.planes import Plane, fits

_WINDOW = 3
_COUNT = _WINDOW**2
# Windows worked on at once: their joint distributions, (1024, 9, 9) float64, stay in the cache.
_CHUNK = 1024


def feature_information(a: Plane, b: Plane, fused: Plane) -> float:
    """Feature mutual information of the gray levels: the mean over 3x3 windows of (n(A,F) + n(B,F)) / 2.

    In each window the nine features of X, stretched to [0, 1] and divided by their sum, are taken for a distribution
    p_X over the nine positions. n(X,F) = 2 (H(X) + H(F) - H(X,F)) / (H(X) + H(F)); the joint distribution mixes
    independence with the Frechet bound (upper for a correlation c >= 0 of p_X and p_F, lower else) so that its own
    correlation is c. Equal windows give 1.

    Args:
        a: Source a, (H, W).
        b: Source b, (H, W).
        fused: (H, W).

    Returns:
        About [0, 1], higher is better; undefined (NaN) below 3x3 pixels. Convention ``survey`` (FMI, FMI_pixel): no
        feature extraction.

    Source:
        Haghighat, Aghagolzadeh, Seyedarabi: A non-reference image fusion metric based on mutual information of image
        features, Comput. Electr. Eng. 37(5), 2011; Haghighat, Razian: Fast-FMI, AICT 2014 (windows, order by columns).
    """
    if not fits(fused, _WINDOW):
        return math.nan
    windows_a, windows_b, windows_fused = (_windows(plane) for plane in (a, b, fused))
    missing = np.isnan(windows_a + windows_b + windows_fused).any(axis=1)
    if missing.all():
        return math.nan
    if missing.any():
        windows_a, windows_b, windows_fused = (windows[~missing] for windows in (windows_a, windows_b, windows_fused))
    return (_shared(windows_a, windows_fused) + _shared(windows_b, windows_fused)) / 2


def feature_information_gradient(a: Plane, b: Plane, fused: Plane) -> float:
    """Feature mutual information of gradients: ``feature_information`` of the central differences along the rows.

    Args:
        a: Source a, (H, W).
        b: Source b, (H, W).
        fused: (H, W).

    Returns:
        About [0, 1], higher is better; undefined (NaN) below 3x3 pixels. Convention ``survey`` (FMI_gradient).

    Source:
        Haghighat et al., 2011; its code differentiates along the rows only.
    """
    if not fits(fused, _WINDOW):
        return math.nan
    # A central difference does not read the pixel itself.
    features = (np.where(np.isnan(plane), np.nan, np.gradient(plane, axis=1)) for plane in (a, b, fused))
    return feature_information(*features)


def feature_information_cosine(a: Plane, b: Plane, fused: Plane) -> float:
    """Feature mutual information of cosine coefficients: ``feature_information`` of the 2-D DCT of the whole image.

    Args:
        a: Source a, (H, W).
        b: Source b, (H, W).
        fused: (H, W).

    Returns:
        About [0, 1], higher is better; undefined (NaN) below 3x3 pixels, or if a pixel has no value. Convention ``survey``
        (FMI_dct).

    Source:
        Haghighat, Razian: Fast-FMI, AICT 2014.
    """
    rows, columns = (_cosines(size) for size in fused.shape)
    return feature_information(*(rows @ plane @ columns.T for plane in (a, b, fused)))


def _cosines(size: int) -> NDArray[np.float64]:
    """Orthonormal matrix of the cosine transform (DCT-II), one frequency per row."""
    frequency, position = np.arange(size)[:, None], np.arange(size)[None, :]
    matrix = np.cos(math.pi * frequency * (2 * position + 1) / (2 * size)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return np.asarray(matrix)


def _windows(features: Plane) -> Plane:
    """All 3x3 windows, (count, 9), each by columns: the order decides the distribution functions."""
    return sliding_window_view(features, (_WINDOW, _WINDOW)).transpose(0, 1, 3, 2).reshape(-1, _COUNT)


def _shared(x: Plane, fused: Plane) -> float:
    """Mean over all windows of the normalized mutual information of x and fused."""
    total = 0.0
    for start in range(0, len(x), _CHUNK):
        total += float(np.sum(_normalized(x[start : start + _CHUNK], fused[start : start + _CHUNK])))
    return total / len(x)


def _normalized(x: Plane, y: Plane) -> Plane:
    """Normalized mutual information of each pair of windows, (count,)."""
    p, q = _distribution(x), _distribution(y)
    marginal = _entropy(p) + _entropy(q)
    shared = marginal - _entropy(_joint(p, q).reshape(-1, _COUNT**2))
    normalized = np.divide(2 * shared, marginal, out=np.zeros_like(shared), where=marginal > 0)
    return np.where((x == y).all(axis=1), 1.0, normalized)


def _distribution(windows: Plane) -> Plane:
    low, high = windows.min(axis=1, keepdims=True), windows.max(axis=1, keepdims=True)
    stretched = np.divide(windows - low, high - low, out=np.ones_like(windows), where=high > low)
    return np.asarray(stretched / stretched.sum(axis=1, keepdims=True))


def _joint(p: Plane, q: Plane) -> Plane:
    """Joint distributions with marginals p and q and their correlation, (count, 9, 9)."""
    cumulated_p, cumulated_q = np.cumsum(p, axis=1)[:, :, None], np.cumsum(q, axis=1)[:, None, :]
    correlation = _correlation(p, q)
    bound = np.where(
        correlation[:, None, None] >= 0,
        np.minimum(cumulated_p, cumulated_q),
        np.maximum(cumulated_p + cumulated_q - 1, 0),
    )
    covariance = bound.sum(axis=(1, 2)) - cumulated_p.sum(axis=(1, 2)) * cumulated_q.sum(axis=(1, 2))
    scale = correlation * _deviation(p) * _deviation(q)
    mix = np.divide(scale, covariance, out=np.zeros_like(scale), where=(scale != 0) & (covariance != 0))[:, None, None]
    extreme = np.diff(np.diff(bound, axis=1, prepend=0), axis=2, prepend=0)
    return np.asarray(mix * extreme + (1 - mix) * p[:, :, None] * q[:, None, :])


def _correlation(p: Plane, q: Plane) -> Plane:
    """Pearson correlation of the values of two distributions; 0 where one is flat."""
    p, q = p - 1 / _COUNT, q - 1 / _COUNT
    scale = np.sqrt(np.sum(p * p, axis=1) * np.sum(q * q, axis=1))
    # A flat window leaves rounding of some 1e-17 per value; a real one differs by at least 1e-3 somewhere.
    return np.asarray(np.divide(np.sum(p * q, axis=1), scale, out=np.zeros_like(scale), where=scale > 1e-12))


def _deviation(p: Plane) -> Plane:
    """Standard deviation of the position under each distribution."""
    positions = np.arange(1, _COUNT + 1)
    return np.asarray(np.sqrt(np.maximum(p @ positions**2 - (p @ positions) ** 2, 0)))


def _entropy(p: Plane) -> Plane:
    """Entropy in bit along the last axis; mixing can leave small negative entries, whose magnitude counts."""
    magnitude = np.abs(p)
    return np.asarray(-np.sum(p * np.log2(magnitude, out=np.zeros_like(p), where=magnitude > 0), axis=1))
