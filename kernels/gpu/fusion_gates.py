"""One gate of the fusion module, added to the features of both sources.

For source s, with x the features of both sources side by side, ``own`` those of s and ``other`` the rest:

    y = base + P_s (gelu(sum_t E_t own_t + sum_t O_t other_t) * sum_t U_t own_t)

The first gate has base = x, the second the result of the first, which it replaces pixel by pixel.

Layout: x, base and y (H, W, 32); own and other taps (9, 16, 64), update taps (9, 16, 64) and projection (64, 32) in the
dtype of the features, inputs before outputs, no layer norm. In PARTS passes as in ``feed_forward``.

Source:
    ReFusion's fusion module (IJCV 2024): project_E, project_E1, project_E2, project_out1, project_out2.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.kernels.gpu.gating import add_gated_reference, add_gated_row
from refusion_edge.kernels.gpu.language import jit, tl
from refusion_edge.kernels.gpu.source import SIZE, Source, features, pointers
from refusion_edge.kernels.gpu.strip import (
    convolve_reference,
    first_rows,
    first_sums,
    matrix,
    moved_down,
    nine_taps,
    no_sums,
    plain_row,
    with_row,
)


def fusion_gate_reference(
    x: Array, base: Array, own: Array, other: Array, update: Array, project: Array, source: int, parts: int = 1
) -> Array:
    """Add the gate of one source.

    Args:
        x: Features of both sources, (H, W, 2 C) floating.
        base: What the gate is added to, same shape.
        own: Gate taps on the features of the source, (9, C, N).
        other: Gate taps on the features of the other source, (9, C, N).
        update: Update taps on the features of the source, (9, C, N).
        project: (N, 2 C), inputs before outputs.
        source: 0 or 1.
        parts: Passes over the hidden channels.

    Returns:
        (H, W, 2 C), dtype of ``x``. New memory.
    """
    channels = x.shape[-1] // 2
    halves = x[..., :channels], x[..., channels:]
    of_source, of_other = halves[source], halves[1 - source]
    y = base
    operands = (*(np.split(taps, parts, axis=2) for taps in (own, other, update)), np.split(project, parts))
    for own_part, other_part, update_part, project_part in zip(*operands, strict=True):
        gate = convolve_reference(of_source, own_part) + convolve_reference(of_other, other_part)
        y = add_gated_reference(y, gate, convolve_reference(of_source, update_part), project_part)
    return y


@jit
def _with_added_row(gate, update, source_ptr, other_source_ptr, own_taps, other_taps, update_taps, project, sum_ptr, y_ptr, x0,
                    y, height, width, C: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    BOTH: tl.constexpr = 2 * C
    below = plain_row(source_ptr, y + 1, x0, height, width, C, BOTH, TILE)
    below_other = plain_row(other_source_ptr, y + 1, x0, height, width, C, BOTH, TILE)
    gate = with_row(with_row(moved_down(gate), below, own_taps), below_other, other_taps)
    update = with_row(moved_down(update), below, update_taps)
    add_gated_row(sum_ptr, y_ptr, gate[0], update[0], project, x0, y, height, width, BOTH, TILE)
    return gate, update


@jit
def fusion_gate_kernel(x_ptr, base_ptr, own_ptr, other_ptr, update_ptr, project_ptr, y_ptr, height, width, C: tl.constexpr,
                       SOURCE: tl.constexpr, PARTS: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    N: tl.constexpr = 4 * C
    M: tl.constexpr = N // PARTS
    BOTH: tl.constexpr = 2 * C
    x0 = tl.program_id(0) * TILE
    y0 = tl.program_id(1) * ROWS
    source_ptr = x_ptr + SOURCE * C
    other_source_ptr = x_ptr + (1 - SOURCE) * C
    for part in tl.static_range(PARTS):
        own_taps = nine_taps(own_ptr + part * M, C, M, N)
        other_taps = nine_taps(other_ptr + part * M, C, M, N)
        update_taps = nine_taps(update_ptr + part * M, C, M, N)
        project = matrix(project_ptr + part * M * BOTH, M, BOTH, BOTH)
        # What the passes before have added lies in y.
        sum_ptr = base_ptr if part == 0 else y_ptr
        above, center = first_rows(source_ptr, y0, x0, height, width, C, BOTH, TILE)
        above_other, center_other = first_rows(other_source_ptr, y0, x0, height, width, C, BOTH, TILE)
        gate = with_row(with_row(no_sums(M, TILE), above, own_taps), above_other, other_taps)
        gate = with_row(with_row(moved_down(gate), center, own_taps), center_other, other_taps)
        update = first_sums(above, center, update_taps, M, TILE)
        for r in range(ROWS - 1):
            gate, update = _with_added_row(
                gate, update, source_ptr, other_source_ptr, own_taps, other_taps, update_taps, project, sum_ptr, y_ptr, x0,
                y0 + r, height, width, C, TILE,
            )  # fmt: skip
        _with_added_row(
            gate, update, source_ptr, other_source_ptr, own_taps, other_taps, update_taps, project, sum_ptr, y_ptr, x0,
            y0 + (ROWS - 1), height, width, C, TILE,
        )  # fmt: skip
        if part + 1 < PARTS:
            # What one thread has stored, another may load in the next pass.
            tl.debug_barrier()


def _launch_reference(arguments: Mapping[str, Any], _streams: int) -> None:
    channels = arguments["C"]
    x, base, y = (features(arguments, name, 2 * channels)[0] for name in ("x_ptr", "base_ptr", "y_ptr"))
    own, other, update = (arguments[name].reshape(9, channels, 4 * channels) for name in ("own_ptr", "other_ptr", "update_ptr"))
    project = arguments["project_ptr"].reshape(4 * channels, 2 * channels)
    y[:] = fusion_gate_reference(x, base, own, other, update, project, arguments["SOURCE"], arguments["PARTS"])


SOURCE = Source(
    "fusion_gate",
    fusion_gate_kernel,
    (*pointers("x", "base", "own", "other", "update", "project"), *pointers("y", written=True), *SIZE),
    _launch_reference,
)
