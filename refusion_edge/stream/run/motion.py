"""Motion of the whole image, which converts a time skew to misregistration in pixels."""

from __future__ import annotations

import cv2
import numpy as np

from refusion_edge.arrays import Array, Float32Array
from refusion_edge.stream.frames import SECOND

# Wide enough for a panning camera, small enough to take a tenth of a millisecond.
_WIDTH = 160
_MIN_RESPONSE = 0.05


class MotionMeter:
    """Measures the speed of the whole image by phase correlation of two frames of one camera.

    Attributes:
        speed_px_s: Last measurement, or None.
    """

    def __init__(self) -> None:
        self._before: Float32Array | None = None
        self._before_ns = 0
        self._window: Float32Array | None = None
        self.speed_px_s: float | None = None

    def add(self, image: Array, time_ns: int) -> float | None:
        """Measure the speed since the previous frame.

        Args:
            image: (H, W) or (H, W, 3) uint8.
            time_ns: Capture time.

        Returns:
            Speed in pixels of ``image`` per second, or None without a previous frame or without enough texture.

        Source:
            cv2.phaseCorrelate: Fourier shift theorem, with a sub-pixel centroid of the peak.
        """
        small, scale = _thumbnail(image)
        before, seconds = self._before, (time_ns - self._before_ns) / SECOND
        self._before, self._before_ns = small, time_ns
        if before is None or before.shape != small.shape or seconds <= 0:
            self.speed_px_s = None
            return None
        if self._window is None or self._window.shape != small.shape:
            self._window = cv2.createHanningWindow((small.shape[1], small.shape[0]), cv2.CV_32F).astype(np.float32, copy=False)
        (dx, dy), response = cv2.phaseCorrelate(before, small, self._window)
        self.speed_px_s = float(np.hypot(dx, dy)) * scale / seconds if response >= _MIN_RESPONSE else None
        return self.speed_px_s


def _thumbnail(image: Array) -> tuple[Float32Array, float]:
    """Reduce an image to a gray float32 thumbnail; also returns the reduction factor."""
    plane = image if image.ndim == 2 else image[..., 1]
    scale = max(1.0, plane.shape[1] / _WIDTH)
    size = (round(plane.shape[1] / scale), max(1, round(plane.shape[0] / scale)))
    return cv2.resize(plane, size, interpolation=cv2.INTER_AREA).astype(np.float32), scale
