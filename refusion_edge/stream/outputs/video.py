"""Fused frames as a video file, through PyAV, the binding of FFmpeg's libraries."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
from typing_extensions import Self

from refusion_edge.arrays import Array
from refusion_edge.errors import OutputError, UsageError
from refusion_edge.files import Claim, is_occupied, output_error
from refusion_edge.machine import require
from refusion_edge.stream.frames import SECOND, FusedFrame
from refusion_edge.stream.outputs.disk import DiskWatch
from refusion_edge.stream.outputs.sinks import FolderSink, Sink, as_bgr
from refusion_edge.stream.uri import Uri, frame_pattern, read_options

_DEFAULT_RATE_HZ = 30.0
# AVI has no times, only a rate: gaps are filled with up to this many repeats, and longer ones are cut.
_MAX_REPEATS = 300


@dataclass(frozen=True, slots=True)
class Encoding:
    """How frames are encoded.

    Attributes:
        codec: FFmpeg's name of the encoder.
        pixels: Its pixel format.
        options: Its options.
        is_hardware: Whether it needs hardware that few machines have; builds of FFmpeg contain it nevertheless.
    """

    codec: str
    pixels: str = "yuv420p"
    options: dict[str, str] = field(default_factory=dict)
    is_hardware: bool = False


# H.264 is what browsers play. Hardware leaves the processor to the network; the last choices are for builds of FFmpeg without
# x264. VA-API takes frames in memory of the GPU only, which PyAV cannot fill.
_H264 = (
    Encoding(
        "h264_nvenc", options={"preset": "p4", "tune": "ll", "rc": "vbr", "cq": "20", "b": "0", "bf": "0"}, is_hardware=True
    ),
    Encoding("h264_v4l2m2m", options={"b": "8M", "bf": "0"}, is_hardware=True),
    # Without the tuning, x264 holds back a frame to know its duration.
    Encoding("libx264", options={"preset": "ultrafast", "tune": "zerolatency", "crf": "20", "bf": "0"}),
    Encoding("libopenh264", options={"b": "8M"}),
    Encoding("mpeg4", options={"qmin": "2", "qmax": "5"}),
)
VIDEO_ENCODINGS: dict[str, tuple[Encoding, ...]] = {
    ".mp4": _H264,
    ".m4v": _H264,
    ".mov": _H264,
    # Every frame a key frame, with a checksum of each slice: damage stays in its frame, and is noticed.
    ".mkv": (Encoding("ffv1", "bgr0", {"level": "3", "slicecrc": "1", "g": "1"}),),
    ".avi": (Encoding("mjpeg", "yuvj420p", {"qmin": "2", "qmax": "3"}),),
    ".webm": (
        Encoding("libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8", "crf": "20", "b": "0", "lag-in-frames": "0"}),
    ),
}
# A quarter of a second at a time, which ends with the first frame after it: a power cut or a kill costs less than a second,
# even of a slow camera.
_MATROSKA = {"cluster_time_limit": "250"}
# Fragments, which a power cut leaves, too. The index of an ordinary file would be kept in memory until the file is closed: 72
# bytes per frame, or 8 MB per hour. The header waits for the first packet: some encoders, such as h264_v4l2m2m, have the
# parameters that players need only there.
_FRAGMENTED = {"movflags": "+empty_moov+delay_moov+default_base_moof", "frag_duration": "250000"}
_CONTAINER_OPTIONS = {
    ".mp4": _FRAGMENTED, ".m4v": _FRAGMENTED, ".mov": _FRAGMENTED, ".mkv": _MATROSKA, ".webm": _MATROSKA,
}  # fmt: skip
_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".avi": "avi", ".webm": "webm"}
# Units of time in a second: a multiple of all usual rates, and less than the 65,536 that MPEG-4 allows.
_TICKS = 60_000
# The writer of Matroska keeps the places of key frames, 40 bytes each, in memory until the file is closed. Every frame of FFV1
# is one here, so only one in this time is marked as such; FFmpeg's reader looks at the frames themselves.
_INDEX_TICKS = _TICKS
# FFmpeg's numbers of the color matrix and of the ranges 16 to 235 and 0 to 255.
_BT601, _LIMITED, _FULL = 5, 1, 2
_TRIAL_FRAMES, _GRAY = 3, 128


class VideoSink:
    """Writes a video file at the speed of the scene. Implements ``Sink``.

    Each frame has its own time, except in .avi, which has a constant rate: frames are repeated or left out there. The suffix
    selects the codec: H.264 in .mp4, .m4v and .mov, lossless FFV1 in .mkv, Motion JPEG in .avi, VP9 in .webm. After a kill or a
    power cut, the file is playable up to its last second, which was still in memory.

    Args:
        uri: The file.
        rate_hz: Nominal frames per second.
        announce: Called with what a viewer of the file has to know.
    """

    capacity, lossless = 8, True

    def __init__(self, uri: Uri, *, rate_hz: float | None, announce: Callable[[str], object] = lambda _text: None) -> None:
        self.name = str(uri)
        read_options(uri, ())
        self._av = require("av", "stream", "writing video")
        self._path = uri.path
        self._suffix = self._path.suffix.lower()
        self._rate_hz = min(240.0, max(1.0, rate_hz or _DEFAULT_RATE_HZ))
        self._rate = Fraction(self._rate_hz).limit_denominator(1001)
        self._announce = announce
        self._converter = self._av.video.reformatter.VideoReformatter()
        self._container: Any = None
        self._stream: Any = None
        self._size_wh = (0, 0)
        self._first_ns = 0
        self._ticks, self._next_index = -1, 0
        self._disk, self._claim = DiskWatch(self._path), Claim(self._path)

    def __enter__(self) -> Self:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()
        except OSError as error:
            raise output_error(self._path, error) from error
        self._claim.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.closing(self._claim):
            if self._container is not None:
                container, self._container = self._container, None
                try:
                    with container:
                        container.mux(self._stream.encode())
                except (self._av.FFmpegError, OSError) as error:
                    if exc[0] is None:
                        raise output_error(self._path, error) from error
            elif self._path.is_file() and self._path.stat().st_size == 0:
                self._path.unlink()  # no frame ever came

    def write(self, frame: FusedFrame) -> None:
        """See ``Sink.write``."""
        self._disk.check()
        image = as_bgr(frame.image)
        try:
            if self._container is None:
                self._open(image, frame.time_ns)
            if (image.shape[1], image.shape[0]) != self._size_wh:
                image = cv2.resize(image, self._size_wh, interpolation=cv2.INTER_AREA)
            for ticks in self._due(frame.time_ns):
                self._encode(image, ticks)
        except (self._av.FFmpegError, OSError) as error:
            raise error if isinstance(error, OutputError) else output_error(self._path, error) from error

    def _due(self, time_ns: int) -> range:
        """The times in ticks at which the frame is to be written: one, or in .avi as many as fill the gap before it."""
        rate = round(self._rate_hz * 1000) if self._suffix == ".avi" else _TICKS * 1000
        due = round((time_ns - self._first_ns) * rate / (1000 * SECOND))
        if self._suffix != ".avi":
            # Times that stand still or went back, as after a new clock: the video goes on from where it is.
            if due <= self._ticks:
                self._first_ns -= round((self._ticks + 1 - due) * SECOND / _TICKS)
                due = self._ticks + 1
            return range(due, due + 1)
        if due - self._ticks > _MAX_REPEATS:
            self._first_ns += round((due - self._ticks - 1) * SECOND / self._rate_hz)
            due = self._ticks + 1
        return range(self._ticks + 1, due + 1)

    def _open(self, image: Array, time_ns: int) -> None:
        """Open the file with the first encoder that works on this machine for frames of this size."""
        size_wh = image.shape[1], image.shape[0]
        encodings = VIDEO_ENCODINGS[self._suffix]
        encoding = next((each for each in encodings if self._works(each, size_wh)), None)
        if encoding is None:
            raise OutputError(
                f"cannot write a video of {size_wh[1]}x{size_wh[0]} to {self._path}: there is no encoder for it",
                f"choose another suffix of {', '.join(VIDEO_ENCODINGS)}",
            )
        if encoding.is_hardware:
            self._announce(f"{self.name} is encoded in hardware, by {encoding.codec}")
        if encoding.codec == "mpeg4":
            self._announce(f"{self.name} is in MPEG-4 part 2, which browsers do not play: there is no H.264 encoder here")
        self._container = self._av.open(
            f"file:{self._path}", "w", format=_FORMATS[self._suffix],
            container_options={"flush_packets": "1", **_CONTAINER_OPTIONS.get(self._suffix, {})},
        )  # fmt: skip
        self._stream = self._container.add_stream(encoding.codec, rate=self._rate)
        self._configure(self._stream.codec_context, encoding, size_wh)
        self._size_wh, self._first_ns = size_wh, time_ns

    def _works(self, encoding: Encoding, size_wh: tuple[int, int]) -> bool:
        try:
            context = self._av.CodecContext.create(encoding.codec, "w")
            self._configure(context, encoding, size_wh)
            context.open()
            # A driver may accept settings that its device cannot encode.
            return not encoding.is_hardware or self._encodes(context)
        except (self._av.FFmpegError, ValueError, OSError):
            return False

    def _encodes(self, context: Any) -> bool:
        """Whether an encoder gives a packet for each of a few gray frames."""
        packets: list[Any] = []
        for number in range(_TRIAL_FRAMES):
            frame = self._av.VideoFrame(context.width, context.height, context.pix_fmt)
            for plane in frame.planes:
                plane.update(bytes([_GRAY]) * plane.buffer_size)
            frame.pts, frame.time_base = number * round(_TICKS / self._rate_hz), context.time_base
            packets += context.encode(frame)
        packets += context.encode(None)
        return sum(bool(packet.size) for packet in packets) == _TRIAL_FRAMES

    def _configure(self, context: Any, encoding: Encoding, size_wh: tuple[int, int]) -> None:
        context.options = {"g": str(round(self._rate_hz)), **encoding.options}
        # 4:2:0 has even sides; the last row and column are repeated.
        even = 2 if "420" in encoding.pixels else 1
        context.width, context.height = (-(-side // even) * even for side in size_wh)
        context.pix_fmt = encoding.pixels
        if even > 1:
            context.colorspace, context.color_range = _BT601, _FULL if encoding.pixels.startswith("yuvj") else _LIMITED
        context.time_base = 1 / self._rate if self._suffix == ".avi" else Fraction(1, _TICKS)

    def _encode(self, image: Array, ticks: int) -> None:
        context = self._stream.codec_context
        right, below = context.width - image.shape[1], context.height - image.shape[0]
        if right or below:
            image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE)
        frame = self._av.VideoFrame.from_ndarray(image, format="bgr24")
        color = {} if context.pix_fmt == "bgr0" else {"dst_colorspace": _BT601, "dst_color_range": context.color_range}
        frame = self._converter.reformat(frame, format=context.pix_fmt, **color)
        frame.pts, frame.time_base = ticks, context.time_base
        for packet in self._stream.encode(frame):
            if self._suffix == ".mkv":
                packet.is_keyframe = packet.pts >= self._next_index
                if packet.is_keyframe:
                    self._next_index = packet.pts + _INDEX_TICKS
            self._container.mux(packet)
        self._ticks = ticks


def find_encoder(suffix: str, size_wh: tuple[int, int] = (640, 480)) -> str | None:
    """Name of FFmpeg's encoder for videos with a suffix on this machine; None if none works.

    Args:
        suffix: One of ``VIDEO_ENCODINGS``.
        size_wh: Width and height of the frames.

    Raises:
        MissingDependencyError: PyAV is not installed.
    """
    sink = VideoSink(Uri("file", f"video{suffix}"), rate_hz=None)
    return next((each.codec for each in VIDEO_ENCODINGS[suffix] if sink._works(each, size_wh)), None)


def open_file_sink(
    uri: Uri, *, rate_hz: float | None, overwrite: bool = True, announce: Callable[[str], object] = lambda _text: None
) -> Sink:
    """Create the sink for a file name: a video with a known suffix, else a folder or a pattern.

    Args:
        uri: The file, folder or pattern.
        rate_hz: Nominal frames per second.
        overwrite: Whether to replace a video, or the images that have the names of frames.
        announce: Called with what a viewer of the file has to know.

    Raises:
        OutputError: There are such files, and they must not be replaced.
        UsageError: The suffix is unknown.
        MissingDependencyError: It is a video, and PyAV is not installed.
    """
    suffix = uri.path.suffix.lower()
    if frame_pattern(uri.target) is not None or not suffix or uri.path.is_dir():
        images = FolderSink(uri, overwrite=overwrite)
        _require_none([] if overwrite else images.earlier())
        return images
    if suffix in VIDEO_ENCODINGS:
        _require_none([uri.path] if not overwrite and is_occupied(uri.path) else [])
        return VideoSink(uri, rate_hz=rate_hz, announce=announce)
    raise UsageError(
        f"cannot write {uri}: its suffix is unknown",
        f"name a video ({', '.join(VIDEO_ENCODINGS)}), a folder or a pattern such as frame_%04i.png",
    )


def _require_none(existing: Sequence[Path]) -> None:
    if existing:
        raise OutputError(f"{min(existing)} exists", "choose another output, or replace it with --overwrite")
