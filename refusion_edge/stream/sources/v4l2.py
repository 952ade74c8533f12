"""Cameras on USB and other Video4Linux devices as sources: the best mode that satisfies the request, and the kernel's times."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from typing_extensions import Self

from refusion_edge.arrays import Array
from refusion_edge.errors import InputError, SourceLostError, UsageError
from refusion_edge.machine import require
from refusion_edge.stream.frames import Side
from refusion_edge.stream.sources.clock import CLOCK_KERNEL, SourceClock
from refusion_edge.stream.sources.source import CorruptFrameError, Grab
from refusion_edge.stream.sources.v4l2_device import LINUX, Device, Mode, System
from refusion_edge.stream.uri import Uri, number_option, read_options
from refusion_edge.text import printable

# Formats by the name in a URI. Of equally fast ones, the first is taken: raw before compressed, as it has no artefacts.
FORMATS: dict[str, tuple[str, ...]] = {
    "yuyv": ("YUYV",), "nv12": ("NV12",), "bgr": ("BGR3",), "rgb": ("RGB3",), "mjpg": ("MJPG", "JPEG"), "grey": ("GREY",),
    "y16": ("Y16 ", "Y14 ", "Y12 ", "Y10 "), "split16": ("YUYV",),
}  # fmt: skip
# What is read without a wish: color and gray first, raw counts where there is nothing else.
_ANY = tuple(fourcc for name in ("yuyv", "nv12", "bgr", "rgb", "mjpg", "grey", "y16") for fourcc in FORMATS[name])
# Without a wish for a size or a rate, more than this only costs time.
_ENOUGH_PX, _ENOUGH_HZ = 1280 * 720, 30.0
_SAME_RATE = 0.01
# Full scale of the formats whose pixels have fewer bits than their memory.
_WHITE = {"Y10 ": 1023.0, "Y12 ": 4095.0, "Y14 ": 16383.0}
_READ_S = 5.0
_LISTED = 12


class V4l2Source:
    """A camera of the kernel's Video4Linux. Implements ``Source``.

    Options: ``format`` (``auto`` or one of ``FORMATS``; ``split16`` is for cameras that send a color image above its counts),
    ``width``, ``height``, ``rate``, and ``best-effort=1``, which takes the nearest mode where the camera has not what was
    asked for.

    Attributes:
        mode: The mode in use, once entered.
        remarks: What was not granted, in words.
    """

    live = absolute = keeps_noise = True

    def __init__(self, uri: Uri, side: Side, system: System = LINUX) -> None:
        self.uri, self.side = uri, side
        options = read_options(uri, ("format", "width", "height", "rate", "best-effort"))
        self._format = options.get("format", "auto")
        if self._format != "auto" and self._format not in FORMATS:
            raise UsageError(
                f"{uri} names an unknown format '{printable(self._format)}'", f"choose one of auto, {', '.join(FORMATS)}"
            )
        self._size_wh = tuple(int(number_option(uri, name, 0, low=0, high=16384)) for name in ("width", "height"))
        self._asked_hz = number_option(uri, "rate", 0, low=0, high=1000)
        self._best_effort = options.get("best-effort", "0") not in ("", "0")
        self.timing = SourceClock(CLOCK_KERNEL, shared=True)
        self.mode: Mode | None = None
        self.remarks: list[str] = []
        self._system = system
        self._device: Device | None = None
        self._decode: Callable[[bytes], Array] | None = None
        self._first: int | None = None

    def __enter__(self) -> Self:
        if self._first is not None:
            self.timing.restart()
            self._first = None
        device = Device(self.uri.target, self._system)
        try:
            device.__enter__()
            self.mode = self._negotiated(device)
            self._decode = _decoder(self.mode, device.bytes_per_line, split=self._format == "split16")
            device.start()
        except OSError as error:
            device.__exit__()
            raise self._device_error(error) from error
        except BaseException:
            device.__exit__()
            raise
        self._device = device
        return self

    def __exit__(self, *exc: object) -> None:
        device, self._device = self._device, None
        if device is not None:
            device.__exit__()

    @property
    def clock(self) -> str:
        """See ``Source.clock``."""
        return self.timing.state.clock

    @property
    def rate_hz(self) -> float | None:
        """Frame rate that the driver granted, or the one that is asked for."""
        return self.mode.rate_hz if self.mode is not None else self._asked_hz or None

    def read(self) -> Grab | None:
        """See ``Source.read``; the index is that of the driver, so that frames it lost are missing."""
        assert self._device is not None
        assert self._decode is not None
        try:
            raw = self._device.read(_READ_S)
        except OSError as error:
            raise self._device_error(error) from error
        arrived_ns = time.monotonic_ns()
        if raw is None:
            raise SourceLostError(f"{self.uri} sent nothing for {_READ_S:g} s", "check the camera and its cable")
        if self._first is None:
            self._first = raw.sequence
        if not raw.monotonic:
            self.timing.distrust()
        time_ns = self.timing.place(raw.stamp_ns or None, arrived_ns)
        if raw.damaged:
            raise CorruptFrameError(f"the driver of {self.uri} calls a frame damaged")
        try:
            image = self._decode(raw.data)
        except ValueError as error:
            raise CorruptFrameError(f"a frame of {self.uri} cannot be decoded: {printable(str(error))}") from error
        assert self.mode is not None
        return Grab(image, raw.sequence - self._first, time_ns, _WHITE.get(self.mode.fourcc))

    def _negotiated(self, device: Device) -> Mode:
        if device.card is None:
            raise InputError(
                f"{self.uri} is no camera: it does not capture video", "see 'refusion-edge doctor' for the cameras"
            )
        modes = device.modes()
        wanted = choose_mode(
            modes, FORMATS.get(self._format, _ANY), self._size_wh, self._asked_hz, best_effort=self._best_effort
        )
        asked = self._asked()
        if wanted is None:
            offered = ", ".join(map(str, modes[:_LISTED])) + (
                f" and {len(modes) - _LISTED} more" if len(modes) > _LISTED else ""
            )
            raise InputError(
                f"{self.uri} offers no {asked}, but {offered or 'nothing'}",
                "choose one of these, or take the nearest with --best-effort",
                expected=asked,
                got=offered,
            )
        granted = device.negotiate(wanted)
        same_rate = wanted.rate_hz is None or (
            granted.rate_hz is not None and abs(granted.rate_hz - wanted.rate_hz) <= _SAME_RATE * wanted.rate_hz
        )
        fits = (granted.fourcc, granted.width, granted.height) == (wanted.fourcc, wanted.width, wanted.height) and same_rate
        if not (fits or (self._best_effort and granted.fourcc in (*_ANY, wanted.fourcc))):
            raise InputError(
                f"the driver of {self.uri} granted {granted} instead of {wanted}",
                "ask for what it grants, or take it with --best-effort",
                expected=str(wanted),
                got=str(granted),
            )
        if self._best_effort and not self._satisfies(granted):
            remark = f"{self.uri} sends {granted}, as it does not grant {asked}"
            self.remarks += [] if remark in self.remarks else [remark]
        return granted

    def _asked(self) -> str:
        words = [] if self._format == "auto" else [self._format]
        width, height = self._size_wh
        words += [f"{height or 'any'}x{width or 'any'}"] if width or height else []
        words += [f"{self._asked_hz:g} frames per second"] if self._asked_hz else []
        return " ".join(words) or "format that can be read"

    def _satisfies(self, mode: Mode) -> bool:
        return choose_mode((mode,), FORMATS.get(self._format, _ANY), self._size_wh, self._asked_hz) is not None

    def _device_error(self, error: OSError) -> SourceLostError:
        remedy = "plug it in, or see 'refusion-edge doctor' for the cameras"
        if error.errno == errno.EACCES:
            remedy = "add the user to the group video, or run as a member of it"
        elif error.errno == errno.EBUSY:
            remedy = "close the other program that uses the camera"
        return SourceLostError(f"cannot read the camera {self.uri}: {(error.strerror or str(error)).lower()}", remedy)


def choose_mode(
    modes: Sequence[Mode], fourccs: Sequence[str], size_wh: Sequence[int], rate_hz: float, *, best_effort: bool = False
) -> Mode | None:
    """Choose the fastest mode that satisfies a request.

    Args:
        modes: What the camera offers.
        fourccs: Pixel formats that can be used, the most wanted first.
        size_wh: Width and height; 0 for any.
        rate_hz: Least frames per second; the mode nearest to it is taken. 0 for any: more than 30 then count as 30.
        best_effort: Whether the nearest mode is taken where none satisfies the request.

    Returns:
        The mode, or None if there is none. Of equally fast ones, the largest up to 1280x720 that fits, then the format.
    """
    readable = [mode for mode in modes if mode.fourcc in fourccs]
    fitting = [
        mode
        for mode in readable
        if (not size_wh[0] or mode.width == size_wh[0])
        and (not size_wh[1] or mode.height == size_wh[1])
        and (not rate_hz or mode.rate_hz is None or mode.rate_hz >= rate_hz * (1 - _SAME_RATE))
    ]

    def rank(mode: Mode) -> tuple[float, ...]:
        rate = mode.rate_hz or 0.0
        pixels = mode.width * mode.height
        slower = abs(rate - rate_hz) if rate_hz else -min(rate, _ENOUGH_HZ)
        return slower, float(pixels > _ENOUGH_PX), -pixels if pixels <= _ENOUGH_PX else pixels, fourccs.index(mode.fourcc)

    if fitting:
        return min(fitting, key=rank)
    if not (best_effort and readable):
        return None

    def distance(mode: Mode) -> tuple[float, ...]:
        size = sum(abs(a - b) for a, b in zip((mode.width, mode.height), size_wh, strict=True) if b)
        return float(size), *rank(mode)

    return min(readable, key=distance)


def _decoder(mode: Mode, bytes_per_line: int, *, split: bool) -> Callable[[bytes], Array]:
    """The function from the bytes of a frame to (H, W) uint8 or uint16, or (H, W, 3) BGR uint8; it raises ``ValueError``."""
    width, height = mode.width, mode.height
    if mode.fourcc in FORMATS["mjpg"]:
        return _JpegDecoder()
    if split:
        if height % 2:
            raise InputError(
                f"a frame of {height} rows cannot be split into two halves",
                "choose another height, or leave ?format=split16 out",
            )
        return lambda data: (
            _rows(data, height, width * 2, bytes_per_line)[height // 2 :].view("<u2").astype(np.uint16, copy=False)
        )
    if mode.fourcc in FORMATS["y16"]:
        return lambda data: _rows(data, height, width * 2, bytes_per_line).view("<u2").astype(np.uint16, copy=False)
    layouts: dict[str, tuple[int, int, Callable[[Array], Array]]] = {
        "GREY": (height, width, lambda data: data),
        "NV12": (height * 3 // 2, width, lambda data: cv2.cvtColor(data, cv2.COLOR_YUV2BGR_NV12)),
        "YUYV": (height, width * 2, lambda data: cv2.cvtColor(data.reshape(height, width, 2), cv2.COLOR_YUV2BGR_YUYV)),
        "BGR3": (height, width * 3, lambda data: data.reshape(height, width, 3)),
        "RGB3": (height, width * 3, lambda data: data.reshape(height, width, 3)[..., ::-1]),
    }
    rows, row, convert = layouts[mode.fourcc]
    return lambda data: convert(_rows(data, rows, row, bytes_per_line))


def _rows(data: bytes, height: int, row: int, bytes_per_line: int) -> Array:
    """The rows of a raw frame without their padding, (height, row) uint8."""
    stride = max(bytes_per_line, row)
    if len(data) < (height - 1) * stride + row:
        raise ValueError(f"{len(data)} bytes instead of {height * stride}")
    data = data[: height * stride].ljust(height * stride, b"\0")
    return np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(height, stride)[:, :row])


class _JpegDecoder:
    """Decodes Motion JPEG with FFmpeg, which is strict about damage and knows the frames of cameras, without tables."""

    def __init__(self) -> None:
        self._av: Any = require("av", "stream", "reading Motion JPEG")
        self._context = self._av.CodecContext.create("mjpeg", "r")
        self._context.options = {"err_detect": "explode"}

    def __call__(self, data: bytes) -> Array:
        if not data:
            raise ValueError("it is empty")  # which would tell the decoder that the stream ends
        try:
            frames = self._context.decode(self._av.Packet(data))
        except self._av.FFmpegError as error:
            raise ValueError(str(error)) from error
        if not frames:
            raise ValueError("it holds no picture")
        image: Array = frames[0].to_ndarray(format="gray" if frames[0].format.name.startswith("gray") else "bgr24")
        return image
