"""TIFF files: every layout that tifffile reads, with the tags that say what the values mean.

Source:
    TIFF 6.0: photometric interpretation, planar configuration, extra samples, orientation.
"""

from __future__ import annotations

import io
import logging
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from refusion_edge.arrays import Array, Uint8Array
from refusion_edge.images.jpeg import DamagedError, check_jpeg
from refusion_edge.images.still import CONTAINER, Encoding, Still

if TYPE_CHECKING:
    import tifffile

_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _SEPARATED, _YCBCR = 0, 1, 2, 3, 5, 6
_JPEG, _OLD_JPEG, _UNCOMPRESSED = 7, 6, 1
_THUMBNAIL_OR_MASK = 0b101
_MAX_SAMPLE_VALUE, _ORIENTATION, _PAGE_KIND, _JPEG_TABLES = 281, 274, 254, 347
_GDAL_METADATA, _GDAL_NODATA = 42112, 42113
_UNIT = re.compile(r'role="unittype"[^>]*>([^<]{1,20})<')
_SIGNIFICANT_BITS = re.compile(r'SignificantBits="(\d{1,2})"')
_MOST_CHANNELS = 8

# Damage becomes an error of ours; tifffile would also print it.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


def decode_tiff(data: bytes) -> Still:
    """Decode the only full image of a TIFF file.

    Raises:
        DamagedError: It is damaged, or of a layout that has no one right picture.
    """
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = next(page for page in map(_as_page, file.pages) if not _tag(page, _PAGE_KIND, 0) & _THUMBNAIL_OR_MASK)
        _require_whole(page, data)
        photometric, bits = int(page.photometric), int(page.bitspersample)
        pixels = _by_rows(page)
        if photometric == _PALETTE:
            return Still(_resolve_palette(pixels, page), Encoding("TIFF", orientation=_orientation(page)))
        pixels, white, white_from = _scale(pixels, bits, page, file)
        if photometric == _MIN_IS_WHITE:
            pixels = np.asarray(white - pixels, pixels.dtype)
        elif photometric == _SEPARATED:
            pixels = _from_inks(pixels, white)
        encoding = Encoding(
            "TIFF", white, white_from, _orientation(page), unit=_unit(page), no_data=_no_data(page),
        )  # fmt: skip
        return Still(pixels, encoding)


def _as_page(page: Any) -> tifffile.TiffPage:
    whole: tifffile.TiffPage = page.aspage()
    return whole


def _tag(page: tifffile.TiffPage, code: int, default: Any) -> Any:
    found = page.tags.get(code)
    return default if found is None else found.value


def _orientation(page: tifffile.TiffPage) -> int:
    return int(_tag(page, _ORIENTATION, 1))


def _require_whole(page: tifffile.TiffPage, data: bytes) -> None:
    """Require that every strip or tile lies inside the file; decoders fill missing ones without a word."""
    if not page.dataoffsets or len(page.dataoffsets) != len(page.databytecounts):
        raise DamagedError("it holds no image data")
    for start, size in zip(page.dataoffsets, page.databytecounts, strict=True):
        if start <= 0 or size <= 0 or start + size > len(data):
            raise DamagedError("it breaks off early")
    if int(page.compression) == _JPEG:
        tables = bytes(_tag(page, _JPEG_TABLES, b""))
        for start, size in zip(page.dataoffsets, page.databytecounts, strict=True):
            # Tables that the strips share come before the data of each.
            check_jpeg(tables[:-2] + data[start + 2 : start + size] if tables else data[start : start + size])


