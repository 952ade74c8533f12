"""Histogram equalisation with limited contrast that is steady over time.

``cv2.createCLAHE`` looks at one picture only: with every picture its tables are others, and the video flickers. Here the
distributions are smoothed over time, and the contrast that a table may add is bounded, as it is added to noise, too.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from refusion_edge.arrays import Float32Array
from refusion_edge.stream.picture.smoothing import follow_share

_BINS = 128
# Rows of pixels whose tables are looked up at a time, as cv2.remap can address 32767 rows of them.
_BAND_ROWS = 120
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
        # One table, or one for each row of pixels with a column for each column of tiles; made when it is asked for.
        self._tables: Float32Array | None = None
        self._grid: Float32Array | None = None
        self._first_rows = (np.arange(_BAND_ROWS, dtype=np.float32) * np.float32(_BINS + 1))[:, None]

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
        if self._tiles == 1:
            if self._tables is None:
                self._tables = self._tile_tables()[0, 0]
            return np.interp(luma, np.linspace(0, 1, _BINS + 1), self._tables).astype(np.float32)
        columns = self._columns(luma.shape)
        if self._tables is None:
            # One table for each row of pixels, so that one look-up blends columns of tiles and bins.
            tables = np.ascontiguousarray(self._tile_tables().transpose(0, 2, 1)).reshape(self._tiles, -1)
            self._tables = _blended(tables, len(luma)).reshape(len(luma), -1, self._tiles)
        equal = np.empty_like(luma)
        for top in range(0, len(luma), _BAND_ROWS):
            part = slice(top, top + _BAND_ROWS)
            rows = luma[part] * np.float32(_BINS)
            rows += self._first_rows[: len(rows)]
            tables = self._tables[part].reshape(-1, self._tiles)
            cv2.remap(tables, columns[part], rows, cv2.INTER_LINEAR, dst=equal[part], borderMode=cv2.BORDER_REPLICATE)
        return equal

    def reset(self) -> None:
        """Forget the scene."""
        self._sums = None

    def _tile_tables(self) -> Float32Array:
        """Luma at the edges of the bins for each tile, (tiles, tiles, 129)."""
        assert self._sums is not None
        return _from_zero(limited(np.diff(self._sums, axis=2), self._contrast))

    def _columns(self, shape: tuple[int, ...]) -> Float32Array:
        """Column of the table for each pixel."""
        if self._grid is None or self._grid.shape != shape:
            self._tables = None
            across = ((np.arange(shape[1]) + 0.5) * (self._tiles / shape[1]) - 0.5).clip(0, self._tiles - 1)
            self._grid = np.ascontiguousarray(np.broadcast_to(across.astype(np.float32), shape))
        return self._grid


def _blended(tables: Float32Array, rows: int) -> Float32Array:
    """Tables of rows of tiles, (tiles, n), to one for each row of pixels, (rows, n), linear between the middles of tiles."""
    return cv2.resize(tables, (tables.shape[1], rows), interpolation=cv2.INTER_LINEAR).astype(np.float32, copy=False)


def _tile_sums(sample: Float32Array, tiles: int) -> Float32Array:
    """Distribution of each tile at the edges of the bins, (tiles, tiles, 129), from 0 to 1."""
    bins = (sample * np.float32(_BINS)).astype(np.int32)
    np.minimum(bins, _BINS - 1, out=bins)
    bins += _first_bins(sample.shape, tiles)
    histogram = np.bincount(bins.ravel(), minlength=tiles * tiles * _BINS).reshape(tiles, tiles, _BINS)
    # A picture of fewer rows or columns than tiles leaves some of them empty; they get a straight table.
    shares = histogram.astype(np.float32) + np.float32(1e-3)
    return _from_zero(shares / shares.sum(axis=2, keepdims=True))


@lru_cache(maxsize=4)
def _first_bins(shape: tuple[int, ...], tiles: int) -> NDArray[np.int32]:
    """Number of the first bin of the tile of each pixel, for the whole picture."""
    down, across = (np.arange(side) * tiles // side for side in shape)
    return ((down[:, None] * tiles + across) * _BINS).astype(np.int32)


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
