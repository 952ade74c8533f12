"""Thermal gain control: maps the counts of a sensor to the luma that is shown and fused, stable over time.

With a per-frame stretch, the whole image jumps when something hot enters. Here the inputs of the mapping (a range, a histogram)
are smoothed over time, and the mapping itself is one table per frame.
"""

from __future__ import annotations

import cv2
import numpy as np

from refusion_edge.arrays import Array, Float32Array
from refusion_edge.errors import InputError, UsageError
from refusion_edge.rig.model import GAIN_METHODS, POLARITIES, GainMethod, Polarity
from refusion_edge.stream.frames import SECOND
from refusion_edge.stream.processing.equalization import Equalizer
from refusion_edge.stream.processing.smoothing import SmoothedRange, follow_share, inner_range

_PERCENTILES = (0.1, 99.9)
# This many pixels give a percentile to a thousandth of the range; more only take time.
_SAMPLED_PIXELS = 20_000
_COUNTS = 1 << 16
# A smaller range is only noise: 8 counts are some 0.2 K for a common core.
_MIN_RANGE = {np.dtype(np.uint8): 8.0, np.dtype(np.uint16): 8.0, np.dtype(np.float32): 1e-6}
_POLARITY_MARGIN, _POLARITY_SHARE = 0.15, 0.1
_TILES = 8
# Equalization adds contrast to the scene and to the sensor noise: at least the minimum, and more as long as the noise stays
# below this many of 255 levels.
_MIN_CONTRAST, _MAX_CONTRAST, _MAX_NOISE_LEVELS = 1.5, 4.0, 1.75
# Sensor noise changes slowly, with the temperature of the sensor.
_NOISE_EVERY_NS = SECOND // 5
# The second difference of noise has sqrt(6) times its standard deviation; the median of its magnitude is 0.6745 times that.
_NOISE_OF_MEDIAN = 1 / (0.6745 * 6**0.5)


