"""Cameras, network streams and video files as sources, through OpenCV.

OpenCV decodes with FFmpeg (files, RTSP, HTTP) and V4L2 (cameras on USB).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

import cv2
import numpy as np
from typing_extensions import Self

from refusion_edge.arrays import Array
from refusion_edge.errors import ShapeError

# Read once, when OpenCV loads FFmpeg, which would print whole addresses, passwords included.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


from refusion_edge.errors import InputError, SourceLostError, UsageError
from refusion_edge.stream.frames import MS, SECOND, Side
from refusion_edge.stream.sources.clock import CLOCK_KERNEL, CLOCK_STREAM, SourceClock
from refusion_edge.stream.sources.source import CLOCK_CONTAINER, CLOCK_COUNT, CorruptFrameError, Grab
from refusion_edge.stream.uri import Uri, number_option, read_options
from refusion_edge.text import printable

_OPEN_TIMEOUT_MS, _READ_TIMEOUT_MS = 15_000, 5_000
_RTSP_OPTIONS = "rtsp_transport;tcp|fflags;nobuffer|flags;low_delay|max_delay;200000"
_FFMPEG_OPTIONS, _FFMPEG_OPTIONS_LOCK = "OPENCV_FFMPEG_CAPTURE_OPTIONS", threading.Lock()
_OPTIONS = ("format", "width", "height", "rate")
# FFmpeg pixel formats of one plane with 8 or 16 bits (FOURCC as OpenCV reports it), which lose depth in a conversion.
_GRAY_FOURCC = {0x10003159, 0x08003159, 0x59455247, 0x20363159}
# A source whose reads fail this many times in a row is lost.
_MAX_FAILED_READS = 3


class CaptureSource:
    """A camera, a network stream or a video file. Implements ``Source``.

    Cameras and ``file://`` URIs take the options ``format`` (``auto``, ``y16``, ``split16``), ``width``, ``height`` and
    ``rate``.
    """

    def __init__(self, uri: Uri, side: Side) -> None:
        self.uri, self.side = uri, side
        self.live = uri.scheme != "file"
        # Kernel and host share one clock; a container starts at its own zero.
        self.absolute = self.live
        read_options(uri, _OPTIONS)
        self._format = _pixel_format(uri)
        self._size_wh = tuple(int(number_option(uri, name, 0, low=0, high=16384)) for name in ("width", "height"))
        self._asked_rate_hz = number_option(uri, "rate", 0, low=0, high=1000)
        self._capture: Any = None
        is_camera = uri.scheme == "v4l2"
        self.timing = SourceClock(CLOCK_KERNEL if is_camera else CLOCK_STREAM, shared=is_camera) if self.live else None
        self._index = 0
        self._failed_reads = 0
        self._last_stamp_ns: int | None = None
        self._stamps_usable = True

    def __enter__(self) -> Self:
        silence_opencv()
        if self.timing is not None and self._index:
            self.timing.restart()
        self._check_reachable()
        self._capture = self._open()
        if not self._capture.isOpened():
            self._capture.release()
            raise self._cannot_open()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._capture is not None:
            self._capture.release()
            self._capture = None

    @property
    def clock(self) -> str:
        """See ``Source.clock``."""
        if self.timing is not None:
            return self.timing.state.clock
        return CLOCK_CONTAINER if self._stamps_usable else CLOCK_COUNT

    @property
    def rate_hz(self) -> float | None:
        """Frame rate reported by the camera or the container, or None if it is implausible."""
        told = 0.0 if self._capture is None else float(self._capture.get(cv2.CAP_PROP_FPS))
        rate = self._asked_rate_hz or told
        return rate if 0 < rate <= 1000 else None

    def read(self) -> Grab | None:
        """See ``Source.read``."""
        good, image = self._capture.read()
        arrived_ns = time.monotonic_ns()
        if not good or image is None:
            self._nothing_read()
            return None
        self._failed_reads = 0
        index = self._index
        self._index += 1
        time_ns = self._time_ns(index, arrived_ns)
        try:
            return Grab(unpack(image, self._format), index, time_ns)
        except ShapeError as error:
            if index == 0:
                raise
            raise CorruptFrameError(error.problem, error.remedy, expected=error.expected, got=error.got) from error

    def _nothing_read(self) -> None:
        """Distinguish the end of a file, which returns, from a damaged frame and a lost camera, which raise."""
        if not self.live:
            told = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
            if self._index == 0:
                raise InputError(
                    f"cannot decode any frame of {self.uri}, whose codec may be unsupported", "convert it to H.264 or FFV1"
                )
            if 0 < self._index < told and self._failed_reads < _MAX_FAILED_READS:
                self._failed_reads += 1
                self._index += 1
                raise CorruptFrameError(f"frame {self._index - 1} of {self.uri} cannot be decoded")
            return
        self._failed_reads += 1
        if self._failed_reads < _MAX_FAILED_READS:
            raise CorruptFrameError(f"no frame of {self.uri}")
        raise SourceLostError(f"{self.uri} stopped sending frames", "check the camera and its cable")

    def _time_ns(self, index: int, arrived_ns: int) -> int:
        """The time of the container as long as it advances, or of the clock of a camera."""
        stamp_ns = round(float(self._capture.get(cv2.CAP_PROP_POS_MSEC)) * MS)
        if self.timing is not None:
            return self.timing.place(stamp_ns, arrived_ns)
        if index and self._stamps_usable and stamp_ns == self._last_stamp_ns:
            self._stamps_usable = False
        self._last_stamp_ns = stamp_ns
        return stamp_ns if self._stamps_usable else round(index * SECOND / (self.rate_hz or 30.0))

    def _open(self) -> Any:
        scheme, raw = self.uri.scheme, self._format != "auto"
        if scheme == "v4l2":
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
        if scheme != "file":
            timeouts = [
                cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, _OPEN_TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, _READ_TIMEOUT_MS,
            ]  # fmt: skip
            with _ffmpeg_options(_RTSP_OPTIONS if scheme.startswith("rtsp") else ""):
                return self._unconverted(self.uri.text, timeouts)
        with _ffmpeg_options(""):
            return self._unconverted(self.uri.target, [])

    def _unconverted(self, address: str, options: list[int]) -> Any:
        """Open with FFmpeg; reopen gray streams without the conversion to color, which would drop their low bits."""
        capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, options)
        if capture.isOpened() and int(capture.get(cv2.CAP_PROP_CODEC_PIXEL_FORMAT)) in _GRAY_FOURCC:
            capture.release()
            capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, [*options, cv2.CAP_PROP_CONVERT_RGB, 0])
        return capture

    def _check_reachable(self) -> None:
        """Check beforehand what would keep a source from opening, as OpenCV gives no reason."""
        if self.uri.scheme == "file" and not self.uri.path.is_file():
            raise InputError(f"there is no video at {self.uri}", "check the path")
        if self.uri.scheme == "file" and self.uri.path.stat().st_size == 0:
            raise InputError(f"the video {self.uri} is empty (0 bytes)", "write or copy it again")
        if self.uri.scheme == "v4l2":
            try:
                os.close(os.open(self.uri.target, os.O_RDWR | os.O_NONBLOCK))
            except OSError as error:
                raise _device_error(self.uri, error) from error
        if self.uri.scheme in ("rtsp", "rtsps", "http", "https"):
            _check_network(self.uri)

    def _cannot_open(self) -> InputError | SourceLostError:
        if self.uri.scheme == "file":
            return InputError(f"cannot open the video {self.uri}: it is damaged or not a video", "convert it to H.264 or FFV1")
        return SourceLostError(
            f"cannot open {self.uri}: it is busy, refuses the connection or has an unsupported format",
            "close other programs that use it",
        )


def silence_opencv() -> None:
    """Keep the log of OpenCV off the terminal; our own errors are one line and hide passwords."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


