"""The pairing stage: counts every decision and passes pairs to the engine; a busy engine drops the oldest pair."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

import cv2
import numpy as np

from refusion_edge.arrays import Array, Float32Array
from refusion_edge.stream.frames import SECOND, SIDES, Frame, Pair
from refusion_edge.stream.outputs.recording import PairFate
from refusion_edge.stream.pairing.failover import Failover
from refusion_edge.stream.pairing.pairer import Outcome
from refusion_edge.stream.run.channel import Channel, Inbox
from refusion_edge.stream.run.writer import RecordWriter
from refusion_edge.stream.statistics import Statistics

# Two successive visible frames are compared for motion once per this many pairs.
_MOTION_EVERY = 10
# Wide enough for a panning camera, small enough to take a tenth of a millisecond.
_MOTION_WIDTH = 160
_MIN_MOTION_RESPONSE = 0.05

# A pair, and the time of the decision, monotonic clock.
WaitingPair = tuple[Pair, int]


class PairSource(Protocol):
    """A source of pairs for the engine, two cameras or a recording. It runs in its own thread."""

    def run(self) -> None:
        """Put pairs into the channel until there are no more, then close it."""


class Decisions:
    """Runs failover on each frame, counts its decisions and passes pairs to the engine. Use each instance from one thread.

    Args:
        failover: Makes the decisions.
        pairs: Channel to the engine.
        statistics: Counters of the run.
        stop: Ends the run.
        used: Takes from a visible frame the part that is shown, on which motion is measured.
    """

    def __init__(
        self,
        failover: Failover,
        pairs: Channel[WaitingPair],
        statistics: Statistics,
        stop: threading.Event,
        *,
        used: Callable[[Array], Array] = lambda image: image,
    ) -> None:
        self._used = used
        self._failover, self._pairs, self._statistics, self._stop = failover, pairs, statistics, stop
        self._motion = MotionMeter()

    def push(self, frame: Frame) -> tuple[Pair, ...]:
        """Add one frame; returns the new pairs."""
        side = frame.side
        had_fault = side in self._failover.faults
        pairs = self._count(self._failover.push(frame))
        fault = self._failover.faults.get(side)
        if fault is not None and not had_fault:
            self._statistics.faulty(side, f"skipped: frames of {fault}, the size in the rig")
        elif fault is None and had_fault:
            self._statistics.recovered(side, f"back: frames of {frame.size_wh[1]}x{frame.size_wh[0]} again")
        return pairs

    def flush(self) -> tuple[Pair, ...]:
        """Decide on all waiting frames; returns the new pairs."""
        return self._count(self._failover.flush())

    def hand_on(self, pair: Pair, dropped: Callable[[int], object] = lambda _number: None) -> None:
        """Pass a pair to the engine; ``dropped`` is called with the number of the pair that is dropped for it."""
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
        if pair.vis is None or pair.skew_ns is None or pair.number % _MOTION_EVERY > 1:
            return
        speed_px_s = self._motion.add(self._used(pair.vis.image), pair.vis.time_ns)
        if pair.number % _MOTION_EVERY == 1 and speed_px_s is not None:
            self._statistics.moved(speed_px_s, pair.skew_ns)


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
            image: (H, W) or (H, W, 3) of whole or float numbers.
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
        self.speed_px_s = float(np.hypot(dx, dy)) * scale / seconds if response >= _MIN_MOTION_RESPONSE else None
        return self.speed_px_s


class CameraPairs:
    """Pairs the frames of two readers. Implements ``PairSource``.

    Args:
        inbox: Frames of the readers.
        decisions: Pairs the frames.
        statistics: Counters of the run.
        record: Records every frame and the dropped pairs, or None.
    """

    def __init__(self, inbox: Inbox, decisions: Decisions, statistics: Statistics, record: RecordWriter | None) -> None:
        self._inbox, self._decisions, self._statistics, self._record = inbox, decisions, statistics, record

    def run(self) -> None:
        """See ``PairSource.run``."""
        try:
            while (frame := self._inbox.get()) is not None:
                self._statistics.followed(self._inbox.epochs.count, self._inbox.epochs.take_news())
                if self._record is not None:
                    self._record.keep(frame)
                self._hand_on(self._decisions.push(frame))
            self._hand_on(self._decisions.flush())
            self._decisions.close()
        finally:
            # Not before: a replay needs the fate of every pair.
            if self._record is not None:
                self._record.close()

    def _hand_on(self, pairs: tuple[Pair, ...]) -> None:
        for pair in pairs:
            self._statistics.took("pairing", time.monotonic_ns() - pair.newest.arrived_ns)
            self._decisions.hand_on(pair, self._dropped)

    def _dropped(self, number: int) -> None:
        if self._record is not None:
            self._record.keep(PairFate(number))


def _thumbnail(image: Array) -> tuple[Float32Array, float]:
    """Reduce an image to a gray float32 thumbnail; also returns the reduction factor."""
    plane = image if image.ndim == 2 else cv2.extractChannel(image, 1)
    scale = max(1.0, plane.shape[1] / _MOTION_WIDTH)
    size = (round(plane.shape[1] / scale), max(1, round(plane.shape[0] / scale)))
    plane = plane if plane.itemsize <= 2 else plane.astype(np.float32)
    small = cv2.resize(plane, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    known = np.isfinite(small)
    # What has no value does not move.
    small[~known] = small[known].mean() if known.any() else 0
    return small, scale
