"""Everything in a street: ground, houses, signs, lamps, trees, cars and people, for a visible and an infrared camera."""

from collections.abc import Iterable
from itertools import product
from typing import NamedTuple

import numpy as np

from samples.canvas import Canvas, text_width
from samples.paint import Paint, Pair, Point, Uint8Image, blur, ellipse, mix, noise, quantize, reduce, tone

GROUND_FLOOR, STOREY, TILE, TILE_PER_METRE, CAR_LENGTH, CAR_HALF_WIDTH = 3.9, 3.1, 1024, 34.0, 4.2, 0.9
GLASS, RUBBER, SKIN, HAIR = (0.20, 0.26, 0.33, 9.5), (0.05, 0.05, 0.055), (0.80, 0.60, 0.48), (0.16, 0.11, 0.08, 29.0)
# A car from the side: meters along it from its tail, and above the ground.
# fmt: off
CAR_PROFILE = (
    (0.06, 0.3), (0.0, 0.55), (0.05, 0.95), (0.4, 1.02), (1.0, 1.45), (1.5, 1.5), (2.35, 1.46), (3.1, 1.02), (3.95, 0.88),
    (4.18, 0.6), (4.15, 0.3),
)
CAR_WINDOWS = (((0.62, 1.06), (1.08, 1.39), (1.8, 1.42), (1.8, 1.06)), ((1.9, 1.06), (1.9, 1.42), (2.3, 1.4), (2.86, 1.06)))
FUR = (0.30, 0.22, 0.15, 28.0)
# Start, end, both radii and paint of each bone.
Bone = tuple[Pair, Pair, Pair, Paint]
DOG: tuple[Bone, ...] = (
    ((-0.30, 0.36), (-0.36, 0.04), (0.055, 0.035), FUR), ((-0.22, 0.36), (-0.14, 0.04), (0.055, 0.035), FUR),
    ((0.20, 0.36), (0.13, 0.04), (0.055, 0.035), FUR), ((0.27, 0.36), (0.33, 0.04), (0.055, 0.035), FUR),
    ((-0.30, 0.46), (0.26, 0.48), (0.115, 0.135), FUR), ((-0.38, 0.52), (-0.58, 0.72), (0.035, 0.02), FUR),
    ((0.30, 0.52), (0.42, 0.68), (0.09, 0.075), FUR), ((0.43, 0.71), (0.60, 0.66), (0.085, 0.045), FUR),
    ((0.39, 0.76), (0.36, 0.84), (0.035, 0.02), FUR),
)
# fmt: on


class House(NamedTuple):
    """House beside the road: plane and ends of its front, height, bricks, and the shop on its ground floor."""

    x: float
    near: float
    far: float
    height: float
    brick: Paint
    sign: str
    board: Paint


class Car(NamedTuple):
    """Car along the road: where the end is that faces the camera, and whether the engine is warm and the lights are on."""

    x: float
    z: float
    paint: Paint
    plate: str
    oncoming: bool = False
    running: bool = True


def lay_ground(canvas: Canvas, rng: np.random.Generator, kerbs: Pair, line: float, bay: float) -> None:
    """Paint the ground below the horizon: pavements beyond both kerbs, and a road with a broken line and a parking bay."""
    camera = canvas.camera
    assert camera is not None
    below = canvas.v > camera.row + 1.0
    canvas.depth[below] = camera.focal * camera.height / (canvas.v[below] - camera.row)
    x, _, z = (plane[below] for plane in canvas.world())
    fine, broad = noise(rng, (TILE, TILE), 6, 2), noise(rng, (TILE, TILE), 128, 6, 0.6)
    place = np.mod(z * TILE_PER_METRE, TILE).astype(int), np.mod((x + 15.0) * TILE_PER_METRE, TILE).astype(int)
    speckle, stain = (fine[place] - 0.5) * np.clip(11.0 / z, 0.0, 1.0), broad[place] - 0.5
    gray = 0.30 * (1.0 + 0.55 * speckle + 0.35 * stain)
    heat = 18.5 + 0.8 * speckle + 1.6 * stain
    # The wheel tracks are polished darker and warmed by the traffic.
    for lane in ((kerbs[0] + line) / 2, (line + bay) / 2):
        wear = np.exp(-(((np.abs(x - lane) - 0.75) / 0.3) ** 2))
        gray, heat = gray * (1.0 - 0.12 * wear), heat + 1.1 * wear
    broken = (np.abs(x - line) < 0.08) & (np.mod(z, 5.0) < 2.6)
    parking = (np.abs(x - bay) < 0.06) | ((x > bay) & (np.mod(z - 1.0, 6.2) < 0.12))
    mark = (broken | parking) * np.clip(0.86 + 0.8 * stain + 0.5 * speckle, 0.0, 1.0)
    edge = np.minimum(np.abs(x - kerbs[0]), np.abs(x - kerbs[1]))
    pavement, kerb = (x < kerbs[0]) | (x > kerbs[1]), edge < 0.12
    gutter = (edge < 0.45) & ~pavement & ~kerb
    joint = ((np.mod(x, 0.62) < 0.035) | (np.mod(z, 0.62) < 0.035)) & (z < 30)
    slab = fine[np.mod(np.floor(x / 0.62) * 37, TILE).astype(int), np.mod(np.floor(z / 0.62) * 61, TILE).astype(int)]
    slab = (1.0 + 0.35 * (slab - 0.5) + 0.35 * speckle) * np.where(joint, 0.68, 1.0)
    tarmac = (gray * (1.0 - mark) * np.where(gutter, 0.72, 1.0))[:, None] * (1.0, 1.0, 1.05) + np.outer(mark, (0.86, 0.85, 0.8))
    color = np.where(pavement[:, None], np.outer(slab, (0.53, 0.50, 0.46)), tarmac)
    canvas.color[below] = np.where(kerb[:, None], (0.66, 0.64, 0.60), color)
    heat = np.where(pavement, 16.0 + 0.8 * stain - 0.4 * joint, heat - 0.5 * mark - 0.8 * gutter)
    canvas.heat[below] = np.where(kerb, 15.2, heat)


