"""The interface of outputs, and the simple ones: image folder, shared memory, null output."""

from __future__ import annotations

import glob
import re
import struct
import time
from multiprocessing import shared_memory
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
from typing_extensions import Self

from refusion_edge.arrays import Array, Uint8Array
from refusion_edge.errors import OutputError, UsageError
from refusion_edge.files import output_error
from refusion_edge.images.io import WRITABLE_SUFFIXES, write_image
from refusion_edge.stream.frames import FusedFrame
from refusion_edge.stream.uri import Uri, frame_pattern, number_option, read_options


class Sink(Protocol):
    """An output of fused frames. It is entered before its thread starts and left in that thread; leaving twice is harmless.

    Attributes:
        name: Name in the report, without credentials.
        capacity: Maximum number of frames that wait for it.
        lossless: Whether frames from files wait until the output is free; outputs for viewers never block.
    """

    name: str
    capacity: int
    lossless: bool

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def write(self, frame: FusedFrame) -> None:
        """Write one frame.

        Raises:
            OutputError: The frame cannot be written; what was written before stays usable.
        """


def as_bgr(image: Array) -> Array:
    """Convert an image to (H, W, 3) BGR; a BGR image is returned as is."""
    return image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)


class NullSink:
    """Discards frames, for measurements. Implements ``Sink``. The option ``delay_ms`` simulates a slow output."""

    capacity, lossless = 2, True

    def __init__(self, uri: Uri) -> None:
        self.name = str(uri)
        read_options(uri, ("delay_ms",))
        self._delay_s = number_option(uri, "delay_ms", 0, low=0, high=1e6) / 1000

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def write(self, frame: FusedFrame) -> None:
        """See ``Sink.write``."""
        if self._delay_s:
            time.sleep(self._delay_s)


# The field of a pattern: two % before it stand for one in the name.
_FIELD = re.compile(r"(?<!%)((?:%%)*)%0?\d*d")
_MOST_DIGITS = 18


class FolderSink:
    """Writes numbered images to a folder, or to a pattern such as ``frame_%04i.png``. Implements ``Sink``.

    Args:
        uri: The folder or the pattern.
        overwrite: Whether the images of an earlier run, see ``earlier``, are removed with the first frame. Otherwise those that
            this run does not replace stay, as a mix of two runs.
    """

    capacity, lossless = 8, True

    def __init__(self, uri: Uri, *, overwrite: bool = False) -> None:
        self.name = str(uri)
        read_options(uri, ())
        self._pattern = frame_pattern(uri.target) or f"{uri.target.rstrip('/').replace('%', '%%')}/%06d.png"
        suffix = Path(self._pattern).suffix.lower()
        if suffix not in WRITABLE_SUFFIXES:
            raise UsageError(f"cannot write images as {uri}", f"end the pattern in {', '.join(WRITABLE_SUFFIXES)}")
        field = _FIELD.search(self._pattern)
        try:
            self._pattern % 0
        except (TypeError, ValueError):
            field = None
        if field is None:
            raise UsageError(f"{uri} is not a pattern with one number", "write it like frame_%04i.png, and any other % as %%")
        self._before, self._after = (
            part.replace("%%", "%") for part in (self._pattern[: field.end(1)], self._pattern[field.end() :])
        )
        self._written = 0
        self._overwrite = overwrite

    def earlier(self) -> list[Path]:
        """The files that have names of this output already."""
        before, after = self._before, self._after
        found = []
        for name in glob.iglob(f"{glob.escape(before)}*{glob.escape(after)}"):
            number = name[len(before) : len(name) - len(after)].lstrip()  # %4d pads with spaces
            if number.isascii() and number.isdecimal() and len(number) <= _MOST_DIGITS and self._pattern % int(number) == name:
                found.append(Path(name))
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def write(self, frame: FusedFrame) -> None:
        """See ``Sink.write``."""
        if self._overwrite and not self._written:
            self._remove_earlier()
        image = cv2.cvtColor(frame.image, cv2.COLOR_BGR2RGB) if frame.image.ndim == 3 else frame.image
        write_image(self._pattern % self._written, image)
        self._written += 1

    def _remove_earlier(self) -> None:
        for path in self.earlier():
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise output_error(path, error) from error


# Layout of the shared memory: magic, sequence (odd during a write), height, width, channels, reserved, time in ns; then pixels.
_SHARED_HEADER = struct.Struct("<8sQIIIIq")
SHARED_MAGIC = b"RFXSHM1\0"


class SharedMemorySink:
    """Provides the newest frame to other processes in shared memory. Implements ``Sink``.

    A header of 40 bytes (little-endian: magic ``RFXSHM1``, 64-bit sequence number, height, width, channels, reserved, time in
    ns), then BGR bytes. The sequence number is odd during a write: read it, copy the frame, read it again, and use the copy if
    both numbers are equal and even; ``read_shared`` does that. The memory is removed when the stream ends.
    """

    capacity, lossless = 1, False

    def __init__(self, uri: Uri) -> None:
        self.name = str(uri)
        read_options(uri, ())
        if not uri.target or "/" in uri.target:
            raise UsageError(f"{uri} does not name a shared memory", "write a name without slashes after shm://")
        self._shared_name = uri.target
        self._memory: shared_memory.SharedMemory | None = None
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._remove()

    def write(self, frame: FusedFrame) -> None:
        """See ``Sink.write``."""
        image = np.ascontiguousarray(as_bgr(frame.image))
        needed = _SHARED_HEADER.size + image.nbytes
        if self._memory is None or self._memory.size < needed:
            self._remove()
            try:
                self._memory = shared_memory.SharedMemory(self._shared_name, create=True, size=needed)
            except FileExistsError as error:
                raise OutputError(
                    f"the shared memory {self._shared_name} exists already",
                    f"choose another name, or remove /dev/shm/{self._shared_name} if its program has ended",
                ) from error
            except OSError as error:
                raise output_error(Path("/dev/shm") / self._shared_name, error) from error
        buffer = self._memory.buf
        assert buffer is not None
        height, width, channels = image.shape
        self._sequence += 1
        _SHARED_HEADER.pack_into(buffer, 0, SHARED_MAGIC, self._sequence, height, width, channels, 0, frame.time_ns)
        buffer[_SHARED_HEADER.size : needed] = image.reshape(-1).data
        self._sequence += 1
        _SHARED_HEADER.pack_into(buffer, 0, SHARED_MAGIC, self._sequence, height, width, channels, 0, frame.time_ns)

    def _remove(self) -> None:
        if self._memory is not None:
            self._memory.close()
            self._memory.unlink()
            self._memory = None


def read_shared(memory: shared_memory.SharedMemory) -> tuple[Uint8Array, int] | None:
    """Read the newest frame of a ``SharedMemorySink``, from any process.

    Args:
        memory: The attached memory.

    Returns:
        A copy of the frame, (H, W, 3) BGR uint8, and its time in ns; None before the first frame and during a write.
    """
    buffer = memory.buf
    assert buffer is not None
    magic, before, height, width, channels, _, time_ns = _SHARED_HEADER.unpack_from(buffer, 0)
    if magic != SHARED_MAGIC or before % 2:
        return None
    start = _SHARED_HEADER.size
    image = np.frombuffer(bytes(buffer[start : start + height * width * channels]), np.uint8)
    after = _SHARED_HEADER.unpack_from(buffer, 0)[1]
    return (image.reshape(height, width, channels), time_ns) if before == after else None
