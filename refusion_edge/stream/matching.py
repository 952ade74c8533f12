"""Which frames are shown together, and what happens while one camera is lost or frozen.

``Matcher`` knows no clock but the arrival times that frames carry, so that a replay of the same frames takes the same
decisions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from refusion_edge.stream.frames import SECOND, SIDES, Frame, Pair, Side, other
from refusion_edge.stream.pairing import Outcome, Pairer

FROZEN_TOO_LONG = "content frozen beyond the limit"


@dataclass(frozen=True, slots=True)
class Limits:
    """When one camera goes on alone.

    Attributes:
        lost_after_ns: A camera without frames for so long is lost.
        frozen_after_ns: An infrared camera whose content has not changed for so long counts as lost.
    """

    lost_after_ns: int = SECOND
    frozen_after_ns: int = 2 * SECOND


class Matcher:
    """Pairs frames while both cameras deliver, and passes one on alone while the other is lost.

    Args:
        pairer: Pairs the frames of two cameras.
        limits: When one camera goes on alone; None for sources that cannot be lost, such as files.

    Attributes:
        lost: Cameras that are lost now.
        used: Frames of each camera that came into at least one pair.
    """

    def __init__(self, pairer: Pairer, limits: Limits | None) -> None:
        self.pairer = pairer
        self.lost: set[Side] = set()
        self.used: dict[Side, int] = dict.fromkeys(SIDES, 0)
        self._limits = limits
        self._seen_ns: dict[Side, int | None] = dict.fromkeys(SIDES)
        self._last_used: dict[Side, Frame | None] = dict.fromkeys(SIDES)
        self._number = 0

    def push(self, frame: Frame) -> Outcome:
        """Take one more frame of either camera, in the order of arrival."""
        if self._limits is None:
            return self._numbered(self.pairer.push(frame))
        if frame.side == "ir" and frame.stale_ns > self._limits.frozen_after_ns:
            return Outcome(dropped=((frame, FROZEN_TOO_LONG),))
        before = self._lose(other(frame.side), frame.arrived_ns)
        self._seen_ns[frame.side] = frame.arrived_ns
        self.lost.discard(frame.side)
        if other(frame.side) in self.lost:
            alone = Pair(0, frame if frame.side == "ir" else None, frame if frame.side == "vis" else None)
            return self._numbered(Outcome((*before.pairs, alone), before.dropped))
        outcome = self.pairer.push(frame)
        return self._numbered(Outcome((*before.pairs, *outcome.pairs), (*before.dropped, *outcome.dropped)))

    def flush(self) -> Outcome:
        """Decide on everything that still waits, as nothing more will come."""
        return self._numbered(self.pairer.flush())

    def _lose(self, side: Side, now_ns: int) -> Outcome:
        assert self._limits is not None
        seen_ns = self._seen_ns[side]
        if seen_ns is None:
            self._seen_ns[side] = now_ns  # it has had no chance yet
            return Outcome()
        if side in self.lost or now_ns - seen_ns <= self._limits.lost_after_ns:
            return Outcome()
        self.lost.add(side)
        return self.pairer.forget(side)

    def _numbered(self, outcome: Outcome) -> Outcome:
        pairs = []
        for pair in outcome.pairs:
            pairs.append(replace(pair, number=self._number))
            self._number += 1
            for frame in (pair.ir, pair.vis):
                if frame is not None and frame is not self._last_used[frame.side]:
                    self.used[frame.side] += 1
                    self._last_used[frame.side] = frame
        return Outcome(tuple(pairs), outcome.dropped)
