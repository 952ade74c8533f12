"""From the pixel formats of decoders and cameras to images, with every bit, the right color range and the right orientation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import cv2
import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.errors import ShapeError, UsageError
from refusion_edge.stream.frames import Side
from refusion_edge.stream.uri import Uri
from refusion_edge.text import printable

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.format import VideoFormat
    from av.video.reformatter import VideoReformatter

# FFmpeg 8 converts them in the byte order of the machine.
_SWAPPED = frozenset({"rgb565be", "rgb555be", "bgr565be", "bgr555be"})

PixelFormat = Literal["auto", "y16", "split16"]
PIXEL_FORMATS: tuple[PixelFormat, ...] = get_args(PixelFormat)


def read_pixel_format(uri: Uri) -> PixelFormat:
    """Read the option ``format`` of a source.

    Raises:
        UsageError: It is unknown.
    """
    asked = uri.options.get("format", "auto")
    for name in PIXEL_FORMATS:
        if asked == name:
            return name
    raise UsageError(f"{uri} names an unknown format '{printable(asked)}'", f"choose one of {', '.join(PIXEL_FORMATS)}")


class PixelFormatError(ShapeError):
    """A pixel format that cannot be converted without loss."""


def to_image(frame: VideoFrame, side: Side, converter: VideoReformatter) -> Array:
    """Convert a decoded frame to an image, turned as its display matrix says.

    Color is converted by the matrix and the range of the frame; where it names none, BT.601 and the range that the pixel format
    implies. Gray is taken as it is stored; ``stated_white`` says where its scale ends.

    Args:
        frame: From a decoder.
        side: Which camera it is from. Color of more than 8 bits becomes 16-bit gray for the infrared one.
        converter: Kept between the frames of one source, as it keeps its tables.

    Returns:
        (H, W) uint8, uint16 or float32, or (H, W, 3) BGR uint8 or uint16.

    Raises:
        PixelFormatError: The pixel format cannot be converted without loss.
    """
    return _turned(_upright(frame, side, converter), frame)


def stated_white(frame: VideoFrame) -> float | None:
    """The value of full scale in the image of a frame; None for 8 and 16 bits, which also hold what has fewer bits."""
    bits = max(component.bits for component in frame.format.components)
    if not 8 < bits < 16:
        return None
    return float((1 << bits) - 1) if _is_gray(frame.format) else 65535.0


def _upright(frame: VideoFrame, side: Side, converter: VideoReformatter) -> Array:
    layout = frame.format
    bits = max(component.bits for component in layout.components)
    bits = 16 if layout.is_bayer and "16" in layout.name else bits
    if "f16" in layout.name or "f32" in layout.name:
        if layout.name not in ("grayf32le", "grayf32be"):
            raise PixelFormatError(
                f"pixels of the format {layout.name} cannot be read", "convert them to 16-bit gray, gray16le"
            )
        return _gray(frame, np.dtype(">f4" if layout.is_big_endian else "<f4"), 1)
    if _is_gray(layout) and bits >= 8:
        kind = np.dtype("u1" if bits == 8 else ">u2" if layout.is_big_endian else "<u2")
        return _gray(frame, kind, len(layout.components))
    if _is_gray(layout):
        target = "gray"
    elif bits > 8:
        target = "gray16le" if side == "ir" else "bgr48le"
    else:
        target = "bgr24"
        frame = _little_endian(frame) if layout.name in _SWAPPED else frame
    try:
        converted = converter.reformat(frame, format=target)
    except (ValueError, OSError) as error:
        raise PixelFormatError(
            f"pixels of the format {layout.name} cannot be read", "convert the video to H.264 or FFV1"
        ) from error
    kind = np.dtype("<u2" if bits > 8 else "u1")
    return _gray(converted, kind, 1) if target.startswith("gray") else np.ascontiguousarray(_packed(converted, kind, 3))


def _little_endian(frame: VideoFrame) -> VideoFrame:
    """The same pixels of 16 bits in the other byte order."""
    swapped = type(frame)(frame.width, frame.height, frame.format.name.removesuffix("be") + "le")
    plane = swapped.planes[0]
    rows = np.zeros((frame.height, plane.line_size // 2), "<u2")
    rows[:, : frame.width] = _packed(frame, np.dtype(">u2"), 1)[..., 0]
    plane.update(rows.tobytes())
    return swapped


def _is_gray(layout: VideoFormat) -> bool:
    """Whether there is one component beside alpha, which holds levels: not the entries of a palette, not a color mosaic."""
    shown = [component for component in layout.components if not component.is_alpha]
    return len(shown) == 1 and not layout.has_palette and not layout.is_bayer


def _gray(frame: VideoFrame, kind: np.dtype[np.generic], step: int) -> Array:
    """The first of ``step`` components of a packed frame, (H, W), in the byte order of this machine."""
    return np.ascontiguousarray(_packed(frame, kind, step)[..., 0], kind.newbyteorder("="))


def _packed(frame: VideoFrame, kind: np.dtype[np.generic], components: int) -> Array:
    """The pixels of a frame with one plane, (H, W, components), without a copy; the array keeps the frame."""
    plane = frame.planes[0]
    rows = np.frombuffer(memoryview(plane), kind).reshape(frame.height, plane.line_size // kind.itemsize)
    return rows[:, : frame.width * components].reshape(frame.height, frame.width, components)


def _turned(image: Array, frame: VideoFrame) -> Array:
    """Apply the turns and flips of the display matrix (ISO/IEC 14496-12, 6.2.2); other angles are left as they are."""
    try:
        side_data: Any = frame.side_data  # a mapping, which its type does not say
    except ValueError:
        # PyAV 18 does not know the side data of EXIF, with which all of it is lost but the angle; no camera mirrors by EXIF.
        quarters = round(frame.rotation / 90)
        return np.ascontiguousarray(np.rot90(image, quarters)) if quarters else image
    if "DISPLAYMATRIX" not in side_data:
        return image
    matrix = bytes(side_data["DISPLAYMATRIX"])
    # Coordinates: x' = a x + c y, y' = b x + d y; y points downward.
    a, b, _, c, d, *_ = (int(np.sign(value)) for value in np.frombuffer(matrix, "=i4"))
    if b == c == 0 and a and d:
        across, down = a, d
    elif a == d == 0 and b and c:
        image, across, down = image.swapaxes(0, 1), c, b
    else:
        return image
    return np.ascontiguousarray(image[::down, ::across])


def raw_bytes(frame: VideoFrame) -> Array:
    """Return the pixels of a packed frame as they are stored.

    Returns:
        (H, W) uint16 for 16-bit gray; for other packed formats of two bytes, such as YUYV, (H, W, 2) uint8.

    Raises:
        ShapeError: A pixel has another size.
    """
    layout = frame.format
    if _is_gray(layout) and max(component.bits for component in layout.components) > 8:
        return _gray(frame, np.dtype(">u2" if layout.is_big_endian else "<u2"), 1)
    if len(frame.planes) != 1 or frame.planes[0].line_size < 2 * frame.width or layout.padded_bits_per_pixel != 16:
        raise ShapeError(
            f"pixels of the format {layout.name} hold no counts of two bytes", "leave ?format= out of the URI", got=layout.name
        )
    return _packed(frame, np.dtype("u1"), 2)


def unpack(image: Array, pixel_format: PixelFormat) -> Array:
    """Convert the array from a capture library to an image.

    Args:
        image: For ``auto``: (H, W) or (H, W, 3), returned as is; an alpha channel is dropped. For ``y16``: (H, W) uint16, or
            its bytes in little-endian order, (H, W, 2) uint8. For ``split16``: (2 H, W, 2) uint8 from a camera that sends a
            color image above its little-endian counts, as cameras of 256x384 pixels do.
        pixel_format: One of ``PIXEL_FORMATS``.

    Returns:
        (H, W) uint8, uint16 or float32, or (H, W, 3) BGR uint8. A view where possible.

    Raises:
        ShapeError: The array does not have this layout.
    """
    if pixel_format == "auto":
        if image.ndim == 3 and image.shape[2] == 1:
            return image[..., 0]
        if image.ndim == 3 and image.shape[2] == 4:
            return cv2.cvtColor(image, cv2.COLOR_BGRA2BGR)
        if image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3):
            return image
        raise ShapeError(
            f"an image of shape {image.shape} does not have 1, 3 or 4 channels",
            "add ?format=y16 or ?format=split16 to the URI",
            expected=(1, 3, 4),
            got=image.shape[2:],
        )
    counts = _counts(image, pixel_format)
    if pixel_format == "y16":
        return counts
    if counts.shape[0] % 2:
        raise ShapeError(
            f"an image of {counts.shape[0]} rows cannot be split into two halves",
            "leave ?format=split16 out",
            got=counts.shape[0],
        )
    return counts[counts.shape[0] // 2 :]


def _counts(image: Array, pixel_format: PixelFormat) -> Array:
    """Read pairs of bytes as little-endian counts, (H, W)."""
    if image.ndim == 2 and image.dtype == np.uint16:
        return image
    if image.ndim == 3 and image.shape[2] == 2 and image.dtype == np.uint8:
        return np.ascontiguousarray(image).view("<u2")[..., 0].astype(np.uint16, copy=False)
    raise ShapeError(
        f"?format={pixel_format} needs two bytes per pixel, and the source delivers {image.dtype} of shape {image.shape}",
        "choose the raw mode of the camera",
        expected=np.uint16,
        got=image.dtype,
    )
