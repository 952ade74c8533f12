"""The infrared and visible pairs: smoke blinds the visible camera by day, darkness and glare blind it at night."""

from collections.abc import Iterable
from itertools import product

import numpy as np

from samples.canvas import Camera, Canvas, Paint, Pair, Point, Uint8Image, blur, ellipse, mix, noise, quantize, reduce, tone

WIDTH, HEIGHT, SCALE = 384, 288, 3
DAY_CAMERA = Camera(focal=300.0, column=188.0, row=132.0, height=2.2)
DAY_HOUSES = (
    (6.9, 42, 60, 13, (0.50, 0.40, 0.34), "TOOLS", (0.20, 0.22, 0.30)),
    (-5.9, 40, 60, 11, (0.52, 0.44, 0.38), "PAPER", (0.35, 0.28, 0.16)),
    (6.9, 27, 42, 10, (0.62, 0.52, 0.40), "FLOWERS", (0.42, 0.16, 0.24)),
    (-5.9, 26, 40, 13.5, (0.47, 0.30, 0.25), "RECORDS", (0.16, 0.20, 0.36)),
    (6.9, 15, 27, 14, (0.58, 0.31, 0.24), "BOOKS", (0.14, 0.30, 0.22)),
    (-5.9, 15.5, 26, 9.6, (0.66, 0.56, 0.43), "BAKERY", (0.52, 0.18, 0.14)),
    (6.9, 5, 15, 11, (0.60, 0.50, 0.42), "CINEMA", (0.20, 0.20, 0.38)),
    (-5.9, 4, 15.5, 12.5, (0.60, 0.30, 0.22), "GREEN GROCER", (0.14, 0.36, 0.22)),
)
BARREL = (-2.75, 12.2)
NIGHT_CAMERA = Camera(focal=290.0, column=214.0, row=128.0, height=2.0)
NIGHT_HOUSES = (
    (-6.4, 25, 38, 9, (0.55, 0.46, 0.38), "TAILOR", (0.36, 0.16, 0.20)),
    (-6.4, 14.5, 25, 13, (0.52, 0.30, 0.24), "PHARMACY", (0.10, 0.30, 0.22)),
    (-6.4, 4, 14.5, 10, (0.62, 0.52, 0.42), "PIZZERIA", (0.48, 0.14, 0.12)),
)
LAMPS, LAMP_HEIGHT = ((-4.5, 36.0, 1.5), (4.2, 24.0, -1.5), (-4.5, 11.5, 1.5)), 5.4
ONCOMING, HEADLIGHTS = (-2.0, 15.5), (-0.69, 0.69)
SODIUM, HEADLIGHT, NEON, ICE = (1.0, 0.66, 0.32), (0.95, 0.97, 1.0), (1.0, 0.24, 0.40), (0.25, 0.85, 1.0)
GROUND_FLOOR, STOREY, TILE, TILE_PER_METRE, CAR_LENGTH, CAR_HALF_WIDTH = 3.9, 3.1, 1024, 34.0, 4.2, 0.9
GLASS, RUBBER, SKIN, HAIR = (0.20, 0.26, 0.33, 9.5), (0.05, 0.05, 0.055), (0.80, 0.60, 0.48), (0.16, 0.11, 0.08, 29.0)
# A car from the side: meters along it from its tail, and above the ground.
CAR_PROFILE = (
    (0.06, 0.3), (0.0, 0.55), (0.05, 0.95), (0.4, 1.02), (1.0, 1.45), (1.5, 1.5), (2.35, 1.46), (3.1, 1.02), (3.95, 0.88),
    (4.18, 0.6), (4.15, 0.3),
)  # fmt: skip
CAR_WINDOWS = (((0.62, 1.06), (1.08, 1.39), (1.8, 1.42), (1.8, 1.06)), ((1.9, 1.06), (1.9, 1.42), (2.3, 1.4), (2.86, 1.06)))
FUR = (0.30, 0.22, 0.15, 28.0)
Bone = tuple[Pair, Pair, Pair, Paint]
"""Start, end, both radii and paint."""
House = tuple[float, float, float, float, Paint, str, Paint]
"""Plane and both ends of the front beside the road, height, bricks, and the sign and the board of the shop."""
DOG: tuple[Bone, ...] = (
    *(((x0, 0.36), (x1, 0.04), (0.055, 0.035), FUR) for x0, x1 in ((-0.3, -0.36), (-0.22, -0.14), (0.2, 0.13), (0.27, 0.33))),
    ((-0.30, 0.46), (0.26, 0.48), (0.115, 0.135), FUR), ((-0.38, 0.52), (-0.58, 0.72), (0.035, 0.02), FUR),
    ((0.30, 0.52), (0.42, 0.68), (0.09, 0.075), FUR), ((0.43, 0.71), (0.60, 0.66), (0.085, 0.045), FUR),
    ((0.39, 0.76), (0.36, 0.84), (0.035, 0.02), FUR),
)  # fmt: skip


