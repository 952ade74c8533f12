"""The last two convolutions: features to the fused plane.

    z = leaky_relu(sum_t W_t x_t, slope 0.01)            32 to 16 channels
    f[p] = sigmoid(sum_t <w_t, z[p + t]>)                16 channels to one plane

The second also leaves the least and the largest value of each strip, which ``stretch`` needs.

Layout: x (H, W, 2 C), z (H, W, C); taps (9, 2 C, C) in the dtype of the features; last weights (9, C) float32; fused
(H, W) float32; extremes (strips, 2) float32.

Source:
    ReFusion's network (IJCV 2024): project_out_0, project_out_1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.kernels.gpu.language import jit, tl
from refusion_edge.kernels.gpu.source import SIZE, Source, features, float32_pointers, pointers
from refusion_edge.kernels.gpu.strip import (
    convolve_reference,
    first_rows,
    first_sums,
    moved_down,
    nine_taps,
    nine_vectors,
    no_sums,
    plain_row,
    with_row,
    with_weighted_row,
)

NEGATIVE_SLOPE = 0.01


def narrow_reference(x: Array, taps: Array) -> Array:
    """Halve the channels: convolution and leaky ReLU.

    Args:
        x: (H, W, 2 C) floating.
        taps: (9, 2 C, C).

    Returns:
        (H, W, C), dtype of ``x``.
    """
    total = convolve_reference(x, taps)
    return np.where(total >= 0, total, NEGATIVE_SLOPE * total).astype(x.dtype)


def to_plane_reference(z: Array, weights: Array) -> Array:
    """Make the fused plane.

    Args:
        z: (H, W, C) floating.
        weights: (9, C).

    Returns:
        (H, W) in the wide dtype of ``z``, (0, 1).
    """
    logits = convolve_reference(z, weights[:, :, None])[..., 0]
    # The form that cannot overflow.
    small = np.exp(-np.abs(logits))
    plane: Array = np.where(logits >= 0, 1 / (1 + small), small / (1 + small))
    return plane


@jit
def narrow_kernel(x_ptr, taps_ptr, z_ptr, height, width, C: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr):
    BOTH: tl.constexpr = 2 * C
    x0 = tl.program_id(0) * TILE
    y0 = tl.program_id(1) * ROWS
    x = x0 + tl.arange(0, TILE)
    taps = nine_taps(taps_ptr, BOTH, C, C)
    above, center = first_rows(x_ptr, y0, x0, height, width, BOTH, BOTH, TILE)
    sums = first_sums(above, center, taps, C, TILE)
    for r in range(ROWS):
        y = y0 + r
        below = plain_row(x_ptr, y + 1, x0, height, width, BOTH, BOTH, TILE)
        sums = with_row(moved_down(sums), below, taps)
        total = tl.where(sums[0] >= 0, sums[0], 0.01 * sums[0])
        inside = ((x < width) & (y + tl.zeros([TILE], tl.int32) < height))[:, None]
        offset = tl.cast(y, tl.int64) * width * C + x[:, None] * C + tl.arange(0, C)[None, :]
        tl.store(z_ptr + offset, total.to(z_ptr.dtype.element_ty), mask=inside)


@jit
def to_plane_kernel(z_ptr, weights_ptr, fused_ptr, extremes_ptr, height, width, C: tl.constexpr, TILE: tl.constexpr,
                    ROWS: tl.constexpr):  # fmt: skip
    x0 = tl.program_id(0) * TILE
    y0 = tl.program_id(1) * ROWS
    x = x0 + tl.arange(0, TILE)
    low = tl.full([TILE], float("inf"), tl.float32)
    high = tl.full([TILE], float("-inf"), tl.float32)
    weights = nine_vectors(weights_ptr, C)
    above, center = first_rows(z_ptr, y0, x0, height, width, C, C, TILE)
    sums = with_weighted_row(moved_down(with_weighted_row(no_sums(C, TILE), above, weights)), center, weights)
    for r in range(ROWS):
        y = y0 + r
        below = plain_row(z_ptr, y + 1, x0, height, width, C, C, TILE)
        sums = with_weighted_row(moved_down(sums), below, weights)
        fused = tl.sigmoid(tl.sum(sums[0], axis=1))
        inside = (x < width) & (y + tl.zeros([TILE], tl.int32) < height)
        tl.store(fused_ptr + tl.cast(y, tl.int64) * width + x, fused, mask=inside)
        low = tl.minimum(low, tl.where(inside, fused, float("inf")))
        high = tl.maximum(high, tl.where(inside, fused, float("-inf")))
    strip = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(extremes_ptr + 2 * strip, tl.min(low, axis=0))
    tl.store(extremes_ptr + 2 * strip + 1, tl.max(high, axis=0))


def _launch_narrow_reference(arguments: Mapping[str, Any], _streams: int) -> None:
    channels = arguments["C"]
    taps = arguments["taps_ptr"].reshape(9, 2 * channels, channels)
    features(arguments, "z_ptr", channels)[0] = narrow_reference(features(arguments, "x_ptr", 2 * channels)[0], taps)


def _launch_to_plane_reference(arguments: Mapping[str, Any], _streams: int) -> None:
    channels = arguments["C"]
    fused = features(arguments, "fused_ptr")[0]
    fused[:] = to_plane_reference(features(arguments, "z_ptr", channels)[0], arguments["weights_ptr"].reshape(9, channels))
    arguments["extremes_ptr"].reshape(-1, 2)[:] = fused.min(), fused.max()


NARROW = Source(
    "narrow",
    narrow_kernel,
    (*pointers("x", "taps"), *pointers("z", written=True), *SIZE),
    _launch_narrow_reference,
)
TO_PLANE = Source(
    "to_plane",
    to_plane_kernel,
    (*pointers("z"), *float32_pointers("weights"), *float32_pointers("fused", "extremes", written=True), *SIZE),
    _launch_to_plane_reference,
)