def build_houses(canvas: Canvas, rng: np.random.Generator, houses: Iterable[House], lit: float = 0.0) -> None:
    """Paint houses from far to near; a share of their windows is lit."""
    for house in houses:
        x, height = house.x, house.height
        canvas.fill([(x, height, house.near), (x + np.copysign(14.0, x), 0, house.near)], tone(house.brick, 0.62, 16.0))
        left, right = (house.near, house.far) if x < 0 else (house.far, house.near)
        corners = [(x, height, left), (x, height, right), (x, 0, right), (x, 0, left)]
        canvas.paste(corners, house_front(rng, house, lit))


def house_front(rng: np.random.Generator, house: House, lit: float = 0.0) -> Canvas:
    """Paint a brick front with a shop on the ground floor, to be pasted."""
    width, height, brick = house.far - house.near, house.height, house.brick
    canvas = Canvas(width, height, 44)
    course = np.floor(canvas.v / 0.2).astype(int)
    run = canvas.u / 0.56 + 0.5 * (course % 2)
    gain = rng.normal(1.0, 0.12, (course.max() + 1, int(run.max()) + 1))[course, run.astype(int)]
    mortar = (canvas.v / 0.2 - course < 0.17) | (run - np.floor(run) < 0.07)
    canvas.color[:] = np.where(mortar[..., None], mix(brick, (0.72, 0.68, 0.62), 0.55), gain[..., None] * brick)
    canvas.heat[:] = 17.0 + 0.6 * (gain - 1.0)
    trim = (*mix(brick, (0.85, 0.82, 0.76), 0.8), 16.5)
    bays = max(2, int(width / 2.1))
    for storey in range(int((height - GROUND_FLOOR - 0.5) / STOREY)):
        for bay in range(bays):
            corner = ((bay + 0.5) * width / bays - 0.6, height - GROUND_FLOOR - 2.5 - storey * STOREY)
            _draw_window(canvas, rng, corner, trim, rng.random() < lit)
    canvas.fill([(0, 0), (width, 0.35)], trim)
    canvas.fill([(0, 0.35), (width, 0.5)], tone(trim, 0.55, 15.0))
    _draw_shop(canvas, rng, house, lit > 0)
    dirt = noise(rng, canvas.shape, 90, 4)
    canvas.color *= (0.84 + 0.3 * dirt)[..., None]
    canvas.heat += 2.0 * (dirt - 0.5)
    return canvas


