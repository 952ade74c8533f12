"""Gated feed-forward with its layer norm and residual, in one pass.

``y = x + P (gelu(sum_t G_t n_t) * sum_t U_t n_t)`` with n the layer norm of x and the exact gelu.

Layout: x and y (S, H, W, C); gate and update taps (S, 9, C, 2 C) and projection (S, 2 C, C) in the dtype of the features,
inputs before outputs; gain and bias (S, C) float32. The product of gate and update is rounded to the dtype of the
features before it is projected.

Source:
    Restormer (Zamir et al., CVPR 2022), gated feed-forward, with expansion 2 as in ReFusion.
"""

from __future__ import annotations

import math

import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.kernels.language import jit, tl
from refusion_edge.kernels.strip import convolve, convolved, gelu, matrix, nine_taps, normalise, normalised_row, wide_dtype

_exact_erf = np.vectorize(math.erf, otypes=[np.float64])
# Linear between these points the error is 4e-9; beyond 6 the float32 nearest to erf is 1.
_ERF_AT = np.linspace(-6.0, 6.0, 1 << 16)
_ERF = _exact_erf(_ERF_AT)


def gelu_reference(x: Array) -> Array:
    """``x (1 + erf(x / sqrt 2)) / 2`` in the dtype of ``x``."""
    scaled = x / math.sqrt(2.0)
    # Single precision is for whole pictures, where a call per number would take minutes.
    erf = _exact_erf(scaled) if x.dtype == np.float64 else np.interp(scaled, _ERF_AT, _ERF)
    activated: Array = (0.5 * x * (1.0 + erf)).astype(x.dtype)
    return activated


def feed_forward(x: Array, gain: Array, bias: Array, gate: Array, update: Array, project: Array) -> Array:
    """Transform features.

    Args:
        x: Features, (H, W, C) floating.
        gain: Of the layer norm, (C,).
        bias: Of the layer norm, (C,).
        gate: Gate taps, (9, C, N).
        update: Update taps, the same.
        project: (N, C), inputs before outputs.

    Returns:
        (H, W, C), dtype of ``x``.
    """
    normalised = normalise(x, gain, bias)
    hidden = (gelu_reference(convolve(normalised, gate)) * convolve(normalised, update)).astype(x.dtype)
    wide = wide_dtype(x)
    y: Array = (x + hidden.astype(wide) @ project.astype(wide)).astype(x.dtype)
    return y


@jit
def feed_forward_kernel(x_ptr, gain_ptr, bias_ptr, gate_ptr, update_ptr, project_ptr, y_ptr, height, width, C: tl.constexpr,
                        TILE: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    N: tl.constexpr = 2 * C
    stream = tl.program_id(2)
    x0 = tl.program_id(0) * TILE
    y0 = tl.program_id(1) * ROWS
    plane = tl.cast(height, tl.int64) * width * C
    x_ptr += stream * plane
    y_ptr += stream * plane
    x = x0 + tl.arange(0, TILE)
    c = tl.arange(0, C)
    gain = tl.load(gain_ptr + stream * C + c)
    bias = tl.load(bias_ptr + stream * C + c)
    gate_taps = nine_taps(gate_ptr + stream * 9 * C * N, C, N)
    update_taps = nine_taps(update_ptr + stream * 9 * C * N, C, N)
    project = matrix(project_ptr + stream * N * C, N, C)
    above = normalised_row(x_ptr, y0 - 1, x0, height, width, gain, bias, C, TILE)
    centre = normalised_row(x_ptr, y0, x0, height, width, gain, bias, C, TILE)
    for r in range(ROWS):
        y = y0 + r
        below = normalised_row(x_ptr, y + 1, x0, height, width, gain, bias, C, TILE)
        zero = tl.zeros([TILE, N], tl.float32)
        gate = convolved(zero, above, centre, below, gate_taps)
        update = convolved(zero, above, centre, below, update_taps)
        hidden = (gelu(gate) * update).to(x_ptr.dtype.element_ty)
        change = tl.dot(hidden, project, input_precision="ieee")
        inside = ((x < width) & (y + tl.zeros([TILE], tl.int32) < height))[:, None]
        offset = tl.cast(y, tl.int64) * width * C + x[:, None] * C + c[None, :]
        old = tl.load(x_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        tl.store(y_ptr + offset, (old + change).to(y_ptr.dtype.element_ty), mask=inside)
        above, centre = centre, below
