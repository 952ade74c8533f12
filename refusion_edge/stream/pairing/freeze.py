"""Frozen pictures: identical content under fresh time stamps.

A thermal camera closes its shutter every few minutes to correct itself (flat-field correction) and repeats its last picture
meanwhile. Sensor noise makes two true frames differ, so identical pixels are a frozen camera.
"""

from __future__ import annotations

import numpy as np

from refusion_edge.arrays import Array


class FreezeWatch:
    """Finds runs of identical pictures.

    Attributes:
        freezes: Runs of at least two identical pictures so far.
    """

    def __init__(self) -> None:
        self.freezes = 0
        self._before: Array | None = None
        self._since_ns = 0
        self._repeats = 0

    def add(self, picture: Array, time_ns: int) -> int:
        """Compare with the picture before, which is kept; returns since when the content has not changed."""
        if self._before is not None and np.array_equal(picture, self._before):
            self._repeats += 1
            self.freezes += self._repeats == 1
        else:
            self._before, self._since_ns, self._repeats = picture, time_ns, 0
        return self._since_ns