def _draw_window(canvas: Canvas, rng: np.random.Generator, corner: Pair, trim: Paint, lit: bool) -> None:
    (left, top), (right, bottom) = corner, (corner[0] + 1.2, corner[1] + 1.75)
    canvas.fill([(left - 0.14, top - 0.26), (right + 0.14, top)], trim)
    canvas.fill([(left - 0.16, bottom), (right + 0.16, bottom + 0.14)], trim)
    frame, pane = (0.79, 0.78, 0.74, 14.0), (left + 0.08, top + 0.08)
    canvas.fill([(left, top), (right, bottom)], frame)
    glow, streak = (1.0, 0.82, 0.53, 15.0, rng.uniform(0.35, 0.75)), rng.uniform(0.3, 1.0)
    canvas.fill([pane, (right - 0.08, bottom - 0.08)], glow if lit else GLASS)
    if not lit:
        canvas.fill([pane, (pane[0], pane[1] + streak), (pane[0] + streak, pane[1])], (0.42, 0.50, 0.58, 8.5))
    if rng.random() < 0.55:
        for curtain in (left + 0.08, right - 0.32):
            canvas.fill([(curtain, top + 0.08), (curtain + 0.24, bottom - 0.08)], (0.70, 0.66, 0.58, 13.0, 0.25 * lit))
    canvas.fill([(left + 0.565, top), (right - 0.565, bottom)], frame)
    canvas.fill([(left, top + 0.6), (right, top + 0.67)], frame)
    canvas.fill([(left, top), (right, top + 0.5)], None, (0.5, 1.0))