def render_day() -> tuple[Uint8Image, Uint8Image]:
    """Render the infrared (grayscale) and the visible (RGB) image of the street by day."""
    rng = np.random.default_rng(4)
    canvas = Canvas(WIDTH, HEIGHT, SCALE, DAY_CAMERA)
    height = np.clip(canvas.v / DAY_CAMERA.row, 0.0, 1.0)
    clouds = noise(rng, canvas.shape, (330.0, 110.0), 6, 0.55)
    share = np.clip((clouds - 0.46) * 2.6, 0.0, 0.8)[..., None]
    sky = np.asarray((0.36, 0.50, 0.72)) + height[..., None] ** 1.6 * (0.60, 0.30, -0.10)
    canvas.color[:] = sky * (1 - share) + ((0.95, 0.88, 0.82) + 0.9 * (blur(clouds, 12.0) - clouds)[..., None]) * share
    canvas.heat[:] = -9.0 + 9.0 * height**2 + 5.0 * share[..., 0]
    _lay_ground(canvas, rng, kerbs=(-3.6, 5.0), line=-0.15, bay=2.85)
    for left in np.arange(-16.0, 16.0, 2.6):
        roof, gray = rng.uniform(9.0, 22.0), rng.uniform(0.50, 0.62)
        canvas.fill([(left, 0.0, 60.0), (left + 2.7, roof, 60.0)], (gray, gray, gray, 11.5))
        for row, pane in product(np.arange(3.0, roof - 0.8, 1.5), (left + 0.5, left + 1.4)):
            canvas.fill([(pane, row, 60.0), (pane + 0.5, row + 0.8, 60.0)], (0.8 * gray, 0.82 * gray, 0.88 * gray, 9.0))
    _build_houses(canvas, rng, DAY_HOUSES)
    # A low sun lights the right side of the street and leaves the left side in shade.
    across, _, ahead = canvas.world()
    ground = ahead < canvas.FAR
    sun = blur((np.clip((across - 0.9) / 0.25, 0.0, 1.0) * ground).astype(np.float32), 1.5) * ground
    canvas.color[ground] *= np.add((0.80, 0.82, 0.90), np.outer(sun[ground], (0.50, 0.34, 0.04)))
    canvas.heat += 1.8 * sun
    for place, tall, radius in (((5.9, 30.0), 7.5, 2.4), ((-4.6, 27.0), 7.0, 2.2), ((5.8, 19.0), 6.4, 1.9)):
        _draw_tree(canvas, rng, place, tall, radius, (0.30, 0.44, 0.17))
    _draw_car(canvas, (-1.9, 27.0), (0.62, 0.60, 0.58), "LX 480", oncoming=True)
    _draw_lamp(canvas, (-4.0, 21.0), 6.0, 1.5, lit=False)
    _draw_car(canvas, (4.0, 19.8), (0.24, 0.34, 0.50), "VIS 31", running=False)
    _hang_sign(canvas, (6.1, 4.4, 15.2), "HOTEL", 0.62, (0.13, 0.16, 0.34), (0.96, 0.90, 0.72))
    _draw_person(canvas, (-1.75, 15.2), (0.25, 0.28, 0.42), (0.2, 0.2, 0.22))
    _draw_person(canvas, (-0.9, 14.4), (0.46, 0.20, 0.18), (0.26, 0.24, 0.22), -0.25)
    _draw_person(canvas, (5.35, 9.2), (0.72, 0.60, 0.30), (0.20, 0.24, 0.36), 0.2)
    x, z = BARREL
    canvas.shade(ellipse((x, 0.0, z), (0.4, 0.1)), 0.5, 0.06)
    canvas.fill([(x - 0.3, 0.85, z), (x + 0.3, 0.0, z)], (0.36, 0.22, 0.14, 33.0), (0.6, 1.3), axis=0)
    canvas.oval((x, 0.87, z), (0.31, 0.09), (0.16, 0.10, 0.08, 46.0))
    canvas.oval((x, 0.87, z), (0.22, 0.06), (0.95, 0.48, 0.12, 60.0))
    # Smoke hides little of the barrel.
    canvas.depth[canvas.depth == np.float32(z)] = z - 1.3
    _hang_sign(canvas, (-5.0, 4.75, 11.4), "CAFE", 0.52, (0.45, 0.11, 0.09), (0.98, 0.93, 0.80))
    _draw_car(canvas, (3.9, 10.2), (0.75, 0.71, 0.62), "IR 814", running=False)
    _draw_car(canvas, (1.15, 8.0), (0.66, 0.13, 0.10), "FUS 10N")
    _draw_person(canvas, (-4.15, 7.4), (0.20, 0.36, 0.42), (0.17, 0.17, 0.20), 0.24)
    return _thermal_image(canvas, rng, (3.0, 33.5)), _expose_day(canvas, rng)


