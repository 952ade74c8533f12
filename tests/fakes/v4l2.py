"""Cameras of Video4Linux without a kernel: the ioctls, their structures, and buffers in shared memory."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from refusion_edge.stream.frames import SECOND
from refusion_edge.stream.sources import v4l2_device
from refusion_edge.stream.sources.v4l2_device import Mode

MONOTONIC, DAMAGED = 0x2000, 0x40


@dataclass
class FakeMemory:
    """A mapped buffer."""

    data: bytearray
    closed: bool = False

    def __getitem__(self, part: slice) -> bytes:
        return bytes(self.data[part])

    def close(self) -> None:
        self.closed = True


@dataclass
class FakeCamera:
    """A camera as its driver shows it. Implements ``System`` for one device.

    Attributes:
        modes: What it lists.
        frame: Makes the bytes of a frame from its number and the granted mode.
        grants: What it makes of a wish; None grants it.
        padding: Bytes at the end of each row.
        clock_ns: Time stamp of a frame by its number.
        flags: Flags of each buffer.
        lost: Numbers of frames that the driver loses.
        opening: Error number of opening it, or 0.
    """

    modes: tuple[Mode, ...]
    frame: Callable[[int, Mode], bytes] = lambda _number, mode: bytes(mode.width * mode.height * 2)
    grants: Callable[[Mode], Mode] | None = None
    padding: int = 0
    clock_ns: Callable[[int], int] = lambda number: number * SECOND // 30
    flags: int = MONOTONIC
    lost: frozenset[int] = frozenset()
    opening: int = 0
    card: str = "Fake USB camera"
    captures: bool = True
    granted: Mode | None = None
    streaming: bool = False
    opened: int = 0
    unplugged: bool = False
    memory: list[FakeMemory] = field(default_factory=list)
    _queue: list[int] = field(default_factory=list)
    _number: int = 0

    def open(self, path: str) -> int:
        if self.opening:
            raise OSError(self.opening, errno.errorcode[self.opening])
        self.opened += 1
        return 77

    def close(self, file: int) -> None:
        assert file == 77
        self.opened -= 1

    def map(self, file: int, length: int, offset: int) -> FakeMemory:
        assert offset == len(self.memory) * 4096
        self.memory.append(FakeMemory(bytearray(length)))
        return self.memory[-1]

    def wait(self, file: int, seconds: float) -> bool:
        return self.streaming and bool(self._queue)

    def ioctl(self, file: int, code: int, argument: Any) -> None:
        if self.unplugged:
            raise OSError(errno.ENODEV, "No such device")
        calls = {
            v4l2_device.QUERYCAP: self._capability, v4l2_device.ENUM_FMT: self._format,
            v4l2_device.ENUM_FRAMESIZES: self._size, v4l2_device.ENUM_FRAMEINTERVALS: self._interval,
            v4l2_device.S_FMT: self._set, v4l2_device.G_PARM: self._rate, v4l2_device.S_PARM: self._set_rate,
            v4l2_device.REQBUFS: self._request, v4l2_device.QUERYBUF: self._query, v4l2_device.QBUF: self._give,
            v4l2_device.DQBUF: self._take, v4l2_device.STREAMON: self._start, v4l2_device.STREAMOFF: self._stop,
        }  # fmt: skip
        calls[code](argument)

    def _fourccs(self) -> list[str]:
        return list(dict.fromkeys(mode.fourcc for mode in self.modes))

    def _capability(self, found: Any) -> None:
        found.card[: len(self.card)] = self.card.encode()
        found.capabilities = 0x8400_0001 | 0x2
        found.device_caps = 0x0400_0001 if self.captures else 0x0080_0000

    @staticmethod
    def _listed(items: list[Any], index: int) -> Any:
        if index >= len(items):
            raise OSError(errno.EINVAL, "Invalid argument")
        return items[index]

    def _format(self, entry: Any) -> None:
        entry.pixelformat = int.from_bytes(self._listed(self._fourccs(), entry.index).encode(), "little")

    def _of(self, code: int) -> list[Mode]:
        return [mode for mode in self.modes if int.from_bytes(mode.fourcc.encode(), "little") == code]

    def _size(self, entry: Any) -> None:
        sizes = list(dict.fromkeys((mode.width, mode.height) for mode in self._of(entry.pixel_format)))
        entry.type, entry.values[0:2] = 1, self._listed(sizes, entry.index)

    def _interval(self, entry: Any) -> None:
        rates = [
            mode.rate_hz for mode in self._of(entry.pixel_format) if (mode.width, mode.height) == (entry.width, entry.height)
        ]
        entry.type, entry.values[0:2] = 1, (1000, round(self._listed([rate for rate in rates if rate], entry.index) * 1000))

    def _set(self, asked: Any) -> None:
        fourcc = asked.pixelformat.to_bytes(4, "little").decode()
        wish = Mode(fourcc, asked.width, asked.height, None)
        rates = [
            mode.rate_hz for mode in self.modes if (mode.fourcc, mode.width, mode.height) == (fourcc, wish.width, wish.height)
        ]
        wish = Mode(fourcc, wish.width, wish.height, max((rate for rate in rates if rate), default=30.0))
        self.granted = wish if self.grants is None else self.grants(wish)
        asked.pixelformat = int.from_bytes(self.granted.fourcc.encode(), "little")
        asked.width, asked.height = self.granted.width, self.granted.height
        bytes_per_pixel = {"YUYV": 2, "Y16 ": 2, "MJPG": 0}.get(self.granted.fourcc, 1)
        asked.bytesperline = self.granted.width * bytes_per_pixel + self.padding if bytes_per_pixel else 0
        asked.sizeimage = 4 * self.granted.width * self.granted.height + 4096

    def _rate(self, parameters: Any) -> None:
        assert self.granted is not None
        parameters.capability = 0x1000
        parameters.numerator, parameters.denominator = 1000, round((self.granted.rate_hz or 30.0) * 1000)

    def _set_rate(self, parameters: Any) -> None:
        assert self.granted is not None
        rate_hz = parameters.denominator / parameters.numerator
        self.granted = Mode(self.granted.fourcc, self.granted.width, self.granted.height, rate_hz)
        if self.grants is not None:
            self.granted = self.grants(self.granted)
        self._rate(parameters)

    def _request(self, request: Any) -> None:
        self.memory, self._queue = [], []

    def _query(self, buffer: Any) -> None:
        assert self.granted is not None
        buffer.offset, buffer.length = buffer.index * 4096, 4 * self.granted.width * self.granted.height + 4096

    def _give(self, buffer: Any) -> None:
        self._queue.append(buffer.index)

    def _take(self, buffer: Any) -> None:
        assert self.granted is not None
        while self._number in self.lost:
            self._number += 1
        data = self.frame(self._number, self.granted)
        buffer.index = self._queue.pop(0)
        self.memory[buffer.index].data[: len(data)] = data
        buffer.bytesused, buffer.sequence, buffer.flags = len(data), self._number, self.flags
        stamp_ns = self.clock_ns(self._number)
        buffer.seconds, buffer.microseconds = stamp_ns // SECOND, stamp_ns % SECOND // 1000
        self._number += 1

    def _start(self, _kind: Any) -> None:
        self.streaming = True

    def _stop(self, _kind: Any) -> None:
        self.streaming = False
