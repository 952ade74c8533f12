"""Thermal gain control: from the counts of a sensor to the luma that is shown and fused, steady over time.

A per-frame stretch lets the whole picture jump when something hot walks in. Here, what the mapping is made of (a range, a
histogram) is smoothed over time, and the mapping itself is one table or one multiplication per frame.
"""

from __future__ import annotations

from typing import Literal, get_args

import cv2
import numpy as np

from refusion_edge.arrays import Array, Float32Array, Uint8Array
from refusion_edge.errors import InputError, UsageError
from refusion_edge.stream.smoothing import SmoothedRange, follow_share

GainMethod = Literal["linear", "percentile", "plateau", "clahe"]
GAIN_METHODS: tuple[GainMethod, ...] = get_args(GainMethod)
Polarity = Literal["white", "black", "auto"]
POLARITIES: tuple[Polarity, ...] = get_args(Polarity)

_LEVELS = 256
_PERCENTILES = (0.1, 99.9)
# As many pixels say where a percentile is within a thousandth of the range; more only cost time.
_SAMPLED_PIXELS = 20_000
_HISTOGRAM_BINS = 1024
# No level may take more than this many times its even share: large flat areas keep their contrast to the rest.
_PLATEAU = 4.0
# Contrast that the steepest part of the table may add, against amplified noise in empty scenes.
_CLAHE_CLIP, _CLAHE_TILES = 2.0, (8, 8)
# A range of fewer counts shows noise only; about 0.2 K of a common core.
_LEAST_RANGE = {"u": 8.0, "f": 1e-6}
_POLARITY_MARGIN = 0.15


class ThermalGain:
    """Maps infrared pictures to luma. One instance, one camera; frames in order of time.

    Methods: ``linear``: darkest to brightest value. ``percentile``: from the 0.1 to the 99.9 percentile. ``plateau``:
    histogram equalisation with a plateau. ``clahe``: ``percentile``, then equalisation by tiles with limited contrast.

    Pictures of 8 bit have gone through a gain control in the camera; ``percentile``, the default, leaves them as they are.

    Args:
        method: One of ``GAIN_METHODS``.
        polarity: ``white``: hot is bright, as it comes. ``black``: inverted first, for cameras set to black-hot.
            ``auto``: whichever of the two has its tail at the bright end; a hot thing is small before a wide background.
        time_constant_s: How slowly range and histogram follow; 0 for every frame on its own.

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
        self._histogram: Float32Array | None = None
        self._histogram_ns = 0
        self._inverted = False
        self._tail = 0.0
        self._layout: tuple[tuple[int, ...], np.dtype[np.generic]] | None = None
        self._clahe = cv2.createCLAHE(_CLAHE_CLIP, _CLAHE_TILES)

    def apply(self, picture: Array, time_ns: int) -> Uint8Array:
        """Map one picture.

        Args:
            picture: (H, W) or (H, W, 3) BGR; uint8, uint16 or float32.
            time_ns: When it was taken.

        Returns:
            (H, W) uint8, hot is bright.

        Raises:
            InputError: It holds NaN or infinities.
        """
        plane = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
        if plane.dtype == np.float32 and not np.isfinite(plane).all():
            raise InputError("expected finite infrared values, got NaN or infinity; repair or mask them first.")
        layout = (plane.shape, plane.dtype)
        if layout != self._layout:
            self.reset()
            self._layout = layout
        if plane.dtype == np.uint8 and self.method == "percentile":
            shown = np.asarray(plane, np.uint8)
        else:
            shown = self._map(plane, time_ns)
        return cv2.bitwise_not(shown).astype(np.uint8, copy=False) if self._invert(shown, time_ns) else shown

    def reset(self) -> None:
        """Forget the scene, for a camera that was lost or changed its format."""
        self._range.reset()
        self._histogram = None
        self._tail = 0.0

    def _map(self, plane: Array, time_ns: int) -> Uint8Array:
        sample = _sample(plane)
        if self.method == "linear":
            measured = (float(plane.min()), float(plane.max()))
        else:
            low, high = np.percentile(sample, _PERCENTILES)
            measured = (float(low), float(high))
        least = _LEAST_RANGE["f" if plane.dtype.kind == "f" else "u"]
        if measured[1] - measured[0] < least:
            middle = (measured[0] + measured[1]) / 2
            measured = (middle - least / 2, middle + least / 2)
        low, high = self._range.update(*measured, time_ns)
        if self.method == "plateau":
            return self._equalise(plane, sample, low, high, time_ns)
        scale = np.float32((_LEVELS - 1) / (high - low))
        # One pass over a table is several times faster than arithmetic on the picture.
        values = np.arange(1 << 16, dtype=np.float32) if plane.dtype == np.uint16 else plane.astype(np.float32)
        levels = np.rint(((values - np.float32(low)) * scale).clip(0, _LEVELS - 1)).astype(np.uint8)
        shown: Uint8Array = levels[plane] if plane.dtype == np.uint16 else levels
        return self._clahe.apply(shown).astype(np.uint8, copy=False) if self.method == "clahe" else shown

    def _equalise(self, plane: Array, sample: Array, low: float, high: float, time_ns: int) -> Uint8Array:
        counted, _ = np.histogram(sample, _HISTOGRAM_BINS, (low, high))
        histogram = counted.astype(np.float32) / max(1, counted.sum())
        if self._histogram is None or self._range.jumped:
            self._histogram = histogram
        else:
            share = np.float32(follow_share(time_ns - self._histogram_ns, self._time_constant_s))
            self._histogram = self._histogram + share * (histogram - self._histogram)
        self._histogram_ns = time_ns
        limited = np.minimum(self._histogram, _PLATEAU / _HISTOGRAM_BINS)
        table = np.concatenate(([0.0], np.cumsum(limited))) * ((_LEVELS - 1) / max(float(limited.sum()), 1e-12))
        edges = np.linspace(low, high, _HISTOGRAM_BINS + 1)
        if plane.dtype == np.uint16:
            levels: Uint8Array = np.rint(np.interp(np.arange(1 << 16), edges, table)).astype(np.uint8)
            return np.asarray(levels[plane])
        return np.rint(np.interp(plane, edges, table)).astype(np.uint8)

    def _invert(self, shown: Uint8Array, time_ns: int) -> bool:
        if self.polarity != "auto":
            return self.polarity == "black"
        low, middle, high = np.percentile(_sample(shown), (1, 50, 99))
        # Where the longer tail is, -1 dark to 1 bright; smoothed, and with a margin, so that it does not flip to and fro.
        tail = float((high + low - 2 * middle) / max(1.0, high - low))
        self._tail += 0.1 * (tail - self._tail) if self._tail else tail
        if abs(self._tail) > _POLARITY_MARGIN:
            self._inverted = self._tail < 0
        return self._inverted


def _sample(plane: Array) -> Array:
    step = max(1, int((plane.size / _SAMPLED_PIXELS) ** 0.5))
    return plane[::step, ::step]