def _draw_shop(canvas: Canvas, rng: np.random.Generator, house: House, lit: bool) -> None:
    width, height = house.far - house.near, house.height
    top = height - GROUND_FLOOR + 0.1
    canvas.fill([(0.25, top), (width - 0.25, height)], tone(house.board, 0.45, 16.0))
    pieces = max(2, round(width / 2.3))
    step = (width - 1.0) / pieces
    for piece in range(pieces):
        left, right = 0.5 + piece * step, 0.3 + (piece + 1) * step
        base = height - (0.12 if piece == pieces // 2 else 0.75)
        canvas.fill([(left, top + 1.0), (right, base)], (0.95, 0.74, 0.44, 14.0, 0.26) if lit else GLASS)
        for _ in range(5):
            x, goods = rng.uniform(left, right - 0.3), 0.32 * rng.random() + rng.uniform(0.12, 0.34, 3)
            canvas.fill([(x, base - rng.uniform(0.3, 1.0)), (x + 0.3, base)], (*goods, 12.0, 0.2 * lit))
        canvas.fill([(left, top + 1.0), (right, base)], None, (0.65, 1.25))
    canvas.fill([(0.3, top + 0.1), (width - 0.3, top + 0.85)], (*house.board, 16.2, 0.35 * lit))
    canvas.text(house.sign, (width / 2, top + 0.48), 0.46, (0.97, 0.94, 0.84, 16.4, 0.8 * lit))
    for stripe in range(int((width - 0.6) / 0.35)):
        left, cloth = 0.3 + stripe * 0.35, (0.9, 0.88, 0.8) if stripe % 2 else house.board
        canvas.fill([(left, top + 0.85), (left + 0.35, top + 1.35)], (*cloth, 17.5), (1.05, 0.7))


def hang_sign(canvas: Canvas, place: Point, words: str, cap: float, board: Paint, ink: Paint, glow: float = 0.0) -> None:
    """Paint a sign board whose letters and rim may glow, from the middle of the board and the height of its letters."""
    x, y, z = place
    half, rise = text_width(words, cap) / 2 + 0.5 * cap, 0.95 * cap
    for rim, paint in ((0.14 * cap, tone(ink, 0.8, 15.0, 0.6 * glow)), (0.0, (*board, 16.0, 0.1 * glow))):
        canvas.fill([(x - half - rim, y - rise - rim, z), (x + half + rim, y + rise + rim, z)], paint)
    canvas.text(words, place, cap, (*ink, 20.0 if glow else 16.5, glow))


def draw_lamp(canvas: Canvas, place: Pair, height: float, reach: float, lit: bool) -> None:
    """Paint a street lamp with an arm to the right, or with a negative reach to the left."""
    (x, z), steel = place, (0.20, 0.22, 0.22, 14.0)
    canvas.limb((x, 0, z), (x, height, z), (0.08, 0.05), steel)
    canvas.limb((x, height, z), (x + reach, height + 0.15, z), (0.04, 0.04), steel)
    canvas.oval((x + reach, height + 0.15, z), (0.34, 0.10), steel)
    canvas.oval((x + reach, height + 0.10, z), (0.24, 0.07), (1.0, 0.84, 0.58, 42.0, 6.0) if lit else (0.7, 0.7, 0.66, 14.0))


def draw_tree(canvas: Canvas, rng: np.random.Generator, place: Pair, height: float, radius: float, leaf: Paint) -> None:
    """Paint a broad-leaved tree."""
    (x, z), middle = place, height - radius
    canvas.shade(ellipse((x, 0, z), (0.7, 0.12)), 0.55, 0.08)
    canvas.limb((x, 0, z), (x, height - 0.9 * radius, z), (0.17, 0.10), (0.23, 0.17, 0.13, 14.5))
    size = float(np.clip(0.105, 1.0 * z / 300, 3.0 * z / 300))
    clumps = np.clip(rng.normal(0.0, 0.46, (34, 2)), -0.75, 0.75)
    for across, up in clumps[np.argsort(clumps[:, 1])]:
        for share in np.linspace(0.0, 1.0, 70):
            aside, above = rng.normal((across, up), 0.19)
            light = 0.42 + 0.38 * share + 0.24 * (above - 0.4 * across) + rng.normal(0.0, 0.09)
            hue = mix(leaf, (0.62, 0.58, 0.18), float(np.clip(light - 0.6, 0.0, 0.4)))
            green = tone(hue, 1.4 * float(np.clip(light, 0.18, 1.3)), 11.5 + light)
            spot = (x + radius * aside, middle + radius * above, z)
            canvas.oval(spot, (size, 0.55 * size), green, rng.uniform(0.0, np.pi))


def draw_bones(canvas: Canvas, place: Pair, bones: Iterable[Bone]) -> None:
    """Paint limbs that face the camera."""
    x, z = place
    for (x0, y0), (x1, y1), (r0, r1), paint in bones:
        canvas.limb((x + x0, y0, z), (x + x1, y1, z), (r0, r1), paint)
        # A second, thinner and brighter pass makes the limb round.
        light = tone(paint, 1.22, paint[3] + 2.5)
        canvas.limb((x + x0 - 0.012, y0, z), (x + x1 - 0.012, y1, z), (0.5 * r0, 0.5 * r1), light)


def draw_person(canvas: Canvas, place: Pair, coat: Paint, trousers: Paint, step: float = 0.22) -> None:
    """Paint somebody who walks to the right, or with a negative step to the left."""
    (x, z), facing, legs, arms = place, float(np.sign(step)), [], []
    canvas.shade(ellipse((x + 0.12, 0, z), (0.42, 0.08)), 0.5, 0.04)
    for side, gain in ((-1.0, 0.8), (1.0, 1.0)):
        toe, leg, sleeve = side * step, tone(trousers, gain, 25.0), tone(coat, gain, 26.5)
        knee, elbow, wrist = (toe * 0.65 + 0.06 * facing, 0.47), (0.25 * side, 1.14), 0.27 * side - 0.35 * step
        legs += [((0.05 * side, 0.9), knee, (0.10, 0.075), leg), (knee, (toe, 0.1), (0.075, 0.055), leg)]
        legs.append(((toe, 0.05), (toe + 0.13 * facing, 0.04), (0.05, 0.04), (0.08, 0.06, 0.05, 20.5)))
        if side > 0:
            arms.append(((0.0, 1.36), (0.0, 0.92), (0.20, 0.165), sleeve))
        arms += [((0.18 * side, 1.40), elbow, (0.075, 0.06), sleeve), (elbow, (wrist, 0.92), (0.06, 0.05), sleeve)]
        arms.append(((wrist, 0.9), (wrist, 0.86), (0.045, 0.04), (*SKIN, 30.5)))
    neck = ((0.0, 1.48), (0.0, 1.56), (0.06, 0.055), tone(SKIN, 0.8, 32.0))
    draw_bones(canvas, place, [*legs, *arms, neck])
    canvas.oval((x - 0.01, 1.665, z), (0.105, 0.125), HAIR)
    canvas.oval((x + 0.01, 1.635, z), (0.088, 0.105), (*SKIN, 34.5))
    canvas.oval((x, 1.70, z), (0.095, 0.068), HAIR)


def draw_car(canvas: Canvas, car: Car) -> None:
    """Paint a car with its shadow: roof and bonnet, then the side and the end that face the camera."""
    warm, half, side = float(car.running), CAR_HALF_WIDTH, -float(np.sign(car.x))
    under = [(car.x + across * (half + 0.1), 0, car.z + s) for across, s in ((-1, -0.15), (1, -0.15), (1, 4.4), (-1, 4.4))]
    canvas.shade(under, 0.22, 0.16, 7.0 * warm)

    def at(across: float, along: float, up: float) -> Point:
        width = half - 0.42 * max(0.0, up - 0.98) - 0.10 * max(0.0, 0.5 - up)
        return (car.x + across * width, up, car.z + (CAR_LENGTH - along if car.oncoming else along))

    # What is farther away comes first, so that what is nearer hides it.
    for panel in range(len(CAR_PROFILE) - 1)[:: 1 if car.oncoming else -1]:
        (s0, y0), (s1, y1) = CAR_PROFILE[panel : panel + 2]
        corners = [at(-1, s0, y0), at(1, s0, y0), at(1, s1, y1), at(-1, s1, y1)]
        # Upward facing panels mirror the sky, upright ones the street.
        gain = 0.55 + 0.5 * abs(s1 - s0) / float(np.hypot(s1 - s0, y1 - y0))
        heat = 14.5 + 15.0 * warm * (0.75 if panel == 7 else 0.55 if panel > 7 else 0.0)
        glass = panel in (3, 6)
        canvas.fill(corners, (0.17, 0.20, 0.24, 12.0) if glass else tone(car.paint, gain, heat))
        if glass:
            canvas.fill([corners[0], corners[3], mix(corners[3], corners[2], 0.55)], (0.33, 0.38, 0.43, 11.0))
            canvas.stroke([*corners, corners[0]], 0.05, tone(car.paint, 0.5, 14.0))
    if abs(car.x) > half:
        canvas.fill([at(side, *spot) for spot in CAR_PROFILE], tone(car.paint, 0.78, 14.5), (1.1, 0.5))
        for window in CAR_WINDOWS:
            canvas.fill([at(side, *spot) for spot in window], (0.15, 0.18, 0.22, 12.0))
        wheel = ((0.40, RUBBER, 16.0), (0.33, RUBBER, 14.5 + 10.5 * warm), (0.20, (0.55, 0.56, 0.58), 14.0 + 16.0 * warm))
        for hub, (radius, color, heat) in product((0.85, 3.35), wheel):
            rim = [at(side, along, max(up, 0.0)) for along, up in ellipse((hub, 0.34), (radius, radius))]
            canvas.fill(rim, (*color, heat))
    _draw_car_end(canvas, car, warm)


def _draw_car_end(canvas: Canvas, car: Car, warm: float) -> None:
    engine = 12.0 * warm * car.oncoming

    def patch(left: float, low: float, right: float, high: float, paint: Paint) -> None:
        canvas.fill([(car.x + left, high, car.z), (car.x + right, low, car.z)], paint)

    outline = [(-0.88, 0.34), (-0.9, 0.62), (-0.86, 0.97), (0.86, 0.97), (0.9, 0.62), (0.88, 0.34)]
    canvas.fill([(car.x + x, y, car.z) for x, y in outline], tone(car.paint, 0.92, 15.0 + 0.6 * engine), (1.1, 0.62))
    patch(-0.9, 0.30, 0.9, 0.44, tone(car.paint, 0.58, 15.5 + 0.4 * engine))
    for side in (-1, 1):
        patch(side * 0.84, 0.0, side * 0.62, 0.32, (*RUBBER, 14.5 + 12.5 * warm))
        if car.oncoming:
            canvas.oval((car.x + side * 0.69, 0.74, car.z), (0.17, 0.10), (1.0, 0.97, 0.88, 20.0 + engine, 5.0 * warm))
            patch(-0.48, 0.66, 0.48, 0.84, (0.06, 0.06, 0.07, 17.0 + engine))
        else:
            patch(side * 0.87, 0.66, side * 0.60, 0.86, (0.72, 0.07, 0.06, 17.0, 0.9 * warm))
            patch(side * 0.72, 0.69, side * 0.63, 0.76, (0.95, 0.45, 0.25, 18.0, 0.9 * warm))
            canvas.oval((car.x + 0.55, 0.27, car.z), (0.06, 0.05), (0.3, 0.3, 0.3, 14.0 + 34.0 * warm))
    patch(-0.42, 0.46, 0.42, 0.655, (0.05, 0.05, 0.05, 15.5))
    patch(-0.40, 0.475, 0.40, 0.64, (0.93, 0.93, 0.88, 15.5, 0.05 * warm))
    canvas.text(car.plate, (car.x, 0.5575, car.z), 0.115, (0.06, 0.06, 0.12, 15.5))


def thermal_image(canvas: Canvas, rng: np.random.Generator, span: Pair) -> Uint8Image:
    """Render the image of an uncooled infrared camera that shows a span of temperatures from black to white."""
    level = (blur(reduce(canvas.heat, canvas.scale), 0.8) - span[0]) / (span[1] - span[0])
    rows, columns = level.shape
    level += 0.009 * blur(rng.normal(0.0, 1.0, (1, columns)).astype(np.float32), 0.6)
    level += 0.006 * rng.normal(0.0, 1.0, level.shape).astype(np.float32)
    y, x = np.mgrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
    return quantize(level * (1.0 - 0.10 * (x**2 + y**2)))
