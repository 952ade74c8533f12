"""Decoders of the formats that are read: strict about damage, and keeping what a file says about its pixels.

libpng and libwebp come with imagecodecs, libjpeg-turbo with simplejpeg, TIFF layouts with tifffile, BMP and GIF with Pillow.
OpenCV decodes none of them: it drops the tags, scrambles separate planes, ignores the largest value of PNM, and fills missing
parts of JPEG files with gray.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Callable, Iterator

import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.images.exif import EXIF_START, exif_orientation
from refusion_edge.images.jpeg import DamagedError, decode_jpeg
from refusion_edge.images.still import CONTAINER, Encoding, Still
from refusion_edge.images.tiff import decode_tiff

_PNG_END = b"IEND\xaeB`\x82"
_PALETTE = 3
_PNM_FIELD = re.compile(rb"(?:\s|#[^\n]*\n)*(\d{1,9})")
_PNM_NUMBER = re.compile(rb"\d+")
_PNM_COMMENT = re.compile(rb"#[^\n]*\n?")


def decode(format_name: str, data: bytes) -> Still:
    """Decode a file; its orientation is stated but not yet applied.

    Args:
        format_name: As in ``refusion_edge.images.header.Header``.
        data: The whole file.

    Returns:
        Pixels (H, W) or (H, W, 3) RGB, and what the file says about them.

    Raises:
        Exception: It is damaged; decoders raise almost any type, and ``DamagedError`` says what is wrong.
    """
    return _DECODERS[format_name](data)


def _png(data: bytes) -> Still:
    import imagecodecs

    if data.rfind(_PNG_END) < 0:
        raise DamagedError("it breaks off early")
    chunks = dict(_png_chunks(data))
    depth, kind = data[24], data[25]
    pixels = _without_alpha(imagecodecs.png_decode(data))
    orientation = exif_orientation(chunks.get(b"eXIf", b""))
    white, white_from = (65535.0 if depth == 16 else 255.0), CONTAINER
    significant = max(chunks.get(b"sBIT", b""), default=0)
    if depth == 16 and kind != _PALETTE and 8 <= significant < 16 and _is_low_aligned(pixels, significant):
        white, white_from = float((1 << significant) - 1), "sBIT"
    return Still(pixels, Encoding("PNG", white, white_from, orientation))


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 8
    while place + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, place)
        kind = data[place + 4 : place + 8]
        if kind in (b"sBIT", b"eXIf"):
            yield kind, data[place + 8 : place + 8 + size]
        if kind == b"IEND":
            return
        place += 12 + size


def _is_low_aligned(pixels: Array, bits: int) -> bool:
    """Tell whether the significant bits are the low ones, as cameras write them, or the high ones, as PNG has it.

    In the second case every value is scaled to 16 bits, so that it exceeds them or ends in zeros.
    """
    return int(pixels.max()) < 1 << bits and bool((pixels & ((1 << 16 - bits) - 1)).any())


def _webp(data: bytes) -> Still:
    import imagecodecs

    (size,) = struct.unpack_from("<I", data, 4)
    if size + 8 > len(data):
        raise DamagedError("it breaks off early")
    return Still(_without_alpha(imagecodecs.webp_decode(data)), Encoding("WebP", orientation=_webp_orientation(data)))


def _webp_orientation(data: bytes) -> int:
    place = 12
    while place + 8 <= len(data):
        (size,) = struct.unpack_from("<I", data, place + 4)
        if data[place : place + 4] == b"EXIF":
            return exif_orientation(data[place + 8 : place + 8 + size].removeprefix(EXIF_START))
        place += 8 + size + size % 2
    return 1


def _pillow(format_name: str) -> Callable[[bytes], Still]:
    def decode_with_pillow(data: bytes) -> Still:
        with warnings.catch_warnings():
            # Pixels were counted in the header, and a damaged palette or comment is either harmless or an error.
            warnings.simplefilter("ignore")
            return _from_pillow(data, format_name)

    return decode_with_pillow


def _from_pillow(data: bytes, format_name: str) -> Still:
    from PIL import Image

    with Image.open(io.BytesIO(data), formats=[format_name]) as image:
        image.load()
        gray = image.mode in ("1", "L") or (image.mode == "P" and _has_gray_palette(image.getpalette() or []))
        return Still(np.array(image.convert("L" if gray else "RGB")), Encoding(format_name))


def _has_gray_palette(palette: list[int]) -> bool:
    return palette[0::3] == palette[1::3] == palette[2::3]


def _pnm(data: bytes) -> Still:
    """Decode PBM, PGM or PPM, plain or raw; their own largest value is the full scale."""
    kind, place = data[1] - ord("0"), 2
    fields = []
    for _ in range(2 if kind in (1, 4) else 3):
        found = _PNM_FIELD.match(data, place)
        if found is None:
            raise DamagedError("its header is damaged")
        fields.append(int(found[1]))
        place = found.end()
    width, height, most = (*fields, 1)[:3]
    if not 1 <= most <= 65535:
        raise DamagedError(f"its largest value is {most}, outside 1 to 65535")
    channels = 3 if kind in (3, 6) else 1
    if kind == 4:
        pixels = _pnm_bits(data, place + 1, width, height)
    else:
        values = _pnm_plain if kind < 4 else _pnm_raw
        pixels = values(data, place, width * height * channels, most).reshape(height, width, channels)
        if int(pixels.max()) > most:
            raise DamagedError(f"it holds values above its largest one, {most}")
    if kind in (1, 4):
        return Still(_one_channel(np.where(pixels, 0, 255).astype(np.uint8)), Encoding("PNM"))
    if most < 255:
        return Still(_one_channel(np.rint(pixels * (255 / most)).astype(np.uint8)), Encoding("PNM", 255.0, "maxval"))
    return Still(_one_channel(pixels), Encoding("PNM", float(most), "maxval"))


def _pnm_raw(data: bytes, place: int, count: int, most: int) -> Array:
    wide = most > 255
    if len(data) - place - 1 < count * (1 + wide):
        raise DamagedError("it breaks off early")
    values = np.frombuffer(data, ">u2" if wide else np.uint8, count, place + 1)
    return values.astype(np.uint16 if wide else np.uint8)


def _pnm_plain(data: bytes, place: int, count: int, most: int) -> Array:
    text = _PNM_COMMENT.sub(b" ", data[place:])
    if data[1:2] == b"1":  # digits of a bitmap need no space between them
        numbers = [int(text[at : at + 1]) for at in range(len(text)) if text[at : at + 1] in (b"0", b"1")][:count]
    else:
        numbers = [min(int(found[0]), 1 << 20) for found in _PNM_NUMBER.finditer(text)][:count]
    if len(numbers) < count:
        raise DamagedError("it breaks off early")
    if max(numbers) > most:
        raise DamagedError(f"it holds values above its largest one, {most}")
    return np.array(numbers, np.uint16 if most > 255 else np.uint8)


def _pnm_bits(data: bytes, place: int, width: int, height: int) -> Array:
    row = (width + 7) // 8
    if len(data) - place < row * height:
        raise DamagedError("it breaks off early")
    packed = np.frombuffer(data, np.uint8, row * height, place).reshape(height, row)
    return np.unpackbits(packed, axis=1)[:, :width, None]


def _one_channel(pixels: Array) -> Array:
    return np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _without_alpha(pixels: Array) -> Array:
    """Drop the alpha channel of gray or RGB; the color under it stays as stored."""
    if pixels.ndim == 2:
        return pixels
    if pixels.shape[2] <= 2:
        return np.ascontiguousarray(pixels[..., 0])
    return np.ascontiguousarray(pixels[..., :3])


_DECODERS: dict[str, Callable[[bytes], Still]] = {
    "PNG": _png,
    "JPEG": decode_jpeg,
    "TIFF": decode_tiff,
    "BMP": _pillow("BMP"),
    "WebP": _webp,
    "PNM": _pnm,
    "GIF": _pillow("GIF"),
}
