"""GStreamer pipelines as outputs: ``gst:`` and a pipeline without its source.

The pipeline runs in a program under the system's Python (``gst_writer.py``), see ``system_python``.
"""

from __future__ import annotations

import struct

import numpy as np
from typing_extensions import Self

from refusion_edge.errors import OutputError
from refusion_edge.stream.frames import SECOND, FusedFrame
from refusion_edge.stream.system_python import BINDINGS, PACKAGES, NotReadyError, Program, end, last_line, send, start_ready
from refusion_edge.stream.uri import Uri, read_options

_HEADER = struct.Struct("<10sIIIq")
# A pipeline that ends has to write its files; after that, the program itself has to end.
_START_S, _END_S, _REPORT_S = 15.0, 30.0, 10.0
_ALIGNMENT = 4


class GStreamerSink:
    """Sends the fused frames to a GStreamer pipeline, with their times. Implements ``Sink``.

    Args:
        uri: ``gst:PIPELINE``; the first element of the pipeline receives the frames, BGR or GRAY8, such as ``videoconvert``.
        rate_hz: Nominal frames per second.
        live: Whether the frames come from cameras; from files, all frames are written, at the speed of the pipeline.
    """

    capacity, lossless = 2, True

    def __init__(self, uri: Uri, *, rate_hz: float | None, live: bool) -> None:
        self.name = str(uri)
        read_options(uri, ())
        self._uri, self._live = uri, live
        self._rate_hz = max(1, round(rate_hz or 30))
        self._process: Program | None = None
        self._started_ns = 0
        self._last_ns: int | None = None  # of the last frame, since the first one

    def __enter__(self) -> Self:
        words = ["live" if self._live else "files", str(self._rate_hz), str(_END_S)]
        try:
            self._process = start_ready(
                "outputs/gst_writer.py", words, {"REFUSION_EDGE_PIPELINE": self._uri.target}, name=self.name, bindings=BINDINGS,
                packages=PACKAGES, within_s=_START_S,
            )  # fmt: skip
        except NotReadyError as failed:
            raise OutputError(
                f"cannot start the pipeline {self.name}: {self._uri.hide(failed.answer)}", "try it with gst-launch-1.0"
            ) from None  # its answer may hold a password
        return self

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            if end(process, _END_S + _REPORT_S):
                raise OutputError(f"the pipeline {self.name} failed while it was ending", "try it with gst-launch-1.0")

    def write(self, frame: FusedFrame) -> None:
        """See ``Sink.write``."""
        assert self._process is not None
        due_ns = frame.time_ns - self._started_ns
        if self._last_ns is None:
            self._started_ns, due_ns = frame.time_ns, 0
        elif due_ns <= self._last_ns:
            # Times that stand still or went back, as after a new clock: the pipeline goes on from where it is.
            due_ns = self._last_ns + SECOND // self._rate_hz
            self._started_ns = frame.time_ns - due_ns
        self._last_ns = due_ns
        image = frame.image
        height, width = image.shape[:2]
        rows = np.ascontiguousarray(image).reshape(height, -1)
        rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % _ALIGNMENT)))
        name = b"BGR" if image.ndim == 3 else b"GRAY8"
        header = _HEADER.pack(name, width, height, rows.size, due_ns)
        try:
            send(self._process, memoryview(header))
            send(self._process, rows.data)
        except OSError as error:
            process, self._process = self._process, None
            reason = last_line(process)
            end(process)
            raise OutputError(
                f"the pipeline {self.name} failed: {self._uri.hide(reason) or 'it ended unexpectedly'}",
                "try it with gst-launch-1.0",
            ) from error
