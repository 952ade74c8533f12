"""From pictures to the luma planes that the network fuses, and back to a picture.

Full-range BT.601 in float32 through OpenCV, as the official test script does it. OpenCV takes float pictures to be
in [0, 1] and therefore puts the zero of float chroma at 0.5, while the values here run over [0, 255]; the offset is
kept because the official weighted mean of two chromas is defined around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from refusion_edge.arrays import Array, Float32Array, Uint8Array
from refusion_edge.errors import InputError, ShapeError
from refusion_edge.sizes import MIN_SIDE

OutputRange = Literal["stretch", "fixed"]
OUTPUT_RANGES: tuple[OutputRange, ...] = ("stretch", "fixed")

ColorOrder = Literal["rgb", "bgr"]

CHROMA_ZERO = 0.5

_SENSOR_PERCENTILES = (0.1, 99.9)
_WHITE = 255.0
# Official rounding before the cut to integers: a half goes down.
_ROUNDING = 0.499999999
_TO_YCRCB = {"rgb": cv2.COLOR_RGB2YCrCb, "bgr": cv2.COLOR_BGR2YCrCb}
_FROM_YCRCB = {"rgb": cv2.COLOR_YCrCb2RGB, "bgr": cv2.COLOR_YCrCb2BGR}
# Resampled pictures overshoot a little.
_FLOAT_MARGIN = 0.01


@dataclass(frozen=True, slots=True)
class Planes:
    """What the network is given, and what goes around it.

    Attributes:
        a: Luma of source a, (1, 1, H, W) float32, [0, 1]; or uint8, [0, 255], where that was asked for.
        b: Luma of source b, same shape, in the same way.
        chroma: Chroma of the result, (H, W, 2) as (Cr, Cb) around 0.5, or None for a grey result.
    """

    a: Array
    b: Array
    chroma: Float32Array | None


def to_planes(a: Array, b: Array, *, sensor_a: bool, keep_uint8: bool = False) -> Planes:
    """Turn two pictures into what the network is given.

    Args:
        a: Source a, (H, W) or (H, W, 3) RGB; uint8, uint16 or float32.
        b: Source b, same height and width.
        sensor_a: Whether 16-bit or float grey of source a is raw sensor data, see ``to_display_range``.
        keep_uint8: Whether 8-bit pictures of one channel stay 8-bit, for an engine that takes them so.

    Raises:
        ShapeError: The pictures do not fit, see ``check_pair``.
        InputError: A picture holds NaN or infinities, or is constant.
    """
    check_pair(a, b)
    for name, image in (("a", a), ("b", b)):
        if image.min() == image.max():
            raise InputError(
                f"expected a picture in source {name}, got the same value ({image.flat[0]}) in every pixel; "
                "check the camera or the file."
            )

    def parts(image: Array, sensor: bool) -> tuple[Array, Float32Array | None]:
        if keep_uint8 and image.dtype == np.uint8 and image.ndim == 2:
            return image, None
        return split(to_display_range(image, sensor=sensor))

    (luma_a, chroma_a), (luma_b, chroma_b) = parts(a, sensor_a), parts(b, False)
    return Planes(
        np.ascontiguousarray(luma_a[None, None]), np.ascontiguousarray(luma_b[None, None]), fuse_chroma(chroma_a, chroma_b)
    )


def to_display_range(image: Array, *, sensor: bool) -> Float32Array:
    """Bring 8-bit, 16-bit or float pixels to [0, 255] without losing depth.

    8-bit is taken as it is. 16-bit and float pictures use their full scale (65535 and 1.0). Grey sensor data
    (``sensor``: thermal counts, CT numbers) fill only a part of their scale, so its own range is used: from the 0.1
    to the 99.9 percentile, which a few dead or hot pixels cannot move.

    Args:
        image: (H, W) or (H, W, 3); uint8, uint16 or float32.
        sensor: Whether 16-bit or float grey is raw sensor data.

    Returns:
        Same shape, float32, [0, 255].

    Raises:
        InputError: The picture holds NaN or infinities, or float values outside [0, 1] that are not sensor data.
    """
    if image.dtype == np.uint8:
        return image.astype(np.float32)
    values = image.astype(np.float32)
    if not np.isfinite(values).all():
        raise InputError(
            f"expected finite pixel values, got {np.count_nonzero(~np.isfinite(values))} NaN or infinite "
            "ones; repair or mask them first."
        )
    if sensor and is_grey(values):
        low, high = np.percentile(values if values.ndim == 2 else values[..., 0], _SENSOR_PERCENTILES)
        if high <= low:  # all but a few pixels are equal
            low, high = values.min(), values.max()
    elif image.dtype.kind == "u":
        low, high = 0.0, float(np.iinfo(image.dtype).max)
    else:
        low, high = 0.0, 1.0
        if values.min() < -_FLOAT_MARGIN or values.max() > 1 + _FLOAT_MARGIN:
            raise InputError(
                f"expected float pixel values in [0, 1], got {values.min():g} to {values.max():g}; scale the picture first."
            )
    if high <= low:
        return np.zeros_like(values)
    return ((values - np.float32(low)) * np.float32(_WHITE / (high - low))).clip(0.0, _WHITE)


def is_grey(picture: Array) -> bool:
    """Tell whether a picture, (H, W) or (H, W, 3), has no colour: one channel, or three that are equal everywhere."""
    return picture.ndim == 2 or bool((picture[..., :1] == picture[..., 1:]).all())


def split(picture: Float32Array) -> tuple[Float32Array, Float32Array | None]:
    """Split a picture into luma and chroma.

    Args:
        picture: (H, W) or (H, W, 3) RGB, [0, 255].

    Returns:
        Luma (H, W) in [0, 1], and chroma (H, W, 2) as (Cr, Cb) around 0.5, or None if the picture is grey, that is
        if its three channels are equal everywhere.
    """
    if picture.ndim == 2:
        return picture / np.float32(_WHITE), None
    ycrcb: Float32Array = cv2.cvtColor(picture, cv2.COLOR_RGB2YCrCb).astype(np.float32, copy=False)
    return ycrcb[..., 0] / np.float32(_WHITE), None if is_grey(picture) else ycrcb[..., 1:]


def fuse_chroma(a: Float32Array | None, b: Float32Array | None) -> Float32Array | None:
    """Take the chroma of the one coloured source, or the mean of both weighted by their distance from grey.

    ``c = (a |a - 0.5| + b |b - 0.5|) / (|a - 0.5| + |b - 0.5| + 1e-4)``, each of Cr and Cb on its own. As in the
    official script, the small constant of the divisor pulls the result towards 0 where both are nearly grey; on the
    scale of [0, 255] that is at most half a level.

    Args:
        a: (H, W, 2) around 0.5, or None for a grey source.
        b: The same.

    Returns:
        (H, W, 2) around 0.5, or None if both are grey.
    """
    if a is None or b is None:
        return b if a is None else a
    weight_a, weight_b = np.abs(a - CHROMA_ZERO), np.abs(b - CHROMA_ZERO)
    mixed: Float32Array = (a * weight_a + b * weight_b) / (weight_a + weight_b + np.float32(1e-4))
    return mixed


def to_output_range(fused: Float32Array, output_range: OutputRange) -> Float32Array:
    """Bring the network's output to [0, 255].

    Args:
        fused: (H, W), the network's output.
        output_range: ``stretch``: per-image minimum to 0 and maximum to 255, as the official script does; a
            constant plane becomes 0. ``fixed``: [0, 1] to [0, 255], the same for every picture.

    Returns:
        (H, W) float32, [0, 255], not rounded.
    """
    if output_range == "fixed":
        fixed: Float32Array = fused.clip(0.0, 1.0) * np.float32(_WHITE)
        return fixed
    low, high = fused.min(), fused.max()
    if high <= low:
        return np.zeros_like(fused)
    stretched: Float32Array = (fused - low) / (high - low) * np.float32(_WHITE)
    return stretched


def split_uint8(picture: Uint8Array, order: ColorOrder) -> tuple[Uint8Array, Uint8Array | None]:
    """Split an 8-bit picture in 8 bit, which is several times faster, and enough for video.

    Args:
        picture: (H, W), or (H, W, 3) in this order.
        order: Order of its colours.

    Returns:
        Luma (H, W), and the picture as (Y, Cr, Cb), (H, W, 3), or None for one channel.
    """
    if picture.ndim == 2:
        return picture, None
    ycrcb = cv2.cvtColor(picture, _TO_YCRCB[order]).astype(np.uint8, copy=False)
    return cv2.extractChannel(ycrcb, 0).astype(np.uint8, copy=False), ycrcb


def merge_uint8(luma: Uint8Array, ycrcb: Uint8Array | None, order: ColorOrder) -> Uint8Array:
    """Join luma and chroma in 8 bit.

    Args:
        luma: (H, W).
        ycrcb: Chroma as ``split_uint8`` gives it, whose luma is overwritten; or None for grey.
        order: Order of the colours that are wanted.

    Returns:
        (H, W), which is ``luma`` itself, or (H, W, 3) in this order.
    """
    if ycrcb is None:
        return luma
    cv2.insertChannel(luma, ycrcb, 0)
    return cv2.cvtColor(ycrcb, _FROM_YCRCB[order]).astype(np.uint8, copy=False)


def merge(luma: Float32Array, chroma: Float32Array | None, order: ColorOrder = "rgb") -> Uint8Array:
    """Join luma and chroma to an 8-bit picture; colours outside the gamut saturate.

    Args:
        luma: (H, W), [0, 255].
        chroma: (H, W, 2) as (Cr, Cb) around 0.5, or None for grey.
        order: Order of the colours that are wanted.

    Returns:
        (H, W), or (H, W, 3) in this order, uint8.
    """
    picture = luma if chroma is None else cv2.cvtColor(np.dstack((luma, chroma)), _FROM_YCRCB[order])
    # In float64, where the official rounding constant is not yet a half.
    rounded: Uint8Array = np.floor(picture.clip(0.0, _WHITE).astype(np.float64) + _ROUNDING).astype(np.uint8)
    return rounded


def check_pair(a: Array, b: Array) -> None:
    """Make sure that two pictures can be fused.

    Raises:
        ShapeError: A picture is not (H, W) or (H, W, 3), is smaller than 8x8, has another dtype than uint8, uint16
            or float32, or the two differ in size.
    """
    for name, image in (("a", a), ("b", b)):
        if image.dtype not in (np.uint8, np.uint16, np.float32):
            raise ShapeError(f"expected source {name} as uint8, uint16 or float32, got {image.dtype}; convert it first.")
        if not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 3)):
            raise ShapeError(f"expected source {name} as (H, W) grey or (H, W, 3) RGB, got {image.shape}; convert it first.")
        if min(image.shape[:2]) < MIN_SIDE:
            raise ShapeError(
                f"expected source {name} to be at least {MIN_SIDE}x{MIN_SIDE}, got {_size(image)}; use a larger picture."
            )
    if a.shape[:2] != b.shape[:2]:
        raise ShapeError(
            f"expected two registered sources of one size, got a = {_size(a)} and b = {_size(b)} (width x "
            "height); align and resize one to the other first (same view: cv2.resize; other view: "
            "cv2.warpPerspective)."
        )


def _size(image: Array) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
