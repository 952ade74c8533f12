"""Damage in the data of a video that decoders conceal: they return a plausible frame, and do not say so."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import BinaryIO

# H.264, H.265 and MPEG-4 part 2 escape runs of zeros, so that no frame holds them; a lost block of a disk or a packet does.
_ESCAPED = frozenset({"h264", "hevc", "mpeg4"})
_NEVER_ZERO = frozenset({"mpeg1video", "mpeg2video", "mjpeg", "vp8", "vp9", "av1", "prores"})
_ZEROS = bytes(16)
_REVERSED_BITS = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))
_FFV1_FOOTER = 8


class PacketCheck:
    """Checks the packets of one stream.

    Args:
        codec: FFmpeg's name of the codec.
    """

    def __init__(self, codec: str) -> None:
        self._codec = codec
        self._has_checksums = False

    def finds_damage(self, data: bytes) -> bool:
        """Whether a packet is certain to be damaged. Keeps what it learns about the stream."""
        if self._codec == "ffv1":
            whole = _ffv1_is_whole(data)
            self._has_checksums |= whole
            return self._has_checksums and not whole
        if self._codec in _ESCAPED and _ZEROS in data.rstrip(b"\0"):
            return True
        return self._codec in _ESCAPED | _NEVER_ZERO and not data.strip(b"\0")


def _ffv1_is_whole(data: bytes) -> bool:
    """Check the slices of a frame from the last one to the first (RFC 9043, 4.8): the size and a CRC end each of them.

    The decoder only shows what it can of a damaged slice. Streams without checksums never pass.
    """
    end = len(data)
    while end > _FFV1_FOOTER:
        start = end - _FFV1_FOOTER - int.from_bytes(data[end - _FFV1_FOOTER : end - _FFV1_FOOTER + 3], "big")
        # The CRC goes from the highest bit to the lowest, zlib's from the lowest to the highest. That of a whole slice is 0.
        if start < 0 or zlib.crc32(data[start:end].translate(_REVERSED_BITS), 0xFFFFFFFF) != 0xFFFFFFFF:
            return False
        end = start
    return end == 0 < len(data)


def is_cut_off(path: Path) -> bool:
    """Whether a video file is shorter than its container says; False for containers that do not say.

    Raises:
        OSError: The file cannot be read.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
            return _iso_end(file, size) > size
        if head[:4] == b"RIFF":
            return 8 + int.from_bytes(head[4:8], "little") > size
        if head[:4] == b"\x1a\x45\xdf\xa3":
            return _matroska_end(file) > size
    return False


def _iso_end(file: BinaryIO, size: int) -> int:
    """End of the last box (ISO/IEC 14496-12, 4.2): size and type, a longer size where it is 1."""
    at = 0
    while at + 8 <= size:
        file.seek(at)
        head = file.read(16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:], "big")
        if length < 8:
            break
        at += length
    return at


def _matroska_end(file: BinaryIO) -> int:
    """End of the segment behind the EBML header (RFC 8794, 4); 0 if its size is unknown, as of a recording without an end."""
    file.seek(4)
    header = _ebml_size(file)
    file.seek((header or 0) + 4, 1)  # the identity of a segment has four bytes
    length = _ebml_size(file)
    return 0 if header is None or length is None else file.tell() + length


def _ebml_size(file: BinaryIO) -> int | None:
    """A number whose length is that of the leading zeros in its first byte; all ones mean that it is unknown."""
    first = int.from_bytes(file.read(1), "big")
    if not first:
        return None
    more = 8 - first.bit_length()
    value = int.from_bytes(bytes([first & (0x7F >> more)]) + file.read(more), "big")
    return None if value == (1 << 7 * (more + 1)) - 1 else value
