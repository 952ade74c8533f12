"""Reading and writing image files: complete, or with an error.

``decoders`` turns bytes into pixels, and ``luma`` interprets their values (luma, chroma, range).
"""

from __future__ import annotations

import io
import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.errors import InputError, OutputError, UsageError
from refusion_edge.files import read_file, write_atomically
from refusion_edge.images.decoders import decode
from refusion_edge.images.exif import turn_upright
from refusion_edge.images.header import name_foreign_format, read_header
from refusion_edge.images.still import Still

READABLE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".pgm", ".ppm", ".pbm", ".pnm"})
VIDEO_SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".wmv"})
WRITABLE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")

MOST_PIXELS = 100_000_000
# Size of that many pixels in 16 bits and three channels, uncompressed.
_MOST_BYTES = 640 << 20
_READABLE = "PNG, JPEG, TIFF, BMP, WebP, PNM or GIF image"


def read_image(path: str | os.PathLike[str], *, max_pixels: int = MOST_PIXELS) -> Array:
    """Read the pixels of one image file; ``read_still`` also returns what the file says about them.

    Args:
        path: As for ``read_still``.
        max_pixels: Largest number of pixels to decode, according to the header.

    Returns:
        (H, W) gray or (H, W, 3) RGB; uint8, uint16 or float32 as stored, and for TIFF also int16, uint32, int32 or float64.

    Raises:
        InputError: As for ``read_still``.
    """
    return read_still(path, max_pixels=max_pixels).pixels


def read_still(path: str | os.PathLike[str], *, max_pixels: int = MOST_PIXELS) -> Still:
    """Read one image file, and what it says about its pixels.

    The orientation of EXIF or TIFF is applied, a palette is resolved, and alpha is dropped (the color under it stays as
    stored). The content determines the format, not the suffix.

    Args:
        path: PNG, JPEG, TIFF, BMP, WebP, PNM or GIF file.
        max_pixels: Largest number of pixels to decode, according to the header.

    Raises:
        InputError: The file is missing, not a regular file, empty, damaged, a video or an animation, too large, of several
            pages, or of an unknown format.
    """
    path = Path(path)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        raise InputError(
            f"{path} is a video", f"extract its frames as images first (for example: ffmpeg -i {path.name} %04d.png)"
        )
    data = read_file(path, kind="image", most_bytes=_MOST_BYTES)
    if not data:
        raise InputError(f"the image {path} is empty (zero bytes)", "write or copy it again")
    header = read_header(data)
    if header is None:
        foreign = name_foreign_format(data)
        if foreign is not None:
            raise InputError(f"{path} is a file of the format {foreign}, which is not read here", "convert it to PNG or TIFF")
        raise InputError(f"{path} is not a {_READABLE}, or is damaged", "convert it to PNG, or copy it again")
    if header.pages > 1:
        raise InputError(
            f"{path} contains {header.pages} pages or frames instead of a single image",
            "split the file first",
            expected=1,
            got=header.pages,
        )
    if header.pixels > max_pixels:
        width, height = header.size_wh
        raise InputError(
            f"the image {path} has {width} x {height} pixels, more than the limit of {max_pixels / 1e6:g} million",
            "scale it down, or let fuse read it with --max-pixels",
            expected=max_pixels,
            got=header.pixels,
        )
    try:
        still = decode(header.format, data)
    except Exception as error:  # decoders raise almost any exception
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"the {header.format} image {path} is damaged, or of a rare kind ({reason})", "write or copy it again"
        ) from error
    if still.encoding.orientation != 1:
        still = replace(still, pixels=turn_upright(still.pixels, still.encoding.orientation))
    return still


def write_image(path: str | os.PathLike[str], image: Array, *, jpeg_quality: int = 95) -> None:
    """Write one image file atomically: it appears under its name only once it is complete.

    Args:
        path: Target; the suffix selects PNG, JPEG or TIFF.
        image: (H, W) gray or (H, W, 3) RGB; uint8 or uint16, JPEG only uint8, TIFF also float and other whole numbers.
        jpeg_quality: 0 to 100, JPEG only; chroma is stored at full resolution.

    Raises:
        UsageError: The suffix is not that of one of these formats.
        OutputError: The file cannot be written; nothing is left behind.
    """
    path = Path(path)
    check_writable_suffix(path)
    if image.dtype not in (np.uint8, np.uint16) and path.suffix.lower() in {".tif", ".tiff"}:
        write_atomically(path, encode_tiff(image))
        return
    options: list[int] = []
    if image.dtype not in (np.uint8, np.uint16):
        # OpenCV would convert them to 8 bits silently.
        raise OutputError(
            f"{path.suffix} cannot hold pixels of {image.dtype}", "choose TIFF", expected=("uint8", "uint16"),
            got=str(image.dtype),
        )  # fmt: skip
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


def encode_tiff(image: Array) -> bytes:
    """Encode an image, (H, W) or (H, W, 3) RGB of whole or float numbers, as uncompressed TIFF."""
    import tifffile

    file = io.BytesIO()
    tifffile.imwrite(file, image, photometric="rgb" if image.ndim == 3 else "minisblack")
    return file.getvalue()


def check_writable_suffix(path: Path) -> None:
    """Check that the suffix is one of a writable image format; call this before expensive work.

    Raises:
        UsageError: The suffix is not one of PNG, JPEG, TIFF.
    """
    if path.suffix.lower() not in WRITABLE_SUFFIXES:
        problem = f"ends in '{path.suffix}'" if path.suffix else "has no suffix"
        raise UsageError(f"the output file {path} {problem}", f"choose a name ending in {', '.join(WRITABLE_SUFFIXES)}")
