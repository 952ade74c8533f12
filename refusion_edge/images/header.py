"""Image sizes from the headers of PNG, JPEG, TIFF, BMP, WebP and PNM files, before anything is decoded.

A file of 1 MB can decode to gigabytes, so pixels are counted before they are decoded.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

_MOST_PAGES = 1000
_PNM = re.compile(rb"P[1-6](?:\s|#[^\n]*\n)+(\d{1,9})(?:\s|#[^\n]*\n)+(\d{1,9})\s")
# Tags of TIFF: width and height of the image and of its tiles.
_SIDES, _TILE = (256, 257), (322, 323)
_WHOLE_NUMBERS = {3: "H", 4: "I", 16: "Q"}
# Start-of-frame markers of JPEG, without those for Huffman tables, arithmetic coding and the extension.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True, slots=True)
class Header:
    """Size of an image as stated by its file.

    Attributes:
        size_wh: Width and height in pixels.
        pages: Number of images in the file.
    """

    size_wh: tuple[int, int]
    pages: int = 1

    @property
    def pixels(self) -> int:
        """Number of pixels of one image."""
        return self.size_wh[0] * self.size_wh[1]


def read_header(data: bytes) -> Header | None:
    """Read the header of an image file.

    Args:
        data: The whole file.

    Returns:
        The header, or None if the format is unknown or the header damaged.
    """
    for start, reader in _READERS:
        if start.match(data):
            try:
                header = reader(data)
            except (struct.error, IndexError):
                return None
            return header if header is not None and min(header.size_wh) > 0 else None
    return None


def _png(data: bytes) -> Header:
    return Header(struct.unpack_from(">II", data, 16))


def _jpeg(data: bytes) -> Header | None:
    place = 2
    while data[place] == 0xFF:
        marker = data[place + 1]
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, place + 5)
            return Header((width, height))
        # Fill bytes and standalone markers have no length.
        if marker in (0xFF, 0x01) or 0xD0 <= marker <= 0xD7:
            place += 1 if marker == 0xFF else 2
        else:
            place += 2 + struct.unpack_from(">H", data, place + 2)[0]
    return None


def _bmp(data: bytes) -> Header:
    width, height = struct.unpack_from("<HH" if data[14] == 12 else "<ii", data, 18)
    return Header((width, abs(height)))


def _webp(data: bytes) -> Header | None:
    if data[12:16] == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header((width & 0x3FFF, height & 0x3FFF))
    if data[12:16] == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return Header(((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1))
    if data[12:16] == b"VP8X" and len(data) >= 30:
        return Header((int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1))
    return None


def _pnm(data: bytes) -> Header | None:
    found = _PNM.match(data[:4096])
    return Header((int(found[1]), int(found[2]))) if found else None


def _tiff(data: bytes) -> Header | None:
    order = "<" if data[:2] == b"II" else ">"
    big = data[2 if order == "<" else 3] == 43
    offset_format, count_format, entry_size = ("Q", "Q", 20) if big else ("I", "H", 12)
    (place,) = struct.unpack_from(order + offset_format, data, 8 if big else 4)
    size_wh, pages, seen = (0, 0), 0, set()
    while place and place not in seen and pages < _MOST_PAGES:
        seen.add(place)
        (count,) = struct.unpack_from(order + count_format, data, place)
        start = place + struct.calcsize(order + count_format)
        tags = {}
        for index in range(min(count, 1000)):
            tag, kind = struct.unpack_from(order + "HH", data, start + index * entry_size)
            if kind in _WHOLE_NUMBERS and tag in (*_SIDES, *_TILE):
                value = start + index * entry_size + (12 if big else 8)
                (tags[tag],) = struct.unpack_from(order + _WHOLE_NUMBERS[kind], data, value)
        # A decoder makes room for a whole tile, however small the image is.
        for sides in (_SIDES, _TILE):
            width, height = (tags.get(side, 0) for side in sides)
            size_wh = max(size_wh, (width, height), key=lambda wh: wh[0] * wh[1])
        if min(tags.get(side, 0) for side in _SIDES) < 1:
            return None
        pages += 1
        (place,) = struct.unpack_from(order + offset_format, data, start + count * entry_size)
    return Header(size_wh, pages)


_READERS = (
    (re.compile(rb"\x89PNG\r\n\x1a\n....IHDR", re.DOTALL), _png),
    (re.compile(rb"\xff\xd8\xff"), _jpeg),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), _tiff),
    (re.compile(rb"BM"), _bmp),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), _webp),
    (re.compile(rb"P[1-6][\s#]"), _pnm),
)
