"""Ranges of pixel values: which become black and white, which are none, and how many bits are significant.

Everything that turns pixels into luma starts here, so that an image means the same to fusing, training and calibration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from refusion_edge.arrays import Array, Uint8Array
from refusion_edge.errors import InputError
from refusion_edge.images.still import CONTAINER, Encoding
from refusion_edge.tasks import Role

Span: TypeAlias = Literal["auto", "full"] | tuple[float, float]
"""The values that become black and white: ``auto`` for the image's own range, ``full`` for its full scale, or two values."""

Mask: TypeAlias = NDArray[np.bool_]

WHITE = 255.0

# Percentiles from so many pixels are exact to a thousandth of the range; more only take time.
_SAMPLED_PIXELS = 1 << 16
# A value is an outlier (the sun, a stuck pixel) if it lies 8 widths of the middle 90 % beyond it, and few are as far: by the
# share of these pixels, in units of 0.5 %, the 8 widths grow as 1 + share^3. In 332 thermal images, hot objects at night are
# 1 to 12 widths away.
_BODY, _OUTLIER_WIDTHS, _USUAL_SHARE = (5.0, 95.0), 8.0, 0.005
# Beyond what is no outlier, the range is extended to values that are at most its own width away.
_EXTENSION = 1.0
# The values that sensors and warps write where they have none are apart from all others by their range.
_VALID, _ISOLATION = (1.0, 99.0), 1.0
# Failing lines are rarely as thick.
_THICK_PX = 3
# In degrees Celsius; below it lie only values such as -9999.
_ABSOLUTE_ZERO = -273.15
_GRAY_ROWS = 32
_DEPTHS = (8, 10, 12, 14, 16, 20, 24, 32)
_LEAST_FILLING = 1 / 8
# Interpolation overshoots slightly.
_FLOAT_MARGIN = 0.01


@dataclass(frozen=True, slots=True)
class Remark:
    """Something that was guessed, repaired or is doubtful, and worth saying once.

    Attributes:
        text: One phrase, the same for every image that it applies to.
        pixels: Number of pixels that it concerns; 0 for the image as a whole.
    """

    text: str
    pixels: int = 0


@dataclass(frozen=True, slots=True)
class Scale:
    """The values that became black and white.

    Attributes:
        low: Value that became black.
        high: Value that became white.
        origin: Where they come from: ``own range``, ``given``, or what states or suggests the full scale.
    """

    low: float
    high: float
    origin: str


@dataclass(frozen=True, slots=True)
class Displayed:
    """An image brought to the range of display.

    Attributes:
        pixels: As given, (H, W) or (H, W, 3), in [0, 255]: uint8 if the image was uint8 and is unchanged, else float32.
        scale: The values that became black and white.
        invalid: (H, W), True where the source has no value; None if it has one everywhere. Such pixels are black.
        remarks: What was guessed or is doubtful.
    """

    pixels: Array
    scale: Scale
    invalid: Mask | None = None
    remarks: tuple[Remark, ...] = ()

    @property
    def levels(self) -> Uint8Array:
        """The pixels, rounded to uint8."""
        return self.pixels if self.pixels.dtype == np.uint8 else np.rint(self.pixels).astype(np.uint8)


