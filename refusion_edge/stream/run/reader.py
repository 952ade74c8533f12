"""Reading one camera: frozen frames, time stamps that do not advance, losses and reconnects."""

from __future__ import annotations

import itertools
import threading
import time
from dataclasses import replace

import numpy as np

from refusion_edge.errors import InputError, RefusionError, SourceLostError
from refusion_edge.stream.frames import Frame
from refusion_edge.stream.pairing.freeze import FreezeWatch
from refusion_edge.stream.run.channel import Inbox
from refusion_edge.stream.sources.source import CLOCK_ARRIVAL, CorruptFrameError, Grab, Source
from refusion_edge.stream.statistics import Statistics

_BACK_OFF_S = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
_DAMAGED = "damaged frame"
_DTYPES = (np.uint8, np.uint16, np.float32)
# After this many frames without an advance, the time stamps of a live camera are replaced.
_MAX_STANDING = 3


class Reader:
    """Reads a source in its own thread, to its end or until the run stops.

    Args:
        source: The camera, already entered; this thread leaves it, and enters it again after a loss.
        inbox: Receives its frames.
        statistics: Counters of the run.
        stop: Ends the run.

    Attributes:
        delivered_s: Arrival of the last frame, monotonic clock; 0 before the first one.
        failure: What was wrong with a file that could be used in part, for the end of the run.
    """

    def __init__(self, source: Source, inbox: Inbox, statistics: Statistics, stop: threading.Event) -> None:
        self.source = source
        self.delivered_s = 0.0
        self.failure: RefusionError | None = None
        self._inbox, self._statistics, self._stop = inbox, statistics, stop
        self._camera = statistics.cameras[source.side]
        self._freeze, self._stamps = FreezeWatch(), _Stamps()
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
                    self._freeze, self._stamps, self._expected = FreezeWatch(), _Stamps(), -1
                    continue
                if grab is None:
                    break
                missing = max(0, grab.index - self._expected) if self._expected >= 0 else 0
                self._expected = grab.index + 1
                self._deliver(self._stamps.check(grab) if source.live else grab, missing)
                if self._stamps.replaced:
                    self._camera.clock = f"{CLOCK_ARRIVAL}, as its own time stamps do not advance"
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
        self._statistics.delivered(side, (image.shape[1], image.shape[0]), str(image.dtype), missing=missing)
        camera.clock = self.source.clock
        self.delivered_s = time.monotonic()
        if image.dtype not in _DTYPES or image.ndim not in (2, 3):
            self._statistics.dropped(side, "unknown pixel type")
            return
        for remark in self.source.remarks[self._remarks :]:
            self._statistics.remark(side, remark)
        self._remarks = len(self.source.remarks)
        freezes = self._freeze.freezes
        unchanged_since_ns = self._freeze.add(image, grab.time_ns) if self.source.keeps_noise else grab.time_ns
        camera.frozen_frames += self._freeze.freezes > 0 and unchanged_since_ns != grab.time_ns
        if self._freeze.freezes > freezes:
            camera.freezes += 1
            self._statistics.note(side, "frozen")
        frame = Frame(side, image, grab.index, grab.time_ns, time.monotonic_ns(), unchanged_since_ns)
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
        for pause_s in itertools.chain(_BACK_OFF_S, itertools.repeat(_BACK_OFF_S[-1])):
            if self._stop.wait(pause_s):
                return
            try:
                source.__enter__()
            except SourceLostError:
                continue
            camera.reconnects += 1
            camera.state = "running"
            self._statistics.note(source.side, "back")
            return


class _Stamps:
    """Uses the time stamps of a live camera as long as they advance, then the host clock at arrival."""

    def __init__(self) -> None:
        self.replaced = False
        self._latest_ns: int | None = None
        self._standing = 0

    def check(self, grab: Grab) -> Grab:
        """Return the frame with an advancing time; single steps back are left for pairing to reject."""
        if not self.replaced:
            stands = self._latest_ns is not None and grab.time_ns <= self._latest_ns
            self._standing = self._standing + 1 if stands else 0
            self._latest_ns = grab.time_ns if self._latest_ns is None else max(self._latest_ns, grab.time_ns)
            self.replaced = self._standing >= _MAX_STANDING
        return replace(grab, time_ns=time.monotonic_ns()) if self.replaced else grab