def _expose_day(canvas: Canvas, rng: np.random.Generator) -> Uint8Image:
    """Veil the scene in haze, and in a plume that rises from the barrel and is blown across the road."""
    haze = (1.0 - np.exp(-np.where(canvas.depth < canvas.FAR, canvas.depth, 0.0) / 95.0))[..., None]
    color = canvas.color * (1.0 + 0.25 * canvas.glow[..., None]) * (1.0 - haze) + haze * (0.88, 0.78, 0.68)
    (x, z), camera = BARREL, DAY_CAMERA
    warp, bend = (noise(rng, canvas.shape, cell, 4) - 0.5 for cell in (130, 90))
    across = (canvas.u - camera.column) * z / camera.focal - x + 1.1 * warp
    up = camera.height - 0.85 - (canvas.v - camera.row) * z / camera.focal + 0.9 * bend
    density = np.zeros(canvas.shape, np.float32)
    for along in np.linspace(0.0, 1.0, 22):
        middle = 0.15 + 2.4 * along**1.5 - 0.75 * np.sin(np.pi * along)
        gap = ((across - 3.3 * along) ** 2 + (up - middle) ** 2) / (0.22 + 1.25 * along**0.7) ** 2
        density += np.exp(-1.6 * gap) * (0.62 - 0.30 * along)
    density *= 0.45 + 1.1 * noise(rng, canvas.shape, 84, 5)
    # The plume has a thickness: what is inside it is veiled in part.
    veil = ((1.0 - np.exp(-3.4 * density)) * np.clip((canvas.depth - z + 1.8) / 1.8, 0.0, 1.0))[..., None]
    # The side towards the sun is brighter than the folds in the plume.
    lift = 0.76 + 0.14 * noise(rng, canvas.shape, 90, 5) + 0.24 * np.clip(density - blur(density, 14.0), -0.4, 0.4)
    visible = reduce(color * (1.0 - veil) + veil * lift[..., None] * (1.0, 0.96, 0.92), SCALE)
    return quantize(visible + 0.006 * rng.normal(0.0, 1.0, visible.shape[:2])[..., None])


