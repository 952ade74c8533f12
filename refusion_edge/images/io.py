"""Image files in and out: whole or not at all.

Belongs here: decoding, encoding, and telling a damaged file from a good one. What the numbers mean (luma, chroma,
range) is in ``luminance``.
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
# Of so many pixels, in 16 bits and three channels, without compression.
_MOST_BYTES = 640 << 20
_DTYPES = (np.uint8, np.uint16, np.float32)
_PNG_END = b"IEND\xaeB`\x82"
_JPEG_START_OF_SCAN, _JPEG_END = b"\xff\xda", b"\xff\xd9"


def read_image(path: str | os.PathLike[str], *, max_pixels: int = MOST_PIXELS) -> Array:
    """Read one image file.

    EXIF orientation is applied, a palette is resolved, alpha is dropped (the colour under it is kept as stored).

    Args:
        path: PNG, JPEG, TIFF, BMP, WebP or PNM file.
        max_pixels: Most pixels that are decoded, by what the header says.

    Returns:
        (H, W) grey or (H, W, 3) RGB; uint8, uint16 or float32 as stored.

    Raises:
        InputError: The file is missing, no regular file, empty, truncated, a video, too large, or not an image that can be
            decoded.
    """
    path = Path(path)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        raise InputError(
            f"expected an image, got the video {path}; extract frames first (for example ffmpeg -i {path.name} %04d.png)."
        )
    data = read_file(path, kind="image", most_bytes=_MOST_BYTES)
    if not data:
        raise InputError(f"the image {path} is a file of zero bytes; write or copy it again.")
    if _is_truncated(data):
        raise InputError(f"the image {path} breaks off early; write or copy it again.")
    header = read_header(data)
    if header is None:
        raise InputError(f"{path} is no PNG, JPEG, TIFF, BMP, WebP or PNM image, or a damaged one; convert it to PNG.")
    if header.pages > 1:
        raise InputError(f"{path} holds {header.pages} pages, and only one picture can be read; split the file first.")
    if header.pixels > max_pixels:
        width, height = header.size_wh
        raise InputError(
            f"the image {path} has {width} x {height} pixels, more than the limit of {max_pixels / 1e6:g} million; scale it "
            "down."
        )
    image = _decode(data)
    if image is None:
        raise InputError(f"{path} cannot be decoded: it is damaged, or of a kind that OpenCV does not know; convert it to PNG.")
    if image.dtype not in _DTYPES:
        raise InputError(f"expected 8-bit, 16-bit or float32 pixels in {path}, got {image.dtype}; convert it to 16-bit PNG.")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB) if image.ndim == 3 else image


def write_image(path: str | os.PathLike[str], image: Array, *, jpeg_quality: int = 95) -> None:
    """Write one image file, under its name only once it is complete.

    Args:
        path: Target; the suffix chooses PNG, JPEG or TIFF.
        image: (H, W) grey or (H, W, 3) RGB, uint8 or uint16 (JPEG: uint8 only).
        jpeg_quality: 0 to 100, JPEG only; chroma is stored at full resolution.

    Raises:
        UsageError: The suffix is none of these.
        OutputError: The file cannot be written; nothing is left behind.
    """
    path = Path(path)
    check_writable_suffix(path)
    options: list[int] = []
    if path.suffix.lower() in {".jpg", ".jpeg"}:
        if image.dtype != np.uint8:
            # OpenCV would drop the low bits without a word.
            raise OutputError(f"expected 8-bit pixels for {path}, got {image.dtype}; choose PNG or TIFF.")
        options = [cv2.IMWRITE_JPEG_QUALITY, jpeg_quality]
        options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    stored = cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image
    try:
        encoded, data = cv2.imencode(path.suffix.lower(), stored, options)
    except cv2.error as error:
        raise OutputError(
            f"expected an image that {path.suffix} can hold, got {image.dtype} {image.shape} ({error.err}); choose PNG."
        ) from error
    if not encoded:
        raise OutputError(f"expected an image that {path.suffix} can hold, got {image.dtype} {image.shape}; choose PNG.")
    write_atomically(path, data.tobytes())


def check_writable_suffix(path: Path) -> None:
    """Make sure that a result can be written under this name, before any work is spent on it.

    Raises:
        UsageError: The suffix is not one of PNG, JPEG, TIFF.
    """
    if path.suffix.lower() not in WRITABLE_SUFFIXES:
        got = f"'{path.suffix}'" if path.suffix else "no suffix"
        raise UsageError(f"expected an output file ending in {', '.join(WRITABLE_SUFFIXES)}, got {got} ({path}).")


def _is_truncated(data: bytes) -> bool:
    """Tell whether a PNG or JPEG lacks its end mark; decoders fill the missing part with grey, silently.

    Inside the entropy-coded data of a JPEG 0xff is always followed by 0, so the last scan must be followed by an
    end mark; one in an embedded thumbnail comes before that scan.
    """
    if data.startswith(b"\x89PNG"):
        return data.rfind(_PNG_END) < 0
    if data.startswith(b"\xff\xd8"):
        return data.rfind(_JPEG_END) < data.rfind(_JPEG_START_OF_SCAN) or _JPEG_START_OF_SCAN not in data
    return False


def _decode(data: bytes) -> Array | None:
    level = cv2.utils.logging.getLogLevel()
    # OpenCV prints its own account of a damaged file; ours is the one sentence above.
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        image: Array | None = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error:
        return None
    finally:
        cv2.utils.logging.setLogLevel(level)
    return image
