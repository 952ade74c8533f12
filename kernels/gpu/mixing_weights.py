"""The mixing weights of channel attention, folded into one dense 3x3 convolution per image.

From the sums of ``attention_statistics`` over all strips, per head h:

    A[i, j, h] = softmax_j(temperature[h] G[i, j, h] / (max(sqrt Q[i, h], 1e-12) max(sqrt K[j, h], 1e-12)))
    W_t = V_t blockdiag(A)^T P        (inputs before outputs, taps t)

so that ``project_out(A v)`` becomes ``sum_t W_t n_t``: attention costs no pass over the values.

Layout: strips (S, strips, D D + 2 D, 8) float32, value taps V (S, 9, C, C) and projection P (S, C, C) float32 with
inputs before outputs, temperature (S, 8) float32, result (S, 9, C, C) in the dtype of the features. One program per
stream; strips are added in a fixed order.

Source:
    Restormer (Zamir et al., CVPR 2022), transposed attention; the folding is exact because no convolution has a bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.cuda.program import Parameter
from refusion_edge.kernels.gpu.language import jit, tl
from refusion_edge.kernels.gpu.source import Source, float32_pointers, pointers
from refusion_edge.network.parameters import NUM_HEADS

# Below the root, what the network clamps norms to: 1e-12 squared.
SQUARED_NORM_FLOOR = 1e-24


def mixing_weights_reference(sums: Array, temperature: Array, value: Array, project: Array) -> Array:
    """Fold attention into dense taps.

    Args:
        sums: Statistics of one image, (D D + 2 D, 8).
        temperature: One factor per head, (8,).
        value: Value taps, (9, C, C), natural channels.
        project: Output projection, (C, C), inputs before outputs.

    Returns:
        (9, C, C), inputs before outputs, in the dtype of ``sums``.
    """
    channels = project.shape[0]
    dim = channels // NUM_HEADS
    gram = sums[: dim * dim].reshape(dim, dim, NUM_HEADS)
    query_norms, key_norms = np.sqrt(np.maximum(sums[dim * dim :].reshape(2, dim, NUM_HEADS), SQUARED_NORM_FLOOR))
    scores = gram / (query_norms[:, None] * key_norms[None, :]) * temperature
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    attention = weights / weights.sum(axis=1, keepdims=True)
    # M[(h, j), o] = sum_i A[i, j, h] P[(h, i), o]
    mixed = np.einsum("ijh,hio->hjo", attention, project.reshape(NUM_HEADS, dim, channels)).reshape(channels, channels)
    taps: Array = (value @ mixed).astype(sums.dtype)
    return taps


@jit
def mixing_weights_kernel(partial_ptr, temperature_ptr, value_ptr, project_ptr, taps_ptr, strips, C: tl.constexpr,
                          CHUNK: tl.constexpr):  # fmt: skip
    D: tl.constexpr = C // 8
    SIZE: tl.constexpr = (D * D + 2 * D) * 8
    stream = tl.program_id(0)
    base = partial_ptr + tl.cast(stream, tl.int64) * strips * SIZE
    gram_sums = tl.zeros([CHUNK, D * C], tl.float32)
    query_sums = tl.zeros([CHUNK, C], tl.float32)
    key_sums = tl.zeros([CHUNK, C], tl.float32)
    start = strips * 0
    while start < strips:
        strip = start + tl.arange(0, CHUNK)
        there = (strip < strips)[:, None]
        row = base + tl.cast(strip, tl.int64)[:, None] * SIZE
        gram_sums += tl.load(row + tl.arange(0, D * C)[None, :], mask=there, other=0.0)
        query_sums += tl.load(row + D * C + tl.arange(0, C)[None, :], mask=there, other=0.0)
        key_sums += tl.load(row + (D * C + C) + tl.arange(0, C)[None, :], mask=there, other=0.0)
        start += CHUNK
    gram = tl.reshape(tl.sum(gram_sums, axis=0), [D, D, 8])
    query_norms = tl.sqrt(tl.maximum(tl.reshape(tl.sum(query_sums, axis=0), [D, 1, 8]), 1e-24))
    key_norms = tl.sqrt(tl.maximum(tl.reshape(tl.sum(key_sums, axis=0), [1, D, 8]), 1e-24))
    temperature = tl.load(temperature_ptr + stream * 8 + tl.arange(0, 8))
    scores = gram / (query_norms * key_norms) * tl.reshape(temperature, [1, 1, 8])
    weights = tl.exp(scores - tl.reshape(tl.max(scores, axis=1), [D, 1, 8]))
    attention = weights / tl.reshape(tl.sum(weights, axis=1), [D, 1, 8])

    # Channel (h, j) as row j * 8 + h, which is how the sums lie; the loads of P and V follow.
    channel = (tl.arange(0, C) % 8) * D + tl.arange(0, C) // 8
    output = tl.arange(0, C)
    project = tl.load(project_ptr + stream * C * C + channel[:, None] * C + output[None, :])
    mixed = tl.sum(tl.reshape(attention, [D, D, 8, 1]) * tl.reshape(project, [D, 1, 8, C]), axis=0)
    mixed = tl.reshape(mixed, [C, C])
    for tap in tl.static_range(9):
        place = stream * 9 * C * C + tap * C * C
        value = tl.load(value_ptr + place + output[:, None] * C + channel[None, :])
        folded = tl.dot(value, mixed, input_precision="ieee")
        tl.store(taps_ptr + place + output[:, None] * C + output[None, :], folded.to(taps_ptr.dtype.element_ty))


def _launch_reference(arguments: Mapping[str, Any], streams: int) -> None:
    channels = arguments["C"]
    partial = arguments["partial_ptr"].reshape(streams, arguments["strips"], -1, 8)
    temperature = arguments["temperature_ptr"].reshape(streams, 8)
    value, taps = (arguments[name].reshape(streams, 9, channels, channels) for name in ("value_ptr", "taps_ptr"))
    project = arguments["project_ptr"].reshape(streams, channels, channels)
    for stream in range(streams):
        sums = partial[stream].sum(axis=0)
        taps[stream] = mixing_weights_reference(sums, temperature[stream], value[stream], project[stream])


SOURCE = Source(
    "mixing_weights",
    mixing_weights_kernel,
    (
        *float32_pointers("partial", "temperature", "value", "project"),
        *pointers("taps", written=True),
        Parameter("strips", "int32"),
    ),
    _launch_reference,
)
