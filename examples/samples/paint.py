"""Paints, points, outlines and textures."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Image = NDArray[np.float32]
Uint8Image = NDArray[np.uint8]
Pair = tuple[float, float]
Point = tuple[float, ...]
"""Column and row on a flat canvas, or meters right, up and ahead in front of a camera."""
Points = Sequence[Point]
Paint = tuple[float, ...]
"""Red, green and blue; then, where they matter, degrees Celsius (else 15) and how much of the color glows (else 0)."""


def rectangle(corner: Point, opposite: Point) -> list[Point]:
    """Corners of an upright rectangle, clockwise from the given one."""
    return [corner, (opposite[0], *corner[1:]), opposite, (corner[0], *opposite[1:])]


def ellipse(center: Point, radii: Pair, angle: float = 0.0) -> list[Point]:
    """Outline of an ellipse."""
    turn = np.linspace(0.0, 2.0 * np.pi, 24, endpoint=False)
    x, y = radii[0] * np.cos(turn), radii[1] * np.sin(turn)
    across, down = np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y
    return [(center[0] + a, center[1] + d, *center[2:]) for a, d in zip(across.tolist(), down.tolist(), strict=True)]


def mix(first: ArrayLike, second: ArrayLike, share: float) -> Paint:
    """Blend two paints, or find a point between two."""
    return tuple((np.asarray(first) * (1.0 - share) + np.asarray(second) * share).tolist())


def tone(paint: Paint, gain: float, *rest: float) -> Paint:
    """Scale the color of a paint; its heat and glow can be replaced."""
    return (*(gain * part for part in paint[:3]), *(rest or paint[3:]))


def blur(image: Image, sigma: float) -> Image:
    """Blur with a Gaussian."""
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE), np.float32)


def noise(rng: np.random.Generator, shape: tuple[int, int], cell: float | Pair, octaves: int = 4, gain: float = 0.5) -> Image:
    """Sum smooth random lattices to a texture between 0 and 1.

    Cells of the coarsest have a size in pixels (a pair: width and height); each further one is half as coarse and weaker.
    """
    total: Image = np.zeros(shape, np.float32)
    for octave in range(octaves):
        across, down = np.maximum(np.broadcast_to(cell, 2) / 2**octave, 1.0)
        lattice = rng.random((int(shape[0] / down) + 3, int(shape[1] / across) + 3), np.float32)
        size = (max(shape[1], round(lattice.shape[1] * across)), max(shape[0], round(lattice.shape[0] * down)))
        smooth = cv2.resize(lattice, size, interpolation=cv2.INTER_CUBIC)
        total += gain**octave * np.asarray(smooth, np.float32)[: shape[0], : shape[1]]
    return np.asarray((total - total.min()) / np.ptp(total), np.float32)


def reduce(image: NDArray[np.floating], scale: int) -> Image:
    """Average painted pixels to final pixels."""
    size = (image.shape[1] // scale, image.shape[0] // scale)
    return np.asarray(cv2.resize(image.astype(np.float32), size, interpolation=cv2.INTER_AREA), np.float32)


def quantize(image: NDArray[np.floating]) -> Uint8Image:
    """Round 0 to 1 to 8 bits."""
    return np.asarray(np.round(np.clip(image, 0.0, 1.0) * 255.0), np.uint8)
