"""GStreamer pipelines as sources: ``gst:`` and, on a Jetson, ``csi://``.

OpenCV from PyPI is built without GStreamer, and no build of OpenCV reports the times of its buffers, so the pipeline runs in a
program under the system's Python, see ``gst_reader``. 16-bit gray stays 16-bit.
"""

from __future__ import annotations

import os
import select
import struct
import time

import numpy as np
from typing_extensions import Self

from refusion_edge.arrays import Array
from refusion_edge.errors import SourceLostError
from refusion_edge.stream.frames import Side
from refusion_edge.stream.sources.clock import SourceClock
from refusion_edge.stream.sources.source import CLOCK_GSTREAMER, Grab
from refusion_edge.stream.system_python import BINDINGS, PACKAGES, NotReadyError, Program, end, start_ready
from refusion_edge.stream.uri import Uri, number_option, read_options

_HEADER = struct.Struct("<10sIIIq")
_FORMATS: dict[str, tuple[type[np.generic], tuple[int, ...]]] = {
    "BGR": (np.uint8, (3,)), "GRAY8": (np.uint8, ()), "GRAY16_LE": (np.uint16, ()),
}  # fmt: skip
_START_S, _READ_S = 15.0, 5.0
_DEFAULT_WH, _DEFAULT_RATE_HZ = (1280, 720), 30.0


class GStreamerSource:
    """A GStreamer pipeline. Implements ``Source``.

    ``gst:PIPELINE`` is written without conversion and sink, which are appended. ``csi://N`` stands for the pipeline of NVIDIA's
    camera stack for sensor N, with the options ``width``, ``height`` and ``rate``.
    """

    live = absolute = True

    def __init__(self, uri: Uri, side: Side) -> None:
        self.uri, self.side = uri, side
        self.remarks: list[str] = []
        read_options(uri, ("width", "height", "rate"))
        sizes = zip(("width", "height"), _DEFAULT_WH, strict=True)
        self._size_wh = tuple(int(number_option(uri, name, default, low=1, high=16384)) for name, default in sizes)
        self._rate_hz = number_option(uri, "rate", _DEFAULT_RATE_HZ, low=0.1, high=1000) if uri.scheme == "csi" else None
        self._program: Program | None = None
        self._index = 0
        self.timing = SourceClock(CLOCK_GSTREAMER, shared=True)

    def __enter__(self) -> Self:
        if self._index:
            self.timing.restart()
        try:
            self._program = start_ready(
                "sources/gst_reader.py", (), {"REFUSION_EDGE_PIPELINE": self._pipeline()}, name=str(self.uri),
                bindings=BINDINGS, packages=PACKAGES, within_s=_START_S,
            )  # fmt: skip
        except NotReadyError as failed:
            raise SourceLostError(
                f"cannot start the pipeline {self.uri}: {self.uri.hide(failed.answer)}", "try it with gst-launch-1.0"
            ) from None  # its answer may hold a password
        return self

    def __exit__(self, *exc: object) -> None:
        if self._program is not None:
            end(self._program)
            self._program = None

    @property
    def clock(self) -> str:
        """See ``Source.clock``."""
        return self.timing.state.clock

    @property
    def rate_hz(self) -> float | None:
        """Frames per second requested from the sensor, or None for ``gst:``."""
        return self._rate_hz

    @property
    def keeps_noise(self) -> bool:
        """See ``Source.keeps_noise``; a pipeline with a decoder other than that of JPEG may not."""
        return "dec" not in self._pipeline().replace("jpegdec", "")

    def read(self) -> Grab | None:
        """See ``Source.read``; the end of the pipeline is the end of the source, a failure is a lost camera."""
        name, width, height, count, time_ns = _HEADER.unpack(self._take(_HEADER.size))
        data = self._take(count)
        kind = name.rstrip(b"\0").decode()
        if kind == "end":
            if not data:
                return None
            raise SourceLostError(f"{self.uri} failed: {self.uri.hide(data.decode(errors='replace'))}", "check the camera")
        dtype, channels = _FORMATS[kind]
        image: Array = np.frombuffer(data, dtype).reshape(height, width, *channels)
        self._index += 1
        return Grab(image, self._index - 1, self.timing.place(time_ns, time.monotonic_ns()))

    def _take(self, count: int) -> bytearray:
        """Read exactly ``count`` bytes, each part within a time limit."""
        assert self._program is not None
        assert self._program.stdout is not None
        file, taken = self._program.stdout.fileno(), bytearray()
        deadline_s = time.monotonic() + _READ_S
        while len(taken) < count:
            ready, _, _ = select.select([file], [], [], max(0.0, deadline_s - time.monotonic()))
            part = os.read(file, count - len(taken)) if ready else b""
            if not part:
                raise SourceLostError(f"{self.uri} sent nothing for {_READ_S:g} s, or ended", "check the camera and its cable")
            taken += part
        return taken

    def _pipeline(self) -> str:
        if self.uri.scheme == "gst":
            return self.uri.target
        width, height = self._size_wh
        rate = round(self._rate_hz or _DEFAULT_RATE_HZ)
        return (
            f"nvarguscamerasrc sensor-id={self.uri.target or 0} ! video/x-raw(memory:NVMM),width={width},height={height},"
            f"framerate={rate}/1 ! nvvidconv ! video/x-raw,format=BGRx"
        )