@contextlib.contextmanager
def _ffmpeg_options(options: str) -> Iterator[None]:
    """Set FFmpeg options for whatever is opened inside the block. OpenCV reads them only from the process environment."""
    with _FFMPEG_OPTIONS_LOCK:
        before = os.environ.get(_FFMPEG_OPTIONS)
        os.environ[_FFMPEG_OPTIONS] = options
        try:
            yield
        finally:
            if before is None:
                del os.environ[_FFMPEG_OPTIONS]
            else:
                os.environ[_FFMPEG_OPTIONS] = before


def _pixel_format(uri: Uri) -> PixelFormat:
    asked = uri.options.get("format", "auto")
    for name in PIXEL_FORMATS:
        if asked == name:
            return name
    raise UsageError(
        f"{uri} names an unknown format '{printable(asked)}'",
        f"choose one of {', '.join(PIXEL_FORMATS)}",
        expected=tuple(PIXEL_FORMATS),
        got=asked,
    )


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


def _check_network(uri: Uri) -> None:
    parts = urlsplit(uri.text)
    default = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}[uri.scheme]
    try:
        address = (parts.hostname or "", parts.port or default)
    except ValueError:
        raise UsageError(f"the port in {uri} is not a number from 0 to 65535", "correct it") from None
    try:
        with socket.create_connection(address, timeout=_OPEN_TIMEOUT_MS / 1000) as connection:
            if uri.scheme == "rtsp":
                _check_rtsp(uri, connection)
    except socket.gaierror as error:
        raise SourceLostError(f"the host of {uri} is unknown", "check its name") from error
    except TimeoutError as error:
        raise SourceLostError(f"{uri} did not answer within {_OPEN_TIMEOUT_MS / 1000:g} s", "check the network") from error
    except OSError as error:
        reason = uri.hide(error.strerror or str(error)).lower()
        raise SourceLostError(f"cannot connect to {uri}: {reason}", "check the address and the port") from error


