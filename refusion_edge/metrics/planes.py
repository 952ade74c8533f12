"""Planes of gray levels, on which metrics are defined, and the filters over them.

A pixel without a value is NaN. It is like a pixel outside the image: windows that touch it are left out, and so is it from
every histogram, mean and sum.
"""

from __future__ import annotations

import math
from typing import TypeAlias, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from refusion_edge.arrays import Array, Float32Array
from refusion_edge.images.ranges import Mask, to_display
from refusion_edge.tasks import DISPLAY, SENSOR

Plane: TypeAlias = NDArray[np.float64]
"""Gray levels, (H, W) float64, whole numbers in [0, 255]; NaN where there is no value."""

WHITE = 255.0

_Float = TypeVar("_Float", bound=np.floating)


def to_gray_plane(image: Array, *, sensor: bool = False) -> Plane:
    """Convert an image to a plane of rounded luma.

    Args:
        image: (H, W) or (H, W, 3) RGB; uint8, uint16 or float32 in [0, 1].
        sensor: Whether 16-bit or float gray is raw sensor data, whose own range is used.

    Returns:
        (H, W), whole numbers in [0, 255]; NaN where the image has no value, see ``refusion_edge.images.ranges.to_display``.

    Raises:
        InputError: The image has no value anywhere, or values out of range.

    Source:
        Evaluator of the CDDFuse repository: color is weighted by 0.299, 0.587, 0.114 in float32, a half is rounded
        to the even neighbor.
    """
    shown, invalid = _shown(image, sensor)
    if shown.ndim == 2:
        return _without(np.round(shown).astype(np.float64), invalid)
    # Blue first, as the Evaluator reads files: the order of the float32 sum decides how values near a half round.
    luma = cv2.cvtColor(np.ascontiguousarray(shown[..., ::-1]), cv2.COLOR_BGR2GRAY)
    return _without(np.round(luma).astype(np.float64), invalid)


def to_color_planes(image: Array, *, sensor: bool = False) -> Plane:
    """Convert an image to its color planes.

    Args:
        image: (H, W) or (H, W, 3) RGB; uint8, uint16 or float32 in [0, 1].
        sensor: As in ``to_gray_plane``.

    Returns:
        (3, H, W) in the order R, G, B; (1, H, W) if the three would be equal. Values as of ``to_gray_plane``.

    Raises:
        InputError: As for ``to_gray_plane``.
    """
    shown, invalid = _shown(image, sensor)
    rounded = np.round(shown).astype(np.float64)
    if rounded.ndim == 2:
        return _without(rounded[None], invalid)
    planes = np.ascontiguousarray(np.moveaxis(rounded, -1, 0))
    gray = np.array_equal(planes[0], planes[1]) and np.array_equal(planes[0], planes[2])
    return _without(planes[:1] if gray else planes, invalid)


def _shown(image: Array, sensor: bool) -> tuple[Float32Array, Mask | None]:
    displayed = to_display(image, SENSOR if sensor else DISPLAY)
    return displayed.pixels.astype(np.float32), displayed.invalid


def _without(planes: Plane, invalid: Mask | None) -> Plane:
    if invalid is not None:
        planes[..., invalid] = np.nan
    return planes


def defined(values: NDArray[_Float]) -> NDArray[_Float]:
    """The values that are not NaN: the same array if all are, else flat."""
    missing = np.isnan(values)
    return values[~missing] if missing.any() else values


def mean(values: NDArray[np.floating]) -> float:
    """Mean of the values that are not NaN; NaN if there is none."""
    values = defined(values)
    return float(np.mean(values)) if values.size else math.nan


def total(values: NDArray[np.floating]) -> float:
    """Sum of the values that are not NaN."""
    return float(np.sum(defined(values)))


def stretch(plane: Plane) -> Plane:
    """Stretch a plane so that its minimum becomes 0 and its maximum 255, a half rounded up; constant gives 0."""
    inside = defined(plane)
    low, high = inside.min(), inside.max()
    if high == low:
        return np.asarray(plane - low)
    # In this order: a product by 255 / (high - low) would round other values up.
    return np.asarray(np.floor((plane - low) / (high - low) * WHITE + 0.5))


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
    missing = np.isnan(plane)
    if not missing.any():
        return _box_sums(plane, width, height)
    # OpenCV's sums are running ones, in which a NaN would stay.
    sums = _box_sums(np.where(missing, 0, plane), width, height)
    sums[_box_sums(missing.astype(np.float64), width, height) > 0] = np.nan
    return sums


def _box_sums(plane: Plane, width: int, height: int) -> Plane:
    sums = cv2.boxFilter(plane, cv2.CV_64F, (width, height), normalize=False, borderType=cv2.BORDER_CONSTANT)
    return _inside(np.asarray(sums, np.float64), width, height)


def sobel(plane: Plane, border: int) -> tuple[Plane, Plane]:
    """Differentiate with the 3x3 Sobel operator, not normalized.

    Args:
        plane: (H, W).
        border: How OpenCV continues the plane: ``cv2.BORDER_CONSTANT`` (with 0), ``cv2.BORDER_REPLICATE``, ...

    Returns:
        Derivative along the rows (x) and along the columns (y), (H, W) each; both NaN where one of the nine pixels is.
    """
    x = np.asarray(cv2.Sobel(plane, cv2.CV_64F, 1, 0, ksize=3, borderType=border), np.float64)
    y = np.asarray(cv2.Sobel(plane, cv2.CV_64F, 0, 1, ksize=3, borderType=border), np.float64)
    missing = np.isnan(plane)
    if missing.any():
        # A derivative does not read the pixels in its middle.
        touched = cv2.dilate(missing.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        x[touched] = y[touched] = np.nan
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
