"""The infrared and visible pairs: smoke blinds the visible camera by day, darkness and glare blind it at night."""

import numpy as np

from samples import town
from samples.canvas import FAR, Camera, Canvas
from samples.paint import Image, Uint8Image, blur, ellipse, noise, quantize, reduce
from samples.town import Car, House

WIDTH, HEIGHT, SCALE = 384, 288, 3
DAY_CAMERA = Camera(focal=300.0, column=188.0, row=132.0, height=2.2)
DAY_HOUSES = (
    House(6.9, 42, 60, 13, (0.50, 0.40, 0.34), "TOOLS", (0.20, 0.22, 0.30)),
    House(-5.9, 40, 60, 11, (0.52, 0.44, 0.38), "PAPER", (0.35, 0.28, 0.16)),
    House(6.9, 27, 42, 10, (0.62, 0.52, 0.40), "FLOWERS", (0.42, 0.16, 0.24)),
    House(-5.9, 26, 40, 13.5, (0.47, 0.30, 0.25), "RECORDS", (0.16, 0.20, 0.36)),
    House(6.9, 15, 27, 14, (0.58, 0.31, 0.24), "BOOKS", (0.14, 0.30, 0.22)),
    House(-5.9, 15.5, 26, 9.6, (0.66, 0.56, 0.43), "BAKERY", (0.52, 0.18, 0.14)),
    House(6.9, 5, 15, 11, (0.60, 0.50, 0.42), "CINEMA", (0.20, 0.20, 0.38)),
    House(-5.9, 4, 15.5, 12.5, (0.60, 0.30, 0.22), "GREEN GROCER", (0.14, 0.36, 0.22)),
)
BARREL = (-2.75, 12.2)
NIGHT_CAMERA = Camera(focal=290.0, column=214.0, row=128.0, height=2.0)
NIGHT_HOUSES = (
    House(-6.4, 25, 38, 9, (0.55, 0.46, 0.38), "TAILOR", (0.36, 0.16, 0.20)),
    House(-6.4, 14.5, 25, 13, (0.52, 0.30, 0.24), "PHARMACY", (0.10, 0.30, 0.22)),
    House(-6.4, 4, 14.5, 10, (0.62, 0.52, 0.42), "PIZZERIA", (0.48, 0.14, 0.12)),
)
HOTEL = House(0.0, 0.0, 17.0, 13.0, (0.48, 0.36, 0.30), "GRAND HOTEL", (0.18, 0.16, 0.26))
LAMPS, LAMP_HEIGHT = ((-4.5, 36.0, 1.5), (4.2, 24.0, -1.5), (-4.5, 11.5, 1.5)), 5.4
ONCOMING, HEADLIGHTS = Car(-2.0, 15.5, (0.55, 0.57, 0.62), "NT 207", oncoming=True), (-0.69, 0.69)
SODIUM, HEADLIGHT, NEON, ICE = (1.0, 0.66, 0.32), (0.95, 0.97, 1.0), (1.0, 0.24, 0.40), (0.25, 0.85, 1.0)


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
    town.lay_ground(canvas, rng, kerbs=(-3.6, 5.0), line=-0.15, bay=2.85)
    for left in np.arange(-16.0, 16.0, 2.6):
        roof, gray = rng.uniform(9.0, 22.0), rng.uniform(0.50, 0.62)
        canvas.fill([(left, 0.0, 60.0), (left + 2.7, roof, 60.0)], (gray, gray, gray, 11.5))
        for row in np.arange(3.0, roof - 0.8, 1.5):
            for pane in (left + 0.5, left + 1.4):
                canvas.fill([(pane, row, 60.0), (pane + 0.5, row + 0.8, 60.0)], (0.8 * gray, 0.82 * gray, 0.88 * gray, 9.0))
    town.build_houses(canvas, rng, DAY_HOUSES)
    # A low sun lights the right side of the street and leaves the left side in shade.
    x, _, z = canvas.world()
    ground = z < FAR
    sun = blur((np.clip((x - 0.9) / 0.25, 0.0, 1.0) * ground).astype(np.float32), 1.5) * ground
    canvas.color[ground] *= np.add((0.80, 0.82, 0.90), np.outer(sun[ground], (0.50, 0.34, 0.04)))
    canvas.heat += 1.8 * sun
    _populate_day(canvas, rng)
    infrared = town.thermal_image(canvas, rng, (3.0, 33.5))
    visible = reduce(_apply_air(canvas, rng), SCALE)
    return infrared, quantize(visible + 0.006 * rng.normal(0.0, 1.0, visible.shape[:2])[..., None])


