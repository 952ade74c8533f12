"""Reading and writing image files: complete, or with an error.

This module decodes, encodes, and detects damaged files; ``color`` interprets the values (luma, chroma, range).
"""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.errors import InputError, OutputError, UsageError
from refusion_edge.files import read_file, write_atomically
from refusion_edge.images.header import read_header

READABLE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".pgm", ".ppm"})
VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv"})
WRITABLE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")

MOST_PIXELS = 100_000_000
# Size of that many pixels in 16 bits and three channels, uncompressed.
_MOST_BYTES = 640 << 20
_DTYPES = (np.uint8, np.uint16, np.float32)
_PNG_END = b"IEND\xaeB`\x82"
_JPEG_START_OF_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"


def read_image(path: str | os.PathLike[str], *, max_pixels: int = MOST_PIXELS) -> Array:
    """Read one image file.

    EXIF orientation is applied, a palette is resolved, and alpha is dropped (the color under it stays as stored).

    Args:
        path: PNG, JPEG, TIFF, BMP, WebP or PNM file.
        max_pixels: Largest number of pixels to decode, according to the header.

    Returns:
        (H, W) gray or (H, W, 3) RGB; uint8, uint16 or float32 as stored.

    Raises:
        InputError: The file is missing, not a regular file, empty, truncated, a video, too large, or cannot be decoded.
    """
    path = Path(path)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        raise InputError(
            f"{path} is a video", f"extract its frames as images first (for example: ffmpeg -i {path.name} %04d.png)"
        )
    data = read_file(path, kind="image", most_bytes=_MOST_BYTES)
    if not data:
        raise InputError(f"the image {path} is empty (zero bytes)", "write or copy it again")
    if _is_truncated(data):
        raise InputError(f"the image {path} is truncated", "write or copy it again")
    header = read_header(data)
    if header is None:
        raise InputError(f"{path} is not a PNG, JPEG, TIFF, BMP, WebP or PNM image, or is damaged", "convert it to PNG")
    if header.pages > 1:
        raise InputError(
            f"{path} contains {header.pages} pages instead of a single image",
            "split the file first",
            expected=1,
            got=header.pages,
        )
    if header.pixels > max_pixels:
        width, height = header.size_wh
        raise InputError(
            f"the image {path} has {width} x {height} pixels, more than the limit of {max_pixels / 1e6:g} million",
            "scale it down",
            expected=max_pixels,
            got=width * height,
        )
    image = _decode(data)
    if image is None:
        raise InputError(f"cannot decode {path}: it is damaged, or of a kind that OpenCV does not know", "convert it to PNG")
    if image.dtype not in _DTYPES:
        raise InputError(
            f"{path} has {image.dtype} pixels instead of uint8, uint16 or float32",
            "convert it to 16-bit PNG",
            expected=("uint8", "uint16", "float32"),
            got=str(image.dtype),
        )
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if image.ndim == 3 else image


def write_image(path: str | os.PathLike[str], image: Array, *, jpeg_quality: int = 95) -> None:
    """Write one image file atomically: it appears under its name only once it is complete.

    Args:
        path: Target; the suffix selects PNG, JPEG or TIFF.
        image: (H, W) gray or (H, W, 3) RGB, uint8 or uint16 (JPEG: uint8 only).
        jpeg_quality: 0 to 100, JPEG only; chroma is stored at full resolution.

    Raises:
        UsageError: The suffix is not that of one of these formats.
        OutputError: The file cannot be written; nothing is left behind.
    """
    path = Path(path)
    check_writable_suffix(path)
    options: list[int] = []
    if path.suffix.lower() in {".jpg", ".jpeg"}:
        if image.dtype != np.uint8:
            # OpenCV would drop the low bits silently.
            raise OutputError(
                f"JPEG takes only uint8 pixels, but those for {path} are {image.dtype}",
                "choose PNG or TIFF",
                expected="uint8",
                got=str(image.dtype),
            )
        options = [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality]
        options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    stored = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    try:
        encoded, data = cv2.imencode(path.suffix.lower(), stored, options)
    except cv2.error as error:
        raise OutputError(
            f"{path.suffix} cannot store an image of {image.dtype} {image.shape} ({error.err})",
            "choose PNG",
            got=(image.shape, str(image.dtype)),
        ) from error
    if not encoded:
        raise OutputError(
            f"{path.suffix} cannot store an image of {image.dtype} {image.shape}",
            "choose PNG",
            got=(image.shape, str(image.dtype)),
        )
    write_atomically(path, data.tobytes())


def check_writable_suffix(path: Path) -> None:
    """Check that the suffix is one of a writable image format; call this before expensive work.

    Raises:
        UsageError: The suffix is not one of PNG, JPEG, TIFF.
    """
    if path.suffix.lower() not in WRITABLE_SUFFIXES:
        problem = f"ends in '{path.suffix}'" if path.suffix else "has no suffix"
        raise UsageError(f"the output file {path} {problem}", f"choose a name ending in {', '.join(WRITABLE_SUFFIXES)}")


def _is_truncated(data: bytes) -> bool:
    """Tell whether a PNG or JPEG lacks its end marker; decoders silently fill the missing part with gray.

    Inside the entropy-coded data of a JPEG, 0xff is always followed by 0, so the last scan must be followed by an
    end marker; the end marker of an embedded thumbnail comes before that scan.
    """
    if data.startswith(b"\x89PNG"):
        return data.rfind(_PNG_END) < 0
    if data.startswith(b"\xff\xd8"):
        return data.rfind(_JPEG_END) < data.rfind(_JPEG_START_OF_SCAN) or _JPEG_START_OF_SCAN not in data
    return False


def _decode(data: bytes) -> Array | None:
    level = cv2.utils.logging.getLogLevel()
    # Our error describes a damaged file; keep OpenCV from printing its own.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        image: Array | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error:
        return None
    finally:
        cv2.utils.logging.setLogLevel(level)
    return image
