"""Files next to a camera, played at their own speed on the host clock."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

from typing_extensions import Self

from refusion_edge.stream.frames import SECOND
from refusion_edge.stream.sources.source import Grab, Source


class PacedSource:
    """Plays a file as if it were a camera. Implements ``Source``.

    Args:
        source: The file.
        from_zero_only: Only shift its times to start at zero, next to another file, without waiting between frames.
        stop: Ends a wait for the next frame, and with it the file.
    """

    def __init__(self, source: Source, *, from_zero_only: bool = False, stop: threading.Event | None = None) -> None:
        self._source = source
        self._stop = stop or threading.Event()
        self._from_zero_only = from_zero_only
        self.side, self.uri, self.remarks = source.side, source.uri, source.remarks
        self.live = not from_zero_only
        self.absolute = not from_zero_only
        self.timing = None
        self._first_ns: int | None = None
        self._start_ns = 0

    def __enter__(self) -> Self:
        self._source.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._source.__exit__(*exc)

    @property
    def clock(self) -> str:
        """See ``Source.clock``."""
        return f"{self._source.clock}, from its first frame" + ("" if self._from_zero_only else " played on the host clock")

    @property
    def rate_hz(self) -> float | None:
        """See ``Source.rate_hz``."""
        return self._source.rate_hz

    @property
    def keeps_noise(self) -> bool:
        """See ``Source.keeps_noise``."""
        return self._source.keeps_noise

    def read(self) -> Grab | None:
        """See ``Source.read``; waits until the frame is due."""
        grab = self._source.read()
        if grab is None:
            return None
        if self._first_ns is None:
            self._first_ns, self._start_ns = grab.time_ns, 0 if self._from_zero_only else time.monotonic_ns()
        due_ns = self._start_ns + grab.time_ns - self._first_ns
        if not self._from_zero_only and self._stop.wait(max(0, due_ns - time.monotonic_ns()) / SECOND):
            return None
        return replace(grab, time_ns=due_ns)
