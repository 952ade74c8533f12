"""Fused frames as a video file."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
from typing_extensions import Self

from refusion_edge.arrays import Array
from refusion_edge.errors import OutputError, UsageError
from refusion_edge.files import output_error
from refusion_edge.stream.frames import SECOND, FusedFrame
from refusion_edge.stream.outputs.container import is_whole
from refusion_edge.stream.outputs.disk import Claim, DiskWatch
from refusion_edge.stream.outputs.sinks import FolderSink, Sink
from refusion_edge.stream.sources.captures import as_bgr, silence_opencv
from refusion_edge.stream.uri import Uri, frame_pattern, read_options

VIDEO_CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".mkv": "FFV1", ".avi": "MJPG", ".webm": "VP90"}

_DEFAULT_RATE_HZ = 30.0
# A gap in live video is filled with up to this many repeats; longer gaps are cut.
_MAX_REPEATS = 300
_FRAGMENTED = (".mp4", ".m4v")


class VideoSink:
    """Writes a video file at a constant rate. Implements ``Sink``.

    Live frames are repeated or left out so that the video runs at the speed of the scene; each frame from a file is written
    once. The suffix selects the codec: MPEG-4 in .mp4 and .mov, lossless FFV1 in .mkv, Motion JPEG in .avi, VP9 in .webm. After
    a kill or a power cut, .mkv, .avi, .webm and .mp4 (written in fragments) are playable up to the last 256 KiB, or the last
    seconds, that were still in memory; .mov has its index at the end, as old players require.

    Args:
        uri: The file.
        rate_hz: Frames per second of the video.
        live: Whether the video has to keep the times of the frames.
    """

    capacity, lossless = 8, True

    def __init__(self, uri: Uri, *, rate_hz: float | None, live: bool) -> None:
        self.name = str(uri)
        read_options(uri, ())
        self._path = uri.path
        self._codec = VIDEO_CODECS[self._path.suffix.lower()]
        self._rate_hz = min(240.0, max(1.0, rate_hz or _DEFAULT_RATE_HZ))
        self._live = live
        self._writer: cv2.VideoWriter | None = None
        self._size_wh = (0, 0)
        self._first_ns = 0
        self._written = 0
        self._disk, self._claim = DiskWatch(self._path), Claim(self._path)

    def __enter__(self) -> Self:
        silence_opencv()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()
        except OSError as error:
            raise output_error(self._path, error) from error
        self._claim.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.closing(self._claim):
            if self._writer is not None:
                self._writer.release()
                self._writer = None
                if exc[0] is None:
                    self._check()
            elif self._path.is_file() and self._path.stat().st_size == 0:
                self._path.unlink()  # no frame ever came

    def write(self, frame: FusedFrame) -> None:
        """See ``Sink.write``."""
        self._disk.check()
        image = as_bgr(frame.image)
        if self._writer is None:
            self._writer = self._open(image, frame.time_ns)
        if (image.shape[1], image.shape[0]) != self._size_wh:
            image = cv2.resize(image, self._size_wh, interpolation=cv2.INTER_AREA)
        for _ in range(self._repeats(frame.time_ns)):
            self._writer.write(image)
            self._written += 1

    def _repeats(self, time_ns: int) -> int:
        if not self._live:
            return 1
        due = round((time_ns - self._first_ns) * self._rate_hz / SECOND) + 1
        missing = due - self._written
        if missing > _MAX_REPEATS:
            self._first_ns += round((missing - 1) * SECOND / self._rate_hz)
            return 1
        return max(0, missing)

    def _open(self, image: Array, time_ns: int) -> cv2.VideoWriter:
        self._size_wh, self._first_ns = (image.shape[1], image.shape[0]), time_ns
        writer = _open_fragmented(self._path, self._make_writer) if self._path.suffix.lower() in _FRAGMENTED else None
        writer = writer or self._make_writer(self._path)
        if not writer.isOpened():
            raise OutputError(
                f"cannot write a video of {self._size_wh[0]}x{self._size_wh[1]} to {self._path}: there is no {self._codec} "
                "encoder",
                f"choose another suffix of {', '.join(VIDEO_CODECS)}",
            )
        return writer

    def _make_writer(self, path: Path) -> cv2.VideoWriter:
        return cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*self._codec), self._rate_hz, self._size_wh)

    def _check(self) -> None:
        """Check that the file is complete, as the video library does not report failed writes."""
        try:
            whole = is_whole(self._path)
        except OSError as error:
            raise output_error(self._path, error) from error
        if not whole:
            raise OutputError(
                f"cannot write all {self._written} frames to {self._path}: a full disk or a limit (ulimit -f, a quota, 4 GiB "
                "on FAT32) cut it off",
                "choose another place",
            )


def _open_fragmented(path: Path, make: Callable[[Path], cv2.VideoWriter]) -> cv2.VideoWriter | None:
    """Open an MP4 file with a fragmented index, so that it stays playable up to a kill or a power cut.

    OpenCV passes no options to a container and selects it by the suffix of the file name. The container that always writes
    fragments (Protected Interoperable File Format, which any MP4 reader accepts) has the suffix .ismv, so the file is opened
    through a symbolic link with that suffix, which is removed once the file is open.
    """
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / "video.ismv"
        link.symlink_to(path.resolve())
        writer = make(link)
    return writer if writer.isOpened() else None


def open_file_sink(uri: Uri, *, rate_hz: float | None, live: bool) -> Sink:
    """Create the sink for a file name: a video with a known suffix, else a folder or a pattern.

    Raises:
        UsageError: The suffix is unknown.
    """
    suffix = uri.path.suffix.lower()
    if frame_pattern(uri.target) is not None or not suffix or uri.path.is_dir():
        return FolderSink(uri)
    if suffix in VIDEO_CODECS:
        return VideoSink(uri, rate_hz=rate_hz, live=live)
    raise UsageError(
        f"cannot write {uri}: its suffix is unknown",
        f"name a video ({', '.join(VIDEO_CODECS)}), a folder or a pattern such as frame_%04i.png",
    )
