"""A still image as its file stores it: the pixels, and what the file says about them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refusion_edge.arrays import Array

CONTAINER = "the type of the pixels"
"""``Encoding.white_from`` where a file says nothing about its full scale."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """What a file says about its pixels.

    Attributes:
        format: ``PNG``, ``JPEG``, ``TIFF``, ``BMP``, ``WebP``, ``PNM`` or ``GIF``; empty for an array from elsewhere.
        white: The value of full scale: 255 for 8 bits, 4095 for 12, 1.0 for float pixels.
        white_from: Where that was learned: the tag or field of the file, or ``CONTAINER``.
        orientation: The orientation of EXIF or TIFF, 1 to 8, which has been applied to the pixels.
        pages: Number of images in the file.
        unit: Physical unit of the values, where the file states it; else empty.
        no_data: The value that the file reserves for missing pixels, or None.
        remarks: What a user should know about this file, one phrase each.
    """

    format: str = ""
    white: float = 255.0
    white_from: str = CONTAINER
    orientation: int = 1
    pages: int = 1
    unit: str = ""
    no_data: float | None = None
    remarks: tuple[str, ...] = ()

    @property
    def bits(self) -> int:
        """Significant bits of whole-number pixels."""
        return max(1, int(self.white).bit_length())

    @property
    def stated_white(self) -> float | None:
        """The value of full scale, if the file states it."""
        return None if self.white_from == CONTAINER else self.white


@dataclass(frozen=True, slots=True)
class Still:
    """A still image.

    Attributes:
        pixels: (H, W) gray or (H, W, 3) RGB, upright; uint8, or as stored: uint16, int16, uint32, int32, float32 or float64.
        encoding: What the file says about them.
    """

    pixels: Array
    encoding: Encoding

    @property
    def is_color(self) -> bool:
        """Whether the image is stored with three channels; they may still be equal."""
        return self.pixels.ndim == 3


def default_encoding(pixels: Array) -> Encoding:
    """The encoding of an array from elsewhere, of which only the type is known."""
    return Encoding(white=1.0 if pixels.dtype.kind == "f" else float(np.iinfo(pixels.dtype).max))
