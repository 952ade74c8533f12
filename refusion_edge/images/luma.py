"""From an image and its role to luma: the one way into the network, for fusing, training, calibration and reports."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refusion_edge.arrays import Array, Float32Array, Uint8Array
from refusion_edge.errors import InputError
from refusion_edge.images.color import CHROMA_ZERO, check_pair, fuse_chroma, split
from refusion_edge.images.ranges import WHITE, Mask, Remark, Scale, Span, significant_bits, to_display
from refusion_edge.images.still import CONTAINER, Encoding
from refusion_edge.tasks import Role, Task

# Mean difference between the largest and the smallest channel, in levels; noise of JPEG in gray images stays below.
_COLORED, _EVERY = 8.0, 4
CONSTANT_REMEDY = "check the camera or the file"
"""The remedy of the error for an image with the same value in every pixel."""

_THERMAL = "ir"
_PALETTE = Remark(
    "colored, although infrared has no color: probably a palette, whose brightness is not the temperature; give the gray image"
)
SWAPPED = "so they may be swapped"
"""What it means that infrared is colored and visible is gray."""


@dataclass(frozen=True, slots=True)
class Luma:
    """Luma and chroma of one source.

    Attributes:
        values: (H, W) float32, [0, 1]; or uint8, [0, 255], if asked for.
        chroma: (H, W, 2) as (Cr, Cb) around 0.5, or None for gray.
        scale: The pixel values that became black and white.
        invalid: (H, W), True where the source has no value, or None. The luma there is 0.
        remarks: What was guessed or is doubtful.
    """

    values: Array
    chroma: Float32Array | None
    scale: Scale
    invalid: Mask | None
    remarks: tuple[Remark, ...]


@dataclass(frozen=True, slots=True)
class Planes:
    """Inputs of the network, and the chroma that bypasses it.

    Attributes:
        a: Luma of source a, (1, 1, H, W) float32, [0, 1]; or uint8, [0, 255], if ``keep_uint8`` was set. Where the source has
            no value, that of the other one.
        b: Luma of source b, same shape; dtype and range likewise.
        chroma: Chroma of the result, (H, W, 2) as (Cr, Cb) around 0.5, or None for a gray result.
        only_b: (H, W), True where source a has no value, so that the result shows source b; or None.
        only_a: The same for source b.
        scales: The pixel values of each source that became black and white.
        remarks: What was guessed or is doubtful; each text begins with its source.
    """

    a: Array
    b: Array
    chroma: Float32Array | None
    only_b: Mask | None = None
    only_a: Mask | None = None
    scales: tuple[Scale, ...] = ()
    remarks: tuple[Remark, ...] = ()

    def beside(self, dtype: np.dtype[Any]) -> tuple[Array, Mask] | None:
        """What the result shows where one source has no value.

        Args:
            dtype: uint8 or float32.

        Returns:
            The luma of the other source, (H, W) of that type, [0, 255], and where it is shown, (H, W); None if nowhere.
        """
        if self.only_a is None and self.only_b is None:
            return None
        a, b = (_as_float(plane[0, 0]) * np.float32(255) for plane in (self.a, self.b))
        where = np.logical_or(*(np.zeros(a.shape, np.bool_) if mask is None else mask for mask in (self.only_a, self.only_b)))
        shown = b if self.only_a is None else np.where(self.only_a, a, b)
        return (np.rint(shown) if dtype == np.uint8 else shown).astype(dtype), where


def to_luma(
    image: Array, role: Role, *, encoding: Encoding | None = None, span: Span | None = None, keep_uint8: bool = False
) -> Luma:
    """Turn an image into luma and chroma.

    Args:
        image: (H, W), or (H, W, 3) RGB.
        role: What its values mean, see ``refusion_edge.images.ranges.to_display``.
        encoding: What its file says about them.
        span: The values that become black and white, if known.
        keep_uint8: Whether single-channel uint8 images stay uint8, for an engine with uint8 inputs.

    Raises:
        InputError: See ``to_display``.
    """
    displayed = to_display(image, role, encoding=encoding, span=span)
    pixels = displayed.pixels
    if keep_uint8 and pixels.dtype == np.uint8 and pixels.ndim == 2:
        return Luma(pixels, None, displayed.scale, None, displayed.remarks)
    values, chroma = split(pixels.astype(np.float32, copy=False))
    palette = find_palette(pixels) if role.name == _THERMAL else None
    remarks = displayed.remarks if palette is None else (*displayed.remarks, palette)
    return Luma(values, chroma, displayed.scale, displayed.invalid, remarks)


def to_luma8(image: Array, role: Role, *, encoding: Encoding | None = None, span: Span | None = None) -> Uint8Array:
    """Luma rounded to 8 bits, (H, W) uint8; arguments and errors as for ``to_luma``."""
    levels: Uint8Array = np.rint(to_luma(image, role, encoding=encoding, span=span).values * 255).astype(np.uint8)
    return levels


def to_planes(
    a: Array,
    b: Array,
    task: Task,
    *,
    encodings: tuple[Encoding | None, Encoding | None] = (None, None),
    spans: tuple[Span | None, Span | None] = (None, None),
    keep_uint8: bool = False,
) -> Planes:
    """Turn two images into inputs of the network.

    Args:
        a: Source a, (H, W) or (H, W, 3) RGB of whole or float numbers.
        b: Source b, same height and width.
        task: The task, which determines what the values of each source mean.
        encodings: What the file of each source says about its values.
        spans: The values of each source that become black and white, if known.
        keep_uint8: Whether single-channel uint8 images stay uint8, for an engine with uint8 inputs.

    Raises:
        ShapeError: The images cannot be fused, see ``check_pair``.
        InputError: An image has the same value in every pixel (the remedy is then ``CONSTANT_REMEDY``), no valid pixel, or
            values out of range.
    """
    check_pair(a, b)
    if task.one_camera:
        encodings = _shared_depth(a, b, encodings)
    lumas = []
    for name, image, role, encoding, span in zip("ab", (a, b), task.roles, encodings, spans, strict=True):
        try:
            luma = to_luma(image, role, encoding=encoding, span=span, keep_uint8=keep_uint8)
        except InputError as error:
            raise type(error)(
                f"source {name}: {error.problem}", error.remedy, expected=error.expected, got=error.got
            ) from error
        _require_contrast(name, image, luma)
        lumas.append(luma)
    return _joined(lumas[0], lumas[1])


def _joined(a: Luma, b: Luma) -> Planes:
    values_a, values_b, chroma = a.values, b.values, fuse_chroma(a.chroma, b.chroma)
    if a.invalid is not None:
        values_a = _as_float(values_a)
        values_a[a.invalid] = _as_float(values_b)[a.invalid]
    if b.invalid is not None:
        values_b = _as_float(values_b)
        values_b[b.invalid] = _as_float(values_a)[b.invalid]
    if chroma is not None:
        chroma = _valid_chroma(chroma, a, b)
    remarks = tuple(
        replace(remark, text=f"source {name}: {remark.text}") for name, luma in (("a", a), ("b", b)) for remark in luma.remarks
    )
    if b.chroma is None and _PALETTE in a.remarks:
        remarks += (Remark(f"source a is colored and source b is gray, {SWAPPED}"),)
    return Planes(
        np.ascontiguousarray(values_a[None, None]), np.ascontiguousarray(values_b[None, None]), chroma,
        a.invalid, b.invalid, (a.scale, b.scale), remarks,
    )  # fmt: skip


def _as_float(values: Array) -> Float32Array:
    return values * np.float32(1 / 255) if values.dtype == np.uint8 else values.astype(np.float32, copy=False)


def _valid_chroma(chroma: Float32Array, a: Luma, b: Luma) -> Float32Array:
    """Take no color from a source where it has no value."""
    for luma, other in ((a, b), (b, a)):
        if luma.chroma is not None and luma.invalid is not None:
            chroma = chroma.copy()
            chroma[luma.invalid] = CHROMA_ZERO if other.chroma is None else other.chroma[luma.invalid]
    return chroma


def _require_contrast(name: str, image: Array, luma: Luma) -> None:
    valid = image if luma.invalid is None else image[~luma.invalid]
    if valid.min() == valid.max():
        raise InputError(
            f"source {name} has the same value ({valid.flat[0]}) in every pixel",
            CONSTANT_REMEDY,
        )
    if valid.max() <= luma.scale.low or valid.min() >= luma.scale.high:
        raise InputError(
            f"no value of source {name} ({valid.min()} to {valid.max()}) lies within the range "
            f"{luma.scale.low:g}:{luma.scale.high:g}",
            "correct the range, or leave it out",
            expected=(luma.scale.low, luma.scale.high),
            got=(float(valid.min()), float(valid.max())),
        )


def _shared_depth(
    a: Array, b: Array, encodings: tuple[Encoding | None, Encoding | None]
) -> tuple[Encoding | None, Encoding | None]:
    """Give both sources the bit depth that holds the values of both, if no file states it: one of them is underexposed."""
    unknown = [encoding is None or encoding.white_from == CONTAINER for encoding in encodings]
    if not (all(unknown) and a.dtype == b.dtype and a.dtype.kind == "u" and a.dtype != np.uint8):
        return encodings
    bits = significant_bits(float(max(a.max(), b.max())))
    shared = Encoding(white=float((1 << bits) - 1), white_from="the largest value of both sources")
    return shared, shared


def find_palette(infrared: Array, white: float = WHITE) -> Remark | None:
    """What is doubtful about an infrared image, (H, W) or (H, W, 3) in [0, ``white``], that has color; else None."""
    if infrared.ndim == 2:
        return None
    sample = infrared[::_EVERY, ::_EVERY].astype(np.float32)
    spread = sample.max(axis=2) - sample.min(axis=2)
    return _PALETTE if float(spread.mean()) >= _COLORED * white / WHITE else None
