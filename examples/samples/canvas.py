"""Multi-plane canvas: every shape is drawn once into all sensor planes.

A scene is painted at a multiple of its final size and averaged down at the end, which
gives antialiasing. Shapes are rasterised here because the drawing functions of OpenCV
place edges differently from version to version. Painting colour, heat, emission and
depth together keeps a pair registered.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from samples.lettering import letter_strokes

Image = NDArray[np.float32]
Picture = NDArray[np.uint8]
Point = tuple[float, float]
Colour = tuple[float, float, float]

FAR = 1000.0
OVAL_CORNERS = 28


@dataclass(frozen=True)
class Surface:
    """What a shape looks like to each sensor.

    Attributes:
        colour: Red, green and blue reflectance.
        heat: Apparent temperature in degrees Celsius.
        emission: Share of the colour that glows by itself.
    """

    colour: Colour
    heat: float = 15.0
    emission: float = 0.0


@dataclass(frozen=True)
class Camera:
    """Pinhole camera looking along +z with a level horizon; world units are metres.

    Attributes:
        focal: Focal length in final pixels.
        centre: Column of the vanishing point.
        horizon: Row of the horizon.
        height: Height of the camera above the ground.
    """

    focal: float
    centre: float
    horizon: float
    height: float

    def project(self, x: float, y: float, z: float) -> Point:
        """Project a world point to final pixel coordinates.

        Args:
            x: Metres to the right of the camera.
            y: Metres above the ground.
            z: Metres in front of the camera.

        Returns:
            Column and row.
        """
        gain = self.focal / z
        return self.centre + gain * x, self.horizon + gain * (self.height - y)


class Canvas:
    """Supersampled picture with colour, heat, emission and depth planes.

    Attributes:
        scale: Painted pixels per unit of the coordinates.
        distance: Depth that the next shapes are painted at.
        colour: Reflectance, rows x columns x 3.
        heat: Temperature.
        emission: Share of the colour that glows.
        depth: Distance from the camera; `FAR` where nothing was painted.
    """

    def __init__(self, width: float, height: float, scale: int) -> None:
        """Create an empty canvas.

        Args:
            width: Width in units.
            height: Height in units.
            scale: Painted pixels per unit.
        """
        shape = (round(height * scale), round(width * scale))
        self.scale = scale
        self.distance = FAR
        self.colour: Image = np.zeros((*shape, 3), np.float32)
        self.heat: Image = np.zeros(shape, np.float32)
        self.emission: Image = np.zeros(shape, np.float32)
        self.depth: Image = np.full(shape, FAR, np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the painted planes."""
        rows, columns = self.heat.shape
        return rows, columns

    def grid(self) -> tuple[Image, Image]:
        """Column and row coordinate, in units, of every painted pixel."""
        rows, columns = self.shape
        across = np.asarray((np.arange(columns) + 0.5) / self.scale, np.float32)
        down = np.asarray((np.arange(rows) + 0.5) / self.scale, np.float32)
        shape = self.shape
        return (
            np.broadcast_to(across, shape),
            np.broadcast_to(down[:, None], shape),
        )

    def fill(self, points: Sequence[Point], surface: Surface) -> None:
        """Paint an opaque polygon.

        Args:
            points: Corners.
            surface: Paint.
        """
        corners = np.asarray(points, np.float64) * self.scale
        rows, columns = self._frame(corners, 1.0)
        self._paint(rows, columns, inside_polygon(corners, rows, columns), surface)

    def box(self, corner: Point, opposite: Point, surface: Surface) -> None:
        """Paint an upright rectangle.

        Args:
            corner: One corner.
            opposite: The opposite corner.
            surface: Paint.
        """
        self.fill(box_points(corner, opposite), surface)

    def oval(self, centre: Point, radii: Point, surface: Surface, angle: float = 0.0) -> None:
        """Paint an ellipse.

        Args:
            centre: Centre.
            radii: Half axes.
            surface: Paint.
            angle: Rotation in radians.
        """
        self.fill(oval_points(centre, radii, angle), surface)

    def capsule(self, start: Point, end: Point, radii: Point, surface: Surface) -> None:
        """Paint a limb: a disc that moves and changes its radius on the way.

        Args:
            start: Centre of the first disc.
            end: Centre of the second disc.
            radii: Radius at the start and at the end.
            surface: Paint.
        """
        ends = np.asarray((start, end), np.float64) * self.scale
        sizes = np.asarray(radii, np.float64) * self.scale
        rows, columns = self._frame(ends, float(sizes.max()) + 1.0)
        y, x = np.ogrid[rows, columns]
        across, down = x + 0.5 - ends[0, 0], y + 0.5 - ends[0, 1]
        step_x, step_y = ends[1] - ends[0]
        length = max(step_x**2 + step_y**2, 1e-9)
        share = np.clip((across * step_x + down * step_y) / length, 0.0, 1.0)
        gap = (across - share * step_x) ** 2 + (down - share * step_y) ** 2
        radius = sizes[0] + (sizes[1] - sizes[0]) * share
        self._paint(rows, columns, gap <= radius**2, surface)

    def stroke(
        self,
        points: Sequence[Point],
        width: float,
        surface: Surface,
        closed: bool = False,
    ) -> None:
        """Paint a polyline with round joints.

        Args:
            points: Vertices.
            width: Line width in units.
            surface: Paint.
            closed: Whether the last vertex joins the first.
        """
        # A line never gets thinner than one painted pixel.
        radius = max(0.5 / self.scale, width / 2)
        ends = [*points[1:], points[0]] if closed else points[1:]
        for start, end in zip(points, ends, strict=False):
            self.capsule(start, end, (radius, radius), surface)

    def text(
        self,
        words: str,
        corner: Point,
        height: float,
        width: float,
        surface: Surface,
        mapping: Callable[[float, float], Point] | None = None,
    ) -> None:
        """Write upper-case text.

        Args:
            words: Text.
            corner: Upper left corner.
            height: Height of the letters.
            width: Line width in units.
            surface: Paint.
            mapping: Optional transform from the text plane to the canvas.
        """
        for line in letter_strokes(words, corner, height):
            placed = [mapping(*p) for p in line] if mapping else line
            self.stroke(placed, width, surface)

    def ramp(
        self,
        points: Sequence[Point],
        ends: tuple[Point, Point],
        gains: Point,
        heats: Point = (0.0, 0.0),
    ) -> None:
        """Shade a polygon with a linear ramp.

        Args:
            points: Corners.
            ends: Where the ramp begins and ends.
            gains: Factor on the colour at both ends.
            heats: Degrees added at both ends.
        """
        rows, columns, mask = self._stencil(points, 0.0)
        y, x = np.mgrid[rows, columns].astype(np.float32) / self.scale
        (x0, y0), (x1, y1) = ends
        reach = (x1 - x0) ** 2 + (y1 - y0) ** 2
        share = ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / reach
        share = np.clip(share, 0.0, 1.0)
        gain = 1.0 + mask * (gains[0] + (gains[1] - gains[0]) * share - 1.0)
        self.colour[rows, columns] *= gain[..., None]
        self.heat[rows, columns] += mask * (heats[0] + (heats[1] - heats[0]) * share)

    def shade(self, points: Sequence[Point], gain: float, softness: float, heat: float = 0.0) -> None:
        """Darken or brighten a soft-edged polygon, e.g. a shadow.

        Args:
            points: Corners.
            gain: Factor on the colour.
            softness: Standard deviation of the edge.
            heat: Degrees added.
        """
        rows, columns, mask = self._stencil(points, softness)
        self.colour[rows, columns] *= 1.0 + (gain - 1.0) * mask[..., None]
        self.heat[rows, columns] += heat * mask

    def grain(self, points: Sequence[Point], noise: Image, strength: float) -> None:
        """Modulate the colour inside a polygon with a texture.

        Args:
            points: Corners.
            noise: Texture around 0.5, at least as large as the canvas.
            strength: Relative amplitude.
        """
        rows, columns, mask = self._stencil(points, 0.0)
        gain = 1.0 + strength * mask * (noise[rows, columns] - 0.5)
        self.colour[rows, columns] *= gain[..., None]

    def paste(self, corners: Sequence[Point], texture: "Canvas", depth: Image | float) -> None:
        """Paint a texture in perspective.

        Args:
            corners: Where the upper left, upper right, lower right and lower left
                corner of the texture land.
            texture: Flat painted surface.
            depth: Distance of the painted pixels, one value or a plane.
        """
        height, width = texture.shape
        source = np.asarray(corners, np.float32) * np.float32(self.scale) - 0.5
        target = np.asarray(
            [(0, 0), (width - 1, 0), (width - 1, height - 1), (0, height - 1)],
            np.float32,
        )
        matrix = np.asarray(cv2.getPerspectiveTransform(source, target), np.float64)
        rows, columns = self._frame(source.astype(np.float64), 1.0)
        y, x = np.mgrid[rows, columns].astype(np.float64)
        u, v, w = (a * x + b * y + c for a, b, c in matrix)
        u, v = u / w, v / w
        inside = (u >= 0) & (v >= 0) & (u <= width - 1) & (v <= height - 1)
        u, v = u[inside], v[inside]
        self.colour[rows, columns][inside] = sample(texture.colour, u, v)
        self.heat[rows, columns][inside] = sample(texture.heat, u, v)
        self.emission[rows, columns][inside] = sample(texture.emission, u, v)
        plane = np.broadcast_to(np.asarray(depth, np.float32), self.shape)
        self.depth[rows, columns][inside] = plane[rows, columns][inside]

    def _frame(self, points: NDArray[np.float64], margin: float) -> tuple[slice, slice]:
        """Painted rows and columns around points that are given in painted pixels."""
        height, width = self.shape
        low = np.floor(points.min(axis=0) - margin)
        high = np.ceil(points.max(axis=0) + margin)
        left, right = (int(c) for c in np.clip((low[0], high[0]), 0, width))
        top, bottom = (int(c) for c in np.clip((low[1], high[1]), 0, height))
        return slice(top, bottom), slice(left, right)

    def _paint(self, rows: slice, columns: slice, mask: NDArray[np.bool_], surface: Surface) -> None:
        self.colour[rows, columns][mask] = surface.colour
        self.heat[rows, columns][mask] = surface.heat
        self.emission[rows, columns][mask] = surface.emission
        self.depth[rows, columns][mask] = self.distance

    def _stencil(self, points: Sequence[Point], softness: float) -> tuple[slice, slice, Image]:
        corners = np.asarray(points, np.float64) * self.scale
        rows, columns = self._frame(corners, 3.0 * softness * self.scale + 2.0)
        mask = inside_polygon(corners, rows, columns).astype(np.float32)
        if softness > 0 and mask.size:
            mask = blur(mask, softness * self.scale)
        return rows, columns, mask