def _by_rows(page: tifffile.TiffPage) -> Array:
    """Pixels, (H, W) or (H, W, 3), or (H, W, 4) of inks; without extra samples."""
    photometric = int(page.photometric)
    if photometric not in (_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _SEPARATED, _YCBCR):
        raise DamagedError(
            f"its colors are {getattr(page.photometric, 'name', photometric)}, which has no one right conversion to RGB"
        )
    if photometric == _YCBCR and int(page.compression) not in (_JPEG, _OLD_JPEG):
        raise DamagedError("it stores YCbCr without JPEG compression")
    if page.samplesperpixel > _MOST_CHANNELS:
        raise DamagedError(f"it has {page.samplesperpixel} channels")
    pixels = page.asarray(maxworkers=1)
    axes = page.axes
    if axes not in ("YX", "YXS", "SYX"):
        raise DamagedError(f"it holds more than one image (axes {axes})")
    if axes == "SYX":
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 2:
        return np.ascontiguousarray(pixels)
    extra = len(page.extrasamples)
    channels = pixels.shape[2] - extra
    wanted = {_RGB: 3, _YCBCR: 3, _SEPARATED: 4}.get(photometric, 1)
    if (channels != wanted or (wanted == 1 and extra > 1)) and pixels.shape[2] != wanted:
        raise DamagedError(f"it has {pixels.shape[2]} channels, of which {extra} are extra, instead of {wanted}")
    return np.ascontiguousarray(pixels[..., 0] if wanted == 1 else pixels[..., :wanted])


def _scale(pixels: Array, bits: int, page: tifffile.TiffPage, file: tifffile.TiffFile) -> tuple[Array, float, str]:
    """Bring the pixels to a type of ours, and find the value of full scale."""
    kind, white, white_from = pixels.dtype.kind, 1.0, CONTAINER
    if kind == "f":
        pixels = pixels.astype(np.float64 if pixels.itemsize == 8 else np.float32, copy=False)
    elif kind == "b":
        pixels, white = pixels.astype(np.uint8) * np.uint8(255), 255.0
    elif kind == "u" and bits < 8:
        pixels, white, white_from = np.rint(pixels * (255 / ((1 << bits) - 1))).astype(np.uint8), 255.0, "BitsPerSample"
    elif kind in "iu" and bits <= 32:
        # In native byte order, and no type below 16 bits except uint8.
        pixels = pixels.astype(np.int16 if pixels.dtype == np.int8 else pixels.dtype.newbyteorder("="), copy=False)
        white = float(np.iinfo(pixels.dtype).max)
        stated, tag = _stated_bits(page, file)
        if kind == "u" and stated < 8 * pixels.itemsize and int(pixels.max()) < 1 << stated:
            white, white_from = float((1 << stated) - 1), tag
    else:
        raise DamagedError(f"its pixels are {pixels.dtype}")
    return pixels, white, white_from


def _stated_bits(page: tifffile.TiffPage, file: tifffile.TiffFile) -> tuple[int, str]:
    """Significant bits, and the tag that states them."""
    bits = int(page.bitspersample)
    found = _SIGNIFICANT_BITS.search(page.description) if file.is_ome else None
    if found is not None and 8 <= int(found[1]) < bits:
        return int(found[1]), "SignificantBits"
    most = _tag(page, _MAX_SAMPLE_VALUE, 0)
    most = max(most) if isinstance(most, tuple) else most
    if isinstance(most, int) and 255 < most < (1 << bits) - 1:
        # Some writers store the largest value that occurs, not the largest possible one.
        return most.bit_length(), "MaxSampleValue"
    return bits, "BitsPerSample"


def _resolve_palette(indices: Array, page: tifffile.TiffPage) -> Uint8Array:
    colors = page.colormap
    if colors is None or int(indices.max()) >= colors.shape[1]:
        raise DamagedError("its palette lacks colors")
    # 16 bits in the file; some writers store 8 bits in them.
    table = (colors >> 8 if colors.max() > 255 else colors).astype(np.uint8)
    resolved: Uint8Array = np.ascontiguousarray(table.T[indices])
    return resolved


def _from_inks(pixels: Array, white: float) -> Array:
    """Convert cyan, magenta, yellow and black to RGB: each ink takes its share of the light."""
    light = white - pixels.astype(np.float64)
    return np.rint(light[..., :3] * light[..., 3:] / white).astype(pixels.dtype)


def _unit(page: tifffile.TiffPage) -> str:
    found = _UNIT.search(str(_tag(page, _GDAL_METADATA, "")))
    return found[1].strip() if found else ""


def _no_data(page: tifffile.TiffPage) -> float | None:
    try:
        return float(str(_tag(page, _GDAL_NODATA, "")).strip("\0 "))
    except ValueError:
        return None
