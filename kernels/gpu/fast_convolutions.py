"""The network ``fast`` behind its statistics, in one launch: adaptation, all convolutions, composition of the result.

A program makes a rectangle of TILE x ROWS pixels, that is of cells of k x k pixels, k being the unshuffle factor. It computes
one layer after the other for the rectangle and as many cells around it as the layers behind need: N - 1 on each side for the
first of N layers, none for the last. What a layer makes goes to memory that no other program touches, and comes back, shifted,
as the taps of the next one; there are two such areas, which the layers write in turns. So nothing is exchanged between
programs, at the price of computing the cells around the rectangle more than once. Within a layer, the program walks down its
rows as in ``strip``.

All layers have the same window of columns, W = TILE / k + 2 (N - 1), which is a power of two. The outermost columns of a layer
are wrong, by one column more on each side with every layer; the last layer does not store them.

Layout: planes (2, H, W) float32; partial as in ``fast_statistics``; features (cells down, cells across, C) with C a power of
two of at least 16 and zeros in the channels that the network does not have; taps (9, I, O) of all layers one behind the other;
their biases likewise; the outputs of the last layer s and r in turns, and zeros. First dense layer (9, 32): one row for each
statistic, and the bias. Second one (33, 2, C): one row for each hidden unit, and the bias; gains before offsets. Scratch: two
areas (ROWS / k + 2 (N - 1), W, C) for each program. Result (H, W) float32; extremes (strips, 2) float32, see ``stretch``.

Source:
    ``refusion_edge.network.fast``.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.cuda.program import Parameter
from refusion_edge.kernels.gpu.fast_statistics import PARTIAL_SIZE, figures_reference
from refusion_edge.kernels.gpu.language import jit, tl
from refusion_edge.kernels.gpu.source import SIZE, Source, features, float32_pointers, pointers
from refusion_edge.kernels.gpu.strip import convolve_reference, convolved, nine_taps, wide_dtype
from refusion_edge.network.fast import SLOPE

HIDDEN = 32
"""Hidden units between the dense layers, those that the network does not have included."""


def adaptation_reference(partial: Array, first: Array, second: Array) -> tuple[Array, Array]:
    """Gain, with 1 added, and offset of every channel of the first convolution.

    Args:
        partial: (9, strips) floating.
        first: First dense layer, (9, 32).
        second: Second dense layer, (33, 2, C).

    Returns:
        (C,) twice, dtype of ``partial``.
    """
    hidden = _leaky(figures_reference(partial) @ first[:-1] + first[-1])
    gain, offset = np.einsum("j,jpc->pc", hidden, second[:-1]) + second[-1]
    return (1 + gain).astype(partial.dtype), offset.astype(partial.dtype)


def fast_convolutions_reference(
    planes: Array, gain: Array, offset: Array, taps: list[Array], biases: list[Array], factor: int
) -> Array:
    """Fuse two planes.

    Args:
        planes: (2, H, W) floating, source a before source b.
        gain: Of the first convolution, (C,).
        offset: Of the first convolution, (C,).
        taps: Of every convolution, (9, I, O) in the dtype of the features.
        biases: Of every convolution, (O,).
        factor: Unshuffle factor k.

    Returns:
        (H, W), dtype of ``planes``.
    """
    height, width = planes.shape[1:]
    kind = taps[0].dtype
    margins = ((0, 0), (0, -height % factor), (0, -width % factor))
    padded = np.pad(planes, margins, mode="edge")
    down, across = padded.shape[1] // factor, padded.shape[2] // factor
    cells = padded.reshape(2, down, factor, across, factor).transpose(1, 3, 0, 2, 4).reshape(down, across, 2 * factor**2)
    x = np.zeros((down, across, taps[0].shape[1]), kind)
    x[..., : cells.shape[-1]] = cells
    for index, (layer, bias) in enumerate(zip(taps, biases, strict=True)):
        total = convolve_reference(x, layer)
        total = total * gain + (bias * gain + offset) if index == 0 else total + bias
        if index + 1 < len(taps):
            x = _leaky(total).astype(kind)
    parts = [total[..., first : 2 * factor**2 : 2].reshape(down, across, factor, factor) for first in range(2)]
    s, r = (part.transpose(0, 2, 1, 3).reshape(padded.shape[1:]) for part in parts)
    a, b = padded.astype(wide_dtype(planes))
    fused: Array = np.clip(np.maximum(a, b) - s * np.abs(a - b) + r, 0, 1)[:height, :width].astype(planes.dtype)
    return fused


def _leaky(values: Array) -> Array:
    return np.where(values >= 0, values, SLOPE * values)


@jit
def _leaky_relu(values):
    return tl.where(values >= 0, values, 0.1 * values)


@jit
def _weighted_mean(partial_ptr, strips, which: tl.constexpr):
    # Of the means of the strips, by their counts. One strip is in no danger: the others of its chunk count as nothing.
    CHUNK: tl.constexpr = 256
    counts = tl.zeros([CHUNK], tl.float32)
    total = tl.zeros([CHUNK], tl.float32)
    start = strips * 0
    while start < strips:
        strip = start + tl.arange(0, CHUNK)
        there = strip < strips
        count = tl.load(partial_ptr + strip, mask=there, other=0.0)
        counts += count
        total += count * tl.load(partial_ptr + (1 + which) * strips + strip, mask=there, other=0.0)
        start += CHUNK
    return tl.sum(total, axis=0) / tl.sum(counts, axis=0)


@jit
def _deviation(partial_ptr, strips, mean, which: tl.constexpr):
    CHUNK: tl.constexpr = 256
    counts = tl.zeros([CHUNK], tl.float32)
    total = tl.zeros([CHUNK], tl.float32)
    start = strips * 0
    while start < strips:
        strip = start + tl.arange(0, CHUNK)
        there = strip < strips
        count = tl.load(partial_ptr + strip, mask=there, other=0.0)
        counts += count
        away = tl.load(partial_ptr + (1 + which) * strips + strip, mask=there, other=0.0) - mean
        total += tl.load(partial_ptr + (5 + which) * strips + strip, mask=there, other=0.0) + count * away * away
        start += CHUNK
    return tl.sqrt(tl.sum(total, axis=0) / tl.sum(counts, axis=0))


@jit
def _adaptation(partial_ptr, first_ptr, second_ptr, strips, C: tl.constexpr):
    UNITS: tl.constexpr = 32
    unit = tl.arange(0, UNITS)
    hidden = tl.load(first_ptr + 8 * UNITS + unit)
    for which in tl.static_range(4):
        mean = _weighted_mean(partial_ptr, strips, which)
        hidden += mean * tl.load(first_ptr + (2 * which) * UNITS + unit)
        hidden += _deviation(partial_ptr, strips, mean, which) * tl.load(first_ptr + (2 * which + 1) * UNITS + unit)
    hidden = _leaky_relu(hidden)[:, None]
    c = tl.arange(0, C)
    place = unit[:, None] * (2 * C) + c[None, :]
    of_gain, of_offset = tl.load(second_ptr + place), tl.load(second_ptr + C + place)
    # The zero keeps the product out of the first step of the sum over lanes, see `fast_statistics`.
    gain = tl.sum(hidden * of_gain + 0.0, axis=0) + tl.load(second_ptr + UNITS * 2 * C + c)
    offset = tl.sum(hidden * of_offset + 0.0, axis=0) + tl.load(second_ptr + UNITS * 2 * C + C + c)
    return 1.0 + gain, offset


@jit
def _cells(planes_ptr, kind_ptr, y, x0, height, width, dx: tl.constexpr, FACTOR: tl.constexpr, INPUTS: tl.constexpr,
           WINDOW: tl.constexpr):  # fmt: skip
    # A row of cells of both planes, in the dtype of the features. Cells outside are zero; pixels of a cell that lie outside
    # are those of the last row or column.
    PIXELS: tl.constexpr = FACTOR * FACTOR
    c = tl.arange(0, INPUTS)
    place = c % PIXELS
    x = x0 + dx + tl.arange(0, WINDOW)
    row = y + tl.zeros([WINDOW], tl.int32)
    inside = ((x >= 0) & (x * FACTOR < width) & (row >= 0) & (row * FACTOR < height))[:, None] & (c < 2 * PIXELS)[None, :]
    down = tl.minimum(y * FACTOR + place // FACTOR, height - 1)
    across = tl.minimum((x * FACTOR)[:, None] + (place % FACTOR)[None, :], width - 1)
    offset = (tl.cast(c // PIXELS, tl.int64) * height + down) * width
    return tl.load(planes_ptr + offset[None, :] + across, mask=inside, other=0.0).to(kind_ptr.dtype.element_ty)


@jit
def _row_of_cells(planes_ptr, kind_ptr, y, x0, height, width, FACTOR: tl.constexpr, INPUTS: tl.constexpr, WINDOW: tl.constexpr):
    left = _cells(planes_ptr, kind_ptr, y, x0, height, width, -1, FACTOR, INPUTS, WINDOW)
    center = _cells(planes_ptr, kind_ptr, y, x0, height, width, 0, FACTOR, INPUTS, WINDOW)
    right = _cells(planes_ptr, kind_ptr, y, x0, height, width, 1, FACTOR, INPUTS, WINDOW)
    return left, center, right


@jit
def _kept(area_ptr, row, dx: tl.constexpr, C: tl.constexpr, WINDOW: tl.constexpr):
    x = tl.arange(0, WINDOW) + dx
    inside = ((x >= 0) & (x < WINDOW))[:, None]
    return tl.load(area_ptr + row * (WINDOW * C) + x[:, None] * C + tl.arange(0, C)[None, :], mask=inside, other=0.0)


@jit
def _kept_row(area_ptr, row, C: tl.constexpr, WINDOW: tl.constexpr):
    left = _kept(area_ptr, row, -1, C, WINDOW)
    center = _kept(area_ptr, row, 0, C, WINDOW)
    right = _kept(area_ptr, row, 1, C, WINDOW)
    return left, center, right


@jit
def _keep(area_ptr, row, total, y, x0, height, width, C: tl.constexpr, FACTOR: tl.constexpr, WINDOW: tl.constexpr):
    # Activated, and zero outside the image, which is what the next convolution is padded with.
    x = x0 + tl.arange(0, WINDOW)
    below = y + tl.zeros([WINDOW], tl.int32)
    inside = ((x >= 0) & (x * FACTOR < width) & (below >= 0) & (below * FACTOR < height))[:, None]
    values = tl.where(inside, _leaky_relu(total), 0.0).to(area_ptr.dtype.element_ty)
    tl.store(area_ptr + row * (WINDOW * C) + tl.arange(0, WINDOW)[:, None] * C + tl.arange(0, C)[None, :], values)


@jit
def _first_layer(planes_ptr, taps_ptr, to_ptr, gain, offset, y0, x0, height, width, C: tl.constexpr, INPUTS: tl.constexpr,
                 FACTOR: tl.constexpr, DEPTH: tl.constexpr, WINDOW: tl.constexpr):  # fmt: skip
    taps = nine_taps(taps_ptr, INPUTS, C, C)
    above = _row_of_cells(planes_ptr, to_ptr, y0 - 1, x0, height, width, FACTOR, INPUTS, WINDOW)
    center = _row_of_cells(planes_ptr, to_ptr, y0, x0, height, width, FACTOR, INPUTS, WINDOW)
    for row in range(DEPTH):
        below = _row_of_cells(planes_ptr, to_ptr, y0 + row + 1, x0, height, width, FACTOR, INPUTS, WINDOW)
        total = convolved(tl.zeros([WINDOW, C], tl.float32), above, center, below, taps)
        total = total * gain[None, :] + offset[None, :]
        _keep(to_ptr, row, total, y0 + row, x0, height, width, C, FACTOR, WINDOW)
        above, center = center, below


@jit
def _inner_layer(from_ptr, taps_ptr, bias_ptr, to_ptr, y0, x0, height, width, layer: tl.constexpr, C: tl.constexpr,
                 FACTOR: tl.constexpr, DEPTH: tl.constexpr, WINDOW: tl.constexpr):  # fmt: skip
    # The first of N - 1 layers makes DEPTH rows, each of the others two less, one at each end.
    taps = nine_taps(taps_ptr, C, C, C)
    bias = tl.load(bias_ptr + tl.arange(0, C))[None, :]
    above = _kept_row(from_ptr, layer - 1, C, WINDOW)
    center = _kept_row(from_ptr, layer, C, WINDOW)
    for r in range(DEPTH - 2 * layer):
        row = layer + r
        below = _kept_row(from_ptr, row + 1, C, WINDOW)
        total = convolved(tl.zeros([WINDOW, C], tl.float32), above, center, below, taps) + bias
        _keep(to_ptr, row, total, y0 + row, x0, height, width, C, FACTOR, WINDOW)
        above, center = center, below


@jit
def _last_layer(from_ptr, planes_ptr, taps_ptr, bias_ptr, fused_ptr, extremes_ptr, y0, x0, height, width, C: tl.constexpr,
                OUTPUTS: tl.constexpr, FACTOR: tl.constexpr, AROUND: tl.constexpr, DEPTH: tl.constexpr,
                WINDOW: tl.constexpr):  # fmt: skip
    HALF: tl.constexpr = OUTPUTS // 2
    PIXELS: tl.constexpr = FACTOR * FACTOR
    taps = nine_taps(taps_ptr, C, OUTPUTS, OUTPUTS)
    bias = tl.load(bias_ptr + tl.arange(0, OUTPUTS))[None, :]
    place = tl.arange(0, HALF)
    cell = tl.arange(0, WINDOW)
    x = ((x0 + cell) * FACTOR)[:, None] + (place % FACTOR)[None, :]
    ours = ((cell >= AROUND) & (cell < WINDOW - AROUND))[:, None] & (place < PIXELS)[None, :] & (x < width)
    low = tl.full([WINDOW, HALF], float("inf"), tl.float32)
    high = tl.full([WINDOW, HALF], float("-inf"), tl.float32)
    b_ptr = planes_ptr + tl.cast(height, tl.int64) * width
    above = _kept_row(from_ptr, AROUND - 1, C, WINDOW)
    center = _kept_row(from_ptr, AROUND, C, WINDOW)
    for r in range(DEPTH - 2 * AROUND):
        row = AROUND + r
        below = _kept_row(from_ptr, row + 1, C, WINDOW)
        total = convolved(tl.zeros([WINDOW, OUTPUTS], tl.float32), above, center, below, taps) + bias
        s, shift = tl.split(tl.reshape(total, [WINDOW, HALF, 2]))
        y = (y0 + row) * FACTOR + place // FACTOR
        there = ours & (y < height)[None, :]
        at = (tl.cast(y, tl.int64) * width)[None, :] + x
        a = tl.load(planes_ptr + at, mask=there, other=0.0)
        b = tl.load(b_ptr + at, mask=there, other=0.0)
        fused = tl.where(a >= b, a, b) - s * tl.abs(a - b) + shift
        # Not tl.minimum and tl.maximum, which would turn NaN into a number.
        fused = tl.where(fused < 0.0, 0.0, tl.where(fused > 1.0, 1.0, fused))
        tl.store(fused_ptr + at, fused, mask=there)
        low = tl.minimum(low, tl.where(there, fused, float("inf")))
        high = tl.maximum(high, tl.where(there, fused, float("-inf")))
        above, center = center, below
    tl.store(extremes_ptr, tl.min(tl.min(low, axis=1), axis=0))
    tl.store(extremes_ptr + 1, tl.max(tl.max(high, axis=1), axis=0))


@jit
def fast_convolutions_kernel(planes_ptr, partial_ptr, first_ptr, second_ptr, taps_ptr, bias_ptr, scratch_ptr, fused_ptr,
                             extremes_ptr, height, width, strips, C: tl.constexpr, INPUTS: tl.constexpr, OUTPUTS: tl.constexpr,
                             LAYERS: tl.constexpr, FACTOR: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr):  # fmt: skip
    AROUND: tl.constexpr = LAYERS - 1
    WINDOW: tl.constexpr = TILE // FACTOR + 2 * AROUND
    DEPTH: tl.constexpr = ROWS // FACTOR + 2 * AROUND
    AREA: tl.constexpr = DEPTH * WINDOW * C
    strip = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    x0 = tl.program_id(0) * (TILE // FACTOR) - AROUND
    y0 = tl.program_id(1) * (ROWS // FACTOR) - AROUND
    scratch_ptr += tl.cast(strip, tl.int64) * (2 * AREA)

    gain, offset = _adaptation(partial_ptr, first_ptr, second_ptr, strips, C)
    offset += gain * tl.load(bias_ptr + tl.arange(0, C))
    _first_layer(planes_ptr, taps_ptr, scratch_ptr, gain, offset, y0, x0, height, width, C, INPUTS, FACTOR, DEPTH, WINDOW)
    taps_ptr += 9 * INPUTS * C
    for layer in tl.static_range(1, AROUND):
        # What one thread has stored, another may load in the next layer.
        tl.debug_barrier()
        from_ptr = scratch_ptr + ((layer - 1) % 2) * AREA
        to_ptr = scratch_ptr + (layer % 2) * AREA
        layer_ptr = taps_ptr + (layer - 1) * (9 * C * C)
        _inner_layer(from_ptr, layer_ptr, bias_ptr + layer * C, to_ptr, y0, x0, height, width, layer, C, FACTOR, DEPTH, WINDOW)
    tl.debug_barrier()
    _last_layer(scratch_ptr + ((AROUND - 1) % 2) * AREA, planes_ptr, taps_ptr + (AROUND - 1) * (9 * C * C),
                bias_ptr + AROUND * C, fused_ptr, extremes_ptr + 2 * strip, y0, x0, height, width, C, OUTPUTS, FACTOR, AROUND,
                DEPTH, WINDOW)  # fmt: skip


def _launch_reference(arguments: Mapping[str, Any], _streams: int) -> None:
    channels, inputs, outputs, layers = (arguments[name] for name in ("C", "INPUTS", "OUTPUTS", "LAYERS"))
    widths = [inputs, *[channels] * (layers - 1), outputs]
    shapes = [(9, *shape) for shape in itertools.pairwise(widths)]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    flat = np.split(arguments["taps_ptr"], ends[:-1])
    taps = [part.reshape(shape) for part, shape in zip(flat, shapes, strict=True)]
    biases = np.split(arguments["bias_ptr"], np.cumsum(widths[1:-1]))
    partial = arguments["partial_ptr"].reshape(PARTIAL_SIZE, arguments["strips"])
    dense = arguments["first_ptr"].reshape(-1, HIDDEN), arguments["second_ptr"].reshape(HIDDEN + 1, 2, channels)
    gain, offset = adaptation_reference(partial, *dense)
    planes, fused = features(arguments, "planes_ptr"), features(arguments, "fused_ptr")[0]
    fused[:] = fast_convolutions_reference(planes, gain, offset, taps, biases, arguments["FACTOR"])
    arguments["extremes_ptr"].reshape(-1, 2)[:] = fused.min(), fused.max()


SOURCE = Source(
    "fast_convolutions",
    fast_convolutions_kernel,
    (
        *float32_pointers("planes", "partial", "first", "second"),
        *pointers("taps"),
        *float32_pointers("bias"),
        *pointers("scratch", written=True),
        *float32_pointers("fused", "extremes", written=True),
        *SIZE,
        Parameter("strips", "int32"),
    ),
    _launch_reference,
)