def render_night(zoom: float = 1.0, *, is_empty: bool = False) -> tuple[Uint8Image, Uint8Image]:
    """Render the infrared (grayscale) and the visible (RGB) image of the street at night.

    Args:
        zoom: Size of the images, relative to that of the sample.
        is_empty: Leave out people and the dog.
    """
    rng = np.random.default_rng(2203)
    focal, column, row, eye = NIGHT_CAMERA
    canvas = Canvas(zoom * WIDTH, zoom * HEIGHT, SCALE, Camera(zoom * focal, zoom * column, zoom * row, eye))
    height = np.clip(canvas.v / canvas.camera.row, 0.0, 1.0)
    canvas.color[:] = (0.030, 0.036, 0.062) + height[..., None] ** 3 * (0.075, 0.055, 0.045)
    canvas.heat[:] = -12.0 + 12.0 * height**2
    _lay_ground(canvas, rng, kerbs=(-3.9, 3.6), line=-0.2, bay=40.0)
    hotel = _house_front(rng, (17.0, 13.0), (0.48, 0.36, 0.30), "GRAND HOTEL", (0.18, 0.16, 0.26), 0.45)
    canvas.paste([(-7.4, 12, 40), (7.5, 12, 40), (7.5, 0, 40), (-7.4, 0, 40)], hotel)
    # A park right of the road, out of reach of the lamps.
    x, _, z = canvas.world()
    lawn = (x > 5.3) & (z < 39.5)
    blades, patches = noise(rng, canvas.shape, (5.0, 9.0), 2), noise(rng, canvas.shape, (120.0, 40.0), 4)
    canvas.color[lawn] = np.outer((0.55 + 0.5 * blades + 0.4 * patches)[lawn], (0.20, 0.32, 0.13))
    canvas.heat[lawn] = (9.5 + 1.6 * blades + 2.2 * patches)[lawn]
    for left in np.arange(8.2, 50.0, 0.9):
        canvas.limb((left, 1.0, 39.0), (left, rng.uniform(3.5, 8.0), 39.0), (0.8, 0.4), (0.10, 0.15, 0.08, 10.5))
    for place, tall, radius in (((12, 30), 9.0, 3.0), ((6.6, 27), 7.0, 2.2), ((14, 21), 8.0, 2.6), ((8.2, 14.5), 6.6, 2.2)):
        _draw_tree(canvas, rng, place, tall, radius, (0.22, 0.34, 0.14))
    _build_houses(canvas, rng, NIGHT_HOUSES, lit=0.3)
    _hang_sign(canvas, (1.2, 8.6, 30.0), "HOTEL", 1.5, (0.05, 0.04, 0.06), NEON, glow=2.4)
    for lamp_x, lamp_z, reach in LAMPS:
        _draw_lamp(canvas, (lamp_x, lamp_z), LAMP_HEIGHT, reach, lit=True)
    if not is_empty:
        _draw_person(canvas, (6.3, 17.5), (0.2, 0.2, 0.26), (0.16, 0.16, 0.2), -0.2)
    _draw_car(canvas, ONCOMING, (0.55, 0.57, 0.62), "NT 207", oncoming=True)
    _hang_sign(canvas, (-5.35, 4.35, 9.6), "BAR", 0.8, (0.04, 0.05, 0.08), ICE, glow=1.8)
    if not is_empty:
        _draw_person(canvas, (-4.25, 9.6), (0.62, 0.26, 0.22), (0.24, 0.26, 0.36), 0.24)
        _draw_bones(canvas, 3.1, 9.2, DOG)
        _draw_person(canvas, (4.25, 9.0), (0.24, 0.26, 0.22), (0.2, 0.2, 0.2), 0.22)
    return _thermal_image(canvas, rng, (4.0, 32.0)), _expose_night(canvas, rng)


def _expose_night(canvas: Canvas, rng: np.random.Generator) -> Uint8Image:
    x, y, z = canvas.world()
    light = np.zeros_like(canvas.color) + np.asarray((0.002, 0.0025, 0.0042), np.float32)
    path, drop = np.maximum(ONCOMING[1] - z, 0.0), LAMP_HEIGHT - y
    for lamp_x, lamp_z, reach in LAMPS:
        squared = (x - lamp_x - reach) ** 2 + drop**2 + (z - lamp_z) ** 2
        # The shade of the lamp keeps its light in a downward cone.
        cone = np.clip((drop / np.sqrt(squared) - 0.70) / 0.28, 0.0, 1.0) ** 1.4
        light += (95.0 * cone / squared)[..., None] * SODIUM
    for side in HEADLIGHTS:
        beam = np.exp(-(((x - ONCOMING[0] - side) / (0.25 + 0.22 * path)) ** 2)) * (y < 0.8)
        light += (beam * 40.0 * path / (1.5 + path) ** 3.1)[..., None] * HEADLIGHT
    for place, power, color in (((-5.35, 4.35, 9.3), 1.6, ICE), ((1.2, 8.6, 29.5), 3.0, NEON)):
        squared = (x - place[0]) ** 2 + (y - place[1]) ** 2 + (z - place[2]) ** 2
        light += (power / (squared + 0.6))[..., None] * color
    # Shop windows spill light on the pavement in front of them.
    spill = 0.35 * np.exp(-np.abs(x + 6.3) / 0.9) * np.exp(-np.maximum(y, 0.0) / 1.5)
    light += (spill[..., None] * (1.0, 0.72, 0.42)).astype(np.float32)
    albedo = canvas.color**2.2
    radiance = np.where((canvas.depth < canvas.FAR)[..., None], albedo * light, 0.20 * canvas.color)
    small = reduce(radiance + albedo * canvas.glow[..., None] * 1.3, SCALE)
    # Bright lamps bloom over their surroundings in the lens.
    bloom = np.minimum(small, 12.0)
    small = 0.86 * small + 0.07 * blur(bloom, 2.2) + 0.045 * blur(bloom, 8.0) + 0.025 * blur(bloom, 26.0)
    camera, (down, across) = canvas.camera, np.indices(small.shape[:2]) + 0.5
    for side in HEADLIGHTS:
        # Thin diffraction spikes around the headlights.
        gain = camera.focal / ONCOMING[1]
        u = across - camera.column - gain * (ONCOMING[0] + side)
        v = down - camera.row - gain * (camera.height - 0.74)
        for angle in (0.5, 1.55, 2.6):
            along, aside = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
            spike = np.exp(-np.abs(along) / 5.0 - (aside / 0.7) ** 2)
            small += (0.22 * spike[..., None] * HEADLIGHT).astype(np.float32)
    display = (1.0 - np.exp(-2.1 * small)) ** (1 / 2.2)
    shot = 0.2 * rng.normal(0.0, 1.0, display.shape) + 0.8 * rng.normal(0.0, 1.0, display.shape[:2])[..., None]
    return quantize(display + (0.007 + 0.009 * (1 - display)) * shot)


