"""Where fused pictures go: window, video file, image folder, shared memory, nowhere."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import struct
import threading
import time
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from typing_extensions import Self

from refusion_edge.arrays import Array, Uint8Array
from refusion_edge.errors import BackendError, OutputError, UsageError
from refusion_edge.files import output_error
from refusion_edge.images.io import WRITABLE_SUFFIXES, write_image
from refusion_edge.stream.frames import SECOND, FusedFrame
from refusion_edge.stream.sources.captures import as_picture, silence_opencv
from refusion_edge.stream.uri import Uri, frame_pattern, number_option, read_options

VIDEO_CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".mkv": "FFV1", ".avi": "MJPG", ".webm": "VP90"}

# Ending with this much left on the disk closes every file properly; a full disk would not.
_LEAST_FREE_BYTES = 64 << 20
_FREE_CHECK_S = 1.0
_DEFAULT_RATE_HZ = 30.0
_X11_PORT = 6000
# A gap in live video is filled with repeats up to this; longer ones are cut.
_MOST_REPEATS = 300


class Sink(Protocol):
    """Takes fused pictures, in one thread. It is entered before that thread starts and left in it; leaving twice does no harm.

    Attributes:
        name: What the report calls it, without credentials.
        capacity: Pictures that may wait for it.
        lossless: Whether pictures of files wait until it has time; what people watch never makes anything wait.
    """

    name: str
    capacity: int
    lossless: bool

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def write(self, frame: FusedFrame) -> None:
        """Take one picture.

        Raises:
            OutputError: It cannot be written; what was written before stays usable.
        """


class NullSink:
    """Takes pictures and does nothing, for measurements. Implements ``Sink``. Option ``delay_ms``: as slow as asked."""

    capacity, lossless = 2, True

    def __init__(self, uri: Uri) -> None:
        self.name = str(uri)
        read_options(uri, ("delay_ms",))
        self._delay_s = number_option(uri, "delay_ms", 0, least=0, most=1e6) / 1000

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def write(self, frame: FusedFrame) -> None:
        """See ``Sink.write``."""
        if self._delay_s:
            time.sleep(self._delay_s)


class FolderSink:
    """Writes numbered images: into a folder, or by a pattern such as ``frame_%04i.png``. Implements ``Sink``."""

    capacity, lossless = 8, True

    def __init__(self, uri: Uri) -> None:
        self.name = str(uri)
        read_options(uri, ())
        self._pattern = frame_pattern(uri.target) or f"{uri.target.rstrip('/').replace('%', '%%')}/%06d.png"
        suffix = Path(self._pattern).suffix.lower()
        if suffix not in WRITABLE_SUFFIXES:
            raise UsageError(f"expected a pattern ending in {', '.join(WRITABLE_SUFFIXES)}, got {uri}.")
        self._written = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def write(self, frame: FusedFrame) -> None:
        """See ``Sink.write``."""
        image = cv2.cvtColor(frame.image, cv2.COLOR_BGR2RGB) if frame.image.ndim == 3 else frame.image
        write_image(self._pattern % self._written, image)
        self._written += 1


class VideoSink:
    """Writes a video file at a constant rate. Implements ``Sink``.

    Live pictures are repeated or left out so that the video runs at the speed of the scene; of files every picture is written
    once. The suffix chooses the codec: MPEG-4 in .mp4 and .mov, lossless FFV1 in .mkv, Motion JPEG in .avi, VP9 in .webm. A
    power cut leaves .mkv playable; .mp4 and .mov get their index at the end.

    Args:
        uri: The file.
        rate_hz: Pictures per second of the video.
        live: Whether times of the pictures have to be kept.
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
        self._disk = DiskWatch(self._path)

    def __enter__(self) -> Self:
        silence_opencv()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.touch()
        except OSError as error:
            raise output_error(self._path, error) from error
        return self

    def __exit__(self, *exc: object) -> None:
        if self._writer is not None:
            self._writer.release()
            self._writer = None
        elif self._path.is_file() and self._path.stat().st_size == 0:
            self._path.unlink()  # no picture ever came

    def write(self, frame: FusedFrame) -> None:
        """See ``Sink.write``."""
        self._disk.check()
        picture = as_picture(frame.image)
        if self._writer is None:
            self._open(picture, frame.time_ns)
        if (picture.shape[1], picture.shape[0]) != self._size_wh:
            picture = cv2.resize(picture, self._size_wh, interpolation=cv2.INTER_AREA)
        assert self._writer is not None
        for _ in range(self._repeats(frame.time_ns)):
            self._writer.write(picture)
            self._written += 1

    def _repeats(self, time_ns: int) -> int:
        if not self._live:
            return 1
        due = round((time_ns - self._first_ns) * self._rate_hz / SECOND) + 1
        missing = due - self._written
        if missing > _MOST_REPEATS:
            self._first_ns += round((missing - 1) * SECOND / self._rate_hz)
            return 1
        return max(0, missing)

    def _open(self, picture: Array, time_ns: int) -> None:
        self._size_wh, self._first_ns = (picture.shape[1], picture.shape[0]), time_ns
        writer = cv2.VideoWriter(
            str(self._path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*self._codec), self._rate_hz, self._size_wh
        )
        if not writer.isOpened():
            raise OutputError(
                f"expected a video of {self._size_wh[0]}x{self._size_wh[1]} in {self._path}, got no {self._codec} encoder; "
                f"choose another suffix out of {', '.join(VIDEO_CODECS)}."
            )
        self._writer = writer


