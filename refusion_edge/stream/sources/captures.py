"""Cameras on V4L2 as sources, through OpenCV."""

from __future__ import annotations

import errno
import os
import time
from typing import Any

import cv2
from typing_extensions import Self

from refusion_edge.errors import ShapeError, SourceLostError
from refusion_edge.stream.frames import MS, SECOND, Side
from refusion_edge.stream.sources.clock import ClockAnchor
from refusion_edge.stream.sources.pixels import read_pixel_format, unpack
from refusion_edge.stream.sources.source import CLOCK_ARRIVAL, CLOCK_KERNEL, CLOCK_STREAM, CorruptFrameError, Grab
from refusion_edge.stream.uri import Uri, number_option, read_options

# A source whose reads fail this many times in a row is lost.
_MAX_FAILED_READS = 3


class CaptureSource:
    """A camera. Implements ``Source``.

    Its options are ``format`` (``auto``, ``y16``, ``split16``), ``width``, ``height`` and ``rate``.
    """

    live = absolute = keeps_noise = True

    def __init__(self, uri: Uri, side: Side) -> None:
        self.uri, self.side = uri, side
        self.remarks: list[str] = []
        read_options(uri, ("format", "width", "height", "rate"))
        self._format = read_pixel_format(uri)
        self._size_wh = tuple(int(number_option(uri, name, 0, low=0, high=16384)) for name in ("width", "height"))
        self._asked_rate_hz = number_option(uri, "rate", 0, low=0, high=1000)
        self._capture: Any = None
        self._anchor = ClockAnchor()
        self._index = 0
        self._failed_reads = 0
        self._last_stamp_ns: int | None = None
        self._stamps_usable = True
        self._on_host_clock = True

    def __enter__(self) -> Self:
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        try:
            os.close(os.open(self.uri.target, os.O_RDWR | os.O_NONBLOCK))
        except OSError as error:
            raise _device_error(self.uri, error) from error
        self._capture = self._open()
        if not self._capture.isOpened():
            self._capture.release()
            raise SourceLostError(
                f"cannot open {self.uri}: it is busy or has an unsupported format", "close other programs that use it"
            )
        return self

    def __exit__(self, *exc: object) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    @property
    def clock(self) -> str:
        """See ``Source.clock``."""
        if not self._stamps_usable:
            return CLOCK_ARRIVAL
        return CLOCK_KERNEL if self._on_host_clock else CLOCK_STREAM

    @property
    def rate_hz(self) -> float | None:
        """Frame rate reported by the camera, or None if it is implausible."""
        told = 0.0 if self._capture is None else float(self._capture.get(cv2.CAP_PROP_FPS))
        rate = self._asked_rate_hz or told
        return rate if 0 < rate <= 1000 else None

    def read(self) -> Grab | None:
        """See ``Source.read``."""
        good, image = self._capture.read()
        arrived_ns = time.monotonic_ns()
        if not good or image is None:
            self._failed_reads += 1
            if self._failed_reads < _MAX_FAILED_READS:
                raise CorruptFrameError(f"no frame of {self.uri}")
            raise SourceLostError(f"{self.uri} stopped sending frames", "check the camera and its cable")
        self._failed_reads = 0
        index = self._index
        self._index += 1
        time_ns = self._time_ns(index, arrived_ns)
        try:
            return Grab(unpack(image, self._format), index, time_ns)
        except ShapeError as error:
            if index == 0:
                raise
            raise CorruptFrameError(str(error)) from error

    def _time_ns(self, index: int, arrived_ns: int) -> int:
        """Choose the best time stamp: the one of the stream as long as it advances."""
        stamp_ns = round(float(self._capture.get(cv2.CAP_PROP_POS_MSEC)) * MS)
        if index and self._stamps_usable and stamp_ns == self._last_stamp_ns:
            self._stamps_usable = False
        self._last_stamp_ns = stamp_ns
        if not self._stamps_usable:
            return arrived_ns
        if self._on_host_clock and abs(arrived_ns - stamp_ns) < SECOND:
            return stamp_ns
        self._on_host_clock = False  # some drivers use another clock for their stamps
        return self._anchor.place(stamp_ns, arrived_ns)

    def _open(self) -> Any:
        raw = self._format != "auto"
        capture = cv2.VideoCapture(self.uri.target, cv2.CAP_V4L2, [cv2.CAP_PROP_CONVERT_RGB, 0 if raw else 1])
        capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        if self._format == "y16":
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"Y16 "))
        for key, value in zip((cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT), self._size_wh, strict=True):
            if value:
                capture.set(key, value)
        if self._asked_rate_hz:
            capture.set(cv2.CAP_PROP_FPS, self._asked_rate_hz)
        return capture


def _device_error(uri: Uri, error: OSError) -> SourceLostError:
    if error.errno == errno.EACCES:
        return SourceLostError(
            f"cannot read {uri}: permission denied", "add the user to the group video, or run as a member of it"
        )
    if error.errno == errno.EBUSY:
        return SourceLostError(f"cannot read {uri}: the camera is busy", "close the other program that uses it")
    return SourceLostError(
        f"cannot open the camera {uri}: {error.strerror}", "plug it in, or list the cameras with v4l2-ctl --list-devices"
    )
