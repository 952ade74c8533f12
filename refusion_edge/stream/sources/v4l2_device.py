"""Video4Linux devices by their ioctls: what a camera offers, negotiating one mode, and its buffers in shared memory.

Why not a library: FFmpeg's input, which PyAV has, neither lists modes to its caller nor says what the driver did not grant, and
OpenCV picks a raw format at a third of the rate. The structures are those of a 64-bit kernel.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import select
from collections.abc import Iterator
from ctypes import c_int32, c_int64, c_uint8, c_uint32
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from refusion_edge.stream.frames import SECOND

_CAPTURE, _MMAP = 1, 1
_CAP_CAPTURE, _CAP_STREAMING, _CAP_DEVICE_CAPS = 0x1, 0x0400_0000, 0x8000_0000
_CAN_SET_RATE = 0x1000
_FLAG_ERROR, _FLAG_CLOCK, _FLAG_MONOTONIC = 0x40, 0xE000, 0x2000
_DISCRETE = 1
_BUFFERS = 4
_MOST_LISTED = 256
# Sizes and rates of a driver that gives a range are tried from these.
_USUAL_SIZES = ((640, 480), (1280, 720), (1920, 1080), (320, 240), (640, 512), (160, 120))


class Capability(ctypes.Structure):
    """``struct v4l2_capability``."""

    _fields_ = [
        ("driver", c_uint8 * 16), ("card", c_uint8 * 32), ("bus_info", c_uint8 * 32), ("version", c_uint32),
        ("capabilities", c_uint32), ("device_caps", c_uint32), ("reserved", c_uint32 * 3),
    ]  # fmt: skip


class FormatDescription(ctypes.Structure):
    """``struct v4l2_fmtdesc``."""

    _fields_ = [
        ("index", c_uint32), ("type", c_uint32), ("flags", c_uint32), ("description", c_uint8 * 32),
        ("pixelformat", c_uint32), ("mbus_code", c_uint32), ("reserved", c_uint32 * 3),
    ]  # fmt: skip


class FrameSize(ctypes.Structure):
    """``struct v4l2_frmsizeenum``; ``values`` are width and height, or the ranges and steps of both."""

    _fields_ = [
        ("index", c_uint32), ("pixel_format", c_uint32), ("type", c_uint32), ("values", c_uint32 * 6),
        ("reserved", c_uint32 * 2),
    ]  # fmt: skip


class FrameInterval(ctypes.Structure):
    """``struct v4l2_frmivalenum``; ``values`` are fractions of a second: one, or the shortest, the longest and a step."""

    _fields_ = [
        ("index", c_uint32), ("pixel_format", c_uint32), ("width", c_uint32), ("height", c_uint32), ("type", c_uint32),
        ("values", c_uint32 * 6), ("reserved", c_uint32 * 2),
    ]  # fmt: skip


class Format(ctypes.Structure):
    """``struct v4l2_format`` with its ``v4l2_pix_format``."""

    _fields_ = [
        ("type", c_uint32), ("padding", c_uint32), ("width", c_uint32), ("height", c_uint32), ("pixelformat", c_uint32),
        ("field", c_uint32), ("bytesperline", c_uint32), ("sizeimage", c_uint32), ("colorspace", c_uint32),
        ("rest", c_uint8 * 172),
    ]  # fmt: skip


class StreamParameters(ctypes.Structure):
    """``struct v4l2_streamparm`` with its ``v4l2_captureparm``."""

    _fields_ = [
        ("type", c_uint32), ("capability", c_uint32), ("capturemode", c_uint32), ("numerator", c_uint32),
        ("denominator", c_uint32), ("rest", c_uint8 * 184),
    ]  # fmt: skip


class RequestBuffers(ctypes.Structure):
    """``struct v4l2_requestbuffers``."""

    _fields_ = [
        ("count", c_uint32), ("type", c_uint32), ("memory", c_uint32), ("capabilities", c_uint32), ("reserved", c_uint32),
    ]  # fmt: skip


class Buffer(ctypes.Structure):
    """``struct v4l2_buffer``."""

    _fields_ = [
        ("index", c_uint32), ("type", c_uint32), ("bytesused", c_uint32), ("flags", c_uint32), ("field", c_uint32),
        ("seconds", c_int64), ("microseconds", c_int64), ("timecode", c_uint8 * 16), ("sequence", c_uint32),
        ("memory", c_uint32), ("offset", c_uint32), ("offset_high", c_uint32), ("length", c_uint32), ("reserved2", c_uint32),
        ("request_fd", c_int32),
    ]  # fmt: skip


def _code(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | ord("V") << 8 | number


_READ, _WRITE, _BOTH = 2, 1, 3
QUERYCAP = _code(_READ, 0, ctypes.sizeof(Capability))
ENUM_FMT = _code(_BOTH, 2, ctypes.sizeof(FormatDescription))
S_FMT = _code(_BOTH, 5, ctypes.sizeof(Format))
REQBUFS = _code(_BOTH, 8, ctypes.sizeof(RequestBuffers))
QUERYBUF = _code(_BOTH, 9, ctypes.sizeof(Buffer))
QBUF = _code(_BOTH, 15, ctypes.sizeof(Buffer))
DQBUF = _code(_BOTH, 17, ctypes.sizeof(Buffer))
STREAMON = _code(_WRITE, 18, 4)
STREAMOFF = _code(_WRITE, 19, 4)
G_PARM = _code(_BOTH, 21, ctypes.sizeof(StreamParameters))
S_PARM = _code(_BOTH, 22, ctypes.sizeof(StreamParameters))
ENUM_FRAMESIZES = _code(_BOTH, 74, ctypes.sizeof(FrameSize))
ENUM_FRAMEINTERVALS = _code(_BOTH, 75, ctypes.sizeof(FrameInterval))


class System(Protocol):
    """The calls to the operating system, which tests replace."""

    def open(self, path: str) -> int:
        """Open a device without blocking."""

    def close(self, file: int) -> None:
        """Close it."""

    def ioctl(self, file: int, code: int, argument: Any) -> None:
        """Call the driver, which changes the argument in place."""

    def map(self, file: int, length: int, offset: int) -> Any:
        """Map a buffer of the driver into memory."""

    def wait(self, file: int, seconds: float) -> bool:
        """Wait for a frame."""


class Linux:
    """Implements ``System``."""

    def open(self, path: str) -> int:
        """See ``System.open``."""
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def close(self, file: int) -> None:
        """See ``System.close``."""
        os.close(file)

    def ioctl(self, file: int, code: int, argument: Any) -> None:
        """See ``System.ioctl``."""
        fcntl.ioctl(file, code, argument)

    def map(self, file: int, length: int, offset: int) -> mmap.mmap:
        """See ``System.map``."""
        return mmap.mmap(file, length, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=offset)

    def wait(self, file: int, seconds: float) -> bool:
        """See ``System.wait``."""
        return bool(select.select([file], [], [], seconds)[0])


LINUX = Linux()


@dataclass(frozen=True, slots=True)
class Mode:
    """One way in which a camera sends frames.

    Attributes:
        fourcc: Pixel format, four characters.
        width: Width in pixels.
        height: Height in pixels.
        rate_hz: Frames per second, or None where the driver does not say.
    """

    fourcc: str
    width: int
    height: int
    rate_hz: float | None

    def __str__(self) -> str:
        rate = "" if self.rate_hz is None else f"@{self.rate_hz:.4g}"
        return f"{self.fourcc} {self.height}x{self.width}{rate}"


@dataclass(frozen=True, slots=True)
class Raw:
    """A buffer of the driver.

    Attributes:
        data: Its bytes.
        sequence: Number of the frame, counted by the driver; a gap is a frame that was lost.
        stamp_ns: Time stamp of the driver.
        monotonic: Whether the stamp is on the monotonic clock of this machine.
        damaged: Whether the driver says so.
    """

    data: bytes
    sequence: int
    stamp_ns: int
    monotonic: bool
    damaged: bool


class Device:
    """An open camera. Use as a context manager.

    Args:
        path: Path of the device.
        system: Calls to the operating system.

    Attributes:
        path: Path of the device.
        bytes_per_line: Length of a row in the negotiated mode; 0 for compressed formats.
    """

    def __init__(self, path: str, system: System = LINUX) -> None:
        self.path = path
        self.bytes_per_line = 0
        self._system = system
        self._file = -1
        self._maps: list[Any] = []

    def __enter__(self) -> Device:
        self._file = self._system.open(self.path)
        return self

    def __exit__(self, *exc: object) -> None:
        file, self._file = self._file, -1
        if file < 0:
            return
        if self._maps:
            with contextlib.suppress(OSError):  # unplugged
                self._system.ioctl(file, STREAMOFF, ctypes.c_int(_CAPTURE))
            for each in self._maps:
                each.close()
            self._maps = []
        self._system.close(file)

    @property
    def card(self) -> str | None:
        """Name of the camera, or None if the device does not capture video."""
        found = Capability()
        self._call(QUERYCAP, found)
        caps = found.device_caps if found.capabilities & _CAP_DEVICE_CAPS else found.capabilities
        if not (caps & _CAP_CAPTURE and caps & _CAP_STREAMING):
            return None
        return bytes(found.card).partition(b"\0")[0].decode(errors="replace")

    def modes(self) -> tuple[Mode, ...]:
        """All modes that the driver lists; for ranges of sizes, the usual ones within."""
        return tuple(
            Mode(fourcc, width, height, rate_hz)
            for code, fourcc in self._formats()
            for width, height in self._sizes(code)
            for rate_hz in self._rates(code, width, height)
        )

    def negotiate(self, mode: Mode) -> Mode:
        """Ask for a mode; returns what the driver granted."""
        asked = Format(type=_CAPTURE, width=mode.width, height=mode.height, pixelformat=_from_fourcc(mode.fourcc), field=1)
        self._call(S_FMT, asked)
        self.bytes_per_line = asked.bytesperline
        granted_hz = mode.rate_hz
        parameters = StreamParameters(type=_CAPTURE)
        try:
            self._call(G_PARM, parameters)
            if parameters.capability & _CAN_SET_RATE and mode.rate_hz is not None:
                parameters.numerator, parameters.denominator = 1000, round(mode.rate_hz * 1000)
                self._call(S_PARM, parameters)
            granted_hz = parameters.denominator / parameters.numerator if parameters.numerator else None
        except OSError as error:
            if error.errno not in (errno.ENOTTY, errno.EINVAL):
                raise
        return Mode(_to_fourcc(asked.pixelformat), asked.width, asked.height, granted_hz)

    def start(self) -> None:
        """Map the buffers and start the camera."""
        request = RequestBuffers(count=_BUFFERS, type=_CAPTURE, memory=_MMAP)
        self._call(REQBUFS, request)
        for index in range(request.count):
            buffer = Buffer(index=index, type=_CAPTURE, memory=_MMAP)
            self._call(QUERYBUF, buffer)
            self._maps.append(self._system.map(self._file, buffer.length, buffer.offset))
            self._call(QBUF, buffer)
        self._call(STREAMON, ctypes.c_int(_CAPTURE))

    def read(self, timeout_s: float) -> Raw | None:
        """Wait for the next frame and copy it; None after the timeout."""
        if not self._system.wait(self._file, timeout_s):
            return None
        buffer = Buffer(type=_CAPTURE, memory=_MMAP)
        self._call(DQBUF, buffer)
        data = bytes(self._maps[buffer.index][: buffer.bytesused])
        stamp_ns = buffer.seconds * SECOND + buffer.microseconds * 1000
        flags, sequence = buffer.flags, buffer.sequence
        self._call(QBUF, buffer)
        return Raw(data, sequence, stamp_ns, flags & _FLAG_CLOCK == _FLAG_MONOTONIC, bool(flags & _FLAG_ERROR))

    def _call(self, code: int, argument: Any) -> None:
        self._system.ioctl(self._file, code, argument)

    def _listed(self, code: int, make: Any) -> Iterator[Any]:
        """The entries that a driver enumerates, until it says that there are no more."""
        for index in range(_MOST_LISTED):
            entry = make(index)
            try:
                self._call(code, entry)
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.ENOTTY):
                    return
                raise
            yield entry

    def _formats(self) -> list[tuple[int, str]]:
        entries = self._listed(ENUM_FMT, lambda index: FormatDescription(index=index, type=_CAPTURE))
        return [(entry.pixelformat, _to_fourcc(entry.pixelformat)) for entry in entries]

    def _sizes(self, code: int) -> list[tuple[int, int]]:
        sizes: list[tuple[int, int]] = []
        for entry in self._listed(ENUM_FRAMESIZES, lambda index: FrameSize(index=index, pixel_format=code)):
            if entry.type == _DISCRETE:
                sizes.append((entry.values[0], entry.values[1]))
                continue
            low_w, high_w, step_w, low_h, high_h, step_h = entry.values
            fitting = [
                (width, height)
                for width, height in _USUAL_SIZES
                if low_w <= width <= high_w and low_h <= height <= high_h
                and (width - low_w) % max(1, step_w) == 0 and (height - low_h) % max(1, step_h) == 0
            ]  # fmt: skip
            return [*fitting, *([] if (high_w, high_h) in fitting else [(high_w, high_h)])]
        return sizes

    def _rates(self, code: int, width: int, height: int) -> list[float | None]:
        rates: list[float | None] = []
        entries = self._listed(
            ENUM_FRAMEINTERVALS, lambda index: FrameInterval(index=index, pixel_format=code, width=width, height=height)
        )
        for entry in entries:
            if entry.values[0]:
                rates.append(entry.values[1] / entry.values[0])  # of a range, the shortest interval
            if entry.type != _DISCRETE:
                break
        return rates or [None]


@dataclass(frozen=True, slots=True)
class Camera:
    """A camera of this machine.

    Attributes:
        path: Path of its device.
        stable_path: Path that stays the same when cameras are plugged in another order, or None.
        card: Name of the camera.
        modes: What it offers; empty if it cannot be asked.
        problem: Why it cannot be asked; empty if it can.
    """

    path: str
    stable_path: str | None
    card: str
    modes: tuple[Mode, ...]
    problem: str = ""


def find_cameras(system: System = LINUX, folder: Path = Path("/dev")) -> tuple[Camera, ...]:
    """Look for the cameras of this machine and what they offer. Starts none of them."""
    stable = {link.resolve(): str(link) for link in sorted((folder / "v4l" / "by-id").glob("*"))}
    found = []
    for path in sorted(folder.glob("video*"), key=lambda path: (len(path.name), path.name)):
        link = stable.get(path.resolve())
        try:
            with Device(str(path), system) as device:
                card = device.card
                if card is not None:
                    found.append(Camera(str(path), link, card, device.modes()))
        except OSError as error:
            found.append(Camera(str(path), link, "", (), error.strerror or str(error)))
    return tuple(found)


def _to_fourcc(code: int) -> str:
    return (code & 0x7FFF_FFFF).to_bytes(4, "little").decode("latin-1")


def _from_fourcc(fourcc: str) -> int:
    return int.from_bytes(fourcc.encode("latin-1"), "little")
