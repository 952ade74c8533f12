"""Luma and chroma of images, and joining them again.

Full-range BT.601 in float32 through OpenCV, as in the official test script. OpenCV assumes float images in [0, 1] and
therefore puts the zero of float chroma at 0.5, although the values here range over [0, 255]; the offset is kept because
the official weighted mean of two chromas is defined around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np

from refusion_edge.arrays import Array, Float32Array, Uint8Array
from refusion_edge.errors import InputError, ShapeError
from refusion_edge.images.ranges import Mask, is_gray, to_display
from refusion_edge.sizes import MIN_SIDE
from refusion_edge.tasks import DISPLAY, SENSOR

OutputRange = Literal["stretch", "fixed"]
OUTPUT_RANGES: tuple[OutputRange, ...] = ("stretch", "fixed")

ColorOrder = Literal["rgb", "bgr"]

CHROMA_ZERO = 0.5

MAX_GAIN = 4.0
"""What a stretch multiplies contrast by at most, for images and videos: in less than a quarter of the range, noise may be most
of what there is."""

_WHITE = 255.0
_DTYPES = (np.uint8, np.uint16, np.int16, np.uint32, np.int32, np.float32, np.float64)
_TO_GRAY = {"rgb": cv2.COLOR_RGB2GRAY, "bgr": cv2.COLOR_BGR2GRAY}
_FROM_YCRCB = {"rgb": cv2.COLOR_YCrCb2RGB, "bgr": cv2.COLOR_YCrCb2BGR}


def to_display_range(image: Array, *, sensor: bool) -> Float32Array:
    """Bring an image to [0, 255] as ``refusion_edge.images.ranges.to_display`` does, in float32; isolated values become 0.

    Args:
        image: (H, W) or (H, W, 3) of whole or float numbers.
        sensor: Whether 16-bit or float gray is sensor data, whose own range is used.

    Raises:
        InputError: The image contains NaN or infinities, which nothing can take the place of here; or see there.
    """
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        count = np.count_nonzero(~np.isfinite(image))
        raise InputError(f"the image contains {count} NaN or infinite pixels", "repair or mask them first")
    return to_display(image, SENSOR if sensor else DISPLAY).pixels.astype(np.float32)


def split(image: Float32Array) -> tuple[Float32Array, Float32Array | None]:
    """Split an image into luma and chroma.

    Args:
        image: (H, W) or (H, W, 3) RGB, [0, 255].

    Returns:
        Luma (H, W) in [0, 1], and chroma (H, W, 2) as (Cr, Cb) around 0.5, or None if the image is gray,
        see ``is_gray``.
    """
    if image.ndim == 2:
        return image / np.float32(_WHITE), None
    ycrcb: Float32Array = cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb).astype(np.float32, copy=False)
    return ycrcb[..., 0] / np.float32(_WHITE), None if is_gray(image) else ycrcb[..., 1:]


def fuse_chroma(a: Float32Array | None, b: Float32Array | None) -> Float32Array | None:
    """Take the chroma of the only color source, or average both, weighted by their distance from gray.

    ``c = (a |a - 0.5| + b |b - 0.5|) / (|a - 0.5| + |b - 0.5| + 1e-4)``, for Cr and Cb separately. As in the
    official script, the small constant in the divisor pulls the result towards 0 where both are nearly gray; on the
    scale of [0, 255] that is at most half a level.

    Args:
        a: Chroma of source a, (H, W, 2) around 0.5, or None for a gray source.
        b: Chroma of source b, likewise.

    Returns:
        (H, W, 2) around 0.5, or None if both are gray.
    """
    if a is None or b is None:
        return b if a is None else a
    weight_a, weight_b = np.abs(a - CHROMA_ZERO), np.abs(b - CHROMA_ZERO)
    mixed: Float32Array = (a * weight_a + b * weight_b) / (weight_a + weight_b + np.float32(1e-4))
    return mixed


def to_output_range(fused: Float32Array, output_range: OutputRange) -> Float32Array:
    """Map the network's output to [0, 255].

    Args:
        fused: (H, W), the network's output.
        output_range: ``stretch``: per-image minimum to 0 and maximum to 255, as the official script does, but with a gain of
            ``MAX_GAIN`` at most, see ``widened``. ``fixed``: [0, 1] to [0, 255], the same for every image.

    Returns:
        (H, W) float32, [0, 255], not rounded.
    """
    if output_range == "fixed":
        fixed: Float32Array = fused.clip(0.0, 1.0) * np.float32(_WHITE)
        return fixed
    low, width = widened(float(fused.min()), float(fused.max()), 1 / MAX_GAIN)
    stretched: Float32Array = fused - fused.dtype.type(low)
    stretched /= fused.dtype.type(width)
    stretched *= np.float32(_WHITE)
    return stretched.clip(0.0, _WHITE, out=stretched)


def widened(low: float, high: float, least: float) -> tuple[float, float]:
    """Widen a range to at least a width, around its middle, but not beyond [0, 1]: a dark image stays dark.

    Args:
        low: Lower end.
        high: Upper end.
        least: Least width, at most 1.

    Returns:
        Lower end and width.
    """
    lacking = least - (high - low)
    if lacking <= 0:
        return low, high - low
    return min(max(low - lacking / 2, min(low, 0.0)), max(high, 1.0) - least), least


def is_limited(output: Float32Array | Uint8Array) -> bool:
    """Whether the limit of gain acts when a plane is stretched.

    Args:
        output: The network's output; or uint8, stretched on a device, which fills the range unless the limit has acted.
    """
    return float(output.max()) - float(output.min()) < (_WHITE if output.dtype == np.uint8 else 1 / MAX_GAIN)


@dataclass(frozen=True, slots=True)
class Colored:
    """A uint8 color image with its luma, to be shown with another luma.

    Attributes:
        image: (H, W, 3), in any channel order.
        luma: (H, W).
    """

    image: Uint8Array
    luma: Uint8Array

    def gray_where(self, mask: Mask) -> Colored:
        """The same without color where a mask, (H, W), is True."""
        return Colored(np.where(mask[..., None], self.luma[..., None], self.image), self.luma)


def split_uint8(image: Uint8Array, order: ColorOrder) -> tuple[Uint8Array, Colored | None]:
    """Take the luma of a uint8 image in 8-bit arithmetic, several times faster than in float32 and accurate enough for video.

    Args:
        image: (H, W), or (H, W, 3) in the channel order ``order``.
        order: Channel order of the image.

    Returns:
        Luma, (H, W), and what ``merge_uint8`` needs for its color, or None for a single channel.
    """
    if image.ndim == 2:
        return image, None
    luma = cv2.cvtColor(image, _TO_GRAY[order]).astype(np.uint8, copy=False)
    return luma, Colored(image, luma)


def merge_uint8(luma: Uint8Array, color: Colored | None) -> Uint8Array:
    """Give a luma the color of an image, in 8-bit arithmetic.

    Chroma stays the same if all three channels change by as much as the luma: ``R = Y + 1.402 (Cr - 128)``, and the others
    likewise. Colors outside the gamut saturate.

    Args:
        luma: (H, W).
        color: As returned by ``split_uint8``, or None for gray.

    Returns:
        (H, W), which is ``luma`` itself, or (H, W, 3) in the channel order of the image.
    """
    if color is None:
        return luma
    brighter, darker = (
        cv2.cvtColor(cv2.subtract(*each), cv2.COLOR_GRAY2BGR) for each in ((luma, color.luma), (color.luma, luma))
    )
    changed = cv2.add(color.image, brighter)
    return cv2.subtract(changed, darker, dst=changed).astype(np.uint8, copy=False)


def join(luma: Float32Array, chroma: Float32Array | None, order: ColorOrder = "rgb") -> Float32Array:
    """Join luma and chroma to an image; colors outside the gamut saturate.

    Args:
        luma: (H, W), [0, 255].
        chroma: (H, W, 2) as (Cr, Cb) around 0.5, or None for gray.
        order: Channel order of the result.

    Returns:
        (H, W), or (H, W, 3) in that order, [0, 255], not rounded. A new array.
    """
    if chroma is None:
        return luma.clip(0.0, _WHITE)
    ycrcb = np.empty((*luma.shape, 3), np.float32)
    ycrcb[..., 0], ycrcb[..., 1:] = luma, chroma
    image: Float32Array = cv2.cvtColor(ycrcb, _FROM_YCRCB[order]).astype(np.float32, copy=False)
    return np.clip(image, 0.0, _WHITE, out=image)


def merge(luma: Float32Array, chroma: Float32Array | None, order: ColorOrder = "rgb") -> Uint8Array:
    """Join luma and chroma to a uint8 image; arguments as for ``join``."""
    image = join(luma, chroma, order)
    # Floor of the value plus 0.499999999, as in the official script: float32 has no number between that and a half. Taking a
    # half away is exact, unless the result is rounded up to 0.
    image -= np.float32(0.5)
    rounded: Uint8Array = np.ceil(image, out=image).astype(np.uint8)
    return rounded


def to_type(image: Array, dtype: np.dtype[Any]) -> Array:
    """Bring an image in [0, 255] to the full scale of a type: [0, 65535] for uint16, [0, 1] for floats.

    Args:
        image: float32 in [0, 255], or uint8.
        dtype: uint8, which is returned as it is; uint16 or a float type.
    """
    if dtype == np.uint8:
        return image
    if dtype == np.uint16:
        return np.rint(image * np.float32(257)).astype(dtype)
    return (image * np.float32(1 / 255)).clip(0, 1).astype(dtype)


def check_pair(a: Array, b: Array) -> None:
    """Check that two images can be fused.

    Raises:
        ShapeError: An image is not (H, W) or (H, W, 3), is smaller than 8x8, has a dtype other than whole numbers of 8 to 32
            bits or float32 or float64, or the two differ in size.
    """
    for name, image in (("a", a), ("b", b)):
        if image.dtype not in _DTYPES:
            raise ShapeError(
                f"source {name} is {image.dtype}",
                "convert it to uint8, uint16 or float32",
                expected=tuple(np.dtype(kind).name for kind in _DTYPES),
                got=str(image.dtype),
            )
        if not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
            raise ShapeError(
                f"source {name} has the shape {image.shape}",
                "convert it to (H, W) gray or (H, W, 3) RGB",
                expected=(("H", "W"), ("H", "W", 3)),
                got=image.shape,
            )
        if min(image.shape[:2]) < MIN_SIDE:
            raise ShapeError(
                f"source {name} is only {_size(image)} (height x width)",
                f"use an image of at least {MIN_SIDE}x{MIN_SIDE}",
                expected=(MIN_SIDE, MIN_SIDE),
                got=image.shape[:2],
            )
    if a.shape[:2] != b.shape[:2]:
        raise ShapeError(
            f"the sources differ in size: a is {_size(a)} and b is {_size(b)} (height x width)",
            "register and resize one to the other first (same view: cv2.resize; different view: cv2.warpPerspective)",
            expected=a.shape[:2],
            got=b.shape[:2],
        )


def _size(image: Array) -> str:
    return f"{image.shape[0]}x{image.shape[1]}"
