"""Histogram equalisation with limited contrast that is steady over time.

``cv2.createCLAHE`` looks at one picture only: with every picture its tables are others, and the video flickers. Here the
distributions are smoothed over time, and the contrast that a table may add is bounded, as it is added to noise, too.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from refusion_edge.arrays import Float32Array
from refusion_edge.stream.smoothing import follow_share

_BINS = 128
# Two pictures whose distributions, in so many bins, have less than this in common are of two scenes.
_LEAST_COMMON, _COARSE_BINS = 0.5, 32

Shares = NDArray[np.float32]


def limited(shares: Shares, contrast: float) -> Shares:
    """Bound the shares of a histogram, so that a table made of their sums is nowhere too steep and everywhere rising.

    What is above the bound is spread evenly, as CLAHE does it: ``min(h, (c - 1) / n) + rest / n`` is at most ``c / n``.

    Args:
        shares: (..., B) float32, each histogram with a sum of 1.
        contrast: The steepest part of the table against a straight one, c, at least 1.

    Returns:
        (..., B), each with a sum of 1; none above c times an even share.

    Source:
        Zuiderveld, "Contrast limited adaptive histogram equalization", Graphics Gems IV, 1994.
    """
    count = shares.shape[-1]
    bounded = np.minimum(shares, np.float32((contrast - 1) / count))
    spread: Shares = bounded + (1 - bounded.sum(axis=-1, keepdims=True)) / np.float32(count)
    return spread


def is_one_scene(before: Float32Array, now: Float32Array) -> bool:
    """Tell whether two pictures are of one scene, from their distributions at the edges of some bins, (B + 1,) each."""
    edges = np.linspace(0, len(now) - 1, _COARSE_BINS + 1).astype(np.int64)
    return float(np.minimum(np.diff(before[edges]), np.diff(now[edges])).sum()) >= _LEAST_COMMON


class Equaliser:
    """Equalisation whose distributions follow the scene slowly. One instance, one camera.

    Args:
        tiles: Tiles down and across, each with a table of its own; with 1 there is one for the whole picture.
        time_constant_s: How slowly they follow; 0 takes every picture on its own.
    """

    def __init__(self, tiles: int, time_constant_s: float) -> None:
        self._tiles = tiles
        self._time_constant_s = time_constant_s
        self._sums: Float32Array | None = None
        self._contrast = 1.0
        self._ends = (0.0, 1.0)
        self._time_ns = 0
        self._tables: Float32Array | None = None
        self._grid: tuple[tuple[int, ...], Float32Array, Float32Array, Float32Array] | None = None

    def update(self, sample: Float32Array, ends: tuple[float, float], time_ns: int, *, contrast: float, jumped: bool) -> None:
        """Take the measure of a picture.

        Args:
            sample: Every n-th pixel of every n-th row as luma, (H, W) float32, [0, 1].
            ends: Counts that are black and white in ``sample``; distributions of before are moved to them.
            time_ns: When it was taken.
            contrast: See ``limited``.
            jumped: Whether it is the first one of a scene.
        """
        sums = _tile_sums(sample, self._tiles)
        before = None if self._sums is None or jumped else _moved(self._sums, self._ends, ends)
        if before is not None and is_one_scene(before.mean(axis=(0, 1)), sums.mean(axis=(0, 1))):
            sums = before + np.float32(follow_share(time_ns - self._time_ns, self._time_constant_s)) * (sums - before)
        self._sums, self._ends, self._time_ns, self._contrast = sums, ends, time_ns, contrast
        self._tables = None

    def apply(self, luma: Float32Array) -> Float32Array:
        """Equalise luma of the picture of which the measure was taken.

        Args:
            luma: float32, [0, 1]; (H, W), the whole picture, or any shape where there is one table only.

        Returns:
            The same shape; between the middles of four tiles their tables blend.
        """
        if self._tables is None:
            assert self._sums is not None
            self._tables = _from_zero(limited(np.diff(self._sums, axis=2), self._contrast))
            # As a picture: a column for each column of tiles, and their rows below one another.
            self._tables = np.ascontiguousarray(self._tables.transpose(0, 2, 1).reshape(-1, self._tiles))
        if self._tiles == 1:
            return np.interp(luma, np.linspace(0, 1, _BINS + 1), self._tables[:, 0]).astype(np.float32)
        columns, rows, share = self._places(luma.shape)
        rows = rows + luma * np.float32(_BINS)
        upper = _looked_up(self._tables, columns, rows)
        rows += np.float32(_BINS + 1)
        lower = _looked_up(self._tables, columns, rows)
        lower -= upper
        lower *= share
        lower += upper
        return lower

    def reset(self) -> None:
        """Forget the scene."""
        self._sums = None

    def _places(self, shape: tuple[int, ...]) -> tuple[Float32Array, Float32Array, Float32Array]:
        """Column of the table, first row of the table of the upper tile, and share of the lower one, for each pixel."""
        if self._grid is None or self._grid[0] != shape:
            last = self._tiles - 1
            down, across = (((np.arange(side) + 0.5) * (self._tiles / side) - 0.5).clip(0, last) for side in shape)
            upper = np.minimum(down.astype(np.int64), last - 1)
            columns = np.broadcast_to(across.astype(np.float32), shape)
            rows = (upper * (_BINS + 1)).astype(np.float32)[:, None]
            self._grid = shape, np.ascontiguousarray(columns), rows, (down - upper).astype(np.float32)[:, None]
        return self._grid[1:]


def _tile_sums(sample: Float32Array, tiles: int) -> Float32Array:
    """Distribution of each tile at the edges of the bins, (tiles, tiles, 129), from 0 to 1."""
    levels = (sample * np.float32(_BINS)).astype(np.int32).clip(0, _BINS - 1)
    down, across = (np.arange(side) * tiles // side for side in sample.shape)
    bins = (down[:, None] * tiles + across) * _BINS + levels
    histogram = np.bincount(bins.ravel(), minlength=tiles * tiles * _BINS).reshape(tiles, tiles, _BINS)
    # A picture of fewer rows or columns than tiles leaves some of them empty; they get a straight table.
    shares = histogram.astype(np.float32) + np.float32(1e-3)
    return _from_zero(shares / shares.sum(axis=2, keepdims=True))


def _looked_up(tables: Float32Array, columns: Float32Array, rows: Float32Array) -> Float32Array:
    found = cv2.remap(tables, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return found.astype(np.float32, copy=False)


def _from_zero(shares: Shares) -> Float32Array:
    sums = np.zeros((*shares.shape[:-1], shares.shape[-1] + 1), np.float32)
    np.cumsum(shares, axis=-1, out=sums[..., 1:])
    return np.minimum(sums, np.float32(1))


def _moved(sums: Float32Array, before: tuple[float, float], now: tuple[float, float]) -> Float32Array:
    """Look distributions over one range of counts up at the edges of the bins of another one."""
    edges = np.linspace(*now, _BINS + 1)
    places = ((edges - before[0]) * (_BINS / (before[1] - before[0]))).clip(0, _BINS)
    left = np.minimum(places.astype(np.int64), _BINS - 1)
    share = (places - left).astype(np.float32)
    moved: Float32Array = sums[..., left] * (1 - share) + sums[..., left + 1] * share
    # What is beyond the new ends is black or white there.
    moved[..., 0], moved[..., -1] = 0, 1
    return moved
