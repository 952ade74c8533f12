"""Windows and filters in float64, separable wherever the window is.

OpenCV filters whole images; where a metric counts only windows inside the image, the border is cropped
afterwards.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from refusion_edge.metrics.planes import Plane


def gaussian(size: int, sigma: float) -> NDArray[np.float64]:
    """Sample a Gaussian at ``size`` whole positions around its center; the sum is 1."""
    positions = np.arange(size) - (size - 1) / 2
    weights = np.exp(-(positions**2) / (2 * sigma**2))
    return np.asarray(weights / weights.sum())


def fits(plane: Plane, size: int) -> bool:
    """Tell whether a square window of ``size`` pixels lies inside the plane at least once."""
    return bool(min(plane.shape) >= size)


def filter_same(plane: Plane, kernel: NDArray[np.float64]) -> Plane:
    """Filter rows and columns with one odd symmetric kernel; outside the plane is 0. Returns (H, W)."""
    return np.asarray(cv2.sepFilter2D(plane, cv2.CV_64F, kernel, kernel, borderType=cv2.BORDER_CONSTANT), np.float64)


def filter_inside(plane: Plane, kernel: NDArray[np.float64]) -> Plane:
    """Filter like ``filter_same``, windows inside the plane only. Returns (H - n + 1, W - n + 1) for n taps."""
    return _inside(filter_same(plane, kernel), len(kernel), len(kernel))


def sum_inside(plane: Plane, width: int, height: int) -> Plane:
    """Sum over windows inside the plane. Returns (H - height + 1, W - width + 1)."""
    sums = cv2.boxFilter(plane, cv2.CV_64F, (width, height), normalize=False, borderType=cv2.BORDER_CONSTANT)
    return _inside(np.asarray(sums, np.float64), width, height)


def sobel(plane: Plane, border: int) -> tuple[Plane, Plane]:
    """Differentiate with the 3x3 Sobel operator, not normalized.

    Args:
        plane: (H, W).
        border: How OpenCV continues the plane: ``cv2.BORDER_CONSTANT`` (with 0), ``cv2.BORDER_REPLICATE``, ...

    Returns:
        Derivative along the rows (x) and along the columns (y), (H, W) each.
    """
    x = np.asarray(cv2.Sobel(plane, cv2.CV_64F, 1, 0, ksize=3, borderType=border), np.float64)
    y = np.asarray(cv2.Sobel(plane, cv2.CV_64F, 0, 1, ksize=3, borderType=border), np.float64)
    return x, y


def halve(plane: Plane) -> Plane:
    """Average 2x2 blocks; an odd last row or column is repeated. Returns (ceil(H / 2), ceil(W / 2))."""
    height, width = plane.shape
    even = np.pad(plane, ((0, height % 2), (0, width % 2)), mode="edge")
    return np.asarray((even[::2, ::2] + even[1::2, ::2] + even[::2, 1::2] + even[1::2, 1::2]) / 4)


def _inside(filtered: Plane, width: int, height: int) -> Plane:
    """Crop the border where windows of odd width and height extend beyond the plane."""
    y, x = height // 2, width // 2
    return filtered[y : filtered.shape[0] - y, x : filtered.shape[1] - x]
