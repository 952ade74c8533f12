"""Pixels of GStreamer's raw video formats, as arrays and back; NumPy and OpenCV only.

YUV is converted with the matrix and the range that its caps state. What is made here is BT.601 in the range of video, 16 to
235.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from refusion_edge.arrays import Array, Uint8Array
from refusion_edge.errors import InputError

SINK_FORMATS = ("GRAY8", "GRAY16_LE", "NV12", "I420", "BGRx", "BGR")
"""Formats that are taken."""

COLOR_FORMATS = ("BGRx", "BGR", "NV12", "I420", "GRAY8")
"""Formats of fused color frames, the one that is cheapest to make first."""

GRAY_FORMATS = ("GRAY8", "BGRx", "BGR", "NV12", "I420")
"""Formats of fused gray frames, in the same order."""

_CHANNELS = {"GRAY8": 1, "GRAY16_LE": 1, "BGRx": 4, "BGR": 3}
# Weights of red and blue in luma.
_MATRICES = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}
_ALIGNMENT = 4


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the pixels of a format lie in a buffer.

    Attributes:
        format: One of ``SINK_FORMATS``.
        size_wh: Width and height.
        offsets: Of each plane, in bytes.
        strides: From one row of each plane to the next, in bytes.
        matrix: Of YUV: ``bt601``, ``bt709`` or ``bt2020``.
        full_range: Whether luma of YUV ranges from 0 to 255 instead of 16 to 235.
    """

    format: str
    size_wh: tuple[int, int]
    offsets: tuple[int, ...]
    strides: tuple[int, ...]
    matrix: str = "bt601"
    full_range: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes from the start of the buffer to the end of the last row, with its padding."""
        return max(self._row_start(plane, self._rows(plane)) for plane in range(len(self.offsets)))

    @property
    def least_nbytes(self) -> int:
        """Bytes from the start of the buffer to the last pixel."""
        return max(self._row_start(plane, self._rows(plane) - 1) + self._row_bytes(plane) for plane in range(len(self.offsets)))

    @property
    def is_apart(self) -> bool:
        """Whether no row reaches into the next one."""
        return all(stride >= self._row_bytes(plane) for plane, stride in enumerate(self.strides))

    def _row_start(self, plane: int, row: int) -> int:
        return self.offsets[plane] + self.strides[plane] * row

    def _row_bytes(self, plane: int) -> int:
        width = self.size_wh[0]
        if self.format in _CHANNELS:
            return width * _CHANNELS[self.format] * (2 if self.format == "GRAY16_LE" else 1)
        half = -(-width // 2)
        return width if plane == 0 else 2 * half if self.format == "NV12" else half

    def _rows(self, plane: int) -> int:
        return self.size_wh[1] if plane == 0 else -(-self.size_wh[1] // 2)


def default_layout(format_name: str, size_wh: tuple[int, int]) -> Layout:
    """The layout of a buffer without padding other than GStreamer's: rows begin at multiples of four bytes."""
    width, height = size_wh
    if format_name in _CHANNELS:
        stride = _aligned(width * _CHANNELS[format_name] * (2 if format_name == "GRAY16_LE" else 1))
        return Layout(format_name, size_wh, (0,), (stride,))
    luma, rows = _aligned(width), height + height % 2
    if format_name == "NV12":
        return Layout(format_name, size_wh, (0, luma * rows), (luma, luma))
    chroma = _aligned((luma + luma % 2) // 2)
    first = luma * rows
    return Layout(format_name, size_wh, (0, first, first + chroma * rows // 2), (luma, chroma, chroma))


def to_array(data: bytes | memoryview, layout: Layout) -> Array:
    """View the pixels of a buffer, or convert them.

    Args:
        data: At least ``layout.least_nbytes`` bytes.
        layout: Where they lie.

    Returns:
        (H, W) uint8 or uint16 for gray, without a copy; otherwise (H, W, 3) BGR uint8.

    Raises:
        InputError: The buffer is too short, or its rows overlap.
    """
    if len(data) < layout.least_nbytes or not layout.is_apart:
        raise InputError(
            f"a buffer of {len(data)} bytes with rows of {layout.strides[0]} is too short for {layout.format} of "
            f"{layout.size_wh[1]}x{layout.size_wh[0]}",
            "check the element before this one", expected=layout.least_nbytes, got=len(data),
        )  # fmt: skip
    width, height = layout.size_wh
    if layout.format == "GRAY16_LE":
        rows = _plane(data, layout, 0)
        return np.ascontiguousarray(rows).view("<u2") if layout.strides[0] % 2 else rows.view("<u2")
    if layout.format in _CHANNELS:
        channels = _CHANNELS[layout.format]
        pixels = _plane(data, layout, 0)
        if channels == 1:
            return pixels
        strides = layout.strides[0], channels, 1
        colored = np.lib.stride_tricks.as_strided(pixels, (height, width, channels), strides, writeable=False)
        return cv2.cvtColor(colored, cv2.COLOR_BGRA2BGR) if channels == 4 else colored
    return _bgr(*_yuv(data, layout), layout)


def write_pixels(image: Uint8Array, format_name: str, memory: Uint8Array) -> None:
    """Lay out an image as ``default_layout`` describes; padding is set to 0.

    Args:
        image: (H, W) gray or (H, W, 3) BGR.
        format_name: One of ``COLOR_FORMATS``.
        memory: Where to, (``nbytes`` of the layout,).
    """
    layout = default_layout(format_name, (image.shape[1], image.shape[0]))
    start = 0
    for plane, stride in zip(_planes(image, format_name, layout), layout.strides, strict=True):
        count, width = plane.shape
        rows = memory[start : start + count * stride].reshape(count, stride)
        rows[:, :width] = plane
        rows[:, width:] = 0
        start += rows.size


def _planes(image: Uint8Array, format_name: str, layout: Layout) -> Sequence[Array]:
    """(rows, bytes of a row) of each plane."""
    if format_name == "GRAY8":
        return (image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2GRAY),)
    if format_name == "BGRx":
        bgrx = cv2.cvtColor(image, cv2.COLOR_GRAY2BGRA if image.ndim == 2 else cv2.COLOR_BGR2BGRA)
        return (bgrx.reshape(len(bgrx), -1),)
    bgr = image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
    if format_name == "BGR":
        return (bgr.reshape(len(bgr), -1),)
    return _made_yuv(bgr, layout)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _plane(data: bytes | memoryview, layout: Layout, plane: int) -> Uint8Array:
    """(rows, bytes of a row) of a plane, without a copy."""
    flat = np.frombuffer(data, np.uint8, offset=layout.offsets[plane])
    shape = layout._rows(plane), layout._row_bytes(plane)
    return np.lib.stride_tricks.as_strided(flat, shape, (layout.strides[plane], 1), writeable=False)


def _yuv(data: bytes | memoryview, layout: Layout) -> tuple[Uint8Array, Uint8Array, Uint8Array]:
    """Luma (H, W), and both parts of chroma at half of it."""
    luma = _plane(data, layout, 0)
    if layout.format == "NV12":
        both = _plane(data, layout, 1)
        return luma, both[:, 0::2], both[:, 1::2]
    return luma, _plane(data, layout, 1), _plane(data, layout, 2)


def _bgr(luma: Uint8Array, u: Uint8Array, v: Uint8Array, layout: Layout) -> Uint8Array:
    height, width = luma.shape
    if (layout.matrix, layout.full_range) == ("bt601", False) and not (height % 2 or width % 2):
        chroma = np.empty((height // 2, width // 2, 2), np.uint8)
        chroma[..., 0], chroma[..., 1] = u, v
        return cv2.cvtColorTwoPlane(np.ascontiguousarray(luma), chroma, cv2.COLOR_YUV2BGR_NV12).astype(np.uint8, copy=False)
    red, blue = _MATRICES.get(layout.matrix, _MATRICES["bt601"])
    green = 1 - red - blue
    low, luma_range, chroma_range = (0, 255, 255) if layout.full_range else (16, 219, 224)
    y, cb, cr = 255 / luma_range, 255 / chroma_range * 2 * (1 - blue), 255 / chroma_range * 2 * (1 - red)
    matrix = np.array([[y, cb, 0], [y, -cb * blue / green, -cr * red / green], [y, 0, cr]], np.float32)
    offset = matrix @ np.array([-low, -128, -128], np.float32)
    whole = [_doubled(part)[:height, :width] for part in (u, v)]
    return cv2.transform(np.dstack([luma, *whole]), np.column_stack([matrix, offset])).astype(np.uint8, copy=False)


def _doubled(part: Uint8Array) -> Uint8Array:
    return part.repeat(2, axis=0).repeat(2, axis=1)


def _made_yuv(bgr: Array, layout: Layout) -> Sequence[Array]:
    height, width = bgr.shape[:2]
    even = bgr
    if height % 2 or width % 2:
        even = cv2.copyMakeBorder(bgr, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    rows, columns = even.shape[:2]
    planar = cv2.cvtColor(even, cv2.COLOR_BGR2YUV_I420).reshape(-1)
    count = rows * columns
    luma = planar[:count].reshape(rows, columns)
    u, v = planar[count:].reshape(2, rows // 2, columns // 2)
    chroma: Sequence[Array] = (np.dstack([u, v]).reshape(rows // 2, columns),) if layout.format == "NV12" else (u, v)
    # An odd last column is padding, an odd last row the plane's.
    return luma[:, : layout.strides[0]], *chroma