def to_display(image: Array, role: Role, *, encoding: Encoding | None = None, span: Span | None = None) -> Displayed:
    """Bring an image to [0, 255] without losing depth.

    8-bit values are kept. Gray sensor data (``role.ranged``) of more bits, or float, is scaled by its own range, see
    ``own_range``. Other images are scaled by their full scale: as the file states it, or by the smallest usual bit depth that
    holds their values, or 1.0 for float.

    Args:
        image: (H, W) or (H, W, 3) of whole or float numbers.
        role: What the values mean.
        encoding: What the file says about them.
        span: Overrides all of this.

    Raises:
        InputError: No pixel has a value, or whole or float numbers of an image that is no sensor data are out of range.
    """
    if image.dtype == np.uint8 and span in (None, "full"):
        return Displayed(image, Scale(0.0, WHITE, "8 bits"), None, _doubts(image, WHITE, role))
    ranged = span == "auto" or (span is None and role.ranged and is_gray(image))
    invalid = find_invalid(image, isolated=ranged, no_data=None if encoding is None else encoding.no_data)
    valid = image if invalid is None else image[~invalid]
    if valid.size == 0:
        raise InputError("no pixel of the image has a value", "check the camera, or how the file was made")
    remarks: tuple[Remark, ...] = ()
    if isinstance(span, tuple):
        scale = Scale(float(span[0]), float(span[1]), "given")
    elif ranged:
        scale = Scale(*own_range(valid), "own range")
    else:
        scale, remarks = _full_scale(image.dtype, valid, encoding, guess=span is None)
        remarks += _doubts(valid, scale.high, role)
    if invalid is not None:
        remarks += (Remark("pixels without a value show the other source", int(np.count_nonzero(invalid))),)
    return Displayed(_scaled(image, scale, invalid), scale, invalid, remarks)


def to_display8(image: Array, role: Role, *, encoding: Encoding | None = None) -> Uint8Array:
    """An image as it is shown, rounded to uint8; arguments and errors as for ``to_display``."""
    return to_display(image, role, encoding=encoding).levels


def join_invalid(first: Mask | None, second: Mask | None) -> Mask | None:
    """(H, W), True where one of two masks is; None if both are None, which stands for a mask that is nowhere True."""
    if first is None or second is None:
        return second if first is None else first
    return first | second


def is_gray(image: Array) -> bool:
    """Tell whether an image, (H, W) or (H, W, 3), is gray: one channel, or three that are equal everywhere."""
    if image.ndim == 2:
        return True
    # A few rows tell almost every color image, at a fraction of the time.
    return all(bool((part[..., :1] == part[..., 1:]).all()) for part in (image[::_GRAY_ROWS], image))


def own_range(values: Array) -> tuple[float, float]:
    """Find the range of a scene: from its smallest to its largest value, without outliers.

    What counts as an outlier depends on its distance from the middle 90 % of the values and, smoothly, on how many there are,
    so that a few more hot pixels do not change the image.

    Args:
        values: Any shape, finite.

    Returns:
        The values that become black and white; equal if all values are.
    """
    values = without_saturation(values)
    low, high = float(values.min()), float(values.max())
    ordered = _in_order(_sample(values))
    body_low, body_high = (percentile(ordered, percent) for percent in _BODY)
    reach = _OUTLIER_WIDTHS * (body_high - body_low)
    if reach == 0 or (low >= body_low - reach and high <= body_high + reach):
        return low, high
    # Only the values beyond the body can be outliers. From either end, the first value that is none.
    below = ordered[: np.searchsorted(ordered, body_low) + 1].astype(np.float64)
    above = ordered[np.searchsorted(ordered, body_high, side="right") - 1 :][::-1].astype(np.float64)
    inner_low, inner_high = (
        tail[distance <= reach * (1 + _shares(tail.size, ordered.size) ** 3)][0]
        for tail, distance in ((below, body_low - below), (above, above - body_high))
    )
    extension = _EXTENSION * (inner_high - inner_low)
    if low < inner_low - extension:
        low = float(values[values >= inner_low - extension].min())
    if high > inner_high + extension:
        high = float(values[values <= inner_high + extension].max())
    return low, high


def without_saturation(values: Array) -> Array:
    """Values without those at the upper end of their type, if these are far above all others: they only say "at least"."""
    if values.dtype.kind == "f" or values.dtype == np.uint8:
        return values
    top = np.iinfo(values.dtype).max
    if values.max() < top:
        return values
    others = values[values < top]
    if not others.size:
        return values
    low, high = own_range(others)
    return others if top - high > _ISOLATION * (high - low) > 0 else values


def percentile(ordered: Array, percent: float) -> float:
    """A percentile of sorted values, as that of NumPy, whose function takes several times as long."""
    place = percent / 100 * (ordered.size - 1)
    below = int(place)
    low, high = (float(ordered[at]) for at in (below, min(below + 1, ordered.size - 1)))
    return low + (place - below) * (high - low)


