"""The first convolution: a luma plane to 16 channels, one for each source.

``y[p, c] = sum_t x[p + t] w[t, c]``, zero-padded.

Layout: planes (2, H, W) float32, source a before source b; weights (2, 9, C) float32; features (2, H, W, C).

Source:
    ReFusion's network (IJCV 2024): project_in_1, project_in_2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refusion_edge.arrays import Array
from refusion_edge.kernels.gpu.language import jit, tl
from refusion_edge.kernels.gpu.source import SIZE, Source, features, float32_pointers, pointers
from refusion_edge.kernels.gpu.strip import (
    convolve_reference,
    first_rows,
    moved_down,
    nine_vectors,
    no_sums,
    plain_row,
    with_weighted_row,
)


def stem_reference(plane: Array, weights: Array) -> Array:
    """Make features of one luma plane.

    Args:
        plane: (H, W) floating.
        weights: (9, C), taps in the order of rows.

    Returns:
        (H, W, C) in the wide dtype of ``plane``.
    """
    return convolve_reference(plane[..., None], weights[:, None, :])


@jit
def stem_kernel(planes_ptr, weights_ptr, features_ptr, height, width, C: tl.constexpr, TILE: tl.constexpr,
                ROWS: tl.constexpr):  # fmt: skip
    stream = tl.program_id(2)
    x0 = tl.program_id(0) * TILE
    y0 = tl.program_id(1) * ROWS
    size = tl.cast(height, tl.int64) * width
    planes_ptr += stream * size
    features_ptr += stream * size * C
    c = tl.arange(0, C)
    x = x0 + tl.arange(0, TILE)
    weights = nine_vectors(weights_ptr + stream * 9 * C, C)
    above, center = first_rows(planes_ptr, y0, x0, height, width, 1, 1, TILE)
    sums = with_weighted_row(moved_down(with_weighted_row(no_sums(C, TILE), above, weights)), center, weights)
    for r in range(ROWS):
        y = y0 + r
        below = plain_row(planes_ptr, y + 1, x0, height, width, 1, 1, TILE)
        sums = with_weighted_row(moved_down(sums), below, weights)
        inside = ((x < width) & (y + tl.zeros([TILE], tl.int32) < height))[:, None]
        offset = tl.cast(y, tl.int64) * width * C + x[:, None] * C + c[None, :]
        tl.store(features_ptr + offset, sums[0].to(features_ptr.dtype.element_ty), mask=inside)


def _launch_reference(arguments: Mapping[str, Any], streams: int) -> None:
    channels = arguments["C"]
    planes, y = features(arguments, "planes_ptr"), features(arguments, "features_ptr", channels)
    weights = arguments["weights_ptr"].reshape(streams, 9, channels)
    for stream in range(streams):
        y[stream] = stem_reference(planes[stream], weights[stream])


SOURCE = Source(
    "stem",
    stem_kernel,
    (*float32_pointers("planes", "weights"), *pointers("features", written=True), *SIZE),
    _launch_reference,
)