class DisplaySink:
    """Shows pictures in a window; closing it or pressing q or Esc ends the run. Implements ``Sink``."""

    capacity, lossless = 1, False
    _TITLE = "refusion-edge"

    def __init__(self, uri: Uri, stop: threading.Event) -> None:
        self.name = str(uri)
        read_options(uri, ())
        self._stop = stop
        self._open = False

    def __enter__(self) -> Self:
        if not has_display():
            raise BackendError(
                "expected a display for display://, got none (DISPLAY names no X server that answers); use view:// and a "
                "browser."
            )
        return self

    def __exit__(self, *exc: object) -> None:
        if self._open:
            cv2.destroyAllWindows()
            self._open = False

    def write(self, frame: FusedFrame) -> None:
        """See ``Sink.write``."""
        self._open = True
        try:
            cv2.imshow(self._TITLE, frame.image)
            pressed = cv2.waitKey(1) & 0xFF
            closed = cv2.getWindowProperty(self._TITLE, cv2.WND_PROP_VISIBLE) < 1
        except cv2.error as error:
            raise BackendError(
                f"expected an OpenCV that shows windows, got '{error.err}'; use view:// and a browser."
            ) from error
        if pressed in (ord("q"), 27) or closed:
            self._stop.set()


# Layout of the shared memory: magic, sequence (odd while it is written), height, width, channels, time in ns; then pixels.
_SHARED_HEADER = struct.Struct("<8sQIIIIq")
SHARED_MAGIC = b"RFXSHM1\0"


class SharedMemorySink:
    """Puts the newest picture into shared memory for another process. Implements ``Sink``.

    A header of 40 bytes (little-endian: magic ``RFXSHM1``, 64-bit sequence number, height, width, channels, reserved, time in
    ns), then BGR bytes. The sequence number is odd while a picture is written: read it, copy, read it again, and use the copy
    if both were equal and even; ``read_shared`` does that. The memory goes when the stream ends.
    """

    capacity, lossless = 1, False

    def __init__(self, uri: Uri) -> None:
        self.name = str(uri)
        read_options(uri, ())
        if not uri.target or "/" in uri.target:
            raise UsageError(f"expected a name without slashes after shm://, got {uri}; choose one.")
        self._shared_name = uri.target
        self._memory: shared_memory.SharedMemory | None = None
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._remove()

    def write(self, frame: FusedFrame) -> None:
        """See ``Sink.write``."""
        picture = np.ascontiguousarray(as_picture(frame.image))
        needed = _SHARED_HEADER.size + picture.nbytes
        if self._memory is None or self._memory.size < needed:
            self._remove()
            try:
                self._memory = shared_memory.SharedMemory(self._shared_name, create=True, size=needed)
            except FileExistsError as error:
                raise OutputError(
                    f"expected the name {self._shared_name} to be free, got shared memory that exists; choose another name, or "
                    f"remove /dev/shm/{self._shared_name} if its program has gone."
                ) from error
            except OSError as error:
                raise output_error(Path("/dev/shm") / self._shared_name, error) from error
        buffer = self._memory.buf
        assert buffer is not None
        height, width, channels = picture.shape
        self._sequence += 1
        _SHARED_HEADER.pack_into(buffer, 0, SHARED_MAGIC, self._sequence, height, width, channels, 0, frame.time_ns)
        buffer[_SHARED_HEADER.size : needed] = picture.reshape(-1).data
        self._sequence += 1
        _SHARED_HEADER.pack_into(buffer, 0, SHARED_MAGIC, self._sequence, height, width, channels, 0, frame.time_ns)

    def _remove(self) -> None:
        if self._memory is not None:
            self._memory.close()
            self._memory.unlink()
            self._memory = None