def inside_polygon(corners: NDArray[np.float64], rows: slice, columns: slice) -> NDArray[np.bool_]:
    """Which pixel centres of a window lie in a polygon, by the even-odd rule.

    Args:
        corners: Corners in pixels.
        rows: Rows of the window.
        columns: Columns of the window.

    Returns:
        The mask of the window.
    """
    x = np.arange(columns.start, columns.stop) + 0.5
    y = np.arange(rows.start, rows.stop) + 0.5
    start_x, start_y = corners.T[..., None]
    end_x, end_y = np.roll(corners, -1, axis=0).T[..., None]
    crossed = (start_y <= y) != (end_y <= y)
    rise = np.where(end_y == start_y, 1.0, end_y - start_y)
    edge = start_x + (y - start_y) * (end_x - start_x) / rise
    edge = np.where(crossed, edge, np.inf)
    return np.asarray(np.logical_xor.reduce(edge[..., None] <= x, axis=0), np.bool_)


def box_points(corner: Point, opposite: Point) -> list[Point]:
    """Corners of an upright rectangle, clockwise from the given one.

    Args:
        corner: One corner.
        opposite: The opposite corner.

    Returns:
        Four corners.
    """
    return [corner, (opposite[0], corner[1]), opposite, (corner[0], opposite[1])]


