"""Check that a video file is complete, by the part of its container that is written last.

The video library stops writing at the first error without reporting it; the sizes that it enters when it closes a file are
then missing, or larger than the file.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067
_UNKNOWN_SIZE = (1 << 56) - 1


def is_whole(path: Path) -> bool:
    """Whether a finished video file ends where its container says; reads only the structure of the file.

    Args:
        path: A file whose suffix is one of ``VIDEO_CODECS``.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        try:
            return _CHECKS[path.suffix.lower()](file, path.stat().st_size)
        except (struct.error, IndexError):  # the file ends inside a header
            return False


def _iso_is_whole(file: BinaryIO, size: int) -> bool:
    """ISO/IEC 14496-12: boxes (size, type) up to the end of the file, with the index as the last one."""
    at, kind = 0, b""
    while at < size:
        file.seek(at)
        length, kind = struct.unpack(">I4s", file.read(8))
        if length == 1:
            (length,) = struct.unpack(">Q", file.read(8))
        if length < 8:
            return False
        at += length
    return at == size and kind in (b"moov", b"mfra")


def _matroska_is_whole(file: BinaryIO, size: int) -> bool:
    """RFC 8794 and 9559: an EBML header, then one segment up to the end of the file; its size is written last."""
    identity, length = _element(file)
    if identity != _EBML:
        return False
    file.seek(length, 1)
    identity, length = _element(file)
    return identity == _SEGMENT and length != _UNKNOWN_SIZE and file.tell() + length == size


def _element(file: BinaryIO) -> tuple[int, int]:
    """Identity and size of an EBML element; the leading zeros in the first byte of each number give its length."""
    first = file.read(1)[0]
    identity = int.from_bytes(bytes([first]) + file.read(8 - first.bit_length()), "big")
    first = file.read(1)[0]
    more = 8 - first.bit_length()
    length = int.from_bytes(bytes([first & (0x7F >> more)]) + file.read(more), "big")
    return identity, length


def _riff_is_whole(file: BinaryIO, size: int) -> bool:
    """AVI 1.0 with OpenDML: lists (``RIFF``, size) up to the end of the file; the size of an unfinished list is 0."""
    at = 0
    while at < size:
        file.seek(at)
        kind, length = struct.unpack("<4sI", file.read(8))
        if kind != b"RIFF" or length == 0:
            return False
        at += 8 + length + length % 2
    return at == size > 0


_CHECKS: dict[str, Callable[[BinaryIO, int], bool]] = {
    ".mp4": _iso_is_whole,
    ".m4v": _iso_is_whole,
    ".mov": _iso_is_whole,
    ".mkv": _matroska_is_whole,
    ".webm": _matroska_is_whole,
    ".avi": _riff_is_whole,
}
