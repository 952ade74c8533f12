"""Channel attention with its residual, as one dense 3x3 convolution with the weights of this image.

``y = x + sum_t W_t n_t`` with the taps of ``mixing_weights`` and n the layer norm of x, or x itself in the fusion module.

Layout: x (S, H, W, C); y the same, or in the fusion module (H, W, S C), the two sources side by side.

Source:
    Restormer (Zamir et al., CVPR 2022), transposed attention; ReFusion's fusion module (IJCV 2024).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refusion_edge.arrays import Array
from refusion_edge.kernels.gpu.language import jit, tl
from refusion_edge.kernels.gpu.source import SIZE, Source, features, float32_pointers, layer_norm_parameters, pointers
from refusion_edge.kernels.gpu.strip import (
    convolve_reference,
    first_normalized_rows,
    first_rows,
    first_sums,
    layer_norm_reference,
    moved_down,
    nine_taps,
    normalized_row,
    plain_row,
    with_row,
)


def attention_apply_reference(x: Array, taps: Array, norm: tuple[Array, Array] | None) -> Array:
    """Add attention to features.

    Args:
        x: Features, (H, W, C) floating.
        taps: Mixing taps of this image, (9, C, C).
        norm: Gain and bias of the layer norm, each (C,), or None where there is none.

    Returns:
        (H, W, C), dtype of ``x``.
    """
    change = convolve_reference(layer_norm_reference(x, *norm) if norm else x, taps)
    return (x + change).astype(x.dtype)


@jit
def attention_apply_kernel(x_ptr, gain_ptr, bias_ptr, taps_ptr, y_ptr, height, width, C: tl.constexpr, JOINED: tl.constexpr,
                           TILE: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    stream = tl.program_id(2)
    x0 = tl.program_id(0) * TILE
    y0 = tl.program_id(1) * ROWS
    plane = tl.cast(height, tl.int64) * width * C
    x_ptr += stream * plane
    STRIDE: tl.constexpr = 2 * C if JOINED else C
    if JOINED:
        y_ptr += stream * C
    else:
        y_ptr += stream * plane
    taps = nine_taps(taps_ptr + stream * 9 * C * C, C, C, C)
    x = x0 + tl.arange(0, TILE)
    c = tl.arange(0, C)
    gain = tl.load(gain_ptr + stream * C + c)
    bias = tl.load(bias_ptr + stream * C + c)
    if JOINED:
        above, center = first_rows(x_ptr, y0, x0, height, width, C, C, TILE)
    else:
        above, center = first_normalized_rows(x_ptr, y0, x0, height, width, gain, bias, C, TILE)
    sums = first_sums(above, center, taps, C, TILE)
    for r in range(ROWS):
        y = y0 + r
        if JOINED:
            below = plain_row(x_ptr, y + 1, x0, height, width, C, C, TILE)
        else:
            below = normalized_row(x_ptr, y + 1, x0, height, width, gain, bias, C, TILE)
        sums = with_row(moved_down(sums), below, taps)
        inside = ((x < width) & (y + tl.zeros([TILE], tl.int32) < height))[:, None]
        row = tl.cast(y, tl.int64) * width
        old = tl.load(x_ptr + row * C + x[:, None] * C + c[None, :], mask=inside, other=0.0).to(tl.float32)
        new = (old + sums[0]).to(y_ptr.dtype.element_ty)
        tl.store(y_ptr + row * STRIDE + x[:, None] * STRIDE + c[None, :], new, mask=inside)


def _launch_reference(arguments: Mapping[str, Any], streams: int) -> None:
    channels, joined = arguments["C"], arguments["JOINED"]
    x = features(arguments, "x_ptr", channels)
    taps = arguments["taps_ptr"].reshape(streams, 9, channels, channels)
    y = features(arguments, "y_ptr", 2, channels) if joined else features(arguments, "y_ptr", channels)
    for stream in range(streams):
        norm = None if joined else layer_norm_parameters(arguments, stream)
        applied = attention_apply_reference(x[stream], taps[stream], norm)
        if joined:
            y[0, :, :, stream] = applied
        else:
            y[stream] = applied


SOURCE = Source(
    "attention_apply",
    attention_apply_kernel,
    (*pointers("x"), *float32_pointers("gain", "bias"), *pointers("taps"), *pointers("y", written=True), *SIZE),
    _launch_reference,
)
