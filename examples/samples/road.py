"""Perspective street shared by the infrared-visible scenes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from samples.canvas import (
    Camera,
    Canvas,
    Colour,
    Image,
    Picture,
    Point,
    Surface,
    blur,
    fractal_noise,
    quantise,
    reduce,
    tone,
)
from samples.facade import front
from samples.lettering import text_width

SKY_TEMPERATURE = -9.0
TILE = 1024
TILE_PER_METRE = 34.0


@dataclass(frozen=True)
class House:
    """One house along the street.

    Attributes:
        x: Plane of its front, metres to the right of the camera.
        near: Distance of the near corner.
        far: Distance of the far corner.
        height: Height in metres.
        brick: Colour of the bricks.
        sign: Name of the shop.
        sign_colour: Colour of the sign board.
    """

    x: float
    near: float
    far: float
    height: float
    brick: Colour
    sign: str
    sign_colour: Colour


@dataclass(frozen=True)
class Layout:
    """Plan of the road in metres to the right of the camera.

    Attributes:
        left: Left kerb.
        right: Right kerb.
        line: Broken line between the lanes.
        bay: Line of the parking bay.
        crossing: Distances of the near and far end of the zebra crossing.
    """

    left: float
    right: float
    line: float
    bay: float
    crossing: Point


def lay_ground(canvas: Canvas, camera: Camera, rng: np.random.Generator, layout: Layout) -> None:
    """Paint carriageway, marks, kerbs and pavements below the horizon.

    Args:
        canvas: Canvas.
        camera: Camera.
        rng: Random source.
        layout: Plan of the road.
    """
    u, v = canvas.grid()
    below = v > camera.horizon + 1.0
    z = camera.focal * camera.height / np.maximum(v - camera.horizon, 1.0)
    x = (u - camera.centre) * z / camera.focal
    fine = fractal_noise(rng, (TILE, TILE), 6, 2)
    broad = fractal_noise(rng, (TILE, TILE), 128, 6, 0.6)
    column = np.mod((x + 15.0) * TILE_PER_METRE, TILE).astype(int)
    row = np.mod(z * TILE_PER_METRE, TILE).astype(int)
    speckle = (fine[row, column] - 0.5) * np.clip(11.0 / z, 0.0, 1.0)
    stain = broad[row, column] - 0.5
    gain = 1.0 + 0.55 * speckle + 0.35 * stain
    colour = np.asarray((0.30, 0.30, 0.315), np.float32) * gain[..., None]
    heat = 18.5 + 0.8 * speckle + 1.6 * stain
    # The wheel tracks are polished darker and warmed by the traffic.
    for lane in ((layout.left + layout.line) / 2, (layout.line + layout.bay) / 2):
        for track in (lane - 0.75, lane + 0.75):
            wear = np.exp(-(((x - track) / 0.3) ** 2))
            colour *= (1.0 - 0.12 * wear)[..., None]
            heat += 1.1 * wear
    broken = (np.abs(x - layout.line) < 0.08) & (np.mod(z, 5.0) < 2.6)
    bay = (np.abs(x - layout.bay) < 0.06) | ((x > layout.bay) & (np.mod(z - 1.0, 6.2) < 0.12))
    walk = (z > layout.crossing[0]) & (z < layout.crossing[1])
    zebra = walk & (np.mod(x - layout.left - 0.2, 0.95) < 0.5)
    mark = np.where(walk, zebra & (x < layout.bay), broken | bay)
    worn = np.clip(0.86 + 0.8 * stain + 0.5 * speckle, 0.0, 1.0)
    share = np.where(mark, worn, 0.0)[..., None]
    colour = colour * (1 - share) + np.asarray((0.86, 0.85, 0.80)) * share
    heat -= 0.5 * share[..., 0]
    pavement = (x < layout.left) | (x > layout.right)
    joint = (np.mod(x, 0.62) < 0.035) | (np.mod(z, 0.62) < 0.035)
    joint = joint & (z < 30)
    stone_row = np.mod(np.floor(x / 0.62) * 37, TILE).astype(int)
    stone_column = np.mod(np.floor(z / 0.62) * 61, TILE).astype(int)
    slab = 1.0 + 0.35 * (fine[stone_row, stone_column] - 0.5) + 0.35 * speckle
    slab = slab * np.where(joint, 0.68, 1.0)
    flags = np.asarray((0.53, 0.50, 0.46)) * slab[..., None]
    colour = np.where(pavement[..., None], flags, colour)
    heat = np.where(pavement, 16.0 + 0.8 * stain - 0.4 * joint, heat)
    edge = np.minimum(np.abs(x - layout.left), np.abs(x - layout.right))
    kerb = edge < 0.12
    colour = np.where(kerb[..., None], np.asarray((0.66, 0.64, 0.60)), colour)
    gutter = (edge < 0.45) & ~pavement & ~kerb
    colour *= np.where(gutter, 0.72, 1.0)[..., None]
    heat = np.where(kerb, 15.2, heat - 0.8 * gutter)
    canvas.colour[below] = colour[below]
    canvas.heat[below] = heat[below]
    canvas.depth[below] = z[below]


def wall_depth(canvas: Canvas, camera: Camera, x: float) -> Image:
    """Distance of a wall parallel to the road, for every column.

    Args:
        canvas: Canvas.
        camera: Camera.
        x: Plane of the wall.

    Returns:
        Distances, rows x columns.
    """
    u, _ = canvas.grid()
    ratio = (u - camera.centre) / x
    return np.asarray(camera.focal / np.maximum(ratio, 1e-3), np.float32)


def build_houses(
    canvas: Canvas,
    camera: Camera,
    rng: np.random.Generator,
    houses: Sequence[House],
    lit: float = 0.0,
) -> None:
    """Paint a row of houses.

    Args:
        canvas: Canvas.
        camera: Camera.
        rng: Random source.
        houses: Houses from far to near.
        lit: Share of the windows with the light on.
    """
    for house in houses:
        canvas.distance = house.near
        away = house.x + 14.0 * float(np.sign(house.x))
        gable = [
            camera.project(away, house.height, house.near),
            camera.project(house.x, house.height, house.near),
            camera.project(house.x, 0.0, house.near),
            camera.project(away, 0.0, house.near),
        ]
        canvas.fill(gable, Surface(tone(house.brick, 0.62), 16.0))
        size = (house.far - house.near, house.height)
        texture = front(rng, size, house.brick, house.sign, house.sign_colour, lit)
        ends = (house.near, house.far) if house.x < 0 else (house.far, house.near)
        corners = [
            camera.project(house.x, house.height, ends[0]),
            camera.project(house.x, house.height, ends[1]),
            camera.project(house.x, 0.0, ends[1]),
            camera.project(house.x, 0.0, ends[0]),
        ]
        canvas.paste(corners, texture, wall_depth(canvas, camera, house.x))


def hang_sign(
    canvas: Canvas,
    camera: Camera,
    place: tuple[float, float, float],
    words: str,
    cap: float,
    colours: tuple[Colour, Colour],
    emission: float = 0.0,
) -> None:
    """Paint a sign board that faces the camera.

    Args:
        canvas: Canvas.
        camera: Camera.
        place: World position of the middle of the board.
        words: Text.
        cap: Height of the letters in metres.
        colours: Colour of the board and of the letters.
        emission: How much the letters glow.
    """
    x, y, z = place
    canvas.distance = z
    half = (text_width(words, cap) / 2 + 0.5 * cap, 0.95 * cap)
    rim = 0.14 * cap
    low = camera.project(x - half[0] - rim, y - half[1] - rim, z)
    high = camera.project(x + half[0] + rim, y + half[1] + rim, z)
    canvas.box(low, high, Surface(tone(colours[1], 0.8), 15.0, 0.6 * emission))
    canvas.box(
        camera.project(x - half[0], y - half[1], z),
        camera.project(x + half[0], y + half[1], z),
        Surface(colours[0], 16.0, 0.1 * emission),
    )
    canvas.text(
        words,
        (x - text_width(words, cap) / 2, -cap / 2),
        cap,
        0.15 * cap * camera.focal / z,
        Surface(colours[1], 16.5 if emission == 0 else 20.0, emission),
        lambda across, down: camera.project(across, y - down, z),
    )


def thermal_picture(canvas: Canvas, rng: np.random.Generator, span: Point) -> Picture:
    """Picture of an uncooled infrared camera.

    Args:
        canvas: Painted scene.
        rng: Random source.
        span: Temperatures that are rendered black and white.

    Returns:
        Grey picture of the final size.
    """
    heat = reduce(canvas.heat, canvas.scale)
    heat = blur(heat, 0.8)
    level = (heat - span[0]) / (span[1] - span[0])
    rows, columns = level.shape
    columns_noise = blur(rng.normal(0.0, 1.0, (1, columns)).astype(np.float32), 0.6)
    level = level + 0.009 * columns_noise
    level += 0.006 * rng.normal(0.0, 1.0, (rows, columns)).astype(np.float32)
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    return quantise(level * (1.0 - 0.10 * (x**2 + y**2)).astype(np.float32))