def oval_points(centre: Point, radii: Point, angle: float = 0.0) -> list[Point]:
    """Outline of an ellipse.

    Args:
        centre: Centre.
        radii: Half axes.
        angle: Rotation in radians.

    Returns:
        Vertices of a fine polygon.
    """
    turn = np.linspace(0.0, 2.0 * np.pi, OVAL_CORNERS, endpoint=False)
    x, y = radii[0] * np.cos(turn), radii[1] * np.sin(turn)
    cosine, sine = np.cos(angle), np.sin(angle)
    across = centre[0] + cosine * x - sine * y
    down = centre[1] + sine * x + cosine * y
    return list(zip(across.tolist(), down.tolist(), strict=True))


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """Blend two colours.

    Args:
        first: Colour at share 0.
        second: Colour at share 1.
        share: Position between both.

    Returns:
        The blend.
    """
    red, green, blue = (a + (b - a) * share for a, b in zip(first, second, strict=True))
    return red, green, blue


def mix_points(first: Point, second: Point, share: float) -> Point:
    """Point between two points.

    Args:
        first: Point at share 0.
        second: Point at share 1.
        share: Position between both.

    Returns:
        The point.
    """
    return (
        first[0] + (second[0] - first[0]) * share,
        first[1] + (second[1] - first[1]) * share,
    )