def _check_rtsp(uri: Uri, connection: socket.socket) -> None:
    """Request the description of the stream, so that 404 and 401 get their own errors rather than that of a failed decoder."""
    parts = urlsplit(uri.text)
    plain = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    request = f"DESCRIBE {plain} RTSP/1.0\r\nCSeq: 1\r\nAccept: application/sdp\r\nUser-Agent: refusion-edge\r\n\r\n"
    connection.sendall(request.encode())
    words = connection.recv(1024).decode(errors="replace").split(maxsplit=2)
    code = words[1] if len(words) > 1 else ""
    if code == "404":
        raise SourceLostError(f"the server knows no stream at {uri} (404 not found)", "check the path")
    if code == "401" and not parts.username:
        raise SourceLostError(f"{uri} asks for a user and a password (401 unauthorized)", "write rtsp://USER:PASSWORD@...")


def as_bgr(image: Array) -> Array:
    """Convert an image to (H, W, 3) BGR; a BGR image is returned as is."""
    return image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)


PixelFormat = Literal["auto", "y16", "split16"]
PIXEL_FORMATS: tuple[PixelFormat, ...] = get_args(PixelFormat)


def unpack(image: Array, pixel_format: PixelFormat) -> Array:
    """Convert the array from a capture library to an image.

    Args:
        image: For ``auto``: (H, W) or (H, W, 3), returned as is; an alpha channel is dropped. For ``y16``: (H, W) uint16, or
            its bytes in little-endian order, (H, W, 2) uint8. For ``split16``: (2 H, W, 2) uint8 from a camera that sends a
            color image above its little-endian counts, as cameras of 256x384 pixels do.
        pixel_format: One of ``PIXEL_FORMATS``.

    Returns:
        (H, W) uint8, uint16 or float32, or (H, W, 3) BGR uint8. A view where possible.

    Raises:
        ShapeError: The array does not have this layout.
    """
    if pixel_format == "auto":
        if image.ndim == 3 and image.shape[2] == 1:
            return image[..., 0]
        if image.ndim == 3 and image.shape[2] == 4:
            return cv2.cvtColor(image, cv2.COLOR_BGRA2BGR)
        if image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3):
            return image
        raise ShapeError(
            f"an image of shape {image.shape} does not have 1, 3 or 4 channels",
            "add ?format=y16 or ?format=split16 to the URI",
            expected=(1, 3, 4),
            got=image.shape,
        )
    counts = _counts(image, pixel_format)
    if pixel_format == "y16":
        return counts
    if counts.shape[0] % 2:
        raise ShapeError(f"an image of {counts.shape[0]} rows cannot be split into two halves", "leave ?format=split16 out")
    return counts[counts.shape[0] // 2 :]


def _counts(image: Array, pixel_format: PixelFormat) -> Array:
    """Read pairs of bytes as little-endian counts, (H, W)."""
    if image.ndim == 2 and image.dtype == np.uint16:
        return image
    if image.ndim == 3 and image.shape[2] == 2 and image.dtype == np.uint8:
        return np.ascontiguousarray(image).view("<u2")[..., 0].astype(np.uint16, copy=False)
    raise ShapeError(
        f"?format={pixel_format} needs two bytes per pixel, and the camera delivers {image.dtype} of shape {image.shape}",
        "choose the raw mode of the camera",
        expected="uint16",
        got=str(image.dtype),
    )
