"""The fusion stage: takes pairs, fuses them, and passes fused frames to every output."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from refusion_edge.errors import InputError, RigError, ShapeError
from refusion_edge.stream.frames import FusedFrame
from refusion_edge.stream.processing.processor import Processor
from refusion_edge.stream.run.channel import Channel
from refusion_edge.stream.run.networks import NetworkPlan
from refusion_edge.stream.run.pairing import WaitingPair
from refusion_edge.stream.run.refinement import RigFollower
from refusion_edge.stream.statistics import Statistics


class Receiver(Protocol):
    """Takes fused frames from the thread of the engine."""

    def put(self, frame: FusedFrame) -> None:
        """Take a frame."""

    def close(self) -> None:
        """No more frames will come."""


class FusionStage:
    """Fuses pairs in its own thread.

    Args:
        pairs: Pairs that wait for the engine.
        processor: Fuses the pairs; its smoothing state belongs to this run.
        receivers: Take the fused frames.
        statistics: Counters of the run.
        stop: Ends the run.
        frames: End after this many fused frames, or None.
        follower: Follows slow changes of the rig, or None.
        networks: Decides which network the pairs are fused by, or None if it stays.
        hashed: Whether to hash the fused frames, so that two runs can be compared.
        why_ended: Says why there are no more pairs; asked at the end.

    Attributes:
        refused: The last pair's error, of those that could not be fused.
    """

    def __init__(
        self,
        pairs: Channel[WaitingPair],
        processor: Processor,
        receivers: Sequence[Receiver],
        statistics: Statistics,
        stop: threading.Event,
        *,
        frames: int | None = None,
        follower: RigFollower | None = None,
        networks: NetworkPlan | None = None,
        hashed: bool = False,
        why_ended: Callable[[], str] = lambda: "its sources have ended",
    ) -> None:
        self._pairs, self._processor, self._receivers = pairs, processor, receivers
        self._statistics, self._stop, self._follower = statistics, stop, follower
        self._networks = networks
        self._limit, self._why_ended = frames, why_ended
        self._count = self._end = 0
        self.refused: InputError | None = None
        self._hash = hashlib.sha256() if hashed else None

    @property
    def reached_its_limit(self) -> bool:
        """Whether the requested number of frames is done."""
        return self._limit is not None and self._count >= self._limit

    @property
    def count(self) -> int:
        """Number of fused frames."""
        return self._count

    @property
    def end(self) -> int:
        """Number of the pair after the last one that was fused or refused; the later ones were not shown."""
        return self._end

    @property
    def sha256(self) -> str | None:
        """SHA-256 of all fused frames so far, in hexadecimal; None if they are not hashed."""
        return None if self._hash is None else self._hash.hexdigest()

    def run(self) -> None:
        """Fuse until there are no more pairs or the limit is reached.

        Raises:
            ShapeError: The sizes of the cameras differ from the start.
            RigError: The rig does not fit the frames.
            GateError: The network's output is not finite.
        """
        while not self.reached_its_limit and (waiting := self._pairs.get()) is not None:
            pair, handed_on_ns = waiting
            if self._stop.is_set():
                self._statistics.dropped("pair", "stopped")
                continue
            self._end = pair.number + 1
            self._statistics.took("queue", time.monotonic_ns() - handed_on_ns)
            self._statistics.busy(is_busy=True)
            try:
                fused = self._processor.process(pair)
            except InputError as error:
                # Sizes that differ from the start are a user error. A change during the run is a fault that the stream
                # survives; with a rig, such frames do not get this far.
                if isinstance(error, RigError) or (self._count == 0 and isinstance(error, ShapeError)):
                    raise
                self._statistics.dropped("pair", "unusable frame")
                self._statistics.note("engine", str(error))
                self.refused = error
                continue
            finally:
                self._statistics.busy(is_busy=False)
            self._show(fused)
            if self._networks is not None and (backend := self._networks.next_backend(fused, pair)) is not None:
                self._processor.use_backend(backend)
        if self.reached_its_limit:
            self._statistics.ends(f"it was to end after {self._limit} frames")
        elif not self._stop.is_set():
            self._statistics.ends(self._why_ended())
        if self._follower is not None:
            self._follower.close()
        if self._networks is not None:
            self._networks.close()
        for receiver in self._receivers:
            receiver.close()

    def _show(self, fused: FusedFrame) -> None:
        if self._follower is not None and (warp := self._follower.next_warp(fused)) is not None:
            self._processor.use_warp(warp)
        self._statistics.shown(fused)
        if self._hash is not None:
            self._hash.update(np.ascontiguousarray(fused.image).data)
        for receiver in self._receivers:
            receiver.put(fused)
        self._count += 1
