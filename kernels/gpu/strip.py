"""Walking down a strip of an image, as all 3x3 kernels do.

A program owns TILE columns and ROWS rows. A row of the input contributes to three rows of the output, so the program keeps
their sums, as loop-carried register tensors of (TILE, N), and adds to each of them three small matrix products: one for each
shift of the row. In this way, a row is loaded, normalized and brought into the layout that the tensor cores take only once,
and not again for the row above and the row below; on its way into that layout it passes through shared memory. Taps are loaded
before the loop. A tap is a shifted load; no intermediate has to be exchanged between threads.

The last row of a strip only completes one sum. A kernel that has the registers for it takes this row out of its loop: then the
compiler drops the products with sums below the strip, and keeps taps as operands instead of loading them again for every row.

Layout: features are (S, H, W, C) row-major with S streams (1 or 2) and the channels innermost; taps are (9, C, N) in the
order of rows, inputs before outputs. Offsets of rows are 64-bit: 16384 x 16384 x 32 numbers do not fit 32 bits.
"""

from __future__ import annotations

import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.kernels.gpu.language import jit, tl

LAYER_NORM_EPSILON = 1e-5


def wide_dtype(x: Array) -> np.dtype[np.floating]:
    """The dtype that sums of ``x`` are taken in: float64 for float64, else float32."""
    return np.dtype(np.float64 if x.dtype == np.float64 else np.float32)


def convolve_reference(x: Array, taps: Array) -> Array:
    """Convolve with dense 3x3 taps, zero-padded: ``y[p] = sum_t x[p + t] taps[t]``.

    Args:
        x: (H, W, C) floating.
        taps: (9, C, N), taps in the order of rows.

    Returns:
        (H, W, N) in the wide dtype of ``x``; the products are taken in that dtype, too.
    """
    height, width, _ = x.shape
    wide = wide_dtype(x)
    padded = np.pad(x.astype(wide), ((1, 1), (1, 1), (0, 0)))
    total = np.zeros((height, width, taps.shape[2]), wide)
    for tap, weights in enumerate(taps.astype(wide)):
        row, column = divmod(tap, 3)
        total += padded[row : row + height, column : column + width] @ weights
    return total


def layer_norm_reference(x: Array, gain: Array, bias: Array) -> Array:
    """Layer norm over the channels of each pixel, in the wide dtype of ``x``, rounded to the dtype of ``x``.

    Args:
        x: (H, W, C) floating.
        gain: (C,).
        bias: (C,).

    Source:
        Restormer (Zamir et al., CVPR 2022), the layer norm with bias: population variance, 1e-5 under the root.
    """
    values = x.astype(wide_dtype(x))
    centered = values - values.mean(axis=-1, keepdims=True)
    variance = (centered * centered).mean(axis=-1, keepdims=True)
    normalized: Array = (centered / np.sqrt(variance + LAYER_NORM_EPSILON) * gain + bias).astype(x.dtype)
    return normalized


@jit
def pixels(x_ptr, y, x0, height, width, dx: tl.constexpr, C: tl.constexpr, STRIDE: tl.constexpr, TILE: tl.constexpr):
    # TILE pixels of row y, shifted by dx, and which of them lie inside the image; the others are zero.
    x = x0 + dx + tl.arange(0, TILE)
    row = y + tl.zeros([TILE], tl.int32)
    inside = ((x >= 0) & (x < width) & (row >= 0) & (row < height))[:, None]
    offset = tl.cast(y, tl.int64) * width * STRIDE
    values = tl.load(x_ptr + offset + x[:, None] * STRIDE + tl.arange(0, C)[None, :], mask=inside, other=0.0)
    return values, inside


@jit
def plain_row(x_ptr, y, x0, height, width, C: tl.constexpr, STRIDE: tl.constexpr, TILE: tl.constexpr):
    left, _ = pixels(x_ptr, y, x0, height, width, -1, C, STRIDE, TILE)
    center, _ = pixels(x_ptr, y, x0, height, width, 0, C, STRIDE, TILE)
    right, _ = pixels(x_ptr, y, x0, height, width, 1, C, STRIDE, TILE)
    return left, center, right


@jit
def first_rows(x_ptr, y0, x0, height, width, C: tl.constexpr, STRIDE: tl.constexpr, TILE: tl.constexpr):
    # What a walk that begins at row y0 holds before it loads the row below.
    above = plain_row(x_ptr, y0 - 1, x0, height, width, C, STRIDE, TILE)
    return above, plain_row(x_ptr, y0, x0, height, width, C, STRIDE, TILE)


