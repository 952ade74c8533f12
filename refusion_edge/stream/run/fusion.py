"""The engine's stage: pairs in, pictures out to every output."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Sequence

import numpy as np

from refusion_edge.errors import InputError, RigError, ShapeError
from refusion_edge.stream.frames import FusedFrame
from refusion_edge.stream.picture.processor import Processor
from refusion_edge.stream.run.channel import Channel
from refusion_edge.stream.run.pairing import WaitingPair
from refusion_edge.stream.run.refinement import RigFollower
from refusion_edge.stream.run.writer import Writer
from refusion_edge.stream.statistics import Statistics


class FusionStage:
    """Fuses pairs in a thread of its own.

    Args:
        pairs: What waits for the engine.
        processor: Makes the pictures; its smoothing belongs to this run.
        writers: Where they go.
        statistics: Counters of the run.
        stop: Ends the run.
        pictures: End after so many, or None.
        follower: Follows slow changes of the rig, or None.
        hashed: Whether to hash the pictures, so that two runs can be compared.
    """

    def __init__(
        self,
        pairs: Channel[WaitingPair],
        processor: Processor,
        writers: Sequence[Writer],
        statistics: Statistics,
        stop: threading.Event,
        *,
        pictures: int | None = None,
        follower: RigFollower | None = None,
        hashed: bool = False,
    ) -> None:
        self._pairs, self._processor, self._writers = pairs, processor, writers
        self._statistics, self._stop, self._follower = statistics, stop, follower
        self._limit = pictures
        self._count = 0
        self._hash = hashlib.sha256() if hashed else None

    @property
    def reached_its_limit(self) -> bool:
        """Whether all pictures that were asked for are made."""
        return self._limit is not None and self._count >= self._limit

    @property
    def sha256(self) -> str | None:
        """Of all pictures so far, in hexadecimal digits; None if they are not hashed."""
        return None if self._hash is None else self._hash.hexdigest()

    def run(self) -> None:
        """Fuse until there are no more pairs, or the limit is reached.

        Raises:
            ShapeError: The cameras never fitted.
            RigError: The rig does not fit the frames.
            GateError: The network's output is not finite.
        """
        while not self.reached_its_limit and (waiting := self._pairs.get()) is not None:
            pair, handed_on_ns = waiting
            if self._stop.is_set():
                self._statistics.dropped("pair", "stopped")
                continue
            self._statistics.took("queue", time.monotonic_ns() - handed_on_ns)
            try:
                fused = self._processor.process(pair)
            except InputError as error:
                # Cameras that never fitted are a mistake of the user; one that changes in the middle is a fault to live with,
                # and with a rig such frames do not come this far.
                if isinstance(error, RigError) or (self._count == 0 and isinstance(error, ShapeError)):
                    raise
                self._statistics.dropped("pair", "unusable picture")
                self._statistics.note("engine", str(error))
                continue
            self._show(fused)
        if self._follower is not None:
            self._follower.close()
        for writer in self._writers:
            writer.close()

    def _show(self, fused: FusedFrame) -> None:
        if self._follower is not None and (warp := self._follower.next_warp(fused)) is not None:
            self._processor.use_warp(warp)
        self._statistics.shown(fused)
        if self._hash is not None:
            self._hash.update(np.ascontiguousarray(fused.image).data)
        for writer in self._writers:
            writer.put(fused)
        self._count += 1
