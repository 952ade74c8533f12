"""What a synthetic camera looks at: a rendered street at night with people who walk, or a random texture with a hot figure.

A scene consists of a ground, which is wider than the view and repeats without a seam, and of figures that move over it. Both
cameras get the same geometry.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from refusion_edge.arrays import Array, Float32Array, Uint8Array
from refusion_edge.images.io import read_image
from refusion_edge.images.samples import FOLDER
from refusion_edge.stream.frames import Side

MARGIN = 64
"""Maximum vertical shift of a camera, and the height of the ground above and below the view."""
COLD_COUNTS, HOT_COUNTS = 21_000.0, 2_500.0
"""Counts of the infrared camera for the coldest part of a scene, and how many more there are for the hottest."""
_TEXTURE_COUNTS = 600.0
# Twice as many pixels in each direction, for the widths of thin limbs; positions are in sixteenths of those.
_FINE = 2


class Scenery(Protocol):
    """A scene as one of the cameras sees it.

    Attributes:
        ground: (H + 2 MARGIN, 2 W) uint16, infrared counts; or (H + 2 MARGIN, 2 W, 3) BGR uint8. It repeats in x.
    """

    ground: Array

    def draw(self, image: Array, seconds: float, speed: float, shift: tuple[float, float]) -> None:
        """Draw the figures into a view of the ground.

        Args:
            image: (H, W) uint16 counts, or (H, W, 3) BGR uint8.
            seconds: Time of the scene.
            speed: Speed of the nearest figure, in pixels per second.
            shift: Shift of the camera to the right and down, in pixels.
        """


class Texture:
    """A random texture, which every part of both cameras shares, and a hot figure. Implements ``Scenery``.

    Args:
        side: The camera.
        size_wh: Width and height of its image.
        seed: Seed of the texture.
    """

    def __init__(self, side: Side, size_wh: tuple[int, int], seed: int) -> None:
        self._side, self._size_wh = side, size_wh
        draw = np.random.default_rng(seed)
        shape = (size_wh[1] + 2 * MARGIN, 2 * size_wh[0])
        broad, fine = _smooth(draw, shape, 24.0), _smooth(draw, shape, 2.0)
        if side == "ir":
            self.ground: Array = (COLD_COUNTS + _TEXTURE_COUNTS * (0.8 * broad + 0.2 * fine)).astype(np.uint16)
        else:
            self.ground = ((40.0 + 150.0 * (0.3 * broad + 0.7 * fine))[..., None] * np.array([0.9, 1.0, 0.8])).astype(np.uint8)

    def draw(self, image: Array, seconds: float, speed: float, shift: tuple[float, float]) -> None:
        """Draw a warm body with a hotter head, which crosses the view and then stays away for as long."""
        width, height = self._size_wh
        size = max(2, height // 10)
        x = speed * seconds % (2 * width + 4 * size) - 2 * size + shift[0]
        y = height * 0.6 + shift[1]
        body: tuple[float, ...] = (COLD_COUNTS + 0.7 * HOT_COUNTS,) if self._side == "ir" else (60, 50, 45)
        head: tuple[float, ...] = (COLD_COUNTS + HOT_COUNTS,) if self._side == "ir" else (90, 110, 140)
        # Sub-pixel positions, in sixteenths.
        at = (round(x * 16), round(y * 16))
        cv2.ellipse(image, at, (size * 8, size * 24), 0.0, 0.0, 360.0, body, -1, cv2.LINE_8, 4)
        cv2.circle(image, (at[0], at[1] - size * 28), size * 8, head, -1, cv2.LINE_8, 4)


@dataclass(frozen=True, slots=True)
class Walker:
    """Somebody who paces back and forth on the street; places are shares of the view.

    Attributes:
        feet: Height of the ground under the feet, from the top.
        left: Where the way begins.
        right: Where it ends.
        start: Where on the way the person is at the beginning.
        coat: Blue, green and red of the coat, as lit.
    """

    feet: float
    left: float
    right: float
    start: float
    coat: tuple[int, int, int]


# From far to near. The first passes behind the car, the second comes out of the dark of the park.
WALKERS = (
    Walker(0.575, 0.56, 0.96, 0.3, (38, 42, 52)),
    Walker(0.64, 0.10, 0.40, 0.2, (46, 54, 118)),
    Walker(0.68, 0.45, 1.08, 0.8, (26, 22, 20)),
    Walker(0.80, -0.12, 1.12, 0.15, (46, 36, 26)),
)
# The horizon, and the height of a person relative to the height of the camera above the street.
_HORIZON, _STATURE = 0.444, 0.875
# Infrared: shares of the hottest part of the scene. Visible: blue, green and red by the light of the street.
_SKIN, _TROUSERS, _SHOES, _HAIR = (50, 64, 92), (26, 24, 22), (12, 12, 13), (14, 17, 21)
_WARM_SKIN, _WARM_COAT, _WARM_TROUSERS, _WARM_SHOES, _WARM_HAIR = 1.0, 0.76, 0.72, 0.55, 0.82
_STEPS_PER_HEIGHT = 1.1


class Street:
    """The rendered street of the samples, at night, with people who are hard to see in the dark. Implements ``Scenery``.

    Args:
        side: The camera.
        size_wh: Width and height of its image.
    """

    def __init__(self, side: Side, size_wh: tuple[int, int]) -> None:
        self._side, self._size_wh = side, size_wh
        view = _fit(read_image(FOLDER / "scene" / f"{side}.jpg"), size_wh)
        if side == "ir":
            view = (COLD_COUNTS + view.astype(np.float32) * (HOT_COUNTS / 255)).astype(np.uint16)
        else:
            view = np.ascontiguousarray(view[..., ::-1])
        # Mirrored on the right, so that a panning camera sees no seam.
        wide = np.concatenate([view, view[:, ::-1]], axis=1)
        self.ground: Array = cv2.copyMakeBorder(wide, MARGIN, MARGIN, 0, 0, cv2.BORDER_REFLECT)

    def draw(self, image: Array, seconds: float, speed: float, shift: tuple[float, float]) -> None:
        """Draw people who pace back and forth."""
        nearest = WALKERS[-1].feet - _HORIZON
        for walker in WALKERS:
            width, height = self._size_wh
            # What is farther away moves by fewer pixels.
            moved = walker.start * (walker.right - walker.left) + speed * seconds / width * (walker.feet - _HORIZON) / nearest
            turn, along = divmod(moved, walker.right - walker.left)
            x = walker.left + along if turn % 2 == 0 else walker.right - along
            tall = max(2.0, (walker.feet - _HORIZON) * _STATURE * height)
            feet = (x * width + shift[0], walker.feet * height + shift[1])
            phase = 2 * np.pi * moved * width / (tall * _STEPS_PER_HEIGHT)
            self._draw_person(image, walker, feet, tall, float(phase), 1 if turn % 2 == 0 else -1)

    def _draw_person(
        self, image: Array, walker: Walker, feet: tuple[float, float], tall: float, phase: float, facing: int
    ) -> None:
        half, above, below = round(0.36 * tall) + 2, round(1.06 * tall) + 2, round(0.04 * tall) + 2
        left, top = int(np.floor(feet[0])) - half, int(np.floor(feet[1])) - above
        shape = ((above + below) * _FINE, 2 * half * _FINE)
        canvas, mask = np.zeros((*shape, *image.shape[2:]), np.uint8), np.zeros(shape, np.uint8)

        def spot(x: float, up: float) -> tuple[int, int]:
            """A point of the body in the enlarged patch, from shares of its height."""
            return round((feet[0] - left + x * tall) * _FINE * 16), round((feet[1] - top - up * tall) * _FINE * 16)

        def limb(points: list[tuple[float, float]], wide: float, warmth: float, color: tuple[int, int, int]) -> None:
            paint = (warmth * 255,) if self._side == "ir" else color
            line = np.array([spot(*point) for point in points], np.int32)
            thickness = max(1, round(wide * tall * _FINE))
            cv2.polylines(canvas, [line], isClosed=False, color=paint, thickness=thickness, lineType=cv2.LINE_AA, shift=4)
            cv2.polylines(mask, [line], isClosed=False, color=255, thickness=thickness, lineType=cv2.LINE_AA, shift=4)

        swing = float(np.sin(phase))
        for side in (-1, 1):
            step, arm = 0.16 * side * swing, -0.13 * side * swing
            lift = 0.03 * max(0.0, float(np.cos(phase)) * side)
            knee = (0.6 * step + 0.025 * facing, 0.26 + lift)
            limb([(0.0, 0.50), knee, (step, 0.04 + lift)], 0.085, _WARM_TROUSERS, _TROUSERS)
            limb([(step, 0.02 + lift), (step + 0.06 * facing, 0.02 + lift)], 0.04, _WARM_SHOES, _SHOES)
            limb([(0.0, 0.80), (0.7 * arm - 0.02 * facing, 0.63), (arm + 0.02 * facing, 0.50)], 0.06, _WARM_COAT, walker.coat)
            limb([(arm + 0.02 * facing, 0.49), (arm + 0.025 * facing, 0.47)], 0.05, _WARM_SKIN, _SKIN)
        limb([(0.0, 0.78), (0.0, 0.55)], 0.19, _WARM_COAT, walker.coat)
        limb([(0.0, 0.88), (0.0, 0.93)], 0.115, _WARM_SKIN, _SKIN)
        limb([(-0.012 * facing, 0.965), (-0.012 * facing, 0.97)], 0.10, _WARM_HAIR, _HAIR)
        self._blend(image, canvas, mask, (left, top))

    def _blend(self, image: Array, canvas: Uint8Array, mask: Uint8Array, corner: tuple[int, int]) -> None:
        """Lay an enlarged patch, black where the mask is 0, over the image."""
        (left, top), (height, width) = corner, image.shape[:2]
        size = (mask.shape[1] // _FINE, mask.shape[0] // _FINE)
        x0, x1, y0, y1 = max(0, left), min(width, left + size[0]), max(0, top), min(height, top + size[1])
        if x0 >= x1 or y0 >= y1:
            return
        inside = slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)
        share = (cv2.resize(mask, size, interpolation=cv2.INTER_AREA)[inside] / 255).astype(np.float32)
        patch = cv2.resize(canvas, size, interpolation=cv2.INTER_AREA)[inside].astype(np.float32)
        if self._side == "ir":
            patch = COLD_COUNTS * share + patch * (HOT_COUNTS / 255)
        else:
            share = share[..., None]
        image[y0:y1, x0:x1] = np.rint(image[y0:y1, x0:x1] * (1 - share) + patch)


def _fit(image: Array, size_wh: tuple[int, int]) -> Array:
    """Scale an image so that it covers a size, and cut off what is beyond: on both sides, or below."""
    width, height = size_wh
    scale = max(width / image.shape[1], height / image.shape[0])
    whole = max(width, round(image.shape[1] * scale)), max(height, round(image.shape[0] * scale))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    scaled = cv2.resize(image, whole, interpolation=how)
    left = (whole[0] - width) // 2
    return scaled[:height, left : left + width]


def _smooth(draw: np.random.Generator, shape: tuple[int, int], sigma: float) -> Float32Array:
    plane = draw.standard_normal(shape).astype(np.float32)
    # Blurred with wraparound, so that it repeats without a seam.
    margin = int(4 * sigma)
    wrapped = cv2.GaussianBlur(np.pad(plane, ((0, 0), (margin, margin)), mode="wrap"), (0, 0), sigma)[:, margin:-margin]
    low, high = float(wrapped.min()), float(wrapped.max())
    return np.asarray((wrapped - low) / (high - low), np.float32)