def _populate_day(canvas: Canvas, rng: np.random.Generator) -> None:
    leaf = (0.30, 0.44, 0.17)
    town.draw_tree(canvas, rng, (5.9, 30.0), 7.5, 2.4, leaf)
    town.draw_tree(canvas, rng, (-4.6, 27.0), 7.0, 2.2, leaf)
    town.draw_car(canvas, Car(-1.9, 27.0, (0.62, 0.60, 0.58), "LX 480", oncoming=True))
    town.draw_lamp(canvas, (-4.0, 21.0), 6.0, 1.5, lit=False)
    town.draw_car(canvas, Car(4.0, 19.8, (0.24, 0.34, 0.50), "VIS 31", running=False))
    town.draw_tree(canvas, rng, (5.8, 19.0), 6.4, 1.9, leaf)
    town.hang_sign(canvas, (6.1, 4.4, 15.2), "HOTEL", 0.62, (0.13, 0.16, 0.34), (0.96, 0.90, 0.72))
    town.draw_person(canvas, (-1.75, 15.2), (0.25, 0.28, 0.42), (0.2, 0.2, 0.22))
    town.draw_person(canvas, (-0.9, 14.4), (0.46, 0.20, 0.18), (0.26, 0.24, 0.22), -0.25)
    town.draw_person(canvas, (5.35, 9.2), (0.72, 0.60, 0.30), (0.20, 0.24, 0.36), 0.2)
    x, z = BARREL
    canvas.shade(ellipse((x, 0.0, z), (0.4, 0.1)), 0.5, 0.06)
    canvas.fill([(x - 0.3, 0.85, z), (x + 0.3, 0.0, z)], (0.36, 0.22, 0.14, 33.0), (0.6, 1.3), axis=0)
    canvas.oval((x, 0.87, z), (0.31, 0.09), (0.16, 0.10, 0.08, 46.0))
    canvas.oval((x, 0.87, z), (0.22, 0.06), (0.95, 0.48, 0.12, 60.0))
    # Smoke hides little of the barrel.
    canvas.depth[canvas.depth == np.float32(z)] = z - 1.3
    town.hang_sign(canvas, (-5.0, 4.75, 11.4), "CAFE", 0.52, (0.45, 0.11, 0.09), (0.98, 0.93, 0.80))
    town.draw_car(canvas, Car(3.9, 10.2, (0.75, 0.71, 0.62), "IR 814", running=False))
    town.draw_car(canvas, Car(1.15, 8.0, (0.66, 0.13, 0.10), "FUS 10N"))
    town.draw_person(canvas, (-4.15, 7.4), (0.20, 0.36, 0.42), (0.17, 0.17, 0.20), 0.24)


def _apply_air(canvas: Canvas, rng: np.random.Generator) -> Image:
    """Veil the scene in haze, and in a plume that rises from the barrel and is blown across the road."""
    haze = (1.0 - np.exp(-np.where(canvas.depth < FAR, canvas.depth, 0.0) / 95.0))[..., None]
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
    return np.asarray(color * (1.0 - veil) + veil * lift[..., None] * (1.0, 0.96, 0.92), np.float32)


def render_night() -> tuple[Uint8Image, Uint8Image]:
    """Render the infrared (grayscale) and the visible (RGB) image of the street at night."""
    rng = np.random.default_rng(2203)
    canvas = Canvas(WIDTH, HEIGHT, SCALE, NIGHT_CAMERA)
    height = np.clip(canvas.v / NIGHT_CAMERA.row, 0.0, 1.0)
    canvas.color[:] = (0.030, 0.036, 0.062) + height[..., None] ** 3 * (0.075, 0.055, 0.045)
    canvas.heat[:] = -12.0 + 12.0 * height**2
    town.lay_ground(canvas, rng, kerbs=(-3.9, 3.6), line=-0.2, bay=40.0)
    canvas.paste([(-7.4, 12, 40), (7.5, 12, 40), (7.5, 0, 40), (-7.4, 0, 40)], town.house_front(rng, HOTEL, 0.45))
    # A park right of the road, out of reach of the lamps.
    x, _, z = canvas.world()
    lawn = (x > 5.3) & (z < 39.5)
    blades, patches = noise(rng, canvas.shape, (5.0, 9.0), 2), noise(rng, canvas.shape, (120.0, 40.0), 4)
    canvas.color[lawn] = np.outer((0.55 + 0.5 * blades + 0.4 * patches)[lawn], (0.20, 0.32, 0.13))
    canvas.heat[lawn] = (9.5 + 1.6 * blades + 2.2 * patches)[lawn]
    for left in np.arange(8.2, 50.0, 0.9):
        canvas.limb((left, 1.0, 39.0), (left, rng.uniform(3.5, 8.0), 39.0), (0.8, 0.4), (0.10, 0.15, 0.08, 10.5))
    for place, tall, radius in (((12, 30), 9.0, 3.0), ((6.6, 27), 7.0, 2.2), ((14, 21), 8.0, 2.6), ((8.2, 14.5), 6.6, 2.2)):
        town.draw_tree(canvas, rng, place, tall, radius, (0.22, 0.34, 0.14))
    town.build_houses(canvas, rng, NIGHT_HOUSES, lit=0.3)
    _populate_night(canvas)
    return town.thermal_image(canvas, rng, (4.0, 32.0)), _expose_night(canvas, rng)