def _lay_ground(canvas: Canvas, rng: np.random.Generator, kerbs: Pair, line: float, bay: float) -> None:
    """Paint the ground below the horizon: pavements beyond both kerbs, and a road with a broken line and a parking bay."""
    camera, below = canvas.camera, canvas.v > canvas.camera.row + 1.0
    canvas.depth[below] = camera.focal * camera.height / (canvas.v[below] - camera.row)
    x, _, z = (plane[below] for plane in canvas.world())
    fine, broad = noise(rng, (TILE, TILE), 6, 2), noise(rng, (TILE, TILE), 128, 6, 0.6)
    place = np.mod(z * TILE_PER_METRE, TILE).astype(int), np.mod((x + 15.0) * TILE_PER_METRE, TILE).astype(int)
    speckle, stain = (fine[place] - 0.5) * np.clip(11.0 / z, 0.0, 1.0), broad[place] - 0.5
    gray, heat = 0.30 * (1.0 + 0.55 * speckle + 0.35 * stain), 18.5 + 0.8 * speckle + 1.6 * stain
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
    slab = np.outer((1.0 + 0.35 * (slab - 0.5) + 0.35 * speckle) * np.where(joint, 0.68, 1.0), (0.53, 0.50, 0.46))
    tarmac = (gray * (1.0 - mark) * np.where(gutter, 0.72, 1.0))[:, None] * (1.0, 1.0, 1.05) + np.outer(mark, (0.86, 0.85, 0.8))
    canvas.color[below] = np.where(kerb[:, None], (0.66, 0.64, 0.60), np.where(pavement[:, None], slab, tarmac))
    heat = np.where(pavement, 16.0 + 0.8 * stain - 0.4 * joint, heat - 0.5 * mark - 0.8 * gutter)
    canvas.heat[below] = np.where(kerb, 15.2, heat)


def _build_houses(canvas: Canvas, rng: np.random.Generator, houses: Iterable[House], lit: float = 0.0) -> None:
    """Paint houses from far to near; a share of their windows is lit."""
    for x, near, far, height, brick, sign, board in houses:
        canvas.fill([(x, height, near), (x + np.copysign(14.0, x), 0, near)], tone(brick, 0.62, 16.0))
        left, right = (near, far) if x < 0 else (far, near)
        front = _house_front(rng, (far - near, height), brick, sign, board, lit)
        canvas.paste([(x, height, left), (x, height, right), (x, 0, right), (x, 0, left)], front)


