"""The orientation of EXIF metadata, as JPEG, PNG and WebP files carry it, and turning an image upright by it."""

from __future__ import annotations

import struct

import numpy as np

from refusion_edge.arrays import Array

EXIF_START = b"Exif\0\0"
_ORIENTATION, _SHORT = 0x0112, 3
_MOST_ENTRIES = 1000


def exif_orientation(data: bytes) -> int:
    """Read the orientation.

    Args:
        data: EXIF data without its leading ``Exif``: a TIFF header and its first directory.

    Returns:
        1 to 8; 1 if there is none or the data is damaged.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return 1
    try:
        (place,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, place)
        for index in range(min(count, _MOST_ENTRIES)):
            tag, kind = struct.unpack_from(order + "HH", data, place + 2 + 12 * index)
            if (tag, kind) == (_ORIENTATION, _SHORT):
                (value,) = struct.unpack_from(order + "H", data, place + 10 + 12 * index)
                return int(value) if 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1


def turn_upright(pixels: Array, orientation: int) -> Array:
    """Turn an image upright.

    Args:
        pixels: (H, W) or (H, W, C) as stored.
        orientation: 1 to 8 of EXIF and TIFF; 1 leaves the image as it is.

    Returns:
        The upright image, contiguous.
    """
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
