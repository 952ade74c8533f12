"""Canvas with one plane per sensor; every shape is painted into all of them, so a pair is always registered.

A scene is painted larger than its final size and averaged down, which smooths its edges. Shapes are rasterized here because
the drawing functions of OpenCV place edges differently from version to version.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

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
Window = tuple[slice, slice]
# One entry per letter: strokes, each a run of x-y digit pairs on a grid of 5 columns and 7 rows.
GLYPHS = """
A=062046,1434 B=060030414233,033344453606 C=4130100105163645 D=06003041453606 E=40000646,0333 F=400006,0333
G=41301001051636454323 H=0006,4046,0343 I=2026,1030,1636 J=4045361605 K=0006,400346 L=000646 M=0600234046 N=06004640
O=103041453616050110 P=06003041423303 Q=103041453616050110,2446 R=06003041423303,2346 S=413010010213334445361605
T=0040,2026 U=000516364540 V=002640 W=0016233640 X=0046,4006 Y=002340,2326 Z=00400646 0=103041453616050110
1=112026,1636 2=01103041420646 3=01103041423313,334445361605 4=36300444 5=400003334445361605 6=4130100105163645443303
7=004016 8=103041423313020110,1304051636454433 9=0516364541301001021343
"""
STROKES = dict(entry.split("=") for entry in GLYPHS.split())


class Camera(NamedTuple):
    """Pinhole camera that looks straight ahead: focal length and vanishing point in pixels, height in meters."""

    focal: float
    column: float
    row: float
    height: float


FLAT = Camera(1.0, 0.0, 0.0, 0.0)


class Canvas:
    """Supersampled planes: color (rows x columns x 3), heat, glow and depth; columns and rows of all pixels are u and v."""

    FAR = 1000.0
    """Depth where nothing is painted."""

    def __init__(self, width: float, height: float, scale: int, camera: Camera = FLAT) -> None:
        self.shape = shape = (round(height * scale), round(width * scale))
        self.scale, self.camera = scale, camera
        self.planes: Image = np.zeros((*shape, 6), np.float32)
        self.color, self.heat, self.glow, self.depth = (self.planes[..., k] for k in (slice(3), 3, 4, 5))
        self.depth[:] = self.FAR
        self.v, self.u = ((np.indices(shape) + 0.5) / scale).astype(np.float32)

    def world(self) -> tuple[Image, Image, Image]:
        """Meters right, up and ahead of every painted pixel."""
        reach = self.depth / self.camera.focal
        return (self.u - self.camera.column) * reach, self.camera.height - (self.v - self.camera.row) * reach, self.depth

    def fill(self, points: Points, paint: Paint | None, ramp: Pair = (1, 1), axis: int = 1, grain: ArrayLike = 1) -> None:
        """Fill a polygon, or the rectangle between two corners; without paint, only shade what is already there.

        A ramp holds factors on the color, from left to right (axis 0) or down (axis 1); a grain holds one for each pixel.
        """
        spots, _, depth = self._outline(points)
        window, mask = self._lay(spots, paint, depth)
        along = (self.u, self.v)[axis][window][mask] * self.scale
        gain = np.interp(along, (spots[:, axis].min(), spots[:, axis].max()), ramp)
        gain *= np.broadcast_to(np.asarray(grain, np.float32), self.shape)[window][mask]
        self.color[window][mask] *= gain[:, None].astype(np.float32)

    def oval(self, center: Point, radii: Pair, paint: Paint, angle: float = 0.0) -> None:
        """Fill an ellipse that faces the camera."""
        self.fill(ellipse(center, radii, angle), paint)

    def limb(self, start: Point, end: Point, radii: Pair, paint: Paint) -> None:
        """Fill the area swept by a disc that changes its radius on the way."""
        spots, gains, depth = self._place([start, end])
        sizes = np.maximum(np.multiply(radii, gains), 0.5).tolist()
        discs = [spot for center, size in zip(spots, sizes, strict=True) for spot in ellipse(center, (size, size))]
        self._lay(cv2.convexHull(np.asarray(discs, np.float32))[:, 0].astype(np.float64), paint, depth)

    def stroke(self, points: Points, width: float, paint: Paint) -> None:
        """Draw a line with round joints."""
        for start, end in pairwise(points):
            self.limb(start, end, (width / 2, width / 2), paint)

    def text(self, words: str, center: Point, height: float, paint: Paint, down: bool = False) -> None:
        """Write capital letters and digits around a point; in front of a camera, they face it."""
        axes = np.asarray(((1, 0, 0), (0, -1, 0)) if len(center) == 3 else ((0, 1), (-1, 0)) if down else ((1, 0), (0, 1)))
        for index, letter in enumerate(words):
            for run in STROKES.get(letter, "").split(","):
                grid = np.asarray([int(digit) for digit in run], np.float64).reshape(-1, 2)
                grid += (5.6 * index - 2.8 * len(words) + 0.8, -3.0)
                self.stroke([tuple(p) for p in np.asarray(center) + height / 6 * grid @ axes], 0.17 * height, paint)

    @staticmethod
    def text_width(words: str, height: float) -> float:
        """Width of a line of text."""
        return (5.6 * len(words) - 1.6) * height / 6

    def shade(self, points: Points, gain: float, softness: float, heat: float = 0.0) -> None:
        """Darken a polygon with a soft edge, and warm it."""
        spots, gains, _ = self._outline(points)
        sigma = softness * float(gains[0])
        window = self._window(spots, 3.0 * sigma + 2.0)
        mask = _inside(spots, window).astype(np.float32)
        if mask.size:
            mask = blur(mask, sigma)
            self.color[window] *= 1.0 + (gain - 1.0) * mask[..., None]
            self.heat[window] += heat * mask

    def paste(self, corners: Points, texture: "Canvas") -> None:
        """Paint a flat canvas in perspective; corners are clockwise from the upper left one, or two opposite ones."""
        spots, gains, _ = self._outline(corners)
        rows, columns = texture.shape
        flat = np.asarray([(0, 0), (columns, 0), (columns, rows), (0, rows)], np.float32)
        matrix = np.asarray(cv2.getPerspectiveTransform(spots.astype(np.float32), flat), np.float64)
        window = self._window(spots, 1.0)
        x, y = self.u[window].astype(np.float64) * self.scale, self.v[window].astype(np.float64) * self.scale
        across, down, share = (a * x + b * y + c for a, b, c in matrix)
        across, down = np.floor(across / share), np.floor(down / share)
        inside = (across >= 0) & (across < columns) & (down >= 0) & (down < rows)
        self.planes[window][inside] = texture.planes[down[inside].astype(int), across[inside].astype(int)]
        # On the screen of a camera, the reciprocal of depth is linear over a plane.
        slope = np.linalg.lstsq(np.insert(spots, 2, 1.0, axis=1), gains, rcond=None)[0]
        self.depth[window][inside] = self.camera.focal * self.scale / (slope[0] * x + slope[1] * y + slope[2])[inside]

    def _place(self, points: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
        """Painted pixels where points are, painted pixels per unit there, and the smallest depth."""
        spots = np.asarray(points, np.float64)
        if spots.shape[1] == 2:
            return spots * self.scale, np.full(len(spots), float(self.scale)), 1.0
        gains = self.camera.focal / spots[:, 2]
        column, row = self.camera.column + gains * spots[:, 0], self.camera.row + gains * (self.camera.height - spots[:, 1])
        return np.stack([column, row], axis=1) * self.scale, gains * self.scale, float(spots[:, 2].min())

    def _window(self, spots: NDArray[np.float64], margin: float) -> Window:
        left, top = np.clip(np.floor(spots.min(axis=0) - margin), 0, self.shape[::-1]).astype(int).tolist()
        right, bottom = np.clip(np.ceil(spots.max(axis=0) + margin), 0, self.shape[::-1]).astype(int).tolist()
        return slice(top, bottom), slice(left, right)

    def _outline(self, points: Points) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
        if len(points) == 2:
            (left, top, *ahead), (right, bottom, *_) = points
            points = [(left, top, *ahead), (right, top, *ahead), (right, bottom, *ahead), (left, bottom, *ahead)]
        return self._place(points)

    def _lay(self, spots: NDArray[np.float64], paint: Paint | None, depth: float) -> tuple[Window, NDArray[np.bool_]]:
        window = self._window(spots, 1.0)
        mask = _inside(spots, window)
        if paint is not None:
            self.planes[window][mask] = (*paint, *(15.0, 0.0)[len(paint) - 3 :], depth)
        return window, mask


def _inside(spots: NDArray[np.float64], window: Window) -> NDArray[np.bool_]:
    """Which pixels of a window have their center in a polygon, by the even-odd rule."""
    y, x = (np.arange(side.start, side.stop) + 0.5 for side in window)
    start_x, start_y = spots.T[..., None]
    end_x, end_y = np.roll(spots, -1, axis=0).T[..., None]
    crossed = (start_y <= y) != (end_y <= y)
    edge = start_x + (y - start_y) * (end_x - start_x) / np.where(end_y == start_y, 1.0, end_y - start_y)
    return np.asarray(np.logical_xor.reduce(crossed[..., None] & (edge[..., None] <= x), axis=0), np.bool_)


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
    """Sum random lattices to a texture from 0 to 1: cells of so many pixels (or width and height), halved with each octave."""
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
