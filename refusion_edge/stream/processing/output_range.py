"""Output range of the fused video: stretched as for single images, but stable over time."""

from __future__ import annotations

import math
from typing import Literal, get_args

import cv2
import numpy as np

from refusion_edge.arrays import Float32Array, Uint8Array
from refusion_edge.errors import UsageError
from refusion_edge.images.color import MAX_GAIN, widened
from refusion_edge.stream.processing.noise import noise_of
from refusion_edge.stream.processing.smoothing import SmoothedRange, follow_share, inner_range

VideoRange = Literal["smooth", "stretch", "fixed"]
VIDEO_RANGES: tuple[VideoRange, ...] = get_args(VideoRange)

_PERCENTILES = (0.1, 99.9)
_SAMPLED_PIXELS = 20_000
_SLACK = 0.15
# Gain relative to the range [0, 1]: at most MAX_GAIN. It falls, down to the first, where it would raise the noise above so
# many levels, or above this share of the scene's own contrast: with little contrast, noise is all there is to see. The first
# also limits pumping, which grows faster than the gain, being what changes beyond the sources: by a fifth at 1.08.
_NOISY_GAIN, _MAX_NOISE_LEVELS, _MAX_NOISE_SHARE = 1.07, 1.75, 1 / 40


class OutputStretch:
    """Converts the output of the network to uint8. Use one instance per stream, with frames in order of time.

    Args:
        kind: ``smooth``: from the 0.1 to the 99.9 percentile, smoothed over time, with a limit of gain: contrast is raised at
            most four times, and only 1.07 times where that would make noise visible. ``stretch``: from minimum to maximum of
            each frame, as for single images, which flickers. ``fixed``: [0, 1].
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
        self._range = SmoothedRange(time_constant_s, _SLACK)
        self._time_constant_s = time_constant_s
        self._noise: float | None = None
        self._time_ns = 0

    def apply(self, fused: Float32Array, time_ns: int) -> Uint8Array:
        """Convert a fused plane, (H, W) float32 and finite, to (H, W) uint8."""
        if self.kind == "fixed":
            low, width = 0.0, 1.0
        elif self.kind == "stretch":
            low, width = widened(float(fused.min()), float(fused.max()), 1 / MAX_GAIN)
        else:
            step = math.ceil((fused.size / _SAMPLED_PIXELS) ** 0.5)
            ends = inner_range(fused[::step, ::step], _PERCENTILES)
            least = 1 / self._max_gain(fused, ends[1] - ends[0], time_ns)
            low, width = widened(max(0.0, ends[0]), min(1.0, ends[1]), least)
            low, high = self._range.update(low, low + width, time_ns)
            width = high - low
        scale = 255.0 / width
        # One pass that scales, rounds and saturates.
        return cv2.addWeighted(fused, scale, fused, 0.0, -low * scale, dtype=cv2.CV_8U).astype(np.uint8, copy=False)

    def _max_gain(self, fused: Float32Array, contrast: float, time_ns: int) -> float:
        noise = noise_of(fused)
        elapsed_ns, self._time_ns = time_ns - self._time_ns, time_ns
        before = noise if self._noise is None else self._noise
        self._noise = before + follow_share(elapsed_ns, self._time_constant_s) * (noise - before)
        allowed = min(_MAX_NOISE_LEVELS / 255, _MAX_NOISE_SHARE * contrast)
        return min(MAX_GAIN, max(_NOISY_GAIN, allowed / max(self._noise, 1e-6)))
