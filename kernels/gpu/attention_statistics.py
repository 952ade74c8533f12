"""The statistics of channel attention over a whole image: products of queries and keys, and their norms.

Per head h of D channels, with ``q = sum_t Wq_t n_t`` and ``k = sum_t Wk_t n_t`` (taps t of the folded convolutions) and
n the layer norm of the features, or the features themselves in the fusion module:

    G[i, j, h] = sum_p q[p, h D + i] k[p, h D + j],   Q[i, h] = sum_p q[p, h D + i]^2,   K[j, h] = sum_p k[p, h D + j]^2

Layout: each program writes the sums of its strip, (D D + 2 D, 8) float32 with the heads innermost: G in the order of
rows, then Q, then K. ``mixing_weights`` adds the strips in a fixed order, so that a repeat gives the same bits.
Per-lane sums over the strip, one reduction across lanes at its end. Columns of the taps are permuted for D = 4
(``head_columns``) so that the channels of a head fall into one thread of the product's accumulator.

Source:
    Restormer (Zamir et al., CVPR 2022), transposed attention; crossed between the sources in ReFusion's fusion module.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

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
    wide_dtype,
    with_row,
)
from refusion_edge.network.parameters import NUM_HEADS


def head_columns(channels: int) -> list[int]:
    """The channel that each column of the query and key taps holds.

    With two channels per head the order is natural. With four, column bits (4, 2, 1) count the head and bits (3, 0) the
    channel in it: a thread of an m16n8 accumulator holds columns 2 t and 2 t + 1 of every group of eight.
    """
    if channels == 2 * NUM_HEADS:
        return list(range(channels))
    return [4 * ((n >> 4 & 1) * 4 + (n >> 1 & 3)) + (n >> 3 & 1) * 2 + (n & 1) for n in range(channels)]


def partial_size(channels: int) -> int:
    """Numbers that one strip contributes."""
    dim = channels // NUM_HEADS
    return (dim * dim + 2 * dim) * NUM_HEADS


def attention_statistics_reference(
    query_features: Array, key_features: Array, query: Array, key: Array, norm: tuple[Array, Array] | None
) -> Array:
    """Sum products and squares of queries and keys over one image.

    Args:
        query_features: Features that ask, (H, W, C) floating.
        key_features: Features that answer; the same but in the fusion module.
        query: Query taps, (9, C, C), columns as in ``head_columns``.
        key: Key taps, the same.
        norm: Gain and bias of the layer norm, each (C,), or None where there is none.

    Returns:
        (D D + 2 D, 8) in the wide dtype of the features.
    """
    channels = query_features.shape[-1]
    dim = channels // NUM_HEADS
    columns = np.argsort(head_columns(channels))
    q, k = (
        convolve_reference(layer_norm_reference(x, *norm) if norm else x, taps)[..., columns].reshape(-1, NUM_HEADS, dim)
        for x, taps in ((query_features, query), (key_features, key))
    )
    gram = np.einsum("phi,phj->ijh", q, k, optimize=True).reshape(dim * dim, NUM_HEADS)
    squares = [np.einsum("phi,phi->ih", x, x, optimize=True) for x in (q, k)]
    return np.concatenate([gram, *squares]).astype(wide_dtype(query_features))


@jit
def _channels_of_heads(x, TILE: tl.constexpr, D: tl.constexpr):
    if D == 2:
        first, second = tl.split(tl.reshape(x, [TILE, 8, 2]))
        return first, second
    else:
        even, odd = tl.split(tl.reshape(x, [TILE, 2, 2, 4, 2]))
        first, third = tl.split(tl.permute(even, [0, 1, 3, 2]))
        second, fourth = tl.split(tl.permute(odd, [0, 1, 3, 2]))
        return (
            tl.reshape(first, [TILE, 8]),
            tl.reshape(second, [TILE, 8]),
            tl.reshape(third, [TILE, 8]),
            tl.reshape(fourth, [TILE, 8]),
        )


@jit
def _zeros(TILE: tl.constexpr, D: tl.constexpr):
    zero = tl.zeros([TILE, 8], tl.float32)
    if D == 2:
        return zero, zero, zero, zero, zero, zero, zero, zero
    else:
        return (
            zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero,
            zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero, zero,
        )  # fmt: skip


@jit
def _accumulated(s, q, k, D: tl.constexpr):
    if D == 2:
        return (
            s[0] + q[0] * k[0], s[1] + q[0] * k[1],
            s[2] + q[1] * k[0], s[3] + q[1] * k[1],
            s[4] + q[0] * q[0], s[5] + q[1] * q[1],
            s[6] + k[0] * k[0], s[7] + k[1] * k[1],
        )  # fmt: skip
    else:
        return (
            s[0] + q[0] * k[0], s[1] + q[0] * k[1], s[2] + q[0] * k[2], s[3] + q[0] * k[3],
            s[4] + q[1] * k[0], s[5] + q[1] * k[1], s[6] + q[1] * k[2], s[7] + q[1] * k[3],
            s[8] + q[2] * k[0], s[9] + q[2] * k[1], s[10] + q[2] * k[2], s[11] + q[2] * k[3],
            s[12] + q[3] * k[0], s[13] + q[3] * k[1], s[14] + q[3] * k[2], s[15] + q[3] * k[3],
            s[16] + q[0] * q[0], s[17] + q[1] * q[1], s[18] + q[2] * q[2], s[19] + q[3] * q[3],
            s[20] + k[0] * k[0], s[21] + k[1] * k[1], s[22] + k[2] * k[2], s[23] + k[3] * k[3],
        )  # fmt: skip


@jit
def _with_pixels(sums, q, k, inside, TILE: tl.constexpr, D: tl.constexpr):
    # A pixel outside the image has neighbors inside it, so its sum is not zero by itself.
    q = tl.where(inside, q, 0.0)
    k = tl.where(inside, k, 0.0)
    return _accumulated(sums, _channels_of_heads(q, TILE, D), _channels_of_heads(k, TILE, D), D)


@jit
def _with_crossed_row(sums, queries, keys, x_query_ptr, x_key_ptr, query, key, x0, y, height, width, C: tl.constexpr,
                      TILE: tl.constexpr, D: tl.constexpr):  # fmt: skip
    x = x0 + tl.arange(0, TILE)
    below_q = plain_row(x_query_ptr, y + 1, x0, height, width, C, C, TILE)
    below = plain_row(x_key_ptr, y + 1, x0, height, width, C, C, TILE)
    inside = ((x < width) & (y + tl.zeros([TILE], tl.int32) < height))[:, None]
    queries = with_row(moved_down(queries), below_q, query)
    keys = with_row(moved_down(keys), below, key)
    return _with_pixels(sums, queries[0], keys[0], inside, TILE, D), queries, keys


@jit
def attention_statistics_kernel(x_ptr, gain_ptr, bias_ptr, query_ptr, key_ptr, partial_ptr, height, width, C: tl.constexpr,
                                CROSSED: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    D: tl.constexpr = C // 8
    SUMS: tl.constexpr = D * D + 2 * D
    stream = tl.program_id(2)
    x0 = tl.program_id(0) * TILE
    y0 = tl.program_id(1) * ROWS
    plane = tl.cast(height, tl.int64) * width * C
    x_key_ptr = x_ptr + stream * plane
    query = nine_taps(query_ptr + stream * 9 * C * C, C, C, C)
    key = nine_taps(key_ptr + stream * 9 * C * C, C, C, C)
    x = x0 + tl.arange(0, TILE)
    sums = _zeros(TILE, D)
    if CROSSED:
        x_query_ptr = x_ptr + (1 - stream) * plane
        above_q, center_q = first_rows(x_query_ptr, y0, x0, height, width, C, C, TILE)
        above, center = first_rows(x_key_ptr, y0, x0, height, width, C, C, TILE)
        queries = first_sums(above_q, center_q, query, C, TILE)
        keys = first_sums(above, center, key, C, TILE)
        for r in range(ROWS - 1):
            sums, queries, keys = _with_crossed_row(
                sums, queries, keys, x_query_ptr, x_key_ptr, query, key, x0, y0 + r, height, width, C, TILE, D
            )
        sums, _, _ = _with_crossed_row(
            sums, queries, keys, x_query_ptr, x_key_ptr, query, key, x0, y0 + (ROWS - 1), height, width, C, TILE, D
        )
    else:
        gain = tl.load(gain_ptr + stream * C + tl.arange(0, C))
        bias = tl.load(bias_ptr + stream * C + tl.arange(0, C))
        above, center = first_normalized_rows(x_key_ptr, y0, x0, height, width, gain, bias, C, TILE)
        queries = first_sums(above, center, query, C, TILE)
        keys = first_sums(above, center, key, C, TILE)
        for r in range(ROWS):
            y = y0 + r
            below = normalized_row(x_key_ptr, y + 1, x0, height, width, gain, bias, C, TILE)
            inside = ((x < width) & (y + tl.zeros([TILE], tl.int32) < height))[:, None]
            queries = with_row(moved_down(queries), below, query)
            keys = with_row(moved_down(keys), below, key)
            sums = _with_pixels(sums, queries[0], keys[0], inside, TILE, D)
    strip = (stream * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0)
    base = partial_ptr + tl.cast(strip, tl.int64) * SUMS * 8 + tl.arange(0, 8)
    for n in tl.static_range(SUMS):
        tl.store(base + n * 8, tl.sum(sums[n], axis=0))


def _launch_reference(arguments: Mapping[str, Any], streams: int) -> None:
    channels, crossed = arguments["C"], arguments["CROSSED"]
    x = features(arguments, "x_ptr", channels)
    query, key = (arguments[name].reshape(streams, 9, channels, channels) for name in ("query_ptr", "key_ptr"))
    partial = arguments["partial_ptr"].reshape(streams, -1, partial_size(channels))
    partial[:] = 0
    for stream in range(streams):
        asking = x[1 - stream if crossed else stream]
        norm = None if crossed else layer_norm_parameters(arguments, stream)
        sums = attention_statistics_reference(asking, x[stream], query[stream], key[stream], norm)
        partial[stream, 0] = sums.ravel()


SOURCE = Source(
    "attention_statistics",
    attention_statistics_kernel,
    (
        *pointers("x"),
        *float32_pointers("gain", "bias"),
        *pointers("query", "key"),
        *float32_pointers("partial", written=True),
        *SIZE,
    ),
    _launch_reference,
)
