"""Conversion between images and the luma planes that the network fuses.

Full-range BT.601 in float32 through OpenCV, as in the official test script. OpenCV assumes float images in [0, 1] and
therefore puts the zero of float chroma at 0.5, although the values here range over [0, 255]; the offset is kept because
the official weighted mean of two chromas is defined around it.
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
# Rounding of the official script before truncation to integers: a half is rounded down.
_ROUNDING = 0.499999999
_TO_YCRCB = {"rgb": cv2.COLOR_RGB2YCrCb, "bgr": cv2.COLOR_BGR2YCrCb}
_FROM_YCRCB = {"rgb": cv2.COLOR_YCrCb2RGB, "bgr": cv2.COLOR_YCrCb2BGR}
# Resampled images overshoot slightly.
_FLOAT_MARGIN = 0.01


@dataclass(frozen=True, slots=True)
class Planes:
    """Inputs of the network, and the chroma that bypasses it.

    Attributes:
        a: Luma of source a, (1, 1, H, W) float32, [0, 1]; or uint8, [0, 255], if ``keep_uint8`` was set.
        b: Luma of source b, same shape; dtype and range likewise.
        chroma: Chroma of the result, (H, W, 2) as (Cr, Cb) around 0.5, or None for a gray result.
    """

    a: Array
    b: Array
    chroma: Float32Array | None


def to_planes(a: Array, b: Array, *, sensor_a: bool, keep_uint8: bool = False) -> Planes:
    """Turn two images into inputs of the network.

    Args:
        a: Source a, (H, W) or (H, W, 3) RGB; uint8, uint16 or float32.
        b: Source b, same height and width.
        sensor_a: Whether 16-bit or float gray of source a is raw sensor data, see ``to_display_range``.
        keep_uint8: Whether single-channel uint8 images stay uint8, for an engine with uint8 inputs.

    Raises:
        ShapeError: The images cannot be fused, see ``check_pair``.
        InputError: An image contains NaN or infinities, or is constant.
    """
    check_pair(a, b)
    for name, image in (("a", a), ("b", b)):
        if image.min() == image.max():
            raise InputError(
                f"source {name} has the same value ({image.flat[0]}) in every pixel", "check the camera or the file"
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

    8-bit values are kept. 16-bit and float images use their full scale (65535 and 1.0). Gray sensor data (``sensor``:
    thermal counts, CT numbers) fill only part of their scale, so their own range is used: from the 0.1 to the 99.9
    percentile, which a few dead or hot pixels cannot shift.

    Args:
        image: (H, W) or (H, W, 3); uint8, uint16 or float32.
        sensor: Whether 16-bit or float gray is raw sensor data.

    Returns:
        Same shape, float32, [0, 255].

    Raises:
        InputError: The image contains NaN or infinities, or float values outside [0, 1] without being sensor data.
    """
    if image.dtype == np.uint8:
        return image.astype(np.float32)
    values = image.astype(np.float32)
    if not np.isfinite(values).all():
        raise InputError(
            f"the image contains {np.count_nonzero(~np.isfinite(values))} NaN or infinite pixels", "repair or mask them first"
        )
    if sensor and is_gray(values):
        low, high = np.percentile(values if values.ndim == 2 else values[..., 0], _SENSOR_PERCENTILES)
        if high <= low:  # all but a few pixels are equal
            low, high = values.min(), values.max()
    elif image.dtype.kind == "u":
        low, high = 0.0, float(np.iinfo(image.dtype).max)
    else:
        low, high = 0.0, 1.0
        if values.min() < -_FLOAT_MARGIN or values.max() > 1 + _FLOAT_MARGIN:
            raise InputError(
                f"float pixel values range from {values.min():g} to {values.max():g}",
                "scale the image to [0, 1] first",
                expected=(0.0, 1.0),
                got=(float(values.min()), float(values.max())),
            )
    if high <= low:
        return np.zeros_like(values)
    return ((values - np.float32(low)) * np.float32(_WHITE / (high - low))).clip(0.0, _WHITE)