class ThermalGain:
    """Maps infrared images to luma. Use one instance per camera, with frames in order of time.

    Methods: ``linear`` stretches from the darkest to the brightest value, ``percentile`` from the 0.1 to the 99.9 percentile.
    ``plateau`` adds histogram equalization with a plateau, ``clahe`` the same by tiles. Both raise contrast by a factor of at
    most 1.5 to 4, less for noisier images. 8-bit images have already passed through a gain control in the camera and stay
    unchanged.

    Args:
        method: One of ``GAIN_METHODS``.
        polarity: How the camera shows hot objects: ``white``, ``black`` (inverted here), or ``auto``, which puts the longer
            tail of the histogram at the bright end, as hot objects are small in front of a wide background.
        time_constant_s: Time constant of range and histogram; 0 treats every frame on its own.

    Attributes:
        polarity: As passed; it may be set at any time.

    Source:
        Plateau equalization: Vickers, "Plateau equalization algorithm for real-time display of high-quality infrared
        imagery", Optical Engineering 35(7), 1996. CLAHE: see ``equalization``.
    """

    def __init__(
        self, method: GainMethod = "percentile", *, polarity: Polarity = "white", time_constant_s: float = 1.0
    ) -> None:
        if method not in GAIN_METHODS:
            raise UsageError(
                f"there is no gain control '{method}'",
                f"choose one of {', '.join(GAIN_METHODS)}",
                expected=tuple(GAIN_METHODS),
                got=method,
            )
        if polarity not in POLARITIES:
            raise UsageError(
                f"there is no polarity '{polarity}'",
                f"choose one of {', '.join(POLARITIES)}",
                expected=tuple(POLARITIES),
                got=polarity,
            )
        if not 0 <= time_constant_s <= 3600:
            raise UsageError(
                f"a time constant of {time_constant_s:g} s is out of range",
                "choose one from 0 to 3600 s",
                expected=(0, 3600),
                got=time_constant_s,
            )
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
        self._equalizer = None if tiles is None else Equalizer(tiles, time_constant_s)

    def update(self, image: Array, time_ns: int) -> None:
        """Update range, histogram and polarity from a frame.

        Args:
            image: (H, W) or (H, W, 3) BGR; uint8, uint16 or float32.
            time_ns: Capture time.

        Raises:
            InputError: The image holds NaN or infinities.
        """
        if self._layout != (image.shape, image.dtype):
            self.reset()
            self._layout = (image.shape, image.dtype)
        sample = _sample(image)
        if image.dtype != np.uint8:
            if image.dtype == np.float32 and not np.isfinite(image).all():
                raise InputError("the infrared image holds NaN or infinity", "repair or mask these values first")
            self._follow(image, sample, time_ns)
        self._table = None
        if self.polarity == "auto":
            self._find_polarity(self._straight(sample))

    def apply(self, image: Array) -> Float32Array:
        """Map the frame of the last ``update``.

        Args:
            image: As for ``update``.

        Returns:
            (H, W) float32, [0, 1], hot is bright.
        """
        luma = self._map(_plane(image))
        if self.method == "clahe" and self._equalizer is not None and image.dtype != np.uint8:
            luma = self._equalizer.apply(luma)
        return np.float32(1) - luma if self._is_black_hot() else luma

    def reset(self) -> None:
        """Forget the scene, after the loss of a camera or a change of its format."""
        self._range.reset()
        if self._equalizer is not None:
            self._equalizer.reset()
        self._table = None
        self._tail = None

    def _follow(self, image: Array, sample: Array, time_ns: int) -> None:
        if self.method == "linear":
            low, high = float(image.min()), float(image.max())
        else:
            low, high = inner_range(sample, _PERCENTILES)
        lacking = max(0.0, _MIN_RANGE[image.dtype] - (high - low)) / 2
        self._ends = self._range.update(low - lacking, high + lacking, time_ns)
        if self._equalizer is None:
            return
        jumped, since_ns = self._range.jumped, time_ns - self._measured_ns
        if jumped or not 0 <= since_ns < _NOISE_EVERY_NS:
            share = 1.0 if jumped else follow_share(since_ns, self._time_constant_s)
            self._noise += share * (_noise(image) - self._noise)
            self._measured_ns = time_ns
        self._equalizer.update(self._straight(sample), self._ends, time_ns, contrast=self._contrast(), jumped=jumped)

    def _contrast(self) -> float:
        """Maximum slope of the equalization table relative to a linear one."""
        levels = 255 * self._noise / (self._ends[1] - self._ends[0])
        return min(_MAX_CONTRAST, max(_MIN_CONTRAST, _MAX_NOISE_LEVELS / max(levels, 1e-6)))

    def _straight(self, plane: Array) -> Float32Array:
        """Luma without equalization."""
        if plane.dtype == np.uint8:
            return plane * np.float32(1 / 255)
        low, high = self._ends
        scaled: Float32Array = ((plane - np.float32(low)) * np.float32(1 / (high - low))).clip(0, 1)
        return scaled

    def _map(self, plane: Array) -> Float32Array:
        """Luma after all mappings that do not depend on the position in the image."""
        if plane.dtype == np.uint16:
            # One pass over a table is several times faster than arithmetic on the image.
            if self._table is None:
                self._table = self._make_table()
            return _look_up(plane, self._table)
        luma = self._straight(plane)
        if self.method == "plateau" and self._equalizer is not None and plane.dtype != np.uint8:
            luma = self._equalizer.apply(luma)
        return luma

    def _make_table(self) -> Float32Array:
        first, last = (int(min(_COUNTS - 1.0, max(0.0, end))) for end in self._ends)
        ramp = self._straight(np.arange(first, last + 1, dtype=np.float32))
        if self.method == "plateau" and self._equalizer is not None:
            ramp = self._equalizer.apply(ramp)
        table = np.zeros(_COUNTS, np.float32)
        table[first : last + 1] = ramp
        table[last + 1 :] = 1.0
        return table

    def _is_black_hot(self) -> bool:
        return self._inverted if self.polarity == "auto" else self.polarity == "black"

    def _find_polarity(self, sample: Float32Array) -> None:
        low, middle, high = np.percentile(sample, (1, 50, 99))
        # Side of the longer tail, from -1 (dark) to 1 (bright); smoothing and a margin keep it from flipping back and forth.
        tail = float((high + low - 2 * middle) / max(1 / 255, high - low))
        self._tail = tail if self._tail is None else self._tail + _POLARITY_SHARE * (tail - self._tail)
        if abs(self._tail) > _POLARITY_MARGIN:
            self._inverted = self._tail < 0


def _look_up(plane: Array, table: Float32Array) -> Float32Array:
    """``table[plane]`` for 65536 values, four times faster if OpenCV supports it (since 5.0)."""
    try:
        return cv2.LUT(plane, table).astype(np.float32, copy=False)
    except cv2.error:
        return np.take(table, plane, mode="clip")


def _plane(image: Array) -> Array:
    return image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)


def _sample(image: Array) -> Array:
    step = max(1, int((image.shape[0] * image.shape[1] / _SAMPLED_PIXELS) ** 0.5))
    return _plane(np.ascontiguousarray(image[::step, ::step]))


def _noise(image: Array) -> float:
    """Standard deviation of the noise, from second differences along a sample of rows; texture counts as noise."""
    step = max(1, image.shape[0] * image.shape[1] // _SAMPLED_PIXELS)
    rows = _plane(np.ascontiguousarray(image[::step])).astype(np.float32)
    bends = np.abs(rows[:, 2:] - 2 * rows[:, 1:-1] + rows[:, :-2])
    return float(np.median(bends)) * _NOISE_OF_MEDIAN if bends.size else 0.0
