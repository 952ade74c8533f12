"""Format, size and number of images of a file, from its first bytes and before anything is decoded.

A file of 1 MB can decode to gigabytes, so pixels are counted before they are decoded. The content determines the format, not
the suffix of the name.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

_MOST_PAGES = 1000
_PNM = re.compile(rb"P[1-6](?:\s|#[^\n]*\n)+(\d{1,9})(?:\s|#[^\n]*\n)+(\d{1,9})\s")
# Tags of TIFF: width and height of the image and of its tiles, and the kind of page.
_SIDES, _TILE, _PAGE_KIND = (256, 257), (322, 323), 254
_THUMBNAIL_OR_MASK = 0b101
_WHOLE_NUMBERS = {3: "H", 4: "I", 16: "Q"}
# Start-of-frame markers of JPEG, without those for Huffman tables, arithmetic coding and the extension.
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True, slots=True)
class Header:
    """What the first bytes of a file state.

    Attributes:
        format: ``PNG``, ``JPEG``, ``TIFF``, ``BMP``, ``WebP``, ``PNM`` or ``GIF``.
        size_wh: Width and height in pixels.
        pages: Number of images in the file: frames of an animation, or pages that are neither thumbnails nor masks.
    """

    format: str
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


def name_foreign_format(data: bytes) -> str | None:
    """Name the format of a file that is known but not read here, from its first bytes; None if it is none of them."""
    return next((name for name, start in _FOREIGN.items() if start.match(data)), None)


def _png(data: bytes) -> Header:
    # The control chunk of an animation comes before the pixels.
    control = data.find(b"acTL", 0, max(0, data.find(b"IDAT")))
    frames = struct.unpack_from(">I", data, control + 4)[0] if control > 0 else 1
    return Header("PNG", struct.unpack_from(">II", data, 16), max(1, frames))


def _jpeg(data: bytes) -> Header | None:
    place = 2
    while data[place] == 0xFF:
        marker = data[place + 1]
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, place + 5)
            return Header("JPEG", (width, height))
        # Fill bytes and standalone markers have no length.
        if marker in (0xFF, 0x01) or 0xD0 <= marker <= 0xD7:
            place += 1 if marker == 0xFF else 2
        else:
            place += 2 + struct.unpack_from(">H", data, place + 2)[0]
    return None


def _bmp(data: bytes) -> Header:
    width, height = struct.unpack_from("<HH" if data[14] == 12 else "<ii", data, 18)
    return Header("BMP", (width, abs(height)))


def _webp(data: bytes) -> Header | None:
    if data[12:16] == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header("WebP", (width & 0x3FFF, height & 0x3FFF))
    if data[12:16] == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return Header("WebP", ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1))
    if data[12:16] == b"VP8X" and len(data) >= 30:
        size_wh = int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
        return Header("WebP", size_wh, max(1, _webp_frames(data)))
    return None


def _webp_frames(data: bytes) -> int:
    place, frames = 12, 0
    while place + 8 <= len(data):
        frames += data[place : place + 4] == b"ANMF"
        (size,) = struct.unpack_from("<I", data, place + 4)
        place += 8 + size + size % 2
    return frames


def _gif(data: bytes) -> Header:
    size_wh = struct.unpack_from("<HH", data, 6)
    place, frames = 13 + _gif_table_bytes(data[10]), 0
    while place < len(data) and data[place] in (0x21, 0x2C):
        if data[place] == 0x2C:
            frames += 1
            place += 11 + _gif_table_bytes(data[place + 9])
        else:
            place += 2
        while data[place]:
            place += data[place] + 1
        place += 1
    return Header("GIF", size_wh, max(1, frames))


def _gif_table_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _pnm(data: bytes) -> Header | None:
    found = _PNM.match(data[:4096])
    return Header("PNM", (int(found[1]), int(found[2]))) if found else None


def _tiff(data: bytes) -> Header | None:
    order = "<" if data[:2] == b"II" else ">"
    big = data[2 if order == "<" else 3] == 43
    offset_format, count_format, entry_size = ("Q", "Q", 20) if big else ("I", "H", 12)
    (place,) = struct.unpack_from(order + offset_format, data, 8 if big else 4)
    size_wh, pages = (0, 0), 0
    seen: set[int] = set()
    while place and place not in seen and len(seen) < _MOST_PAGES:
        seen.add(place)
        (count,) = struct.unpack_from(order + count_format, data, place)
        start = place + struct.calcsize(order + count_format)
        tags = {}
        for index in range(min(count, 1000)):
            tag, kind = struct.unpack_from(order + "HH", data, start + index * entry_size)
            if kind in _WHOLE_NUMBERS and tag in (*_SIDES, *_TILE, _PAGE_KIND):
                value = start + index * entry_size + (12 if big else 8)
                (tags[tag],) = struct.unpack_from(order + _WHOLE_NUMBERS[kind], data, value)
        # A decoder makes room for a whole tile, however small the image is.
        for sides in (_SIDES, _TILE):
            width, height = (tags.get(side, 0) for side in sides)
            size_wh = max(size_wh, (width, height), key=lambda wh: wh[0] * wh[1])
        if min(tags.get(side, 0) for side in _SIDES) < 1:
            return None
        pages += not tags.get(_PAGE_KIND, 0) & _THUMBNAIL_OR_MASK
        (place,) = struct.unpack_from(order + offset_format, data, start + count * entry_size)
    return Header("TIFF", size_wh, max(1, pages))


_READERS = (
    (re.compile(rb"\x89PNG\r\n\x1a\n....IHDR", re.DOTALL), _png),
    (re.compile(rb"\xff\xd8\xff"), _jpeg),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), _tiff),
    (re.compile(rb"BM"), _bmp),
    (re.compile(rb"RIFF....WEBP", re.DOTALL), _webp),
    (re.compile(rb"P[1-6][\s#]"), _pnm),
    (re.compile(rb"GIF8[79]a"), _gif),
)
_FOREIGN = {
    "JPEG 2000": re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
    "JPEG XL": re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "),
    "JPEG-LS": re.compile(rb"\xff\xd8\xff\xf7"),
    "AVIF": re.compile(rb"....ftypavi", re.DOTALL),
    "HEIF": re.compile(rb"....ftyp(?:hei|hev|mif1|msf1)", re.DOTALL),
    "OpenEXR": re.compile(rb"\x76\x2f\x31\x01"),
    "Radiance HDR": re.compile(rb"#\?(?:RADIANCE|RGBE)"),
    "PFM": re.compile(rb"P[Ff]\s"),
    "PAM": re.compile(rb"P7\s"),
    "DICOM": re.compile(rb".{128}DICM", re.DOTALL),
    "NIfTI": re.compile(rb"\x5c\x01\0\0|\0\0\x01\x5c"),
    "FITS": re.compile(rb"SIMPLE  ="),
    "FLIR FFF": re.compile(rb"FFF\0"),
    "PDF": re.compile(rb"%PDF"),
    "SVG": re.compile(rb"\s*(?:<\?xml[^>]*>\s*)?<svg"),
    "NumPy": re.compile(rb"\x93NUMPY"),
}
