"""The fused plane stretched to 8 bits: its least value becomes 0 and its largest 255, unless that takes a gain above 4.

``u = floor(255 (f - low) / width + 1/2)``, the range from the least to the largest value, widened to a quarter of [0, 1].

Layout: fused (H, W) float32; extremes (strips, 2) float32 of ``head``; result (H, W) uint8.

Source:
    ReFusion, inference script: per-image min-max stretch before saving. ``refusion_edge.images.color`` rounds in float64;
    the two may differ by one level where a value is within rounding of a half.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refusion_edge.arrays import Array, Uint8Array
from refusion_edge.cuda.program import Parameter
from refusion_edge.images.color import MAX_GAIN, widened
from refusion_edge.kernels.gpu.language import jit, tl
from refusion_edge.kernels.gpu.source import SIZE, Source, features, float32_pointers, pointers


def stretch_reference(fused: Array, extremes: Array) -> Uint8Array:
    """Stretch a plane to 8 bits.

    Args:
        fused: (H, W) floating.
        extremes: Least and largest value of each strip, (strips, 2).
    """
    low, width = widened(float(extremes[:, 0].min()), float(extremes[:, 1].max()), 1 / MAX_GAIN)
    levels: Uint8Array = np.floor((fused - low) / width * 255 + 0.5).clip(0, 255).astype(np.uint8)
    return levels


@jit
def stretch_kernel(fused_ptr, extremes_ptr, levels_ptr, height, width, strips, TILE: tl.constexpr, ROWS: tl.constexpr):
    CHUNK: tl.constexpr = 256
    x = tl.program_id(0) * TILE + tl.arange(0, TILE)
    low = tl.full([CHUNK], float("inf"), tl.float32)
    high = tl.full([CHUNK], float("-inf"), tl.float32)
    start = strips * 0
    while start < strips:
        strip = start + tl.arange(0, CHUNK)
        low = tl.minimum(low, tl.load(extremes_ptr + 2 * strip, mask=strip < strips, other=float("inf")))
        high = tl.maximum(high, tl.load(extremes_ptr + 2 * strip + 1, mask=strip < strips, other=float("-inf")))
        start += CHUNK
    # As ``refusion_edge.images.color.widened`` with a width of at least a quarter, the inverse of MAX_GAIN, but in float32:
    # what is not widened begins at exactly the least value.
    least = tl.min(low, axis=0)
    largest = tl.max(high, axis=0)
    width_shown = tl.maximum(largest - least, 0.25)
    lacking = width_shown - (largest - least)
    margin = tl.minimum(lacking * 0.5, tl.maximum(least, 0.0))
    black = least - tl.maximum(margin, lacking - tl.maximum(1.0 - largest, 0.0))
    for r in range(ROWS):
        y = tl.program_id(1) * ROWS + r
        inside = (x < width) & (y + tl.zeros([TILE], tl.int32) < height)
        offset = tl.cast(y, tl.int64) * width + x
        fused = tl.load(fused_ptr + offset, mask=inside, other=0.0)
        level = tl.floor((fused - black) / width_shown * 255.0 + 0.5)
        tl.store(levels_ptr + offset, tl.minimum(tl.maximum(level, 0.0), 255.0).to(tl.uint8), mask=inside)


def _launch_reference(arguments: Mapping[str, Any], _streams: int) -> None:
    extremes = arguments["extremes_ptr"].reshape(arguments["strips"], 2)
    features(arguments, "levels_ptr")[0] = stretch_reference(features(arguments, "fused_ptr")[0], extremes)


SOURCE = Source(
    "stretch",
    stretch_kernel,
    (
        *float32_pointers("fused", "extremes"),
        *pointers("levels", type="uint8*", written=True),
        *SIZE,
        Parameter("strips", "int32"),
    ),
    _launch_reference,
)