def _shares(count: int, of: int) -> NDArray[np.float64]:
    """Share of the values that are as far out, in units of the usual one, for the outermost values in order."""
    return np.arange(1, count + 1) / of / _USUAL_SHARE


def find_invalid(image: Array, *, isolated: bool, no_data: float | None = None) -> Mask | None:
    """Find the pixels where a source has no value.

    These are NaN and infinities, the value that the file reserves, and, with ``isolated``, 0 and the ends of the data type
    where they are far from all other values: dead pixels and lines, and the border that a warp leaves. Pixels connected to
    these whose values lie between them and the scene are interpolated from both, and are invalid, too. Areas at the upper end
    that look like an object, such as a fire, are no gap: they are at least as hot.

    Args:
        image: (H, W) or (H, W, 3); a pixel is invalid if one of its channels is.
        isolated: Whether to look for such values.
        no_data: Reserved value, or None.

    Returns:
        (H, W), or None if every pixel has a value.
    """
    if image.dtype.kind != "f" and no_data is None and not isolated:
        return None
    invalid: Mask = np.zeros(image.shape, np.bool_)
    if image.dtype.kind == "f":
        np.logical_not(np.isfinite(image), out=invalid)
    if no_data is not None:
        np.logical_or(invalid, image == no_data, out=invalid)
    if isolated:
        _mark_isolated(image, invalid)
    if invalid.ndim == 3:
        invalid = np.any(invalid, axis=2)
    return invalid if invalid.any() else None


def _mark_isolated(image: Array, invalid: Mask) -> None:
    candidates = _present(image, invalid)
    if not candidates:
        return
    sample = _sample(image)
    others = sample[np.isfinite(sample)] if image.dtype.kind == "f" else sample
    for value in candidates:
        others = others[others != value]
    if others.size == 0:
        return
    ordered = _in_order(others)
    low, high = (percentile(ordered, percent) for percent in _VALID)
    gap = _ISOLATION * (high - low)
    if gap == 0:
        return
    apart = [value for value in candidates if value < low - gap or value > high + gap]
    if not apart:
        return
    flat, hot = np.zeros((2, *image.shape[:2]), np.bool_)
    for value in apart:
        plateau = _any_channel(image == value)
        if image.dtype.kind != "f" and value == np.iinfo(image.dtype).max:
            hot = _hot_areas(plateau)
            plateau &= ~hot
        flat |= plateau
    if not flat.any():
        return
    outside = _any_channel((image < low - gap) | (image > high + gap))
    if hot.any():
        outside &= ~_connected(outside & ~flat, hot)
    # Together with all that is connected to it: along the edge of a warp, pixels are made of both.
    missing = flat if np.array_equal(outside, flat) else _connected(outside | flat, flat)
    invalid |= missing if image.ndim == 2 else missing[..., None]


def _any_channel(mask: Mask) -> Mask:
    channels: Mask = mask if mask.ndim == 2 else np.logical_or.reduce(mask, axis=2)
    return channels


def _hot_areas(plateau: Mask) -> Mask:
    """Parts of a plateau at the upper end, (H, W), that are objects too hot for the sensor, such as a fire.

    They are thick, which lines and pixels that fail are not, and neither reach a corner, as the border of a warp does, nor
    from one side to the opposite one, as failing blocks of lines do.
    """
    thick = cv2.morphologyEx(plateau.astype(np.uint8), cv2.MORPH_OPEN, np.ones((_THICK_PX, _THICK_PX), np.uint8))
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(thick)
    height, width = plateau.shape
    corners = {int(labels[y, x]) for y in (0, -1) for x in (0, -1)}
    hot = np.array(
        [
            label != 0 and label not in corners and box[cv2.CC_STAT_WIDTH] < width and box[cv2.CC_STAT_HEIGHT] < height
            for label, box in zip(range(count), boxes, strict=True)
        ]
    )
    found: Mask = hot[labels]
    return found


