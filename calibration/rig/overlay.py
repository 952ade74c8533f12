"""A picture to judge an alignment by eye."""

from __future__ import annotations

import cv2
import numpy as np

from refusion_edge.arrays import Array, Float32Array, Uint8Array
from refusion_edge.calibration.rig.structure import shown_part, shrunk
from refusion_edge.images.color import split, to_display_range
from refusion_edge.images.montage import MontageRow, montage

_PANEL_PX = 560
_TILES = 8
# Gradients at this percentile are drawn in full.
_FULL_EDGE = 97.0
_BORDER_PX = 5


def overlay(base: Array, moving: Array, aligned: Array, *, sensor_base: bool, sensor_moving: bool, caption: str) -> Uint8Array:
    """Draw the edges of both views over one another, before and after, and the views in tiles.

    Args:
        base: Base view, (H, W) or (H, W, 3); uint8, uint16 or float32.
        moving: Moving view as it comes, of any size.
        aligned: Moving view warped onto the base, of the size of ``base``.
        sensor_base: Whether 16-bit or float grey of ``base`` is raw sensor data.
        sensor_moving: Whether that of the moving view is.
        caption: What to write over the result, such as its error.

    Returns:
        (H', W', 3) RGB uint8: base edges green, moving edges magenta, white where they coincide.
    """
    grey = _grey(base, sensor=sensor_base)
    size = (grey.shape[1], grey.shape[0])
    before = cv2.resize(_grey(moving, sensor=sensor_moving), size).astype(np.uint8)
    after = _grey(aligned, sensor=sensor_moving)
    rows = np.arange(size[1])[:, None] * _TILES // max(size)
    columns = np.arange(size[0])[None, :] * _TILES // max(size)
    tiles = np.where((rows + columns) % 2 == 0, grey, after)
    blend = cv2.addWeighted(grey, 0.5, after, 0.5, 0)
    return montage(
        [
            MontageRow(
                (_edges(grey, before), _edges(grey, after)), ("edges before: base green, other magenta", f"after: {caption}")
            ),
            MontageRow((tiles, blend), ("tiles of both views after", "mean of both views after")),
        ],
        _PANEL_PX,
    )


def _edges(base: Uint8Array, other: Uint8Array) -> Uint8Array:
    green, magenta = _strength(base), _strength(other)
    return np.dstack((magenta, green, magenta))


def _strength(grey: Uint8Array) -> Uint8Array:
    # The border of what a warp covers is no edge of the scene.
    shown = shrunk(shown_part(grey), _BORDER_PX)
    smooth: Float32Array = cv2.GaussianBlur(np.log(grey.astype(np.float32) + 8), (0, 0), 1.2).astype(np.float32)
    strength = np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)) * shown
    full = max(float(np.percentile(strength[shown], _FULL_EDGE)) if shown.any() else 0.0, 1e-6)
    return (strength / full * 255).clip(0, 255).astype(np.uint8)


def _grey(picture: Array, *, sensor: bool) -> Uint8Array:
    luma = split(to_display_range(picture, sensor=sensor))[0]
    return np.rint(luma * 255).clip(0, 255).astype(np.uint8)
