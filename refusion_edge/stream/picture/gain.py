"""Thermal gain control: from the counts of a sensor to the luma that is shown and fused, steady over time.

A per-frame stretch lets the whole picture jump when something hot walks in. Here, what the mapping is made of (a range, a
histogram) is smoothed over time, and the mapping itself is one table per frame.
"""

from __future__ import annotations

import cv2
import numpy as np

from refusion_edge.arrays import Array, Float32Array
from refusion_edge.errors import InputError, UsageError
from refusion_edge.rig.model import GAIN_METHODS, POLARITIES, GainMethod, Polarity
from refusion_edge.stream.frames import SECOND
from refusion_edge.stream.picture.equalization import Equaliser
from refusion_edge.stream.picture.smoothing import SmoothedRange, follow_share, inner_range

_PERCENTILES = (0.1, 99.9)
# As many pixels say where a percentile is within a thousandth of the range; more only cost time.
_SAMPLED_PIXELS = 20_000
_COUNTS = 1 << 16
# A smaller range is noise only: 8 counts are some 0.2 K of a common core.
_LEAST_RANGE = {np.dtype(np.uint8): 8.0, np.dtype(np.uint16): 8.0, np.dtype(np.float32): 1e-6}
_POLARITY_MARGIN, _POLARITY_SHARE = 0.15, 0.1
_TILES = 8
# Equalisation adds contrast to a scene, and to the noise of the sensor: at least so much of it, and more as long as the noise
# stays below so many of 255 levels.
_LEAST_CONTRAST, _MOST_CONTRAST, _MOST_NOISE_LEVELS = 1.5, 4.0, 1.75
# The noise of a sensor changes with its temperature, not with the frame.
_NOISE_EVERY_NS = SECOND // 5
# A second difference of noise has sqrt(6) times its standard deviation; the median of its magnitude is 0.6745 of that.
_NOISE_OF_MEDIAN = 1 / (0.6745 * 6**0.5)


class ThermalGain:
    """Maps infrared pictures to luma. One instance, one camera; frames in order of time.

    Methods: ``linear``: darkest to brightest value. ``percentile``: from the 0.1 to the 99.9 percentile. ``plateau``: the same,
    then histogram equalisation with a plateau. ``clahe``: the same by tiles. Both raise contrast 1.5 to 4 times at most, the
    less the more noise the picture holds.
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
        imagery", Optical Engineering 35(7), 1996. CLAHE: see ``equalisation``.
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
        self._measured_ns = 0
        self._noise = 0.0
        self._table: Float32Array | None = None
        self._tail: float | None = None
        self._inverted = False
        self._layout: tuple[tuple[int, ...], object] = ((), None)
        tiles = {"plateau": 1, "clahe": _TILES}.get(method)
        self._equaliser = None if tiles is None else Equaliser(tiles, time_constant_s)

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
            self._find_polarity(self._straight(sample))

    def apply(self, picture: Array) -> Float32Array:
        """Map the frame of which the measure was taken.

        Args:
            picture: As for ``update``.

        Returns:
            (H, W) float32, [0, 1], hot is bright.
        """
        luma = self._map(_plane(picture))
        if self.method == "clahe" and self._equaliser is not None and picture.dtype != np.uint8:
            luma = self._equaliser.apply(luma)
        return np.float32(1) - luma if self._is_black_hot() else luma

    def reset(self) -> None:
        """Forget the scene, for a camera that was lost or changed its format."""
        self._range.reset()
        if self._equaliser is not None:
            self._equaliser.reset()
        self._table = None
        self._tail = None

    def _follow(self, picture: Array, sample: Array, time_ns: int) -> None:
        if self.method == "linear":
            low, high = float(picture.min()), float(picture.max())
        else:
            low, high = inner_range(sample, _PERCENTILES)
        lacking = max(0.0, _LEAST_RANGE[picture.dtype] - (high - low)) / 2
        self._ends = self._range.update(low - lacking, high + lacking, time_ns)
        if self._equaliser is None:
            return
        jumped, since_ns = self._range.jumped, time_ns - self._measured_ns
        if jumped or not 0 <= since_ns < _NOISE_EVERY_NS:
            share = 1.0 if jumped else follow_share(since_ns, self._time_constant_s)
            self._noise += share * (_noise(picture) - self._noise)
            self._measured_ns = time_ns
        self._equaliser.update(self._straight(sample), self._ends, time_ns, contrast=self._contrast(), jumped=jumped)

    def _contrast(self) -> float:
        """How steep the table of an equalisation may be against a straight one."""
        levels = 255 * self._noise / (self._ends[1] - self._ends[0])
        return min(_MOST_CONTRAST, max(_LEAST_CONTRAST, _MOST_NOISE_LEVELS / max(levels, 1e-6)))

    def _straight(self, plane: Array) -> Float32Array:
        """Luma without equalisation."""
        if plane.dtype == np.uint8:
            return plane * np.float32(1 / 255)
        low, high = self._ends
        scaled: Float32Array = ((plane - np.float32(low)) * np.float32(1 / (high - low))).clip(0, 1)
        return scaled

    def _map(self, plane: Array) -> Float32Array:
        """Luma by what does not depend on the place in the picture."""
        if plane.dtype == np.uint16:
            # One pass over a table is several times faster than arithmetic on the picture.
            if self._table is None:
                self._table = self._make_table()
            return _look_up(plane, self._table)
        luma = self._straight(plane)
        if self.method == "plateau" and self._equaliser is not None and plane.dtype != np.uint8:
            luma = self._equaliser.apply(luma)
        return luma

    def _make_table(self) -> Float32Array:
        first, last = (int(min(_COUNTS - 1.0, max(0.0, end))) for end in self._ends)
        ramp = self._straight(np.arange(first, last + 1, dtype=np.float32))
        if self.method == "plateau" and self._equaliser is not None:
            ramp = self._equaliser.apply(ramp)
        table = np.zeros(_COUNTS, np.float32)
        table[first : last + 1] = ramp
        table[last + 1 :] = 1.0
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


def _noise(picture: Array) -> float:
    """Standard deviation of the noise, from the second differences of neighbours in some rows; texture counts as noise."""
    step = max(1, picture.shape[0] * picture.shape[1] // _SAMPLED_PIXELS)
    rows = _plane(np.ascontiguousarray(picture[::step])).astype(np.float32)
    bends = np.abs(rows[:, 2:] - 2 * rows[:, 1:-1] + rows[:, :-2])
    return float(np.median(bends)) * _NOISE_OF_MEDIAN if bends.size else 0.0