def read_shared(memory: shared_memory.SharedMemory) -> tuple[Uint8Array, int] | None:
    """Read the newest picture of a ``SharedMemorySink``, in any process.

    Args:
        memory: The attached memory.

    Returns:
        (H, W, 3) BGR uint8 in new memory and its time in ns; None while there is none or it is being written.
    """
    buffer = memory.buf
    assert buffer is not None
    magic, before, height, width, channels, _, time_ns = _SHARED_HEADER.unpack_from(buffer, 0)
    if magic != SHARED_MAGIC or before % 2:
        return None
    start = _SHARED_HEADER.size
    picture = np.frombuffer(bytes(buffer[start : start + height * width * channels]), np.uint8)
    after = _SHARED_HEADER.unpack_from(buffer, 0)[1]
    return (picture.reshape(height, width, channels), time_ns) if before == after else None


class DiskWatch:
    """Ends a run while there is still room to close its files."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next_s = 0.0

    def check(self) -> None:
        """Look at the free space, at most once a second.

        Raises:
            OutputError: Less than 64 MiB are left.
        """
        now_s = time.monotonic()
        if now_s < self._next_s:
            return
        self._next_s = now_s + _FREE_CHECK_S
        free = shutil.disk_usage(self._path.parent if not self._path.is_dir() else self._path).free
        if free < _LEAST_FREE_BYTES:
            raise OutputError(
                f"expected room for {self._path}, got {free >> 20} MiB left on its disk; free some space, all that was written "
                "so far is kept."
            )


def has_display() -> bool:
    """Whether a window could be shown: whether the X server that DISPLAY names takes connections.

    A DISPLAY that leads nowhere, as old sessions leave it, would end the whole process inside of the window library.
    """
    host, colon, screen = os.environ.get("DISPLAY", "").rpartition(":")
    number = screen.partition(".")[0]
    if not colon or not number.isdecimal():
        return False
    local = host in ("", "unix")
    places: list[tuple[socket.AddressFamily, Any]] = (
        [(socket.AF_UNIX, f"{prefix}/tmp/.X11-unix/X{number}") for prefix in ("", "\0")]
        if local
        else [(socket.AF_INET, (host, _X11_PORT + int(number)))]
    )
    for family, address in places:
        with socket.socket(family, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError, OverflowError):
            probe.settimeout(1.0)
            probe.connect(address)
            return True
    return False


def open_file_sink(uri: Uri, *, rate_hz: float | None, live: bool) -> Sink:
    """Make the sink for a file name: a video by its suffix, a folder or a pattern otherwise.

    Raises:
        UsageError: The suffix is neither.
    """
    suffix = uri.path.suffix.lower()
    if frame_pattern(uri.target) is not None or not suffix or uri.path.is_dir():
        return FolderSink(uri)
    if suffix in VIDEO_CODECS:
        return VideoSink(uri, rate_hz=rate_hz, live=live)
    raise UsageError(
        f"expected a video ({', '.join(VIDEO_CODECS)}), a folder or a pattern such as frame_%04i.png, got {uri}; choose one."
    )
