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

# Read once, when OpenCV loads FFmpeg, which would print whole addresses with their passwords.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


from refusion_edge.errors import InputError, SourceLostError, UsageError
from refusion_edge.stream.frames import MS, SECOND, Side
from refusion_edge.stream.sources.clock import ClockAnchor
from refusion_edge.stream.sources.source import (
    CLOCK_ARRIVAL,
    CLOCK_CONTAINER,
    CLOCK_COUNT,
    CLOCK_KERNEL,
    CLOCK_STREAM,
    CorruptFrameError,
    Grab,
)
from refusion_edge.stream.uri import Uri, number_option, read_options
from refusion_edge.text import printable

_OPEN_TIMEOUT_MS, _READ_TIMEOUT_MS = 15_000, 5_000
_RTSP_OPTIONS = "rtsp_transport;tcp|fflags;nobuffer|flags;low_delay|max_delay;200000"
_FFMPEG_OPTIONS, _FFMPEG_OPTIONS_LOCK = "OPENCV_FFMPEG_CAPTURE_OPTIONS", threading.Lock()
_OPTIONS = ("format", "width", "height", "rate")
# Pixel formats of FFmpeg that hold one plane of 8 or 16 bits (FOURCC as OpenCV reports it); converted, they would lose depth.
_GREY_FOURCC = {0x10003159, 0x08003159, 0x59455247, 0x20363159}
# A network stream that delivers nothing usable for so many reads in a row is lost.
_MOST_FAILED_READS = 3


