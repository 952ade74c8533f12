"""The end of the pipeline that a Python program holds: fused frames, handed to whoever iterates over them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from refusion_edge.arrays import Array
from refusion_edge.stream.frames import FusedFrame
from refusion_edge.stream.run.channel import Channel
from refusion_edge.stream.statistics import Statistics

NAME = "python"
"""Its name in the report."""
_LIVE_FRAMES, _FILE_FRAMES = 1, 4


class Tap:
    """Passes fused frames from the thread of the engine to that of the program, without a thread of its own.

    Of cameras, the newest frame waits, and the ones before it are dropped and counted; files wait for the program.
    """

    def __init__(self) -> None:
        self._frames: Channel[FusedFrame] = Channel(_FILE_FRAMES, lossless=True)
        self._live = self._shared = False
        self._statistics = Statistics()
        self._closed = False
        self._notify: Callable[[], object] = lambda: None

    def attach(self, statistics: Statistics, *, live: bool, shared: bool) -> None:
        """Connect it to a run.

        Args:
            statistics: Counters of the run.
            live: Whether the frames come from cameras, which must never wait.
            shared: Whether others use the frames as well.
        """
        self._statistics, self._live, self._shared = statistics, live, shared

    def listen(self, notify: Callable[[], object]) -> None:
        """Call ``notify``, from the thread of the engine, when there is a frame to take, or none will come."""
        self._notify = notify

    def put(self, frame: FusedFrame) -> None:
        """Offer a frame; waits for the program if the frames come from files."""
        # Only this thread puts frames, so that there is room afterwards.
        while self._live and len(self._frames) >= _LIVE_FRAMES and self._frames.get(0) is not None:
            self._statistics.dropped(f"output {NAME}", "output busy")
        if self._frames.put(frame) is not None:
            self._statistics.dropped(f"output {NAME}", "stopped")
        self._tell()

    def close(self) -> None:
        """No more frames will come; the last ones can still be taken."""
        self._closed = True
        self._frames.close()
        self._tell()

    @property
    def ended(self) -> bool:
        """Whether there is nothing to take any more."""
        return self._closed and not len(self._frames)

    def get(self, timeout_s: float | None = None) -> FusedFrame | None:
        """Take the next frame; None after the timeout, or when there are no more.

        Its fused image belongs to the caller. Its other arrays are read-only: the recorder and other outputs may use them.
        """
        frame = self._frames.get(timeout_s)
        if frame is None:
            return None
        self._statistics.wrote(NAME)
        # A single camera is passed on as it is.
        image = frame.image.copy() if self._shared or frame.image is frame.vis else frame.image
        return replace(
            frame, image=image, ir=_locked(frame.ir), vis=_locked(frame.vis), no_ir=_locked(frame.no_ir),
            no_vis=_locked(frame.no_vis),
        )  # fmt: skip

    def _tell(self) -> None:
        # The event loop that listened may have ended.
        with contextlib.suppress(RuntimeError):
            self._notify()


def _locked(array: Array | None) -> Any:
    if array is None:
        return None
    view = array.view()
    view.flags.writeable = False
    return view
