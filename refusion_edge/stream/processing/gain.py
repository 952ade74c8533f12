"""Thermal gain control: maps the counts of a sensor to the luma that is shown and fused, stable over time.

With a per-frame stretch, the whole image jumps when something hot enters. Here the inputs of the mapping (a range, a histogram)
are smoothed over time, and the mapping itself is one table per frame. Ranges and pixels without a value are found as for
single images, by ``refusion_edge.images.ranges``.
"""

from __future__ import annotations

import cv2
import numpy as np

from refusion_edge.arrays import Array, Float32Array
from refusion_edge.errors import InputError, UsageError
from refusion_edge.images.ranges import Mask, find_invalid, own_range, without_saturation
from refusion_edge.rig.model import GAIN_METHODS, POLARITIES, GainMethod, Polarity
from refusion_edge.stream.frames import SECOND
from refusion_edge.stream.processing.equalization import Equalizer
from refusion_edge.stream.processing.noise import noise_limited
from refusion_edge.stream.processing.smoothing import SmoothedRange, follow_share

# This many pixels give a histogram that is right to a thousandth of the range; more only take time.
_SAMPLED_PIXELS = 20_000
_COUNTS = 1 << 16
# A smaller range is only noise: 8 counts are some 0.2 K for a common core.
_MIN_COUNTS, _MIN_FLOAT = 8.0, 1e-6
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

    Methods: ``linear`` stretches from the darkest to the brightest value, ``percentile`` over the scene's own range, without
    outliers, as ``fuse`` does. Of either range, noise is a fortieth at most.
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
        invalid: (H, W), True where the frame of the last ``update`` has no value; None if it has one everywhere. Such pixels
            have no part in range and histogram.

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
        self.invalid: Mask | None = None
        tiles = {"plateau": 1, "clahe": _TILES}.get(method)
        self._equalizer = None if tiles is None else Equalizer(tiles, time_constant_s)

    def update(self, image: Array, time_ns: int) -> None:
        """Update range, histogram and polarity from a frame.

        Args:
            image: (H, W) or (H, W, 3) BGR of whole or float numbers.
            time_ns: Capture time.

        Raises:
            InputError: No pixel has a value.
        """
        if self._layout != (image.shape, image.dtype):
            self.reset()
            self._layout = (image.shape, image.dtype)
        plane = _plane(image)
        self.invalid = None if image.dtype == np.uint8 else find_invalid(plane, isolated=True)
        if image.dtype != np.uint8:
            self._follow(plane, time_ns)
        self._table = None
        if self.polarity == "auto":
            straight, known = self._straight(_sample(plane)), None if self.invalid is None else ~_sample(self.invalid)
            if known is None or known.any():
                self._find_polarity(straight if known is None else straight[known])

    def apply(self, image: Array) -> Float32Array:
        """Map the frame of the last ``update``.

        Args:
            image: As for ``update``.

        Returns:
            (H, W) float32, [0, 1], hot is bright; 0 where the frame has no value.
        """
        plane = _plane(image)
        if self.invalid is not None and plane.dtype.kind == "f":
            plane = np.where(self.invalid, plane.dtype.type(self._ends[0]), plane)
        luma = self._map(plane)
        if self.method == "clahe" and self._equalizer is not None and image.dtype != np.uint8:
            luma = self._equalizer.apply(luma)
        if self._is_black_hot():
            luma = np.float32(1) - luma
        if self.invalid is not None:
            luma[self.invalid] = 0
        return luma

    def reset(self) -> None:
        """Forget the scene, after the loss of a camera or a change of its format."""
        self._range.reset()
        if self._equalizer is not None:
            self._equalizer.reset()
        self._table = None
        self._tail = None

    def _follow(self, plane: Array, time_ns: int) -> None:
        values = plane if self.invalid is None else plane[~self.invalid]
        if not values.size:
            raise InputError("no pixel of the infrared image has a value", "check the camera, or how the file was made")
        measured = without_saturation(values)
        low, high = (float(measured.min()), float(measured.max())) if self.method == "linear" else own_range(measured)
        low, high = noise_limited(low, high, plane, self.invalid)
        lacking = max(0.0, (_MIN_FLOAT if plane.dtype.kind == "f" else _MIN_COUNTS) - (high - low)) / 2
        self._ends = self._range.update(low - lacking, high + lacking, time_ns)
        if self._equalizer is None:
            return
        jumped, since_ns = self._range.jumped, time_ns - self._measured_ns
        if jumped or not 0 <= since_ns < _NOISE_EVERY_NS:
            share = 1.0 if jumped else follow_share(since_ns, self._time_constant_s)
            self._noise += share * (_noise(plane, self.invalid) - self._noise)
            self._measured_ns = time_ns
        sample, known = _sample(plane), None if self.invalid is None else ~_sample(self.invalid)
        if measured is not values:
            saturated = sample == np.iinfo(sample.dtype).max
            known = ~saturated if known is None else known & ~saturated
        straight = self._straight(sample)
        self._equalizer.update(straight, self._ends, time_ns, contrast=self._contrast(), jumped=jumped, known=known)

    def _contrast(self) -> float:
        """Maximum slope of the equalization table relative to a linear one."""
        levels = 255 * self._noise / (self._ends[1] - self._ends[0])
        return min(_MAX_CONTRAST, max(_MIN_CONTRAST, _MAX_NOISE_LEVELS / max(levels, 1e-6)))

    def _straight(self, plane: Array) -> Float32Array:
        """Luma without equalization."""
        if plane.dtype == np.uint8:
            return plane * np.float32(1 / 255)
        low, high = self._ends
        # Beyond the 24 bits of float32, the difference has to be taken first.
        kind = np.float32 if plane.dtype.itemsize <= 2 or plane.dtype == np.float32 else np.float64
        scaled = (plane - kind(low)).astype(np.float32, copy=False)
        scaled *= np.float32(1 / (high - low))
        return scaled.clip(0, 1, out=scaled)

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
    if image.ndim == 2:
        return image
    known_to_opencv = image.dtype in (np.uint8, np.uint16, np.float32)
    return cv2.cvtColor(image if known_to_opencv else image.astype(np.float32), cv2.COLOR_BGR2GRAY)


def _sample(plane: Array) -> Array:
    step = max(1, int((plane.size / _SAMPLED_PIXELS) ** 0.5))
    return np.ascontiguousarray(plane[::step, ::step])


def _noise(plane: Array, invalid: Mask | None) -> float:
    """Standard deviation of the noise, from second differences along a sample of rows; texture counts as noise."""
    step = max(1, plane.size // _SAMPLED_PIXELS)
    rows = plane[::step].astype(np.float32)
    if invalid is not None:
        rows[invalid[::step]] = np.nan
    bends = np.abs(rows[:, 2:] - 2 * rows[:, 1:-1] + rows[:, :-2])
    bends = bends if invalid is None else bends[np.isfinite(bends)]
    return float(np.median(bends)) * _NOISE_OF_MEDIAN if bends.size else 0.0