class CaptureSource:
    """A camera, a network stream or a video file. Implements ``Source``.

    Options of cameras and of files given as ``file://``: ``format`` (``auto``, ``y16``, ``split16``), ``width``, ``height``,
    ``rate``.
    """

    def __init__(self, uri: Uri, side: Side) -> None:
        self.uri, self.side = uri, side
        self.live = uri.scheme != "file"
        # The clocks of the kernel and of the host are one; a container starts at its own zero.
        self.absolute = self.live
        read_options(uri, _OPTIONS)
        self._format = _pixel_format(uri)
        self._size_wh = tuple(int(number_option(uri, name, 0, least=0, most=16384)) for name in ("width", "height"))
        self._asked_rate_hz = number_option(uri, "rate", 0, least=0, most=1000)
        self._capture: Any = None
        self._anchor = ClockAnchor()
        self._index = 0
        self._failed_reads = 0
        self._last_stamp_ns: int | None = None
        self._stamps_usable = True
        self._is_v4l2 = uri.scheme == "v4l2"

    def __enter__(self) -> Self:
        silence_opencv()
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
        if not self._stamps_usable:
            return CLOCK_ARRIVAL if self.live else CLOCK_COUNT
        if self._is_v4l2:
            return CLOCK_KERNEL
        return CLOCK_STREAM if self.live else CLOCK_CONTAINER

    @property
    def rate_hz(self) -> float | None:
        """What the camera or the container says, where it is plausible."""
        told = 0.0 if self._capture is None else float(self._capture.get(cv2.CAP_PROP_FPS))
        rate = self._asked_rate_hz or told
        return rate if 0 < rate <= 1000 else None

    def read(self) -> Grab | None:
        """See ``Source.read``."""
        good, picture = self._capture.read()
        arrived_ns = time.monotonic_ns()
        if not good or picture is None:
            self._nothing_read()
            return None
        self._failed_reads = 0
        index = self._index
        self._index += 1
        time_ns = self._time_ns(index, arrived_ns)
        try:
            return Grab(unpack(picture, self._format), index, time_ns)
        except ShapeError as error:
            if index == 0:
                raise
            raise CorruptFrameError(str(error)) from error

    def _nothing_read(self) -> None:
        """Tell the end of a file, which is no error, from a lost or damaged frame and a lost camera."""
        if not self.live:
            told = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
            if self._index == 0:
                raise InputError(
                    f"expected a video that can be decoded at {self.uri}, got no frame; its codec may be unsupported, "
                    "convert it to H.264 or FFV1."
                )
            if 0 < self._index < told and self._failed_reads < _MOST_FAILED_READS:
                self._failed_reads += 1
                self._index += 1
                raise CorruptFrameError(f"frame {self._index - 1} of {self.uri} cannot be decoded")
            return
        self._failed_reads += 1
        if self._failed_reads < _MOST_FAILED_READS:
            raise CorruptFrameError(f"no frame of {self.uri}")
        raise SourceLostError(f"expected frames of {self.uri}, got none any more; check the camera and its cable.")

    def _time_ns(self, index: int, arrived_ns: int) -> int:
        """Choose the best time stamp: that of the stream as long as it advances."""
        stamp_ns = round(float(self._capture.get(cv2.CAP_PROP_POS_MSEC)) * MS)
        if index and self._stamps_usable and stamp_ns == self._last_stamp_ns:
            self._stamps_usable = False
        self._last_stamp_ns = stamp_ns
        if not self._stamps_usable:
            return arrived_ns if self.live else round(index * SECOND / (self.rate_hz or 30.0))
        if not self.live:
            return stamp_ns
        if self._is_v4l2 and abs(arrived_ns - stamp_ns) < SECOND:
            return stamp_ns
        self._is_v4l2 = False  # some drivers stamp with another clock
        return self._anchor.place(stamp_ns, arrived_ns)

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
        """Open with FFmpeg; grey streams a second time without the conversion to colour, which would cost their low bits."""
        capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, options)
        if capture.isOpened() and int(capture.get(cv2.CAP_PROP_CODEC_PIXEL_FORMAT)) in _GREY_FOURCC:
            capture.release()
            capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, [*options, cv2.CAP_PROP_CONVERT_RGB, 0])
        return capture

    def _check_reachable(self) -> None:
        """Find out why a source cannot be opened, as OpenCV does not say."""
        if self.uri.scheme == "file" and not self.uri.path.is_file():
            raise InputError(f"expected a video at {self.uri}, got nothing; check the path.")
        if self.uri.scheme == "file" and self.uri.path.stat().st_size == 0:
            raise InputError(f"expected a video at {self.uri}, got a file of zero bytes; write or copy it again.")
        if self.uri.scheme == "v4l2":
            try:
                os.close(os.open(self.uri.target, os.O_RDWR | os.O_NONBLOCK))
            except OSError as error:
                raise SourceLostError(_device_sentence(self.uri, error)) from error
        if self.uri.scheme in ("rtsp", "rtsps", "http", "https"):
            _check_network(self.uri)

    def _cannot_open(self) -> InputError | SourceLostError:
        if self.uri.scheme == "file":
            return InputError(
                f"expected a video that can be decoded at {self.uri}, got another or a damaged file; convert it to H.264 or "
                "FFV1."
            )
        return SourceLostError(
            f"expected to open {self.uri}, got no stream (busy, another format, or refused); close other programs that use it."
        )


