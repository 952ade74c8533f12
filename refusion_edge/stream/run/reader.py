"""Reading one camera: frozen frames, news of its clock, losses and reconnects."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import fields

import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.errors import InputError, RefusionError, SourceLostError
from refusion_edge.stream.frames import Frame
from refusion_edge.stream.pairing.freeze import FreezeWatch, Seen
from refusion_edge.stream.run.channel import Inbox
from refusion_edge.stream.sources.clock import ClockState
from refusion_edge.stream.sources.source import CorruptFrameError, Grab, Source
from refusion_edge.stream.statistics import Statistics

_BACK_OFF_S = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
_DAMAGED = "damaged frame"
# Why a frame is part of no pair, as the report names it.
REPEATED = "content of the frame before"
STORED = "stored before the start, of unknown age"
# What is known of the clock of a live source; `asdict` would copy every value for every frame.
_TIMING = [field.name for field in fields(ClockState)]
_DTYPES = (np.uint8, np.uint16, np.int16, np.uint32, np.int32, np.float32, np.float64)


class Reader:
    """Reads a source in its own thread, to its end or until the run stops.

    Args:
        source: The camera, already entered; this thread leaves it, and enters it again after a loss.
        inbox: Receives its frames.
        statistics: Counters of the run.
        stop: Ends the run.
        used: Takes from a frame the part that is shown; a clock beside it does not hide that the camera is frozen.

    Attributes:
        delivered_s: Arrival of the last frame, monotonic clock; 0 before the first one.
        failure: What was wrong with a file that could be used in part, for the end of the run.
    """

    def __init__(
        self,
        source: Source,
        inbox: Inbox,
        statistics: Statistics,
        stop: threading.Event,
        *,
        used: Callable[[Array], Array] = lambda image: image,
    ) -> None:
        self.source = source
        self.delivered_s = 0.0
        self.failure: RefusionError | None = None
        self._inbox, self._statistics, self._stop = inbox, statistics, stop
        self._used = used
        self._camera = statistics.cameras[source.side]
        self._freeze = FreezeWatch()
        # Number of the next frame; negative if unknown.
        self._expected = -1 if source.live else 0
        self._damage: CorruptFrameError | None = None
        self._remarks = 0

    def run(self) -> None:
        """Read frames until the source ends or the run stops.

        Raises:
            SourceLostError: A file is lost; only cameras are reopened.
            InputError: The file holds no frames.
        """
        source = self.source
        try:
            while not self._stop.is_set():
                try:
                    grab = source.read()
                except CorruptFrameError as error:
                    self._camera.frames_in += 1
                    self._expected += self._expected >= 0  # the first frame of a camera does not reveal how many preceded it
                    self._statistics.dropped(source.side, _DAMAGED)
                    self._statistics.note(source.side, str(error))
                    self._damage = self._damage or error
                    continue
                except (SourceLostError, InputError) as error:
                    if not source.live and self._camera.frames_in:
                        self._statistics.note(source.side, str(error))
                        self.failure = error
                        break
                    if isinstance(error, InputError) or not source.live:
                        raise
                    self._come_back(error)
                    self._freeze, self._expected = FreezeWatch(), -1
                    continue
                if grab is None:
                    break
                missing = max(0, grab.index - self._expected) if self._expected >= 0 else 0
                self._expected = grab.index + 1
                self._deliver(grab, missing)
            self._judge_damage()
        finally:
            self._camera.state = "ended" if self._camera.state != "lost" else self._camera.state
            source.__exit__(None, None, None)
            self._inbox.end(source.side)

    def _judge_damage(self) -> None:
        """A camera may lose frames. A file that did is damaged, which its reader wants to know."""
        damaged, whole = self._statistics.drops_of(self.source.side, _DAMAGED), self._camera.frames_in
        if self._damage is None or self.source.live or self.failure is not None:
            return
        if damaged == whole:
            self.failure = InputError(self._damage.problem, self._damage.remedy)
        else:
            self.failure = InputError(
                f"{damaged} of {whole} frames of {self.source.uri} are damaged, or depend on one that is, and were left out",
                "copy or record it again; all others were used",
                got=damaged,
            )

    def _deliver(self, grab: Grab, missing: int) -> None:
        side, image, camera = self.source.side, grab.image, self._camera
        self._statistics.delivered(
            side, (image.shape[1], image.shape[0]), str(image.dtype), missing=missing, time_ns=grab.time_ns
        )
        camera.clock, camera.declared_hz, timing = self.source.clock, self.source.rate_hz, self.source.timing
        if timing is not None:
            state = timing.state
            camera.timing = {name: getattr(state, name) for name in _TIMING}
            for news in timing.take_news():
                self._statistics.note(side, news)
        self.delivered_s = time.monotonic()
        if timing is not None and not timing.settled:
            # It would be paired with frames of another moment.
            self._statistics.dropped(side, STORED)
            return
        if image.dtype not in _DTYPES or image.ndim not in (2, 3):
            self._statistics.dropped(side, "unknown pixel type")
            return
        for remark in self.source.remarks[self._remarks :]:
            self._statistics.remark(side, remark)
        self._remarks = len(self.source.remarks)
        freezes = self._freeze.freezes
        seen = Seen("new", grab.time_ns)
        if self.source.keeps_noise:
            seen = self._freeze.add(self._used(image), grab.time_ns)
            camera.content_hz = self._freeze.content_hz
        if self._freeze.freezes > freezes:
            camera.freezes += 1
            self._statistics.note(side, "frozen")
        if seen.content == "repeated":
            # The frame before shows the same at its true time; this one would only pretend to be newer.
            self._statistics.dropped(side, REPEATED)
            return
        camera.frozen_frames += seen.content == "frozen"
        frame = Frame(side, image, grab.index, grab.time_ns, time.monotonic_ns(), seen.since_ns, white=grab.white)
        overflow = self._inbox.put(frame)
        if overflow is not None:
            self._statistics.dropped(overflow.side, "stopped" if self._stop.is_set() else "queue of frames full")

    def _come_back(self, error: SourceLostError) -> None:
        """Reopen a lost camera, with growing pauses, until it is back or the run ends."""
        source, camera = self.source, self._camera
        camera.losses += 1
        camera.state = "lost"
        self._statistics.note(source.side, f"lost: {error}")
        source.__exit__(None, None, None)
        said = ""
        for pause_s in itertools.chain(_BACK_OFF_S, itertools.repeat(_BACK_OFF_S[-1])):
            if self._stop.wait(pause_s):
                return
            try:
                source.__enter__()
            except SourceLostError:
                continue
            except InputError as problem:
                # It may be there before it can do what it did: a server without video yet, another node of the same camera.
                if said != str(problem):
                    said = str(problem)
                    self._statistics.note(source.side, f"not back: {said}")
                continue
            camera.reconnects += 1
            camera.state = "running"
            self._statistics.note(source.side, "back")
            return
