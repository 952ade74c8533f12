"""Output range of the fused video: stretched as for single images, but stable over time."""

from __future__ import annotations

import math
from typing import Literal, get_args

import cv2
import numpy as np

from refusion_edge.arrays import Float32Array, Uint8Array
from refusion_edge.errors import UsageError
from refusion_edge.stream.processing.smoothing import SmoothedRange, inner_range

VideoRange = Literal["smooth", "stretch", "fixed"]
VIDEO_RANGES: tuple[VideoRange, ...] = get_args(VideoRange)

_PERCENTILES = (0.1, 99.9)
_SAMPLED_PIXELS = 20_000
_MIN_RANGE = 0.02


class OutputStretch:
    """Converts the output of the network to uint8. Use one instance per stream, with frames in order of time.

    Args:
        kind: ``smooth``: from the 0.1 to the 99.9 percentile, smoothed over time. ``stretch``: from minimum to maximum of each
            frame, as the official script does for single images, which flickers. ``fixed``: [0, 1].
        time_constant_s: Time constant of ``smooth``.

    Raises:
        UsageError: The kind is unknown.
    """

    def __init__(self, kind: VideoRange = "smooth", *, time_constant_s: float = 1.0) -> None:
        if kind not in VIDEO_RANGES:
            raise UsageError(
                f"there is no output range '{kind}'",
                f"choose one of {', '.join(VIDEO_RANGES)}",
                expected=tuple(VIDEO_RANGES),
                got=kind,
            )
        self.kind = kind
        self._range = SmoothedRange(time_constant_s)

    def apply(self, fused: Float32Array, time_ns: int) -> Uint8Array:
        """Convert a fused plane, (H, W) float32 and finite, to (H, W) uint8."""
        if self.kind == "fixed":
            low, high = 0.0, 1.0
        elif self.kind == "stretch":
            low, high = float(fused.min()), float(fused.max())
            high = high if high > low else low + 1.0
        else:
            step = math.ceil((fused.size / _SAMPLED_PIXELS) ** 0.5)
            measured_low, measured_high = inner_range(fused[::step, ::step], _PERCENTILES)
            spread = max(0.0, _MIN_RANGE - (measured_high - measured_low)) / 2
            low, high = self._range.update(measured_low - spread, measured_high + spread, time_ns)
        scale = 255.0 / (high - low)
        # One pass that scales, rounds and saturates.
        return cv2.addWeighted(fused, scale, fused, 0.0, -low * scale, dtype=cv2.CV_8U).astype(np.uint8, copy=False)
