"""Frozen frames: identical content under fresh time stamps.

A thermal camera closes its shutter every few minutes to correct itself (flat-field correction) and repeats its last frame
meanwhile. Sensor noise makes any two real frames differ, so identical pixels reveal a frozen camera.
"""

from __future__ import annotations

import numpy as np

from refusion_edge.arrays import Array


class FreezeWatch:
    """Detects runs of identical frames.

    Attributes:
        freezes: Runs of at least two identical frames so far.
    """

    def __init__(self) -> None:
        self.freezes = 0
        self._before: Array | None = None
        self._since_ns = 0
        self._repeats = 0

    def add(self, image: Array, time_ns: int) -> int:
        """Compare a frame with the previous one; returns the time since which the content has not changed."""
        if self._before is not None and np.array_equal(image, self._before):
            self._repeats += 1
            self.freezes += self._repeats == 1
        else:
            self._before, self._since_ns, self._repeats = image, time_ns, 0
        return self._since_ns
