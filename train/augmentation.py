"""What happens to a crop before training: defocus, which makes a multi-focus pair of a sharp image, tone curves, and shifts.

All draw from the generator of the crop, so that a crop can be repeated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from refusion_edge.arrays import Array, Float32Array, Uint8Array

# Radii of the blur disc in pixels: smaller ones are invisible; with a maximum of 5, stronger blur was averaged away.
_LEAST_RADIUS_PX, _LARGEST_RADIUS_PX = 1.5, 9.0
# Cells of the noise that shapes the mask, along a side: a few objects, not texture.
_CELLS = (2, 5)
# Lamps: how many, their radius in pixels and as a share of the shorter side, their largest ratio of axes, and their light in
# units of full scale, which clips the middle and fades outwards.
_LAMPS, _LEAST_LAMP_PX, _LARGEST_LAMP_SHARE, _LAMP_AXES, _LAMP_LIGHT = (1, 4), 4.0, 0.3, 2.0, (1.2, 5.0)
# Width of the transition at an object's edge, as the standard deviation of a Gaussian.
_EDGE_PX = 1.5


@dataclass(frozen=True, slots=True)
class ToneSettings:
    """Random tone curves of crops.

    The fusion loss is made of the sources as the network sees them, so any curve leaves it valid; curves teach what a
    few hundred images never show, such as a nearly black visible image.

    Attributes:
        share: Share of the crops that are transformed, [0, 1].
        gamma: Largest exponent; drawn uniformly on a logarithmic scale between its reciprocal and itself.
        least_gain: Smallest factor, (0, 1]; drawn uniformly between it and 1.
        alike: Whether both sources of a pair share one curve, because their levels are related.
        glare: Share of the crops in which lamps shine into source b and clip it, [0, 1].
    """

    share: float
    gamma: float
    least_gain: float
    alike: bool
    glare: float = 0.0


@dataclass(frozen=True, slots=True)
class ShiftSettings:
    """Random shifts of source a, as of a camera that is not quite aligned.

    The network sees the shifted source; what its result is compared with stays aligned, in the view of source b.

    Attributes:
        share: Share of the crops that are shifted, [0, 1].
        most_px: Largest shift along each axis, in whole pixels.
    """

    share: float = 0.0
    most_px: int = 2


def defocused_pair(sharp: Array, draw: np.random.Generator) -> tuple[Uint8Array, Uint8Array]:
    """Blur complementary parts of a sharp image.

    Args:
        sharp: All in focus, (H, W) uint8.
        draw: Random generator for the mask and the radius of the blur.

    Returns:
        Near and far: the first is sharp where a random mask is set and blurred by a disc elsewhere, the second
        vice versa. Each (H, W) uint8. Away from the edge of the mask, one of the two equals the image at every pixel.
    """
    plane = np.ascontiguousarray(sharp, dtype=np.float32)
    blurred = cv2.filter2D(plane, -1, _disc(draw.uniform(_LEAST_RADIUS_PX, _LARGEST_RADIUS_PX)), borderType=cv2.BORDER_REFLECT)
    mask = _mask(plane.shape[0], plane.shape[1], draw)
    near, far = mask * plane + (1 - mask) * blurred, (1 - mask) * plane + mask * blurred
    return np.rint(near).astype(np.uint8), np.rint(far).astype(np.uint8)


def toned(a: Array, b: Array, tone: ToneSettings, draw: np.random.Generator) -> tuple[Float32Array, Float32Array]:
    """Scale two crops to [0, 1], some of them through curves ``gain * x ** exponent``, some with lamps shining into the second.

    Args:
        a: Source a, (H, W) uint8.
        b: Source b, same shape.
        tone: Settings of the curves.
        draw: Random generator for the curves and the lamps.

    Returns:
        Both crops, (H, W) float32, [0, 1].
    """
    plane_a, plane_b = a.astype(np.float32) / np.float32(255), b.astype(np.float32) / np.float32(255)
    if draw.random() < tone.share:
        curve_a = _curve(tone, draw)
        curve_b = curve_a if tone.alike else _curve(tone, draw)
        plane_a, plane_b = _apply(plane_a, curve_a), _apply(plane_b, curve_b)
    if tone.glare and draw.random() < tone.glare:
        plane_b = np.minimum(plane_b + _glare(plane_b.shape, draw), np.float32(1))
    return plane_a, plane_b


def shifted(y: int, x: int, most_yx: tuple[int, int], shift: ShiftSettings, draw: np.random.Generator) -> tuple[int, int]:
    """Where the crop of source a begins if it is shifted at random: a shift by whole pixels adds no blur.

    Args:
        y: First row of the crop of source b.
        x: Its first column.
        most_yx: Largest first row and column, so that a shift that leaves the image is shortened.
        shift: Settings of the shifts.
        draw: Random generator for the shift.

    Returns:
        First row and column.
    """
    if not shift.share or draw.random() >= shift.share:
        return y, x
    offset_y, offset_x = (int(offset) for offset in draw.integers(-shift.most_px, shift.most_px, 2, endpoint=True))
    return min(max(y + offset_y, 0), most_yx[0]), min(max(x + offset_x, 0), most_yx[1])


def _disc(radius_px: float) -> Float32Array:
    """Point spread function of a defocused lens: a disc, its edge pixels weighted by their covered share; sums to 1."""
    reach = int(np.ceil(radius_px))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    covered = np.clip(radius_px + 0.5 - np.hypot(x, y), 0, 1)
    disc: Float32Array = (covered / covered.sum()).astype(np.float32)
    return disc


def _mask(height: int, width: int, draw: np.random.Generator) -> Float32Array:
    cells = int(draw.integers(*_CELLS, endpoint=True))
    noise = draw.random((cells, cells), dtype=np.float32)
    relief = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    # Split at the median, so that each source is sharp on one half of the crop.
    mask = (relief > np.median(relief)).astype(np.float32)
    softened: Float32Array = cv2.GaussianBlur(mask, (0, 0), _EDGE_PX).astype(np.float32)
    return softened


def _glare(shape: tuple[int, ...], draw: np.random.Generator) -> Float32Array:
    """Light of a few lamps, (H, W), at least 0: Gaussian spots, elongated in a random direction."""
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    light = np.zeros(shape, np.float32)
    largest = max(_LEAST_LAMP_PX, _LARGEST_LAMP_SHARE * min(shape))
    for _ in range(int(draw.integers(*_LAMPS, endpoint=True))):
        center_y, center_x = draw.uniform(0, shape[0]), draw.uniform(0, shape[1])
        radius = math.exp(draw.uniform(math.log(_LEAST_LAMP_PX), math.log(largest)))
        axes, turn = math.exp(draw.uniform(0, math.log(_LAMP_AXES))), draw.uniform(0, math.pi)
        along = (x - center_x) * math.cos(turn) + (y - center_y) * math.sin(turn)
        across = (y - center_y) * math.cos(turn) - (x - center_x) * math.sin(turn)
        squared = np.square(along / (radius * axes)) + np.square(across / radius)
        light += np.float32(draw.uniform(*_LAMP_LIGHT)) * np.exp(-squared)
    return light


def _curve(tone: ToneSettings, draw: np.random.Generator) -> tuple[float, float]:
    reach = math.log(tone.gamma)
    return math.exp(draw.uniform(-reach, reach)), draw.uniform(tone.least_gain, 1)


def _apply(plane: Float32Array, curve: tuple[float, float]) -> Float32Array:
    exponent, gain = np.float32(curve[0]), np.float32(curve[1])
    result: Float32Array = gain * plane**exponent
    return result
