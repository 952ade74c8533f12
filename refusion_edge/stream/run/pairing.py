"""From frames to pairs for the engine: every decision is counted, and what the engine has no time for is dropped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np

from refusion_edge.stream.frames import SIDES, Frame, Pair
from refusion_edge.stream.outputs.recording import PairFate
from refusion_edge.stream.pairing.failover import Failover
from refusion_edge.stream.pairing.pairer import Outcome
from refusion_edge.stream.run.channel import Channel
from refusion_edge.stream.run.inbox import Inbox
from refusion_edge.stream.run.motion import MotionMeter
from refusion_edge.stream.run.writer import RecordWriter
from refusion_edge.stream.statistics import Statistics

# Every so many visible frames in pairs, two in a row are compared to measure motion.
_MOTION_EVERY = 10

# A pair, and when it was decided on, monotonic clock.
WaitingPair = tuple[Pair, int]


class PairSource(Protocol):
    """Where the engine's pairs come from: two cameras, or a recording. It runs in a thread of its own."""

    def run(self) -> None:
        """Put pairs into the channel until there are no more; closes it in the end."""


class Decisions:
    """What pairing decides, on its way to the engine. One instance, one thread.

    Args:
        failover: Decides.
        pairs: Where pairs go.
        statistics: Counters of the run.
        stop: Ends the run.
    """

    def __init__(self, failover: Failover, pairs: Channel[WaitingPair], statistics: Statistics, stop: threading.Event) -> None:
        self._failover, self._pairs, self._statistics, self._stop = failover, pairs, statistics, stop
        self._motion = MotionMeter()

    def push(self, frame: Frame) -> tuple[Pair, ...]:
        """Decide on one more frame; gives the pairs that it makes."""
        side = frame.side
        had_fault = side in self._failover.faults
        pairs = self._count(self._failover.push(frame))
        fault = self._failover.faults.get(side)
        if fault is not None and not had_fault:
            self._statistics.faulty(side, f"passed over: frames of {fault}, which the rig was made for")
        elif fault is None and had_fault:
            self._statistics.recovered(side, f"back: frames of {frame.size_wh[0]}x{frame.size_wh[1]} again")
        return pairs

    def flush(self) -> tuple[Pair, ...]:
        """Decide on what still waits."""
        return self._count(self._failover.flush())

    def hand_on(self, pair: Pair, dropped: Callable[[int], object] = lambda _number: None) -> None:
        """Give a pair to the engine; ``dropped`` is called with the number of the one that it has no time for."""
        late = self._pairs.put((pair, time.monotonic_ns()))
        if late is not None:
            self._statistics.dropped("pair", "stopped" if self._stop.is_set() else "engine busy")
            dropped(late[0].number)

    def close(self) -> None:
        """No more pairs will come."""
        self._pairs.close()

    def _count(self, outcome: Outcome) -> tuple[Pair, ...]:
        for frame, cause in outcome.dropped:
            self._statistics.dropped(frame.side, cause)
        for side in SIDES:
            self._statistics.cameras[side].used = self._failover.used[side]
        for pair in outcome.pairs:
            self._statistics.paired(pair.skew_ns, held=pair.held)
            self._measure_motion(pair)
        return outcome.pairs

    def _measure_motion(self, pair: Pair) -> None:
        if pair.vis is None or pair.skew_ns is None or pair.number % _MOTION_EVERY > 1 or pair.vis.image.dtype != np.uint8:
            return
        speed_px_s = self._motion.add(pair.vis.image, pair.vis.time_ns)
        if pair.number % _MOTION_EVERY == 1 and speed_px_s is not None:
            self._statistics.moved(speed_px_s, pair.skew_ns)


class CameraPairs:
    """Pairs of the frames that two readers deliver. Implements ``PairSource``.

    Args:
        inbox: Their frames.
        decisions: Pairs them.
        statistics: Counters of the run.
        record: Keeps every frame, and which pairs were dropped; or None.
    """

    def __init__(self, inbox: Inbox, decisions: Decisions, statistics: Statistics, record: RecordWriter | None) -> None:
        self._inbox, self._decisions, self._statistics, self._record = inbox, decisions, statistics, record

    def run(self) -> None:
        """See ``PairSource.run``."""
        while (frame := self._inbox.get()) is not None:
            if self._record is not None:
                self._record.keep(frame)
            self._hand_on(self._decisions.push(frame))
        self._hand_on(self._decisions.flush())
        self._decisions.close()
        if self._record is not None:
            self._record.close()

    def _hand_on(self, pairs: tuple[Pair, ...]) -> None:
        for pair in pairs:
            self._statistics.took("pairing", time.monotonic_ns() - pair.newest.arrived_ns)
            self._decisions.hand_on(pair, self._dropped)

    def _dropped(self, number: int) -> None:
        if self._record is not None:
            self._record.keep(PairFate(number))
