"""JPEG files: their structure, and what decoders do not report about damaged ones.

libjpeg-turbo warns about most damage, and simplejpeg turns its warnings into errors. It does not notice scans that are
missing from a progressive file, nor a block of zeros in which the Huffman code happens to find its place again.

Source:
    ITU-T T.81: marker segments (B.2), progressive scans (G.1.1).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from refusion_edge.arrays import Uint8Array
from refusion_edge.images.exif import EXIF_START, exif_orientation
from refusion_edge.images.still import Encoding, Still

_SOS, _EOI, _DHT, _APP1 = 0xDA, 0xD9, 0xC4, 0xE1
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE, _HUFFMAN_SEQUENTIAL = (0xC2, 0xC6, 0xCA, 0xCE), (0xC0, 0xC1)
# Inside a scan, 0xff is followed by 0, or by the number of a restart interval.
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
# A refinement may hold 1000 bits without a Huffman code, and all of them may be zero.
_ZERO_RUN, _ZERO_RUN_OF_REFINEMENT = bytes(16), bytes(160)
_EXTRANEOUS = "extraneous bytes before marker 0xd9"
_RADIOMETRIC = b"FLIR\0"


class DamagedError(ValueError):
    """A file whose content contradicts its format; the message says how."""


@dataclass(slots=True)
class _Scan:
    """One scan: its components as (id, DC table, AC table), its spectral band, and where its data lies."""

    components: tuple[tuple[int, int, int], ...]
    band: range
    high: int
    low: int
    start: int
    end: int


@dataclass(slots=True)
class _Structure:
    frame: int = 0
    precision: int = 8
    components: tuple[int, ...] = ()
    scans: list[_Scan] = field(default_factory=list)
    # First symbol of each Huffman table, which zero bits stand for, as of each scan: (class, number) to symbol.
    first_symbols: list[dict[tuple[int, int], int]] = field(default_factory=list)
    orientation: int = 1
    radiometric: bool = False
    end: int = 0


def decode_jpeg(data: bytes) -> Still:
    """Decode a JPEG file.

    Args:
        data: The file; anything after its end marker is ignored.

    Raises:
        DamagedError: It is damaged.
    """
    structure = _read_structure(data)
    _require_sound(structure, data)
    remarks = (
        ("its temperatures (radiometric FLIR data) are not read, only its picture; export them as 16-bit TIFF",)
        if structure.radiometric
        else ()
    )
    data = data[: structure.end]
    if structure.precision != 8 or structure.frame not in (*_HUFFMAN_SEQUENTIAL, *_PROGRESSIVE, 0xC9):
        import imagecodecs

        pixels = imagecodecs.jpeg8_decode(data)
        white, white_from = float((1 << structure.precision) - 1), "the precision in its header"
        if pixels.dtype == np.uint8:
            white = 255.0
        return Still(pixels, Encoding("JPEG", white, white_from, structure.orientation, remarks=remarks))
    layout = _layout(structure)
    try:
        pixels = _decode_strictly(data, layout)
    except DamagedError as error:
        if _EXTRANEOUS not in str(error):
            raise
        # Some cameras fill the end of the last scan with zeros.
        last = structure.scans[-1]
        pixels = _decode_strictly(data[: last.end].rstrip(b"\0") + b"\xff\xd9", layout)
    if layout == "CMYK":
        pixels = _from_cmyk(pixels)
    upright = pixels[..., 0] if layout == "GRAY" else pixels
    return Still(upright, Encoding("JPEG", orientation=structure.orientation, remarks=remarks))


def _decode_strictly(data: bytes, layout: str) -> Uint8Array:
    import simplejpeg

    try:
        pixels: Uint8Array = simplejpeg.decode_jpeg(data, layout, strict=True)
    except ValueError as error:
        raise DamagedError(str(error).removeprefix("Corrupt JPEG data: ")) from error
    return pixels


def check_jpeg(data: bytes) -> None:
    """Check a JPEG stream inside another file.

    Raises:
        DamagedError: It is damaged.
    """
    structure = _read_structure(data)
    _require_sound(structure, data)
    if structure.precision == 8 and structure.frame in (*_HUFFMAN_SEQUENTIAL, *_PROGRESSIVE):
        _decode_strictly(data[: structure.end], _layout(structure))


def _layout(structure: _Structure) -> str:
    return {1: "GRAY", 4: "CMYK"}.get(len(structure.components), "RGB")


def _from_cmyk(pixels: Uint8Array) -> Uint8Array:
    """Convert the inverted CMYK of Adobe, (H, W, 4), to RGB as OpenCV does: ``k - (255 - c) k / 256``."""
    black = pixels[..., 3:].astype(np.int32)
    rgb: Uint8Array = (black - ((255 - pixels[..., :3].astype(np.int32)) * black >> 8)).astype(np.uint8)
    return rgb


def _read_structure(data: bytes) -> _Structure:
    structure, tables = _Structure(), dict[tuple[int, int], int]()
    place = 2
    while True:
        place = data.find(b"\xff", place)
        if place < 0 or place + 2 > len(data):
            raise DamagedError("it has no end marker")
        marker = data[place + 1]
        if marker == 0xFF:
            place += 1
            continue
        if marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:
            place += 2
            continue
        if marker == _EOI:
            structure.end = place + 2
            return structure
        try:
            (length,) = struct.unpack_from(">H", data, place + 2)
            segment = data[place + 4 : place + 2 + length]
            if length < 2 or len(segment) < length - 2:
                raise DamagedError("it breaks off early")
            place += 2 + length
            if marker in _FRAMES:
                structure.frame, structure.precision = marker, segment[0]
                structure.components = tuple(segment[6 + 3 * index] for index in range(segment[5]))
            elif marker == _DHT:
                tables |= _first_symbols(segment)
            elif marker == _APP1:
                structure.radiometric |= segment.startswith(_RADIOMETRIC)
                if segment.startswith(EXIF_START):
                    structure.orientation = exif_orientation(segment[len(EXIF_START) :])
            elif marker == _SOS:
                scan = _read_scan(segment, data, place)
                structure.scans.append(scan)
                structure.first_symbols.append(dict(tables))
                place = scan.end
        except (struct.error, IndexError):
            raise DamagedError("one of its segments is damaged") from None


def _read_scan(segment: bytes, data: bytes, start: int) -> _Scan:
    count = segment[0]
    components = tuple(
        (segment[1 + 2 * index], segment[2 + 2 * index] >> 4, segment[2 + 2 * index] & 15) for index in range(count)
    )
    first, last, bits = segment[1 + 2 * count : 4 + 2 * count]
    found = _END_OF_SCAN.search(data, start)
    if found is None:
        raise DamagedError("it breaks off early")
    # Any number of 0xff may precede a marker; a pattern that allows them is searched for several times as slowly.
    end = found.start()
    while end > start and data[end - 1] == 0xFF:
        end -= 1
    return _Scan(components, range(first, last + 1), bits >> 4, bits & 15, start, end)


def _first_symbols(segment: bytes) -> Iterator[tuple[tuple[int, int], int]]:
    """The symbol that zero bits stand for, for every Huffman table of a segment: codes are given in ascending order."""
    place = 0
    while place + 17 <= len(segment):
        count = sum(segment[place + 1 : place + 17])
        if count:
            yield (segment[place] >> 4, segment[place] & 15), segment[place + 17]
        place += 17 + count


def _require_sound(structure: _Structure, data: bytes) -> None:
    if not structure.scans or not structure.frame:
        raise DamagedError("it holds no image data")
    if structure.frame in _PROGRESSIVE:
        _require_all_scans(structure)
    for scan, symbols in zip(structure.scans, structure.first_symbols, strict=True):
        run = _ZERO_RUN_OF_REFINEMENT if scan.high else _ZERO_RUN
        if run in data[scan.start : scan.end] and not _may_be_zeros(structure, scan, symbols):
            raise DamagedError("a part of its data was replaced by zeros")


def _require_all_scans(structure: _Structure) -> None:
    """Require that the scans carry every coefficient to its last bit."""
    depth = dict.fromkeys(((component, index) for component in structure.components for index in range(64)), 99)
    for scan in structure.scans:
        for component, _, _ in scan.components:
            for index in scan.band:
                depth[component, index] = min(depth.get((component, index), 99), scan.low)
    # An encoder may leave out bands that are zero throughout, but not stop in the middle of refining one.
    if any(0 < low < 99 for low in depth.values()) or any(depth[component, 0] for component in structure.components):
        raise DamagedError("its last scans are missing")


def _may_be_zeros(structure: _Structure, scan: _Scan, symbols: dict[tuple[int, int], int]) -> bool:
    """Tell whether zero bits can mean a flat area: no change of the DC coefficient, and the end of the block.

    The blocks of a scan's components alternate, so that this has to hold for all of them.
    """
    if structure.frame in _HUFFMAN_SEQUENTIAL:
        return all(symbols.get((0, dc)) == 0 and symbols.get((1, ac)) == 0 for _, dc, ac in scan.components)
    if structure.frame != 0xC2:
        return True  # arithmetic coding
    if scan.band.start == 0:
        return scan.high > 0 or all(symbols.get((0, dc)) == 0 for _, dc, _ in scan.components)
    return all(symbols.get((1, ac), 0) & 15 == 0 for _, _, ac in scan.components)
