"""Conversion of images to planes of gray levels, on which metrics are defined."""

from __future__ import annotations

from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from refusion_edge.arrays import Array
from refusion_edge.images.color import to_display_range

Plane: TypeAlias = NDArray[np.float64]
"""Gray levels, (H, W) float64, whole numbers in [0, 255]."""

WHITE = 255.0


def to_gray_plane(image: Array, *, sensor: bool = False) -> Plane:
    """Convert an image to a plane of rounded luma.

    Args:
        image: (H, W) or (H, W, 3) RGB; uint8, uint16 or float32 in [0, 1].
        sensor: Whether 16-bit or float gray is raw sensor data, see ``refusion_edge.images.color.to_display_range``.

    Returns:
        (H, W), whole numbers in [0, 255].

    Raises:
        InputError: The image holds NaN or infinities.

    Source:
        Evaluator of the CDDFuse repository: color is weighted by 0.299, 0.587, 0.114 in float32, a half is rounded
        to the even neighbor.
    """
    shown = to_display_range(image, sensor=sensor)
    if shown.ndim == 2:
        return np.round(shown).astype(np.float64)
    # Blue first, as the Evaluator reads files: the order of the float32 sum decides how values near a half round.
    luma = cv2.cvtColor(np.ascontiguousarray(shown[..., ::-1]), cv2.COLOR_BGR2GRAY)
    return np.round(luma).astype(np.float64)


def to_color_planes(image: Array, *, sensor: bool = False) -> Plane:
    """Convert an image to its color planes.

    Args:
        image: (H, W) or (H, W, 3) RGB; uint8, uint16 or float32 in [0, 1].
        sensor: As in ``to_gray_plane``.

    Returns:
        (3, H, W) in the order R, G, B; (1, H, W) if the three would be equal. Whole numbers in [0, 255].

    Raises:
        InputError: The image holds NaN or infinities.
    """
    shown = np.round(to_display_range(image, sensor=sensor)).astype(np.float64)
    if shown.ndim == 2:
        return shown[None]
    planes = np.ascontiguousarray(np.moveaxis(shown, -1, 0))
    gray = np.array_equal(planes[0], planes[1]) and np.array_equal(planes[0], planes[2])
    return planes[:1] if gray else planes


def stretch(plane: Plane) -> Plane:
    """Stretch a plane so that its minimum becomes 0 and its maximum 255, a half rounded up; constant gives 0."""
    low, high = plane.min(), plane.max()
    if high == low:
        return np.zeros_like(plane)
    # In this order: a product by 255 / (high - low) would round other values up.
    return np.asarray(np.floor((plane - low) / (high - low) * WHITE + 0.5))