def _populate_night(canvas: Canvas) -> None:
    town.hang_sign(canvas, (1.2, 8.6, 30.0), "HOTEL", 1.5, (0.05, 0.04, 0.06), NEON, glow=2.4)
    for x, z, reach in LAMPS:
        town.draw_lamp(canvas, (x, z), LAMP_HEIGHT, reach, lit=True)
    town.draw_person(canvas, (6.3, 17.5), (0.2, 0.2, 0.26), (0.16, 0.16, 0.2), -0.2)
    town.draw_car(canvas, ONCOMING)
    town.hang_sign(canvas, (-5.35, 4.35, 9.6), "BAR", 0.8, (0.04, 0.05, 0.08), ICE, glow=1.8)
    town.draw_person(canvas, (-4.25, 9.6), (0.62, 0.26, 0.22), (0.24, 0.26, 0.36), 0.24)
    town.draw_bones(canvas, (3.1, 9.2), town.DOG)
    town.draw_person(canvas, (4.25, 9.0), (0.24, 0.26, 0.22), (0.2, 0.2, 0.2), 0.22)


def _light_night(canvas: Canvas) -> Image:
    """Light that reaches every painted point, from its place in the world."""
    x, y, z = canvas.world()
    light = np.zeros_like(canvas.color) + np.asarray((0.002, 0.0025, 0.0042), np.float32)
    for lamp_x, lamp_z, reach in LAMPS:
        drop = LAMP_HEIGHT - y
        squared = (x - lamp_x - reach) ** 2 + drop**2 + (z - lamp_z) ** 2
        # The shade of the lamp keeps its light in a downward cone.
        cone = np.clip((drop / np.sqrt(squared) - 0.70) / 0.28, 0.0, 1.0) ** 1.4
        light += (95.0 * cone / squared)[..., None] * SODIUM
    path = np.maximum(ONCOMING.z - z, 0.0)
    for side in HEADLIGHTS:
        beam = np.exp(-(((x - ONCOMING.x - side) / (0.25 + 0.22 * path)) ** 2)) * (y < 0.8)
        light += (beam * 40.0 * path / (1.5 + path) ** 3.1)[..., None] * HEADLIGHT
    for place, power, color in (((-5.35, 4.35, 9.3), 1.6, ICE), ((1.2, 8.6, 29.5), 3.0, NEON)):
        squared = (x - place[0]) ** 2 + (y - place[1]) ** 2 + (z - place[2]) ** 2
        light += (power / (squared + 0.6))[..., None] * color
    # Shop windows spill light on the pavement in front of them.
    spill = 0.35 * np.exp(-np.abs(x + 6.3) / 0.9) * np.exp(-np.maximum(y, 0.0) / 1.5)
    return np.asarray(light + spill[..., None] * (1.0, 0.72, 0.42), np.float32)


def _expose_night(canvas: Canvas, rng: np.random.Generator) -> Uint8Image:
    albedo = canvas.color**2.2
    radiance = np.where((canvas.depth < FAR)[..., None], albedo * _light_night(canvas), 0.20 * canvas.color)
    small = reduce(radiance + albedo * canvas.glow[..., None] * 1.3, SCALE)
    # Bright lamps bloom over their surroundings in the lens.
    bloom = np.minimum(small, 12.0)
    small = 0.86 * small + 0.07 * blur(bloom, 2.2) + 0.045 * blur(bloom, 8.0) + 0.025 * blur(bloom, 26.0)
    camera, (down, across) = NIGHT_CAMERA, np.indices(small.shape[:2]) + 0.5
    for side in HEADLIGHTS:
        # Thin diffraction spikes around the headlights.
        gain = camera.focal / ONCOMING.z
        u = across - camera.column - gain * (ONCOMING.x + side)
        v = down - camera.row - gain * (camera.height - 0.74)
        for angle in (0.5, 1.55, 2.6):
            along, aside = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
            spike = np.exp(-np.abs(along) / 5.0 - (aside / 0.7) ** 2)
            small += (0.22 * spike[..., None] * HEADLIGHT).astype(np.float32)
    display = (1.0 - np.exp(-2.1 * small)) ** (1 / 2.2)
    shot = 0.2 * rng.normal(0.0, 1.0, display.shape) + 0.8 * rng.normal(0.0, 1.0, display.shape[:2])[..., None]
    return quantize(display + (0.007 + 0.009 * (1 - display)) * shot)
