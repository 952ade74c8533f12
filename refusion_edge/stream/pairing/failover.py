"""Failover: frames are paired while both cameras deliver, and passed on alone while one is lost or frozen.

The only clock of ``Failover`` is the arrival time of each frame, so a replay of the same frames makes the same decisions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from refusion_edge.stream.frames import SECOND, SIDES, Frame, Pair, Side, other
from refusion_edge.stream.pairing.pairer import Outcome, Pairer

FROZEN_TOO_LONG = "content frozen beyond the limit"
OTHER_SIZE = "size changed from that of the rig"

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits after which one camera continues alone.

    Attributes:
        lost_after_ns: Silence after which a camera counts as lost.
        frozen_after_ns: Time without a change of content after which the infrared camera counts as lost.
    """

    lost_after_ns: int = SECOND
    frozen_after_ns: int = 2 * SECOND


class Failover:
    """Pairs frames while both cameras deliver, and passes one on alone while the other is lost.

    Args:
        pairer: Pairs the frames of two cameras.
        limits: When one camera continues alone; None for sources that cannot be lost, such as files.
        sizes_wh: Frame sizes that the rig was made for. A camera that starts with its size and then changes it is skipped until
            the size returns; a camera that never had it is passed on, and the warp reports the mismatch.
        offset_ns: Added to the times of ir to match those of vis, before anything is decided: pairs hold corrected times.

    Attributes:
        lost: Cameras that are currently lost.
        used: Number of frames of each camera that are part of at least one pair.
        faults: Cameras that deliver but are skipped, with the reason in words.
    """

    def __init__(
        self, pairer: Pairer, limits: Limits | None, sizes_wh: Mapping[Side, Size] | None = None, *, offset_ns: int = 0
    ) -> None:
        self.pairer = pairer
        self.offset_ns = offset_ns
        self.lost: set[Side] = set()
        self.used: dict[Side, int] = dict.fromkeys(SIDES, 0)
        self.faults: dict[Side, str] = {}
        self._limits = limits
        self._sizes_wh = dict(sizes_wh or {})
        self._fitted: set[Side] = set()
        self._seen_ns: dict[Side, int | None] = dict.fromkeys(SIDES)
        self._last_used: dict[Side, Frame | None] = dict.fromkeys(SIDES)
        self._number = 0

    def push(self, frame: Frame) -> Outcome:
        """Accept the next frame of either camera, in order of arrival."""
        if frame.side == "ir" and self.offset_ns:
            frame = frame.moved(self.offset_ns)
        if self._has_other_size(frame):
            return self._pass_over(frame)
        self.faults.pop(frame.side, None)
        if self._limits is None:
            self.lost.discard(frame.side)
            return self._numbered(self._push(frame, Outcome()))
        if frame.side == "ir" and frame.stale_ns > self._limits.frozen_after_ns:
            return Outcome(dropped=((frame, FROZEN_TOO_LONG),))
        before = self._lose(other(frame.side), frame.arrived_ns)
        self._seen_ns[frame.side] = frame.arrived_ns
        self.lost.discard(frame.side)
        return self._numbered(self._push(frame, before))

    def flush(self) -> Outcome:
        """Decide on all waiting frames at the end of the stream."""
        return self._numbered(self.pairer.flush())

    def _push(self, frame: Frame, before: Outcome) -> Outcome:
        """Pair a frame, or pass it on alone; ``before`` holds the decisions made just before it."""
        if other(frame.side) in self.lost:
            return Outcome((*before.pairs, self._alone(frame)), before.dropped)
        outcome = self.pairer.push(frame)
        return Outcome((*before.pairs, *outcome.pairs), (*before.dropped, *outcome.dropped))

    def _has_other_size(self, frame: Frame) -> bool:
        wanted_wh = self._sizes_wh.get(frame.side)
        if wanted_wh is None or frame.size_wh == wanted_wh:
            self._fitted.add(frame.side)
            return False
        return frame.side in self._fitted

    def _pass_over(self, frame: Frame) -> Outcome:
        """Continue without a camera whose frames no longer fit the rig."""
        side = frame.side
        (width, height), wanted_wh = frame.size_wh, self._sizes_wh[side]
        self.faults[side] = f"{height}x{width} instead of {wanted_wh[1]}x{wanted_wh[0]}"
        self._seen_ns[side] = frame.arrived_ns
        if side in self.lost:
            return Outcome(dropped=((frame, OTHER_SIZE),))
        self.lost.add(side)
        before = self._numbered(self.pairer.forget(side))
        # Frames that waited for this one continue alone; those older than the last pair are dropped.
        last = self._last_used[other(side)]
        waited = [
            left for left, _ in before.dropped if left.side != side and (last is None or left.time_ns > last.time_ns)
        ]  # fmt: skip
        alone = self._numbered(Outcome(tuple(self._alone(left) for left in waited)))
        dropped = tuple(each for each in before.dropped if each[0] not in waited)
        return Outcome((*before.pairs, *alone.pairs), (*dropped, (frame, OTHER_SIZE)))

    def _alone(self, frame: Frame) -> Pair:
        ir, vis = (frame, None) if frame.side == "ir" else (None, frame)
        return Pair(0, ir, vis, fault=self.faults.get(other(frame.side), ""))

    def _lose(self, side: Side, now_ns: int) -> Outcome:
        assert self._limits is not None
        seen_ns = self._seen_ns[side]
        if seen_ns is None:
            self._seen_ns[side] = now_ns  # its time starts now
            return Outcome()
        if now_ns - seen_ns <= self._limits.lost_after_ns:
            return Outcome()
        self.faults.pop(side, None)  # silence makes it lost, even if it was skipped before
        if side in self.lost:
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
