"""Sensitivity to misaligned cameras: metrics as a function of misregistration in pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import cv2
import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.errors import UsageError
from refusion_edge.images.ranges import Mask
from refusion_edge.metrics.registry import Metric, score

Displacement = Literal["shift", "skew"]
"""``shift``: the whole image moves to the right. ``skew``: its last row moves to the right and its first to the left."""


def displace(image: Array, offset_px: float, kind: Displacement = "shift") -> Array:
    """Misregister an image.

    Args:
        image: (H, W) or (H, W, 3); uint8, uint16 or float32.
        offset_px: Displacement in pixels; may be fractional (linear interpolation).
        kind: See ``Displacement``; with ``skew`` the rows between the first and the last move in proportion.

    Returns:
        Same shape and dtype, new memory; the border is replicated into the exposed area.
    """
    height, width = image.shape[:2]
    # Row y moves by slope * y + start.
    slope, start = (2 * offset_px / max(height - 1, 1), -offset_px) if kind == "skew" else (0.0, offset_px)
    matrix = np.array([[1, slope, start], [0, 1, 0]], np.float64)
    moved: Array = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return moved


def sweep(
    a: Array,
    b: Array,
    fused: Array,
    metrics: Sequence[Metric],
    offsets_px: Sequence[float],
    kind: Displacement = "shift",
    *,
    sensor_a: bool = False,
    invalid: Mask | None = None,
) -> list[dict[Metric, float]]:
    """Score a finished result against a displaced source a: how sensitive the metric is to misregistration.

    Args:
        a: Source a, (H, W) or (H, W, 3) RGB; uint8, uint16 or float32.
        b: Source b, same height and width.
        fused: Fused image, same height and width.
        metrics: What to compute.
        offsets_px: Displacements of source a in pixels.
        kind: ``shift`` or ``skew``.
        sensor_a: As in ``refusion_edge.metrics.score``.
        invalid: As in ``refusion_edge.metrics.score``.

    Returns:
        Values of each metric, one per offset. All are computed over the same columns, those that remain at every offset, and
        without the pixels that have no value at one of them.

    Raises:
        UsageError: An offset is not finite or leaves too little of the image.
        ShapeError: The three differ in size.
    """
    inner = _inner_columns(a.shape[1], offsets_px)
    left_out = _inner_mask(invalid, offsets_px, kind, inner)
    return [
        score(displace(a, offset, kind)[:, inner], b[:, inner], fused[:, inner], metrics, sensor_a=sensor_a, invalid=left_out)
        for offset in offsets_px
    ]


def sweep_fusion(
    a: Array,
    b: Array,
    fuse: Callable[[Array, Array], Array],
    metrics: Sequence[Metric],
    offsets_px: Sequence[float],
    kind: Displacement = "shift",
    *,
    sensor_a: bool = False,
    invalid: Mask | None = None,
) -> list[dict[Metric, float]]:
    """Fuse with a displaced source a and score against the aligned sources: how much a method suffers from misregistration.

    Args:
        a: Source a, (H, W) or (H, W, 3) RGB; uint8, uint16 or float32.
        b: Source b, same height and width.
        fuse: Fuses source a and source b, for example ``Fuser.fuse``.
        metrics: What to compute.
        offsets_px: Displacements of source a in pixels.
        kind: ``shift`` or ``skew``.
        sensor_a: As in ``refusion_edge.metrics.score``.
        invalid: As in ``refusion_edge.metrics.score``.

    Returns:
        Values of each metric, one per offset, over the same pixels as in ``sweep``.

    Raises:
        UsageError: An offset is not finite or leaves too little of the image.
        ShapeError: The images differ in size.
    """
    inner = _inner_columns(a.shape[1], offsets_px)
    left_out = _inner_mask(invalid, offsets_px, kind, inner)
    results = (fuse(displace(a, offset, kind), b)[:, inner] for offset in offsets_px)
    return [score(a[:, inner], b[:, inner], fused, metrics, sensor_a=sensor_a, invalid=left_out) for fused in results]


def _inner_mask(invalid: Mask | None, offsets_px: Sequence[float], kind: Displacement, inner: slice) -> Mask | None:
    """Pixels without a value at any of the offsets, in the inner columns."""
    if invalid is None:
        return None
    shares = [invalid.astype(np.float32), *(displace(invalid.astype(np.float32), offset, kind) for offset in offsets_px)]
    return np.asarray(np.any([share[:, inner] > 0 for share in shares], axis=0))


def _inner_columns(width: int, offsets_px: Sequence[float]) -> slice:
    if not all(math.isfinite(offset) for offset in offsets_px):
        raise UsageError(f"offsets have to be finite numbers of pixels, not {', '.join(map(str, offsets_px))}", "correct them")
    margin = math.ceil(max((abs(offset) for offset in offsets_px), default=0))
    if 2 * margin >= width / 2:
        raise UsageError(f"offsets of {margin} pixels reach a quarter of the width of {width} pixels", "use smaller ones")
    return slice(margin, width - margin)
