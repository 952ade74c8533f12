"""Repeated frames: identical content under fresh time stamps.

A thermal camera closes its shutter every few minutes to correct itself (flat-field correction) and repeats its last frame
meanwhile: it freezes. A slow sensor behind a fast interface, such as 9 Hz behind 30, repeats every frame: that is its rate.
Sensor noise makes any two real frames differ.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.stream.frames import SECOND

Content = Literal["new", "unchanged", "repeated", "frozen"]

_RUNS, _KNOWN_RUNS = 8, 4
_ROWS = 32
# Before the usual number of repetitions is known, content that stays this long is frozen.
_FROZEN_AFTER_NS = SECOND // 4


@dataclass(frozen=True, slots=True)
class Seen:
    """What a frame shows, compared with the frames before it.

    Attributes:
        content: ``new``; ``repeated``, as usual for this camera; ``frozen``, for longer than usual; or ``unchanged``, before it
            is known what is usual.
        since_ns: Time of the first frame with this content.
    """

    content: Content
    since_ns: int


class FreezeWatch:
    """Tells frozen frames from the repetitions of a camera whose sensor is slower than its interface.

    Attributes:
        freezes: How often the camera froze.
    """

    def __init__(self) -> None:
        self.freezes = 0
        self._before: Array | None = None
        self._since_ns = 0
        self._length = 0
        self._frozen = False
        self._runs: deque[int] = deque(maxlen=_RUNS)
        self._changes_ns: deque[int] = deque(maxlen=_RUNS)

    @property
    def repeats(self) -> int:
        """How many frames in a row usually show the same content; 1 for most cameras."""
        if len(self._runs) < _KNOWN_RUNS:
            return 1
        return sorted(self._runs)[len(self._runs) // 2]

    @property
    def content_hz(self) -> float | None:
        """Rate at which the content changes, or None before that is known; the time of freezes counts."""
        if len(self._changes_ns) < _KNOWN_RUNS or self._changes_ns[-1] <= self._changes_ns[0]:
            return None
        return (len(self._changes_ns) - 1) * SECOND / (self._changes_ns[-1] - self._changes_ns[0])

    def add(self, image: Array, time_ns: int) -> Seen:
        """Compare a frame with the previous one."""
        image = _comparable(image)
        if self._before is None or not _is_same(image, self._before):
            if self._before is not None and not self._frozen:
                self._runs.append(self._length)
            self._before, self._since_ns, self._length, self._frozen = image, time_ns, 1, False
            self._changes_ns.append(time_ns)
            return Seen("new", time_ns)
        self._length += 1
        if not self._frozen and self._is_too_long(time_ns - self._since_ns):
            self._frozen = True
            self.freezes += 1
        usual: Content = "repeated" if self.repeats > 1 else "unchanged"
        return Seen("frozen" if self._frozen else usual, self._since_ns)

    def _is_too_long(self, stale_ns: int) -> bool:
        if len(self._runs) < _KNOWN_RUNS:
            return stale_ns >= _FROZEN_AFTER_NS
        usual = self.repeats
        return self._length > (1 if usual == 1 else 2 * usual)


def _is_same(image: Array, before: Array) -> bool:
    # A few rows tell almost any two frames apart, at a fraction of the time.
    return np.array_equal(image[::_ROWS], before[::_ROWS]) and np.array_equal(image, before)


def _comparable(image: Array) -> Array:
    """The bits of float pixels, as NaN differs from itself."""
    return image.view(f"u{image.dtype.itemsize}") if image.dtype.kind == "f" else image