def is_gray(image: Array) -> bool:
    """Tell whether an image, (H, W) or (H, W, 3), is gray: one channel, or three that are equal everywhere."""
    return image.ndim == 2 or bool((image[..., :1] == image[..., 1:]).all())


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
        output_range: ``stretch``: per-image minimum to 0 and maximum to 255, as the official script does; a
            constant plane becomes 0. ``fixed``: [0, 1] to [0, 255], the same for every image.

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


def split_uint8(image: Uint8Array, order: ColorOrder) -> tuple[Uint8Array, Uint8Array | None]:
    """Split a uint8 image in 8-bit arithmetic, which is several times faster than in float32 and accurate enough for video.

    Args:
        image: (H, W), or (H, W, 3) in the channel order ``order``.
        order: Channel order of the image.

    Returns:
        Luma, (H, W), and the image as (Y, Cr, Cb), (H, W, 3), or None for a single channel.
    """
    if image.ndim == 2:
        return image, None
    ycrcb = cv2.cvtColor(image, _TO_YCRCB[order]).astype(np.uint8, copy=False)
    return cv2.extractChannel(ycrcb, 0).astype(np.uint8, copy=False), ycrcb


def merge_uint8(luma: Uint8Array, ycrcb: Uint8Array | None, order: ColorOrder) -> Uint8Array:
    """Join luma and chroma in 8-bit arithmetic.

    Args:
        luma: (H, W).
        ycrcb: Chroma as returned by ``split_uint8``, whose luma is overwritten; or None for gray.
        order: Channel order of the result.

    Returns:
        (H, W), which is ``luma`` itself, or (H, W, 3) in that order.
    """
    if ycrcb is None:
        return luma
    cv2.insertChannel(luma, ycrcb, 0)
    return cv2.cvtColor(ycrcb, _FROM_YCRCB[order]).astype(np.uint8, copy=False)


def merge(luma: Float32Array, chroma: Float32Array | None, order: ColorOrder = "rgb") -> Uint8Array:
    """Join luma and chroma to a uint8 image; colors outside the gamut saturate.

    Args:
        luma: (H, W), [0, 255].
        chroma: (H, W, 2) as (Cr, Cb) around 0.5, or None for gray.
        order: Channel order of the result.

    Returns:
        (H, W), or (H, W, 3) in that order, uint8.
    """
    image = luma if chroma is None else cv2.cvtColor(np.dstack((luma, chroma)), _FROM_YCRCB[order])
    # In float64, because in float32 the rounding constant of the official script would become a half.
    rounded: Uint8Array = np.floor(image.clip(0.0, _WHITE).astype(np.float64) + _ROUNDING).astype(np.uint8)
    return rounded


def check_pair(a: Array, b: Array) -> None:
    """Check that two images can be fused.

    Raises:
        ShapeError: An image is not (H, W) or (H, W, 3), is smaller than 8x8, has a dtype other than uint8, uint16
            or float32, or the two differ in size.
    """
    for name, image in (("a", a), ("b", b)):
        if image.dtype not in (np.uint8, np.uint16, np.float32):
            raise ShapeError(
                f"source {name} is {image.dtype}",
                "convert it to uint8, uint16 or float32",
                expected=("uint8", "uint16", "float32"),
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
                f"source {name} is only {_size(image)} (width x height)",
                f"use an image of at least {MIN_SIDE}x{MIN_SIDE}",
                expected=(MIN_SIDE, MIN_SIDE),
                got=image.shape[:2],
            )
    if a.shape[:2] != b.shape[:2]:
        raise ShapeError(
            f"the sources differ in size: a is {_size(a)} and b is {_size(b)} (width x height)",
            "register and resize one to the other first (same view: cv2.resize; different view: cv2.warpPerspective)",
            expected=a.shape[:2],
            got=b.shape[:2],
        )


def _size(image: Array) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
