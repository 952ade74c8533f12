"""Videos of the fused frames that viewers start and end on the page."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from refusion_edge.errors import OutputError, RefusionError, UsageError
from refusion_edge.stream.frames import FusedFrame
from refusion_edge.stream.outputs.video import VideoSink
from refusion_edge.stream.uri import Uri

MOST_SECONDS = 3600.0
"""Length at which a clip ends by itself: whoever started it may have left."""
_WAITING = 8
_END_S = 5.0


@dataclass(frozen=True, slots=True)
class ClipState:
    """What viewers are told.

    Attributes:
        file: Name of the clip that is being written, or None.
        seconds: Its length so far.
        problem: Why the last one ended early; empty if it did not.
    """

    file: str | None = None
    seconds: float = 0.0
    problem: str = ""


class Clips:
    """Writes fused frames to one video after another, each in a thread of its own. Methods may be called from any thread.

    The files are called by their time, ``20261130-221503.mp4``. What a slow disk cannot take is left out and counted, and
    a clip that cannot be written any more ends; neither affects the stream.

    Args:
        folder: Where they are written; made with the first one.
        prefix: Beginning of their names.
        note: Called with what happened.
    """

    def __init__(self, folder: Path, prefix: str = "", note: Callable[[str], object] = lambda _text: None) -> None:
        self._folder, self._prefix, self._note = folder, prefix, note
        self._starting = threading.Lock()  # one start at a time; frames and viewers do not wait for it
        self._lock = threading.Lock()  # everything below
        self._frames: queue.Queue[FusedFrame | None] | None = None
        self._thread: threading.Thread | None = None
        self._file, self._problem = "", ""
        self._started_s = 0.0
        self._left_out = 0
        self._closed = False

    @property
    def state(self) -> ClipState:
        """What is being written."""
        with self._lock:
            if self._frames is None:
                return ClipState(problem=self._problem)
            return ClipState(self._file, time.monotonic() - self._started_s)

    def start(self) -> None:
        """Begin a clip, unless one is being written.

        Raises:
            OutputError: The folder cannot be written, or the stream has ended.
            MissingDependencyError: PyAV is not installed.
        """
        with self._starting, contextlib.ExitStack() as on_failure:
            with self._lock:
                self._require_stream()
                if self._frames is not None:
                    return
            path = self._free_path()
            sink = on_failure.enter_context(VideoSink(Uri("file", str(path)), rate_hz=None, announce=self._note))
            frames: queue.Queue[FusedFrame | None] = queue.Queue(_WAITING)
            thread = threading.Thread(target=self._write, args=(sink, frames), name=f"clip {path.name}", daemon=True)
            with self._lock:
                self._require_stream()
                thread.start()
                self._frames, self._thread = frames, thread
                self._file, self._problem, self._started_s, self._left_out = path.name, "", time.monotonic(), 0
            on_failure.pop_all()
        self._note(f"recording {path}, started on the page")

    def stop(self) -> None:
        """End the clip, and wait until its file is complete, also if it was ending already."""
        with self._lock:
            frames, self._frames = self._frames, None
            thread, file = self._thread, self._file
        if frames is not None:
            _end(frames)
        if thread is None:
            return
        thread.join(_END_S)
        if thread.is_alive():
            problem = "the disk is too slow, and its last seconds may be missing"
            self._failed(thread, problem)
            self._note(f"recording {file} is still being written: {problem}")

    def close(self) -> None:
        """End the clip as ``stop`` does; none can be started any more."""
        with self._lock:
            self._closed = True
        self.stop()

    def offer(self, frame: FusedFrame) -> None:
        """Take a frame if a clip is being written; never waits."""
        with self._lock:
            frames = self._frames
            if frames is not None and time.monotonic() - self._started_s > MOST_SECONDS:
                self._frames, self._problem = None, f"the clip ended after {MOST_SECONDS / 3600:g} hour"
                _end(frames)
                return
        if frames is not None:
            # The video is of the fused image; the views beside it are several times its size.
            alone = replace(frame, ir=None, vis=None, no_ir=None, no_vis=None)
            try:
                frames.put_nowait(alone)
            except queue.Full:
                with self._lock:
                    self._left_out += 1

    def _write(self, sink: VideoSink, frames: queue.Queue[FusedFrame | None]) -> None:
        try:
            with contextlib.ExitStack() as stack:
                stack.push(sink.__exit__)
                while (frame := frames.get()) is not None:
                    sink.write(frame)
        except Exception as error:  # whatever it is ends this clip, and is said
            failure = f"the program failed with {type(error).__name__}: {error}"
            problem = error.problem if isinstance(error, RefusionError) else failure
            self._failed(threading.current_thread(), problem)
            self._note(f"recording {sink.name} ended: {problem}")
        else:
            with self._lock:
                left_out = self._left_out if self._thread is threading.current_thread() else 0
            gaps = f", but {left_out} frames were left out, because the disk or the encoder is too slow" if left_out else ""
            self._note(f"recording {sink.name} is complete{gaps}")

    def _failed(self, thread: threading.Thread, problem: str) -> None:
        """Tell viewers what was wrong with a clip, unless another one has been started since."""
        with self._lock:
            if self._thread is thread:
                self._frames, self._problem = None, problem

    def _require_stream(self) -> None:
        if self._closed:
            raise OutputError("the stream has ended", "start it again")

    def _free_path(self) -> Path:
        stem, number = f"{self._prefix}{datetime.now():%Y%m%d-%H%M%S}", 1
        path = self._folder / f"{stem}.mp4"
        while path.exists():
            number += 1
            path = self._folder / f"{stem}-{number}.mp4"
        return path


class NoClips:
    """Stands in where no folder for clips was named: viewers cannot record."""

    state = ClipState()

    def start(self) -> None:
        """Refuse.

        Raises:
            UsageError: Always.
        """
        raise UsageError("this stream records nothing for its viewers", "start it with --clips DIR")

    def stop(self) -> None:
        """There is nothing to end."""

    def close(self) -> None:
        """There is nothing to end."""

    def offer(self, frame: FusedFrame) -> None:
        """Leave the frame out."""


def _end(frames: queue.Queue[FusedFrame | None]) -> None:
    """Ask the writer to finish; if it is so slow that its queue is full, the oldest frame makes room."""
    while True:
        try:
            frames.put_nowait(None)
        except queue.Full:
            with contextlib.suppress(queue.Empty):
                frames.get_nowait()
        else:
            return
