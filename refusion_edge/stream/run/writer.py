"""Threads that write: one for each output, and one for the recorder, each with its own queue."""

from __future__ import annotations

import contextlib
import threading
import time

from refusion_edge.errors import DiskFullError
from refusion_edge.stream.frames import Frame, FusedFrame
from refusion_edge.stream.outputs.recording import FrameRecorder, PairFate
from refusion_edge.stream.outputs.sinks import Sink
from refusion_edge.stream.run.channel import Channel
from refusion_edge.stream.statistics import DISK_FULL, DISK_TOO_SLOW, RECORDING, Statistics

RECORDED = 128
"""Frames that may wait for the recorder."""
# How long a recorder waits before it tries a full disk again.
_PAUSE_S = 1.0


class Writer:
    """Writes the frames of one output in its own thread.

    Args:
        sink: The output, already entered; this thread leaves it.
        statistics: Counters of the run.
        stop: Ends the run.
        live: Whether the frames come from cameras, which must never wait.
    """

    def __init__(self, sink: Sink, statistics: Statistics, stop: threading.Event, *, live: bool) -> None:
        self.sink = sink
        self._statistics, self._stop, self._live = statistics, stop, live
        self._waiting = Channel[FusedFrame](sink.capacity, lossless=sink.lossless and not live)

    def put(self, frame: FusedFrame) -> None:
        """Queue a frame; if the output is busy, the oldest one is dropped and counted."""
        if self._waiting.put(frame) is not None:
            self._statistics.dropped(f"output {self.sink.name}", "stopped" if self._stop.is_set() else "output busy")

    def run(self) -> None:
        """Write until the channel is closed and empty.

        Raises:
            OutputError: The output cannot be written, or turns out damaged when it is closed.
        """
        with contextlib.ExitStack() as stack:
            # Windows have to be closed by the thread that opened them, and files are checked when they are closed.
            stack.push(self.sink.__exit__)
            while (frame := self._waiting.get()) is not None:
                started_ns = time.monotonic_ns()
                self.sink.write(frame)
                now_ns = time.monotonic_ns()
                self._statistics.wrote(self.sink.name)
                self._statistics.took("output", now_ns - started_ns)
                if self._live:
                    self._statistics.took("age", now_ns - frame.time_ns)

    def close(self) -> None:
        """No more frames will come."""
        self._waiting.close()

    def __len__(self) -> int:
        return len(self._waiting)


class RecordWriter:
    """Writes raw frames to a recording in its own thread.

    Args:
        recorder: The recording, already entered.
        statistics: Counters of the run.
        live: Whether the frames come from cameras, which must never wait.
    """

    def __init__(self, recorder: FrameRecorder, statistics: Statistics, *, live: bool) -> None:
        self.recorder = recorder
        self._statistics = statistics
        self._waiting: Channel[Frame | PairFate] = Channel(RECORDED, lossless=not live)
        self._paused_until_s: float | None = None

    def keep(self, item: Frame | PairFate) -> None:
        """Queue a frame, or the fate of a pair. Without either, the replay is another run."""
        if self._waiting.put(item) is not None:
            self._statistics.dropped(RECORDING, DISK_TOO_SLOW)

    def run(self) -> None:
        """Write until the channel is closed and empty.

        Raises:
            OutputError: The recording cannot be written; a full disk only pauses a recorder that outlasts it.
        """
        try:
            while (item := self._waiting.get()) is not None:
                self._write(item)
        finally:
            self._waiting.close()

    def close(self) -> None:
        """No more frames will come."""
        self._waiting.close()

    def _write(self, item: Frame | PairFate) -> None:
        if self._paused_until_s is not None and time.monotonic() < self._paused_until_s:
            self._statistics.dropped(RECORDING, DISK_FULL)
            return
        try:
            self.recorder.write(item)
        except DiskFullError as error:
            if not self.recorder.outlasts_full_disk:
                raise
            if self._paused_until_s is None:
                self._statistics.note(RECORDING, f"paused: {error.problem}")
            self._statistics.dropped(RECORDING, DISK_FULL)
            self._paused_until_s = time.monotonic() + _PAUSE_S
        else:
            if self._paused_until_s is not None:
                self._statistics.note(RECORDING, "resumed: the disk has space again")
            self._paused_until_s = None