@jit
def normalized_pixels(x_ptr, y, x0, height, width, gain, bias, dx: tl.constexpr, C: tl.constexpr, TILE: tl.constexpr):
    values, inside = pixels(x_ptr, y, x0, height, width, dx, C, C, TILE)
    wide = values.to(tl.float32)
    centered = wide - (tl.sum(wide, axis=1) / C)[:, None]
    variance = tl.sum(centered * centered, axis=1) / C
    scaled = centered * tl.rsqrt(variance + 1e-5)[:, None] * gain[None, :]
    # The padding is zero after the bias, not before it: the convolution pads what the norm returns.
    if C == 16:
        # What is centered is zero out there already. With more channels a masked bias would fill the registers.
        scaled += tl.where(inside, bias[None, :], 0.0)
    else:
        scaled = tl.where(inside, scaled + bias[None, :], 0.0)
    return scaled.to(x_ptr.dtype.element_ty)


@jit
def normalized_row(x_ptr, y, x0, height, width, gain, bias, C: tl.constexpr, TILE: tl.constexpr):
    left = normalized_pixels(x_ptr, y, x0, height, width, gain, bias, -1, C, TILE)
    center = normalized_pixels(x_ptr, y, x0, height, width, gain, bias, 0, C, TILE)
    right = normalized_pixels(x_ptr, y, x0, height, width, gain, bias, 1, C, TILE)
    return left, center, right


@jit
def first_normalized_rows(x_ptr, y0, x0, height, width, gain, bias, C: tl.constexpr, TILE: tl.constexpr):
    above = normalized_row(x_ptr, y0 - 1, x0, height, width, gain, bias, C, TILE)
    return above, normalized_row(x_ptr, y0, x0, height, width, gain, bias, C, TILE)


@jit
def matrix(w_ptr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STRIDE: tl.constexpr):
    return tl.load(w_ptr + tl.arange(0, ROWS)[:, None] * STRIDE + tl.arange(0, COLUMNS)[None, :])


@jit
def nine_taps(w_ptr, C: tl.constexpr, N: tl.constexpr, STRIDE: tl.constexpr):
    # N of the STRIDE columns of (9, C, STRIDE).
    size: tl.constexpr = C * STRIDE
    return (
        matrix(w_ptr, C, N, STRIDE),
        matrix(w_ptr + size, C, N, STRIDE),
        matrix(w_ptr + 2 * size, C, N, STRIDE),
        matrix(w_ptr + 3 * size, C, N, STRIDE),
        matrix(w_ptr + 4 * size, C, N, STRIDE),
        matrix(w_ptr + 5 * size, C, N, STRIDE),
        matrix(w_ptr + 6 * size, C, N, STRIDE),
        matrix(w_ptr + 7 * size, C, N, STRIDE),
        matrix(w_ptr + 8 * size, C, N, STRIDE),
    )


@jit
def nine_vectors(w_ptr, C: tl.constexpr):
    # (9, C): taps of a convolution from one channel, or to one.
    c = tl.arange(0, C)[None, :]
    return (
        tl.load(w_ptr + c),
        tl.load(w_ptr + C + c),
        tl.load(w_ptr + 2 * C + c),
        tl.load(w_ptr + 3 * C + c),
        tl.load(w_ptr + 4 * C + c),
        tl.load(w_ptr + 5 * C + c),
        tl.load(w_ptr + 6 * C + c),
        tl.load(w_ptr + 7 * C + c),
        tl.load(w_ptr + 8 * C + c),
    )


@jit
def _with_products(total, row, taps, first: tl.constexpr):
    # Half-precision operands go to the tensor cores; "ieee" keeps single precision what it is instead of TF32.
    for k in tl.static_range(3):
        total = tl.dot(row[k], taps[first + k], total, input_precision="ieee")
    return total


@jit
def convolved(total, above, center, below, taps):
    # For a walk that keeps rows instead of sums.
    total = _with_products(total, above, taps, 0)
    total = _with_products(total, center, taps, 3)
    return _with_products(total, below, taps, 6)


@jit
def no_sums(N: tl.constexpr, TILE: tl.constexpr):
    # Of the row above the one that comes next, of that row, and of the one below it.
    zero = tl.zeros([TILE, N], tl.float32)
    return zero, zero, zero


@jit
def moved_down(sums):
    # The first sum is complete and dropped.
    return sums[1], sums[2], tl.zeros_like(sums[0])


@jit
def with_row(sums, row, taps):
    return _with_products(sums[0], row, taps, 6), _with_products(sums[1], row, taps, 3), _with_products(sums[2], row, taps, 0)


@jit
def with_weighted_row(sums, row, vectors):
    # The row spreads over the outputs, or the sums are still to be added over the channels.
    above, center, below = sums
    for k in tl.static_range(3):
        wide = row[k].to(tl.float32)
        above += wide * vectors[6 + k]
        center += wide * vectors[3 + k]
        below += wide * vectors[k]
    return above, center, below


@jit
def first_sums(above, center, taps, N: tl.constexpr, TILE: tl.constexpr):
    # What a walk holds before it loads the row below. Products that only contribute to sums outside it are never computed.
    return with_row(moved_down(with_row(no_sums(N, TILE), above, taps)), center, taps)