def silence_opencv() -> None:
    """Keep OpenCV's own account of what it cannot open off the terminal; ours is one sentence and hides passwords."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


@contextlib.contextmanager
def _ffmpeg_options(options: str) -> Iterator[None]:
    """Give FFmpeg options for what is opened meanwhile. OpenCV takes them from the environment of the process only."""
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
    raise UsageError(f"expected a format out of {', '.join(PIXEL_FORMATS)} in {uri}, got '{printable(asked)}'.")


def _device_sentence(uri: Uri, error: OSError) -> str:
    if error.errno == errno.EACCES:
        return f"expected to read {uri}, got 'permission denied'; add the user to the group video, or run as one who is in it."
    if error.errno == errno.EBUSY:
        return f"expected to read {uri}, got a camera that is busy; close the other program that uses it."
    return f"expected a camera at {uri}, got '{error.strerror}'; plug it in, or list the cameras with v4l2-ctl --list-devices."


def _check_network(uri: Uri) -> None:
    parts = urlsplit(uri.text)
    default = {"rtsp": 554, "rtsps": 322, "http": 80, "https": 443}[uri.scheme]
    try:
        address = (parts.hostname or "", parts.port or default)
    except ValueError:
        raise UsageError(f"expected a port from 0 to 65535 in {uri}, got another text; correct it.") from None
    try:
        with socket.create_connection(address, timeout=_OPEN_TIMEOUT_MS / 1000) as connection:
            if uri.scheme == "rtsp":
                _check_rtsp(uri, connection)
    except socket.gaierror as error:
        raise SourceLostError(f"expected the host of {uri}, got an unknown name; check it.") from error
    except TimeoutError as error:
        raise SourceLostError(
            f"expected an answer of {uri} within {_OPEN_TIMEOUT_MS / 1000:g} s, got none; check the network."
        ) from error
    except OSError as error:
        reason = uri.hide(error.strerror or str(error)).lower()
        raise SourceLostError(f"expected a server at {uri}, got '{reason}'; check address and port.") from error


def _check_rtsp(uri: Uri, connection: socket.socket) -> None:
    """Ask for the description of the stream, as 404 and 401 deserve other sentences than a failed decoder."""
    parts = urlsplit(uri.text)
    plain = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    request = f"DESCRIBE {plain} RTSP/1.0\r\nCSeq: 1\r\nAccept: application/sdp\r\nUser-Agent: refusion-edge\r\n\r\n"
    connection.sendall(request.encode())
    words = connection.recv(1024).decode(errors="replace").split(maxsplit=2)
    code = words[1] if len(words) > 1 else ""
    if code == "404":
        raise SourceLostError(f"expected a stream at {uri}, got 'not found' from the server; check the path.")
    if code == "401" and not parts.username:
        raise SourceLostError(f"expected to be let in to {uri}, got 'unauthorised'; write rtsp://USER:PASSWORD@...")


def as_picture(image: Array) -> Array:
    """Give (H, W, 3) BGR for a picture that may be grey."""
    return image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)


PixelFormat = Literal["auto", "y16", "split16"]
PIXEL_FORMATS: tuple[PixelFormat, ...] = get_args(PixelFormat)


def unpack(picture: Array, pixel_format: PixelFormat) -> Array:
    """Turn what a capture library delivers into a picture.

    Args:
        picture: For ``auto``: (H, W) or (H, W, 3) as it is, alpha dropped. For ``y16``: (H, W) uint16, or its bytes,
            (H, W, 2) or (1, 2 H W) uint8 in little-endian order. For ``split16``: (2 H, W, 2) uint8 of a camera that sends
            a coloured picture above and little-endian counts below, as cameras of 256x384 pixels do.
        pixel_format: One of ``PIXEL_FORMATS``.

    Returns:
        (H, W) uint8, uint16 or float32, or (H, W, 3) BGR uint8. A view where possible.

    Raises:
        ShapeError: The picture does not have this layout.
    """
    if pixel_format == "auto":
        if picture.ndim == 3 and picture.shape[2] == 1:
            return picture[..., 0]
        if picture.ndim == 3 and picture.shape[2] == 4:
            return cv2.cvtColor(picture, cv2.COLOR_BGRA2BGR)
        if picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] == 3):
            return picture
        raise ShapeError(f"expected a picture of 1, 3 or 4 channels, got {picture.shape}; give the URI ?format=y16 or split16.")
    counts = _counts(picture, pixel_format)
    if pixel_format == "y16":
        return counts
    if counts.shape[0] % 2:
        raise ShapeError(f"expected two halves of equal height, got {counts.shape[0]} rows; leave ?format=split16 out.")
    return counts[counts.shape[0] // 2 :]


def _counts(picture: Array, pixel_format: PixelFormat) -> Array:
    """View pairs of bytes as little-endian counts, (H, W)."""
    if picture.ndim == 2 and picture.dtype == np.uint16:
        return picture
    if picture.ndim == 3 and picture.shape[2] == 2 and picture.dtype == np.uint8:
        return np.ascontiguousarray(picture).view("<u2")[..., 0].astype(np.uint16, copy=False)
    raise ShapeError(
        f"expected two bytes per pixel for ?format={pixel_format}, got {picture.shape} {picture.dtype}; "
        "the camera or its driver converts the picture, choose its raw mode."
    )
