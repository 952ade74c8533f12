"""The statistics that the network ``fast`` adapts to: count, mean and squared deviations of four planes, strip by strip.

For each of a, b, max(a, b) and |a - b|, over the pixels of the strip in even rows and even columns of the image:

    m = sum_p v[p] / n,    q = sum_p (v[p] - m)^2

``fast_convolutions`` combines the strips. Deviations are taken from the mean of the strip, because the difference of two large
sums would lose what a flat image has; that is accurate to about 1e-7.

Layout: planes (2, H, W) float32; partial (9, strips) float32: n, then the four m, then the four q, in the order above.

Source:
    ``refusion_edge.network.fast``. Combining means and squared deviations: Chan, Golub, LeVeque, 1979.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.kernels.gpu.language import jit, tl
from refusion_edge.kernels.gpu.source import SIZE, Source, features, float32_pointers
from refusion_edge.network.fast import STRIDE

PARTIAL_SIZE = 9
"""Numbers that one strip contributes."""


def fast_statistics_reference(planes: Array) -> Array:
    """Count, means and squared deviations of a whole image.

    Args:
        planes: (2, H, W) floating, source a before source b.

    Returns:
        (9,), dtype of ``planes``.
    """
    a, b = planes[:, ::STRIDE, ::STRIDE].astype(np.float64)
    four = [plane.ravel() for plane in (a, b, np.maximum(a, b), np.abs(a - b))]
    means = [plane.mean() for plane in four]
    squares = [((plane - mean) ** 2).sum() for plane, mean in zip(four, means, strict=True)]
    return np.array([a.size, *means, *squares], planes.dtype)


def figures_reference(partial: Array) -> Array:
    """Combine strips to the eight statistics of ``refusion_edge.network.fast``.

    Args:
        partial: (9, strips) floating.

    Returns:
        (8,) float64.
    """
    count, means, squares = np.split(partial.astype(np.float64), (1, 5))
    mean = (count * means).sum(axis=1) / count.sum()
    variance = (squares + count * (means - mean[:, None]) ** 2).sum(axis=1) / count.sum()
    figures: Array = np.stack([mean, np.sqrt(variance)], axis=1).ravel()
    return figures


@jit
def _sum(values):
    return tl.sum(tl.sum(values, axis=1), axis=0)


@jit
def _put_moments(partial_ptr, values, inside, count, strips, which: tl.constexpr):
    mean = _sum(values) / count
    centered = values - mean
    # Selected after the product, and not before: the compiler would fuse a product into the first step of the sum over lanes,
    # where each of two lanes would round the other's product but not its own, and the two would go on with different bits.
    squares = tl.where(inside, centered * centered, 0.0)
    tl.store(partial_ptr + (1 + which) * strips, mean)
    tl.store(partial_ptr + (5 + which) * strips, _sum(squares))


@jit
def fast_statistics_kernel(planes_ptr, partial_ptr, height, width, TILE: tl.constexpr, ROWS: tl.constexpr):
    # Strips begin at even rows and columns.
    x = tl.program_id(0) * TILE + 2 * tl.arange(0, TILE // 2)
    y = tl.program_id(1) * ROWS + 2 * tl.arange(0, ROWS // 2)
    inside = (y < height)[:, None] & (x < width)[None, :]
    offset = tl.cast(y, tl.int64)[:, None] * width + x[None, :]
    a = tl.load(planes_ptr + offset, mask=inside, other=0.0)
    b = tl.load(planes_ptr + tl.cast(height, tl.int64) * width + offset, mask=inside, other=0.0)
    count = _sum(inside.to(tl.float32))
    strips = tl.num_programs(0) * tl.num_programs(1)
    partial_ptr += tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    tl.store(partial_ptr, count)
    _put_moments(partial_ptr, a, inside, count, strips, 0)
    _put_moments(partial_ptr, b, inside, count, strips, 1)
    _put_moments(partial_ptr, tl.where(a >= b, a, b), inside, count, strips, 2)
    _put_moments(partial_ptr, tl.abs(a - b), inside, count, strips, 3)


def _launch_reference(arguments: Mapping[str, Any], _streams: int) -> None:
    partial = arguments["partial_ptr"].reshape(PARTIAL_SIZE, -1)
    partial[:] = 0
    partial[:, 0] = fast_statistics_reference(features(arguments, "planes_ptr"))


SOURCE = Source(
    "fast_statistics",
    fast_statistics_kernel,
    (*float32_pointers("planes"), *float32_pointers("partial", written=True), *SIZE),
    _launch_reference,
)