def _house_front(rng: np.random.Generator, size: Pair, brick: Paint, sign: str, board: Paint, lit: float) -> Canvas:
    """Paint a brick front with a shop on the ground floor, to be pasted."""
    (width, height), canvas = size, Canvas(*size, 44)
    course = np.floor(canvas.v / 0.2).astype(int)
    run = canvas.u / 0.56 + 0.5 * (course % 2)
    gain = rng.normal(1.0, 0.12, (course.max() + 1, int(run.max()) + 1))[course, run.astype(int)]
    mortar = (canvas.v / 0.2 - course < 0.17) | (run - np.floor(run) < 0.07)
    canvas.color[:] = np.where(mortar[..., None], mix(brick, (0.72, 0.68, 0.62), 0.55), gain[..., None] * brick)
    canvas.heat[:] = 17.0 + 0.6 * (gain - 1.0)
    trim, bays = (*mix(brick, (0.85, 0.82, 0.76), 0.8), 16.5), max(2, int(width / 2.1))
    for storey, bay in product(range(int((height - GROUND_FLOOR - 0.5) / STOREY)), range(bays)):
        left, top = (bay + 0.5) * width / bays - 0.6, height - GROUND_FLOOR - 2.5 - storey * STOREY
        right, bottom, bright = left + 1.2, top + 1.75, rng.random() < lit
        canvas.fill([(left - 0.14, top - 0.26), (right + 0.14, top)], trim)
        canvas.fill([(left - 0.16, bottom), (right + 0.16, bottom + 0.14)], trim)
        frame, pane = (0.79, 0.78, 0.74, 14.0), (left + 0.08, top + 0.08)
        canvas.fill([(left, top), (right, bottom)], frame)
        glow, streak = (1.0, 0.82, 0.53, 15.0, rng.uniform(0.35, 0.75)), rng.uniform(0.3, 1.0)
        canvas.fill([pane, (right - 0.08, bottom - 0.08)], glow if bright else GLASS)
        if not bright:
            canvas.fill([pane, (pane[0], pane[1] + streak), (pane[0] + streak, pane[1])], (0.42, 0.50, 0.58, 8.5))
        for curtain in (left + 0.08, right - 0.32) if rng.random() < 0.55 else ():
            canvas.fill([(curtain, top + 0.08), (curtain + 0.24, bottom - 0.08)], (0.70, 0.66, 0.58, 13.0, 0.25 * bright))
        canvas.fill([(left + 0.565, top), (right - 0.565, bottom)], frame)
        canvas.fill([(left, top + 0.6), (right, top + 0.67)], frame)
        canvas.fill([(left, top), (right, top + 0.5)], None, (0.5, 1.0))
    canvas.fill([(0, 0), (width, 0.35)], trim)
    canvas.fill([(0, 0.35), (width, 0.5)], tone(trim, 0.55, 15.0))
    pieces, top = max(2, round(width / 2.3)), height - GROUND_FLOOR + 0.1
    step, bright = (width - 1.0) / pieces, lit > 0
    canvas.fill([(0.25, top), (width - 0.25, height)], tone(board, 0.45, 16.0))
    for piece in range(pieces):
        left, right = 0.5 + piece * step, 0.3 + (piece + 1) * step
        base = height - (0.12 if piece == pieces // 2 else 0.75)
        canvas.fill([(left, top + 1.0), (right, base)], (0.95, 0.74, 0.44, 14.0, 0.26) if bright else GLASS)
        for _ in range(5):
            x, goods = rng.uniform(left, right - 0.3), 0.32 * rng.random() + rng.uniform(0.12, 0.34, 3)
            canvas.fill([(x, base - rng.uniform(0.3, 1.0)), (x + 0.3, base)], (*goods, 12.0, 0.2 * bright))
        canvas.fill([(left, top + 1.0), (right, base)], None, (0.65, 1.25))
    canvas.fill([(0.3, top + 0.1), (width - 0.3, top + 0.85)], (*board, 16.2, 0.35 * bright))
    canvas.text(sign, (width / 2, top + 0.48), 0.46, (0.97, 0.94, 0.84, 16.4, 0.8 * bright))
    for stripe in range(int((width - 0.6) / 0.35)):
        left, cloth = 0.3 + stripe * 0.35, (0.9, 0.88, 0.8) if stripe % 2 else board
        canvas.fill([(left, top + 0.85), (left + 0.35, top + 1.35)], (*cloth, 17.5), (1.05, 0.7))
    dirt = noise(rng, canvas.shape, 90, 4)
    canvas.color *= (0.84 + 0.3 * dirt)[..., None]
    canvas.heat += 2.0 * (dirt - 0.5)
    return canvas


def _hang_sign(canvas: Canvas, place: Point, words: str, cap: float, board: Paint, ink: Paint, glow: float = 0.0) -> None:
    """Paint a sign board whose letters and rim may glow, from the middle of the board and the height of its letters."""
    x, y, z = place
    half, rise = canvas.text_width(words, cap) / 2 + 0.5 * cap, 0.95 * cap
    for rim, paint in ((0.14 * cap, tone(ink, 0.8, 15.0, 0.6 * glow)), (0.0, (*board, 16.0, 0.1 * glow))):
        canvas.fill([(x - half - rim, y - rise - rim, z), (x + half + rim, y + rise + rim, z)], paint)
    canvas.text(words, place, cap, (*ink, 20.0 if glow else 16.5, glow))


def _draw_lamp(canvas: Canvas, place: Pair, height: float, reach: float, lit: bool) -> None:
    """Paint a street lamp with an arm to the right, or with a negative reach to the left."""
    (x, z), steel = place, (0.20, 0.22, 0.22, 14.0)
    canvas.limb((x, 0, z), (x, height, z), (0.08, 0.05), steel)
    canvas.limb((x, height, z), (x + reach, height + 0.15, z), (0.04, 0.04), steel)
    canvas.oval((x + reach, height + 0.15, z), (0.34, 0.10), steel)
    canvas.oval((x + reach, height + 0.10, z), (0.24, 0.07), (1.0, 0.84, 0.58, 42.0, 6.0) if lit else (0.7, 0.7, 0.66, 14.0))


def _draw_tree(canvas: Canvas, rng: np.random.Generator, place: Pair, height: float, radius: float, leaf: Paint) -> None:
    (x, z), middle, size = place, height - radius, float(np.clip(0.105, place[1] / 300, 3.0 * place[1] / 300))
    canvas.shade(ellipse((x, 0, z), (0.7, 0.12)), 0.55, 0.08)
    canvas.limb((x, 0, z), (x, height - 0.9 * radius, z), (0.17, 0.10), (0.23, 0.17, 0.13, 14.5))
    clumps = np.clip(rng.normal(0.0, 0.46, (34, 2)), -0.75, 0.75)
    for across, up in clumps[np.argsort(clumps[:, 1])]:
        for share in np.linspace(0.0, 1.0, 70):
            aside, above = rng.normal((across, up), 0.19)
            light = 0.42 + 0.38 * share + 0.24 * (above - 0.4 * across) + rng.normal(0.0, 0.09)
            hue = mix(leaf, (0.62, 0.58, 0.18), float(np.clip(light - 0.6, 0.0, 0.4)))
            green = tone(hue, 1.4 * float(np.clip(light, 0.18, 1.3)), 11.5 + light)
            canvas.oval((x + radius * aside, middle + radius * above, z), (size, 0.55 * size), green, rng.uniform(0.0, np.pi))


def _draw_bones(canvas: Canvas, x: float, z: float, bones: Iterable[Bone]) -> None:
    for (x0, y0), (x1, y1), (r0, r1), paint in bones:
        # A second, thinner and brighter pass makes the limb round.
        for shift, share, hue in ((0.0, 1.0, paint), (0.012, 0.5, tone(paint, 1.22, paint[3] + 2.5))):
            canvas.limb((x + x0 - shift, y0, z), (x + x1 - shift, y1, z), (share * r0, share * r1), hue)


def _draw_person(canvas: Canvas, place: Pair, coat: Paint, trousers: Paint, step: float = 0.22) -> None:
    """Paint somebody who walks to the right, or with a negative step to the left."""
    (x, z), facing, bones = place, float(np.sign(step)), []
    canvas.shade(ellipse((x + 0.12, 0, z), (0.42, 0.08)), 0.5, 0.04)
    for side, gain in ((-1.0, 0.8), (1.0, 1.0)):
        toe, leg, sleeve = side * step, tone(trousers, gain, 25.0), tone(coat, gain, 26.5)
        knee, elbow, wrist = (toe * 0.65 + 0.06 * facing, 0.47), (0.25 * side, 1.14), 0.27 * side - 0.35 * step
        bones += [((0.05 * side, 0.9), knee, (0.10, 0.075), leg), (knee, (toe, 0.1), (0.075, 0.055), leg)]
        bones.append(((toe, 0.05), (toe + 0.13 * facing, 0.04), (0.05, 0.04), (0.08, 0.06, 0.05, 20.5)))
        # The coat covers what is behind it.
        bones += [((0.0, 1.36), (0.0, 0.92), (0.20, 0.165), sleeve), ((0.18 * side, 1.40), elbow, (0.075, 0.06), sleeve)]
        bones += [(elbow, (wrist, 0.92), (0.06, 0.05), sleeve), ((wrist, 0.9), (wrist, 0.86), (0.045, 0.04), (*SKIN, 30.5))]
    _draw_bones(canvas, x, z, [*bones, ((0.0, 1.48), (0.0, 1.56), (0.06, 0.055), tone(SKIN, 0.8, 32.0))])
    canvas.oval((x - 0.01, 1.665, z), (0.105, 0.125), HAIR)
    canvas.oval((x + 0.01, 1.635, z), (0.088, 0.105), (*SKIN, 34.5))
    canvas.oval((x, 1.70, z), (0.095, 0.068), HAIR)


def _draw_car(canvas: Canvas, place: Pair, color: Paint, plate: str, oncoming: bool = False, running: bool = True) -> None:
    """Paint a car, from its shadow to the end that faces the camera; when it runs, it is warm and its lights are on."""
    (x, z), warm, engine, side = place, float(running), 12.0 * running * oncoming, -float(np.sign(place[0]))
    under = [(x + across, 0, z + along) for across, along in ((-1, -0.15), (1, -0.15), (1, 4.4), (-1, 4.4))]
    canvas.shade(under, 0.22, 0.16, 7.0 * warm)

    def at(across: float, along: float, up: float) -> Point:
        width = CAR_HALF_WIDTH - 0.42 * max(0.0, up - 0.98) - 0.10 * max(0.0, 0.5 - up)
        return (x + across * width, up, z + (CAR_LENGTH - along if oncoming else along))

    def patch(left: float, low: float, right: float, high: float, paint: Paint) -> None:
        canvas.fill([(x + left, high, z), (x + right, low, z)], paint)

    # What is farther away comes first, so that what is nearer hides it.
    for panel in range(len(CAR_PROFILE) - 1)[:: 1 if oncoming else -1]:
        (s0, y0), (s1, y1) = CAR_PROFILE[panel : panel + 2]
        corners = [at(-1, s0, y0), at(1, s0, y0), at(1, s1, y1), at(-1, s1, y1)]
        if panel in (3, 6):
            canvas.fill(corners, (0.17, 0.20, 0.24, 12.0))
            canvas.fill([corners[0], corners[3], mix(corners[3], corners[2], 0.55)], (0.33, 0.38, 0.43, 11.0))
            canvas.stroke([*corners, corners[0]], 0.05, tone(color, 0.5, 14.0))
            continue
        # Upward facing panels mirror the sky, upright ones the street.
        gain = 0.55 + 0.5 * abs(s1 - s0) / float(np.hypot(s1 - s0, y1 - y0))
        canvas.fill(corners, tone(color, gain, 14.5 + 15.0 * warm * (0.75 if panel == 7 else 0.55 if panel > 7 else 0.0)))
    if abs(x) > CAR_HALF_WIDTH:
        canvas.fill([at(side, *spot) for spot in CAR_PROFILE], tone(color, 0.78, 14.5), (1.1, 0.5))
        for window in CAR_WINDOWS:
            canvas.fill([at(side, *spot) for spot in window], (0.15, 0.18, 0.22, 12.0))
        wheel = ((0.40, RUBBER, 16.0), (0.33, RUBBER, 14.5 + 10.5 * warm), (0.20, (0.55, 0.56, 0.58), 14.0 + 16.0 * warm))
        for hub, (radius, paint, heat) in product((0.85, 3.35), wheel):
            rim = ellipse((hub, 0.34), (radius, radius))
            canvas.fill([at(side, along, max(up, 0.0)) for along, up in rim], (*paint, heat))
    outline = [(-0.88, 0.34), (-0.9, 0.62), (-0.86, 0.97), (0.86, 0.97), (0.9, 0.62), (0.88, 0.34)]
    canvas.fill([(x + across, up, z) for across, up in outline], tone(color, 0.92, 15.0 + 0.6 * engine), (1.1, 0.62))
    patch(-0.9, 0.30, 0.9, 0.44, tone(color, 0.58, 15.5 + 0.4 * engine))
    for side in (-1, 1):
        patch(side * 0.84, 0.0, side * 0.62, 0.32, (*RUBBER, 14.5 + 12.5 * warm))
        if oncoming:
            canvas.oval((x + side * 0.69, 0.74, z), (0.17, 0.10), (1.0, 0.97, 0.88, 20.0 + engine, 5.0 * warm))
            patch(-0.48, 0.66, 0.48, 0.84, (0.06, 0.06, 0.07, 17.0 + engine))
        else:
            patch(side * 0.87, 0.66, side * 0.60, 0.86, (0.72, 0.07, 0.06, 17.0, 0.9 * warm))
            patch(side * 0.72, 0.69, side * 0.63, 0.76, (0.95, 0.45, 0.25, 18.0, 0.9 * warm))
            canvas.oval((x + 0.55, 0.27, z), (0.06, 0.05), (0.3, 0.3, 0.3, 14.0 + 34.0 * warm))
    patch(-0.42, 0.46, 0.42, 0.655, (0.05, 0.05, 0.05, 15.5))
    patch(-0.40, 0.475, 0.40, 0.64, (0.93, 0.93, 0.88, 15.5, 0.05 * warm))
    canvas.text(plate, (x, 0.5575, z), 0.115, (0.06, 0.06, 0.12, 15.5))


def _thermal_image(canvas: Canvas, rng: np.random.Generator, span: Pair) -> Uint8Image:
    """Render the image of an uncooled infrared camera that shows a span of temperatures from black to white."""
    level = (blur(reduce(canvas.heat, canvas.scale), 0.8) - span[0]) / (span[1] - span[0])
    level += 0.009 * blur(rng.normal(0.0, 1.0, (1, level.shape[1])).astype(np.float32), 0.6)
    level += 0.006 * rng.normal(0.0, 1.0, level.shape).astype(np.float32)
    y, x = np.mgrid[-1 : 1 : level.shape[0] * 1j, -1 : 1 : level.shape[1] * 1j]
    return quantize(level * (1.0 - 0.10 * (x**2 + y**2)))
