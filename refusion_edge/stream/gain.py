"""Thermal gain control: from the counts of a sensor to the luma that is shown and fused, steady over time.

A per-frame stretch lets the whole picture jump when something hot walks in. Here, what the mapping is made of (a range, a
histogram) is smoothed over time, and the mapping itself is one table per frame.
"""

from __future__ import annotations

import cv2
import numpy as np

from refusion_edge.arrays import Array, Float32Array
from refusion_edge.errors import InputError, UsageError
from refusion_edge.rig import GAIN_METHODS, POLARITIES, GainMethod, Polarity
from refusion_edge.stream.smoothing import SmoothedRange, follow_share, inner_range

_PERCENTILES = (0.1, 99.9)
# As many pixels say where a percentile is within a thousandth of the range; more only cost time.
_SAMPLED_PIXELS = 20_000
_COUNTS = 1 << 16
# No count may take more than this many times its even share: large flat areas leave contrast to the rest.
_PLATEAU = 2.0
# Contrast that the steepest part of the table may add, against amplified noise in empty scenes. In 8 bit: OpenCV's limit is a
# share of the bins, and with 65536 of them none would ever be reached.
_CLAHE_CLIP, _CLAHE_TILES, _CLAHE_WHITE = 2.0, (8, 8), 255
# A smaller range is noise only: 8 counts are some 0.2 K of a common core.
_LEAST_RANGE = {np.dtype(np.uint8): 8.0, np.dtype(np.uint16): 8.0, np.dtype(np.float32): 1e-6}
_POLARITY_MARGIN, _POLARITY_SHARE = 0.15, 0.1


