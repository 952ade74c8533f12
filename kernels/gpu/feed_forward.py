"""Gated feed-forward with its layer norm and residual.

``y = x + P (gelu(sum_t G_t n_t) * sum_t U_t n_t)`` with n the layer norm of x and the gelu of ``gating``.

Layout: x and y (S, H, W, C); gate and update taps (S, 9, C, 2 C) and projection (S, 2 C, C) in the dtype of the features,
inputs before outputs; gain and bias (S, C) float32. The product of gate and update is rounded to the dtype of the
features before it is projected.

A program may go over its strip in PARTS passes, each with a part of the 2 C hidden channels, whose taps are all that has to
lie in shared memory at a time. The sum is rounded to the dtype of the features after each.

Source:
    Restormer (Zamir et al., CVPR 2022), gated feed-forward, with expansion 2 as in ReFusion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.kernels.gpu.gating import add_gated_reference, add_gated_row
from refusion_edge.kernels.gpu.language import jit, tl
from refusion_edge.kernels.gpu.source import SIZE, Source, features, float32_pointers, layer_norm_parameters, pointers
from refusion_edge.kernels.gpu.strip import (
    convolve_reference,
    first_normalized_rows,
    first_sums,
    layer_norm_reference,
    matrix,
    moved_down,
    nine_taps,
    normalized_row,
    with_row,
)


def feed_forward_reference(
    x: Array, gain: Array, bias: Array, gate: Array, update: Array, project: Array, parts: int = 1
) -> Array:
    """Transform features.

    Args:
        x: Features, (H, W, C) floating.
        gain: Of the layer norm, (C,).
        bias: Of the layer norm, (C,).
        gate: Gate taps, (9, C, N).
        update: Update taps, the same.
        project: (N, C), inputs before outputs.
        parts: Passes over the hidden channels.

    Returns:
        (H, W, C), dtype of ``x``.
    """
    normalized, y = layer_norm_reference(x, gain, bias), x
    operands = (np.split(gate, parts, axis=2), np.split(update, parts, axis=2), np.split(project, parts))
    for gate_part, update_part, project_part in zip(*operands, strict=True):
        y = add_gated_reference(
            y, convolve_reference(normalized, gate_part), convolve_reference(normalized, update_part), project_part
        )
    return y


@jit
def _with_added_row(gate, update, x_ptr, gain, bias, gate_taps, update_taps, project, base_ptr, y_ptr, x0, y, height, width,
                    C: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    below = normalized_row(x_ptr, y + 1, x0, height, width, gain, bias, C, TILE)
    gate = with_row(moved_down(gate), below, gate_taps)
    update = with_row(moved_down(update), below, update_taps)
    add_gated_row(base_ptr, y_ptr, gate[0], update[0], project, x0, y, height, width, C, TILE)
    return gate, update


@jit
def feed_forward_kernel(x_ptr, gain_ptr, bias_ptr, gate_ptr, update_ptr, project_ptr, y_ptr, height, width, C: tl.constexpr,
                        PARTS: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    N: tl.constexpr = 2 * C
    M: tl.constexpr = N // PARTS
    # With 16 channels, a warp would have to hold all taps, for which it has no registers if the last row is outside the loop.
    LAST: tl.constexpr = 1 if C > 16 else 0
    stream = tl.program_id(2)
    x0 = tl.program_id(0) * TILE
    y0 = tl.program_id(1) * ROWS
    plane = tl.cast(height, tl.int64) * width * C
    x_ptr += stream * plane
    y_ptr += stream * plane
    gain = tl.load(gain_ptr + stream * C + tl.arange(0, C))
    bias = tl.load(bias_ptr + stream * C + tl.arange(0, C))
    for part in tl.static_range(PARTS):
        gate_taps = nine_taps(gate_ptr + stream * 9 * C * N + part * M, C, M, N)
        update_taps = nine_taps(update_ptr + stream * 9 * C * N + part * M, C, M, N)
        project = matrix(project_ptr + stream * N * C + part * M * C, M, C, C)
        # What the passes before have added lies in y.
        base_ptr = x_ptr if part == 0 else y_ptr
        above, center = first_normalized_rows(x_ptr, y0, x0, height, width, gain, bias, C, TILE)
        gate = first_sums(above, center, gate_taps, M, TILE)
        update = first_sums(above, center, update_taps, M, TILE)
        for r in range(ROWS - LAST):
            gate, update = _with_added_row(
                gate, update, x_ptr, gain, bias, gate_taps, update_taps, project, base_ptr, y_ptr, x0, y0 + r, height, width, C,
                TILE,
            )  # fmt: skip
        if LAST:
            _with_added_row(
                gate, update, x_ptr, gain, bias, gate_taps, update_taps, project, base_ptr, y_ptr, x0, y0 + (ROWS - 1), height,
                width, C, TILE,
            )  # fmt: skip
        if part + 1 < PARTS:
            # What one thread has stored, another may load in the next pass.
            tl.debug_barrier()


def _launch_reference(arguments: Mapping[str, Any], streams: int) -> None:
    channels = arguments["C"]
    x, y = (features(arguments, name, channels) for name in ("x_ptr", "y_ptr"))
    gate, update = (arguments[name].reshape(streams, 9, channels, 2 * channels) for name in ("gate_ptr", "update_ptr"))
    project = arguments["project_ptr"].reshape(streams, 2 * channels, channels)
    for stream in range(streams):
        gain, bias = layer_norm_parameters(arguments, stream)
        taps = gate[stream], update[stream]
        y[stream] = feed_forward_reference(x[stream], gain, bias, *taps, project[stream], arguments["PARTS"])


SOURCE = Source(
    "feed_forward",
    feed_forward_kernel,
    (
        *pointers("x"),
        *float32_pointers("gain", "bias"),
        *pointers("gate", "update", "project"),
        *pointers("y", written=True),
        *SIZE,
    ),
    _launch_reference,
)
