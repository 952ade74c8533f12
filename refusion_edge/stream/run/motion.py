"""How fast the picture moves, so that a skew in time can be told in pixels of misregistration."""

from __future__ import annotations

import cv2
import numpy as np

from refusion_edge.arrays import Array, Float32Array
from refusion_edge.stream.frames import SECOND

# Wide enough for the motion of a panning camera, small enough to cost a tenth of a millisecond.
_WIDTH = 160
_LEAST_RESPONSE = 0.05


class MotionMeter:
    """Speed of the whole picture, by phase correlation of two frames of one camera."""

    def __init__(self) -> None:
        self._before: Float32Array | None = None
        self._before_ns = 0
        self._window: Float32Array | None = None
        self.speed_px_s: float | None = None

    def add(self, picture: Array, time_ns: int) -> float | None:
        """Measure against the frame before.

        Args:
            picture: (H, W) or (H, W, 3) uint8.
            time_ns: When it was taken.

        Returns:
            Pixels of this picture per second, or None where there is no frame before or no texture to follow.

        Source:
            cv2.phaseCorrelate: Fourier shift theorem, with a sub-pixel centroid of the peak.
        """
        small, scale = _thumbnail(picture)
        before, seconds = self._before, (time_ns - self._before_ns) / SECOND
        self._before, self._before_ns = small, time_ns
        if before is None or before.shape != small.shape or seconds <= 0:
            self.speed_px_s = None
            return None
        if self._window is None or self._window.shape != small.shape:
            self._window = cv2.createHanningWindow((small.shape[1], small.shape[0]), cv2.CV_32F).astype(np.float32, copy=False)
        (dx, dy), response = cv2.phaseCorrelate(before, small, self._window)
        self.speed_px_s = float(np.hypot(dx, dy)) * scale / seconds if response >= _LEAST_RESPONSE else None
        return self.speed_px_s


def _thumbnail(picture: Array) -> tuple[Float32Array, float]:
    """Shrink to a grey float picture; returns how many pixels one of its pixels stands for, too."""
    plane = picture if picture.ndim == 2 else picture[..., 1]
    scale = max(1.0, plane.shape[1] / _WIDTH)
    size = (round(plane.shape[1] / scale), max(1, round(plane.shape[0] / scale)))
    return cv2.resize(plane, size, interpolation=cv2.INTER_AREA).astype(np.float32), scale
