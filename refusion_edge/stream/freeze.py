"""Frozen pictures: identical content under fresh time stamps.

A thermal camera closes its shutter every few minutes to correct itself (flat-field correction) and repeats its last picture
meanwhile. Sensor noise makes two true frames differ, so identical pixels are a frozen camera.
"""

from __future__ import annotations

import zlib

import numpy as np

from refusion_edge.arrays import Array


class FreezeWatch:
    """Finds runs of identical pictures.

    Attributes:
        freezes: Runs of at least two identical pictures so far.
        frozen_frames: Pictures in them that repeat the one before.
    """

    def __init__(self) -> None:
        self.freezes = 0
        self.frozen_frames = 0
        self._before: tuple[tuple[int, ...], int] | None = None
        self._since_ns = 0
        self._repeats = 0

    def add(self, picture: Array, time_ns: int) -> int:
        """Compare with the picture before; returns since when the content has not changed."""
        content = (picture.shape, zlib.crc32(np.ascontiguousarray(picture).data))
        if content == self._before:
            self.frozen_frames += 1
            self._repeats += 1
            self.freezes += self._repeats == 1
        else:
            self._before, self._since_ns, self._repeats = content, time_ns, 0
        return self._since_ns
