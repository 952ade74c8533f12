"""What cameras pack into a picture: 16-bit counts in pairs of bytes, and thermal data below the picture."""

from __future__ import annotations

from typing import Literal, get_args

import cv2
import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.errors import ShapeError

PixelFormat = Literal["auto", "y16", "split16"]
PIXEL_FORMATS: tuple[PixelFormat, ...] = get_args(PixelFormat)


def unpack(picture: Array, pixel_format: PixelFormat) -> Array:
    """Turn what a capture library delivers into a picture.

    Args:
        picture: For ``auto``: (H, W) or (H, W, 3) as it is, alpha dropped. For ``y16``: (H, W) uint16, or its bytes,
            (H, W, 2) or (1, 2 H W) uint8 in little-endian order. For ``split16``: (2 H, W, 2) uint8 of a camera that sends
            a coloured picture above and little-endian counts below, as cameras of 256x384 pixels do.
        pixel_format: One of ``PIXEL_FORMATS``.

    Returns:
        (H, W) uint8, uint16 or float32, or (H, W, 3) BGR uint8. A view where possible.

    Raises:
        ShapeError: The picture does not have this layout.
    """
    if pixel_format == "auto":
        if picture.ndim == 3 and picture.shape[2] == 1:
            return picture[..., 0]
        if picture.ndim == 3 and picture.shape[2] == 4:
            return cv2.cvtColor(picture, cv2.COLOR_BGRA2BGR)
        if picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] == 3):
            return picture
        raise ShapeError(f"expected a picture of 1, 3 or 4 channels, got {picture.shape}; give the URI ?format=y16 or split16.")
    counts = _counts(picture, pixel_format)
    if pixel_format == "y16":
        return counts
    if counts.shape[0] % 2:
        raise ShapeError(f"expected two halves of equal height, got {counts.shape[0]} rows; leave ?format=split16 out.")
    return counts[counts.shape[0] // 2 :]


def _counts(picture: Array, pixel_format: PixelFormat) -> Array:
    """View pairs of bytes as little-endian counts, (H, W)."""
    if picture.ndim == 2 and picture.dtype == np.uint16:
        return picture
    if picture.ndim == 3 and picture.shape[2] == 2 and picture.dtype == np.uint8:
        return np.ascontiguousarray(picture).view("<u2")[..., 0].astype(np.uint16, copy=False)
    raise ShapeError(
        f"expected two bytes per pixel for ?format={pixel_format}, got {picture.shape} {picture.dtype}; "
        "the camera or its driver converts the picture, choose its raw mode."
    )