def _connected(area: Mask, seeds: Mask) -> Mask:
    """The parts of an area, (H, W), that hold a seed."""
    count, labels = cv2.connectedComponents(area.astype(np.uint8))
    held = np.zeros(count, np.bool_)
    held[labels[seeds]] = True
    held[0] = False
    found: Mask = held[labels]
    return found


def _present(image: Array, invalid: Mask) -> list[float]:
    """The values of an image that sensors and warps write where they have none."""
    if image.dtype.kind != "f":
        limits = np.iinfo(image.dtype)
        ends = {0.0, float(limits.min), float(limits.max)} & {float(image.min()), float(image.max())}
        return sorted(ends | ({0.0} if limits.min < 0 and bool((image == 0).any()) else set()))
    valid = image[~invalid] if invalid.any() else image
    if valid.size == 0:
        return []
    found = [0.0] if bool((valid == 0).any()) else []
    least = float(valid.min())
    return [*found, least] if least < _ABSOLUTE_ZERO else found


def _full_scale(
    dtype: np.dtype[Any], valid: Array, encoding: Encoding | None, *, guess: bool
) -> tuple[Scale, tuple[Remark, ...]]:
    least, most = float(valid.min()), float(valid.max())
    if dtype.kind == "f":
        if least < -_FLOAT_MARGIN or most > 1 + _FLOAT_MARGIN:
            raise InputError(
                f"float pixel values range from {least:g} to {most:g}",
                "scale the image to [0, 1] first, or state its range with --a-range or --b-range",
                expected=(0.0, 1.0),
                got=(least, most),
            )
        return Scale(0.0, 1.0, "float"), ()
    if least < 0:
        raise InputError(
            f"pixel values range from {least:g} to {most:g}, and negative ones mean nothing in an image",
            "state the range with --a-range or --b-range",
            got=(least, most),
        )
    if encoding is not None and encoding.white_from != CONTAINER and most <= encoding.white:
        return Scale(0.0, encoding.white, f"{encoding.bits} bits, from {encoding.white_from}"), ()
    container = float(np.iinfo(dtype).max)
    if not guess:
        return Scale(0.0, container, f"{8 * dtype.itemsize} bits, the full scale"), ()
    bits = significant_bits(most)
    if bits >= 8 * dtype.itemsize:
        return Scale(0.0, container, f"{8 * dtype.itemsize} bits"), ()
    text = f"{bits} significant bits, judged by the largest value"
    return Scale(0.0, float((1 << bits) - 1), text), (Remark(text),)


def significant_bits(most: float) -> int:
    """The smallest usual bit depth that holds a value: 8, 10, 12, 14, 16, 20, 24 or 32."""
    return next(bits for bits in _DEPTHS if most < 1 << bits)


def _doubts(valid: Array, white: float, role: Role) -> tuple[Remark, ...]:
    if role.dark or role.ranged or valid.size == 0 or float(valid.max()) >= white * _LEAST_FILLING:
        return ()
    return (Remark("fills less than an eighth of its scale"),)


def _scaled(image: Array, scale: Scale, invalid: Mask | None) -> Array:
    if scale.high <= scale.low:
        return np.zeros(image.shape, np.float32)
    factor = WHITE / (scale.high - scale.low)
    if image.dtype.itemsize > 2 and image.dtype != np.float32:
        # Beyond the 24 bits of float32, the difference has to be taken first.
        shown = ((image.astype(np.float64) - scale.low) * factor).astype(np.float32)
    else:
        shown = (image.astype(np.float32) - np.float32(scale.low)) * np.float32(factor)
    if invalid is not None:
        shown[invalid] = 0
    return shown.clip(0.0, WHITE, out=shown)


def _in_order(values: Array) -> Array:
    """The values, sorted."""
    # For up to 16 bits, NumPy's stable sort is by digits, and several times as fast as its default.
    return np.sort(values, kind="stable" if values.dtype.itemsize <= 2 and values.dtype.kind in "iu" else None)


def _sample(values: Array) -> Array:
    """A regular sample of pixels, flat."""
    flat = values.reshape(-1)
    # An odd step meets every column.
    return flat[:: max(1, flat.size // _SAMPLED_PIXELS) | 1]