def tone(colour: Colour, gain: float) -> Colour:
    """Scale a colour.

    Args:
        colour: Colour.
        gain: Factor.

    Returns:
        The scaled colour.
    """
    return colour[0] * gain, colour[1] * gain, colour[2] * gain


def blur(image: Image, sigma: float) -> Image:
    """Gaussian blur.

    Args:
        image: Picture.
        sigma: Standard deviation in pixels.

    Returns:
        The blurred picture.
    """
    blurred = cv2.GaussianBlur(image, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(blurred, np.float32)


def sample(image: Image, x: NDArray[np.float64], y: NDArray[np.float64]) -> Image:
    """Bilinear look-up.

    Args:
        image: Picture with or without channels.
        x: Columns, inside the picture.
        y: Rows, inside the picture.

    Returns:
        The values, one per coordinate.
    """
    left = np.clip(np.floor(x).astype(int), 0, image.shape[1] - 2)
    top = np.clip(np.floor(y).astype(int), 0, image.shape[0] - 2)
    across = (x - left).astype(np.float32)
    down = (y - top).astype(np.float32)
    if image.ndim == 3:
        across, down = across[..., None], down[..., None]
    above = image[top, left] * (1 - across) + image[top, left + 1] * across
    below = image[top + 1, left] * (1 - across) + image[top + 1, left + 1] * across
    return np.asarray(above * (1 - down) + below * down, np.float32)


def fractal_noise(
    rng: np.random.Generator,
    shape: tuple[int, int],
    cell: float | Point,
    octaves: int = 4,
    gain: float = 0.5,
) -> Image:
    """Sum of smooth random lattices, stretched to the range 0 to 1.

    Args:
        rng: Random source.
        shape: Rows and columns.
        cell: Size of the coarsest lattice cell in pixels; a pair means (x, y).
        octaves: Number of lattices, each half as coarse as the one before.
        gain: Amplitude ratio of one lattice to the one before.

    Returns:
        The noise.
    """
    rows, columns = shape
    width, height = cell if isinstance(cell, tuple) else (cell, cell)
    total: Image = np.zeros(shape, np.float32)
    for octave in range(octaves):
        step_x, step_y = max(width / 2**octave, 1.0), max(height / 2**octave, 1.0)
        lattice = rng.random((int(rows / step_y) + 3, int(columns / step_x) + 3), np.float32)
        size = (
            max(columns, round(lattice.shape[1] * step_x)),
            max(rows, round(lattice.shape[0] * step_y)),
        )
        smooth = cv2.resize(lattice, size, interpolation=cv2.INTER_CUBIC)
        total += gain**octave * np.asarray(smooth, np.float32)[:rows, :columns]
    low, high = float(total.min()), float(total.max())
    return np.asarray((total - low) / (high - low), np.float32)


def reduce(image: Image, scale: int) -> Image:
    """Average a painted plane down to final pixels.

    Args:
        image: Supersampled plane.
        scale: Supersampling factor.

    Returns:
        The small plane.
    """
    size = (image.shape[1] // scale, image.shape[0] // scale)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32)


def quantise(image: Image) -> Picture:
    """Round display values of 0 to 1 to 8 bits.

    Args:
        image: Display values.

    Returns:
        The 8-bit picture.
    """
    return np.round(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)