class ThermalGain:
    """Maps infrared pictures to luma. One instance, one camera; frames in order of time.

    Methods: ``linear``: darkest to brightest value. ``percentile``: from the 0.1 to the 99.9 percentile. ``plateau``:
    histogram equalisation with a plateau. ``clahe``: ``percentile`` to 8 bit, then equalisation by tiles with limited contrast.
    Pictures of 8 bit have gone through a gain control in the camera and are left as they are.

    Args:
        method: One of ``GAIN_METHODS``.
        polarity: What the camera shows hot things as: ``white``, ``black`` (inverted here), or ``auto``: whichever leaves
            the longer tail of the histogram at the bright end, as hot things are small before a wide background.
        time_constant_s: How slowly range and histogram follow; 0 for every frame on its own.

    Attributes:
        polarity: As given; it may be set at any time.

    Source:
        Plateau equalisation: Vickers, "Plateau equalization algorithm for real-time display of high-quality infrared
        imagery", Optical Engineering 35(7), 1996. CLAHE: Zuiderveld, Graphics Gems IV, 1994, as in cv2.createCLAHE.
    """

    def __init__(
        self, method: GainMethod = "percentile", *, polarity: Polarity = "white", time_constant_s: float = 1.0
    ) -> None:
        if method not in GAIN_METHODS:
            raise UsageError(f"expected a gain control out of {', '.join(GAIN_METHODS)}, got '{method}'.")
        if polarity not in POLARITIES:
            raise UsageError(f"expected a polarity out of {', '.join(POLARITIES)}, got '{polarity}'.")
        if not 0 <= time_constant_s <= 3600:
            raise UsageError(f"expected a time constant from 0 to 3600 s, got {time_constant_s:g}; choose one of them.")
        self.method = method
        self.polarity = polarity
        self._time_constant_s = time_constant_s
        self._range = SmoothedRange(time_constant_s)
        self._ends = (0.0, 1.0)
        self._histogram: Float32Array | None = None
        self._histogram_ns = 0
        self._table: Float32Array | None = None
        self._tail: float | None = None
        self._inverted = False
        self._layout: tuple[tuple[int, ...], object] = ((), None)
        self._clahe = cv2.createCLAHE(_CLAHE_CLIP, _CLAHE_TILES)

    def update(self, picture: Array, time_ns: int) -> None:
        """Take the measure of a whole frame.

        Args:
            picture: (H, W) or (H, W, 3) BGR; uint8, uint16 or float32.
            time_ns: When it was taken.

        Raises:
            InputError: It holds NaN or infinities.
        """
        if self._layout != (picture.shape, picture.dtype):
            self.reset()
            self._layout = (picture.shape, picture.dtype)
        sample = _sample(picture)
        if picture.dtype != np.uint8:
            if picture.dtype == np.float32 and not np.isfinite(picture).all():
                raise InputError("expected finite infrared values, got NaN or infinity; repair or mask them first.")
            self._follow(picture, sample, time_ns)
        self._table = None
        if self.polarity == "auto":
            self._find_polarity(self._map(sample))

    def apply(self, picture: Array) -> Float32Array:
        """Map the frame of which the measure was taken.

        Args:
            picture: As for ``update``.

        Returns:
            (H, W) float32, [0, 1], hot is bright.
        """
        luma = self._map(_plane(picture))
        if self.method == "clahe" and picture.dtype != np.uint8:
            scaled = np.rint(luma * np.float32(_CLAHE_WHITE)).astype(np.uint8)
            luma = self._clahe.apply(scaled).astype(np.float32) / np.float32(_CLAHE_WHITE)
        return np.float32(1) - luma if self._is_black_hot() else luma

    def reset(self) -> None:
        """Forget the scene, for a camera that was lost or changed its format."""
        self._range.reset()
        self._histogram = None
        self._table = None
        self._tail = None

    def _follow(self, picture: Array, sample: Array, time_ns: int) -> None:
        if self.method == "linear":
            low, high = float(picture.min()), float(picture.max())
        else:
            low, high = inner_range(sample, _PERCENTILES)
        lacking = max(0.0, _LEAST_RANGE[picture.dtype] - (high - low)) / 2
        self._ends = self._range.update(low - lacking, high + lacking, time_ns)
        if self.method == "plateau":
            self._follow_histogram(sample, time_ns)

    def _follow_histogram(self, sample: Array, time_ns: int) -> None:
        """Smooth the histogram of counts; by itself it does not depend on the range, so that both can move."""
        counts = sample.ravel() if sample.dtype == np.uint16 else self._to_counts(sample).ravel()
        histogram = np.bincount(counts, minlength=_COUNTS).astype(np.float32) / np.float32(counts.size)
        if self._histogram is None or self._range.jumped:
            self._histogram = histogram
        else:
            share = np.float32(follow_share(time_ns - self._histogram_ns, self._time_constant_s))
            self._histogram += share * (histogram - self._histogram)
        self._histogram_ns = time_ns

    def _to_counts(self, plane: Array) -> Array:
        """Float pictures in counts over the range of now."""
        low, high = self._ends
        scaled = (plane - np.float32(low)) * np.float32((_COUNTS - 1) / (high - low))
        counts: Array = np.rint(scaled).clip(0, _COUNTS - 1).astype(np.uint16)
        return counts

    def _map(self, plane: Array) -> Float32Array:
        if plane.dtype == np.uint8:
            return plane * np.float32(1 / 255)
        if self.method == "plateau" or plane.dtype == np.uint16:
            # One pass over a table is several times faster than arithmetic on the picture.
            if self._table is None:
                self._table = self._plateau_table() if self.method == "plateau" else self._linear_table()
            return _look_up(plane if plane.dtype == np.uint16 else self._to_counts(plane), self._table)
        low, high = self._ends
        scaled: Float32Array = ((plane - np.float32(low)) * np.float32(1 / (high - low))).clip(0, 1)
        return scaled

    def _linear_table(self) -> Float32Array:
        low, high = self._ends
        first, last = (int(min(_COUNTS - 1.0, max(0.0, end))) for end in self._ends)
        table = np.zeros(_COUNTS, np.float32)
        ramp = (np.arange(first, last + 1, dtype=np.float32) - np.float32(low)) * np.float32(1 / (high - low))
        table[first : last + 1] = ramp.clip(0, 1)
        table[last + 1 :] = 1.0
        return table

    def _plateau_table(self) -> Float32Array:
        assert self._histogram is not None
        occupied = max(1.0, self._ends[1] - self._ends[0]) if self._layout[1] != np.float32 else float(_COUNTS)
        limited = np.minimum(self._histogram, np.float32(_PLATEAU / occupied))
        # The middle of each step, so that black and white are equally far away.
        heights = np.cumsum(limited, dtype=np.float64)
        table: Float32Array = ((heights - limited / 2) / max(heights[-1], 1e-12)).clip(0, 1).astype(np.float32)
        return table

    def _is_black_hot(self) -> bool:
        return self._inverted if self.polarity == "auto" else self.polarity == "black"

    def _find_polarity(self, sample: Float32Array) -> None:
        low, middle, high = np.percentile(sample, (1, 50, 99))
        # Where the longer tail is, -1 dark to 1 bright; smoothed, and with a margin, so that it does not flip to and fro.
        tail = float((high + low - 2 * middle) / max(1 / 255, high - low))
        self._tail = tail if self._tail is None else self._tail + _POLARITY_SHARE * (tail - self._tail)
        if abs(self._tail) > _POLARITY_MARGIN:
            self._inverted = self._tail < 0


def _look_up(plane: Array, table: Float32Array) -> Float32Array:
    """``table[plane]`` of 65536 values, four times faster where OpenCV can do it (since 5.0)."""
    try:
        return cv2.LUT(plane, table).astype(np.float32, copy=False)
    except cv2.error:
        return np.take(table, plane, mode="clip")


def _plane(picture: Array) -> Array:
    return picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)


def _sample(picture: Array) -> Array:
    step = max(1, int((picture.shape[0] * picture.shape[1] / _SAMPLED_PIXELS) ** 0.5))
    return _plane(np.ascontiguousarray(picture[::step, ::step]))
