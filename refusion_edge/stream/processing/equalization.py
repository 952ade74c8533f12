"""Contrast-limited histogram equalization that is stable over time.

``cv2.createCLAHE`` sees a single image: its tables change with every image, and the video flickers. Here the distributions are
smoothed over time, and the contrast that a table can add is bounded, as it also amplifies noise.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from refusion_edge.arrays import Float32Array
from refusion_edge.stream.processing.smoothing import follow_share

_BINS = 128
# Rows of pixels per call of cv2.remap, which can address at most 32767 rows of tables.
_BAND_ROWS = 120
# Two images whose distributions, in this many bins, overlap by less than this share show different scenes.
_MIN_COMMON, _COARSE_BINS = 0.5, 32

Shares = NDArray[np.float32]


def limited(shares: Shares, contrast: float) -> Shares:
    """Bound the shares of a histogram, so that the table of their sums rises everywhere and is nowhere too steep.

    The excess above the bound is spread evenly, as in CLAHE: ``min(h, (c - 1) / n) + rest / n`` is at most ``c / n``.

    Args:
        shares: (..., B) float32, each histogram with a sum of 1.
        contrast: Maximum slope of the table relative to a linear one, c, at least 1.

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
    """Whether two images show the same scene, by their cumulative distributions at the bin edges, (B + 1,) each."""
    edges = np.linspace(0, len(now) - 1, _COARSE_BINS + 1).astype(np.int64)
    return float(np.minimum(np.diff(before[edges]), np.diff(now[edges])).sum()) >= _MIN_COMMON


class Equalizer:
    """Equalization whose distributions follow the scene slowly. Use one instance per camera.

    Args:
        tiles: Number of tiles in each direction, each with its own table; 1 for a single table.
        time_constant_s: Time constant of the distributions; 0 treats every image on its own.
    """

    def __init__(self, tiles: int, time_constant_s: float) -> None:
        self._tiles = tiles
        self._time_constant_s = time_constant_s
        self._sums: Float32Array | None = None
        self._contrast = 1.0
        self._ends = (0.0, 1.0)
        self._time_ns = 0
        # One table, or one for each row of pixels with a column for each column of tiles; made on demand.
        self._tables: Float32Array | None = None
        self._grid: Float32Array | None = None
        self._first_rows = (np.arange(_BAND_ROWS, dtype=np.float32) * np.float32(_BINS + 1))[:, None]

    def update(
        self,
        sample: Float32Array,
        ends: tuple[float, float],
        time_ns: int,
        *,
        contrast: float,
        jumped: bool,
        known: NDArray[np.bool_] | None = None,
    ) -> None:
        """Update the distributions from an image.

        Args:
            sample: Luma of every n-th pixel of every n-th row, (H, W) float32, [0, 1].
            ends: Counts that are black and white in ``sample``; earlier distributions are mapped to them.
            time_ns: Capture time.
            contrast: See ``limited``.
            jumped: Whether the image is the first one of a scene.
            known: (H, W), True where ``sample`` has a value; None if it has one everywhere.
        """
        sums = _tile_sums(sample, self._tiles, known)
        before = None if self._sums is None or jumped else _moved(self._sums, self._ends, ends)
        if before is not None and is_one_scene(before.mean(axis=(0, 1)), sums.mean(axis=(0, 1))):
            sums = before + np.float32(follow_share(time_ns - self._time_ns, self._time_constant_s)) * (sums - before)
        self._sums, self._ends, self._time_ns, self._contrast = sums, ends, time_ns, contrast
        self._tables = None

    def apply(self, luma: Float32Array) -> Float32Array:
        """Equalize the luma of the image of the last ``update``.

        Args:
            luma: float32, [0, 1]; the whole image, (H, W), or any shape if there is a single table.

        Returns:
            The same shape; between the middles of four tiles their tables blend.
        """
        if self._tiles == 1:
            if self._tables is None:
                self._tables = self._tile_tables()[0, 0]
            return np.interp(luma, np.linspace(0, 1, _BINS + 1), self._tables).astype(np.float32)
        columns = self._columns(luma.shape)
        if self._tables is None:
            # One table for each row of pixels, so that a single lookup interpolates between columns of tiles and between bins.
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
        """Reset to the state before the first image."""
        self._sums = None

    def _tile_tables(self) -> Float32Array:
        """Luma at the bin edges for each tile, (tiles, tiles, 129)."""
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
    """Interpolate tables of tile rows, (tiles, n), to pixel rows, (rows, n), linearly between the centers of tiles."""
    return cv2.resize(tables, (tables.shape[1], rows), interpolation=cv2.INTER_LINEAR).astype(np.float32, copy=False)


def _tile_sums(sample: Float32Array, tiles: int, known: NDArray[np.bool_] | None) -> Float32Array:
    """Cumulative distribution of each tile at the bin edges, (tiles, tiles, 129), from 0 to 1."""
    bins = (sample * np.float32(_BINS) if known is None else np.where(known, sample, 0) * np.float32(_BINS)).astype(np.int32)
    np.minimum(bins, _BINS - 1, out=bins)
    bins += _first_bins(sample.shape, tiles)
    counted = bins.ravel() if known is None else bins[known]
    histogram = np.bincount(counted, minlength=tiles * tiles * _BINS).reshape(tiles, tiles, _BINS)
    # In an image with fewer rows or columns than tiles, some tiles are empty; they get a linear table.
    shares = histogram.astype(np.float32) + np.float32(1e-3)
    return _from_zero(shares / shares.sum(axis=2, keepdims=True))


@lru_cache(maxsize=4)
def _first_bins(shape: tuple[int, ...], tiles: int) -> NDArray[np.int32]:
    """Index of the first bin of the tile that each pixel belongs to, (H, W)."""
    down, across = (np.arange(side) * tiles // side for side in shape)
    return ((down[:, None] * tiles + across) * _BINS).astype(np.int32)


def _from_zero(shares: Shares) -> Float32Array:
    sums = np.zeros((*shares.shape[:-1], shares.shape[-1] + 1), np.float32)
    np.cumsum(shares, axis=-1, out=sums[..., 1:])
    return np.minimum(sums, np.float32(1))


def _moved(sums: Float32Array, before: tuple[float, float], now: tuple[float, float]) -> Float32Array:
    """Resample distributions from one range of counts to the bin edges of another."""
    edges = np.linspace(*now, _BINS + 1)
    places = ((edges - before[0]) * (_BINS / (before[1] - before[0]))).clip(0, _BINS)
    left = np.minimum(places.astype(np.int64), _BINS - 1)
    share = (places - left).astype(np.float32)
    moved: Float32Array = sums[..., left] * (1 - share) + sums[..., left + 1] * share
    # Counts beyond the new ends become black or white.
    moved[..., 0], moved[..., -1] = 0, 1
    return moved
