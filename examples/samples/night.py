"""Street at night: the visible camera only sees what the lamps reach."""

import numpy as np

from samples.canvas import (
    FAR,
    Camera,
    Canvas,
    Colour,
    Image,
    Picture,
    Surface,
    blur,
    fractal_noise,
    quantise,
    reduce,
)
from samples.facade import front
from samples.props import (
    Car,
    Person,
    draw_car,
    draw_dog,
    draw_lamp,
    draw_person,
    draw_tree,
)
from samples.road import (
    House,
    Layout,
    build_houses,
    hang_sign,
    lay_ground,
    thermal_picture,
)

SIZE = (384, 288)
SCALE = 3
SEED = 2203
CAMERA = Camera(focal=290.0, centre=214.0, horizon=128.0, height=2.0)
LAYOUT = Layout(left=-3.9, right=3.6, line=-0.2, bay=40.0, crossing=(60.0, 61.0))
HOUSES = (
    House(-6.4, 25, 38, 9, (0.55, 0.46, 0.38), "TAILOR", (0.36, 0.16, 0.20)),
    House(-6.4, 14.5, 25, 13, (0.52, 0.30, 0.24), "PHARMACY", (0.10, 0.30, 0.22)),
    House(-6.4, 4, 14.5, 10, (0.62, 0.52, 0.42), "PIZZERIA", (0.48, 0.14, 0.12)),
)
SODIUM: Colour = (1.0, 0.66, 0.32)
HEADLIGHT: Colour = (0.95, 0.97, 1.0)
NEON: Colour = (1.0, 0.22, 0.42)
LAMPS = ((-4.5, 11.5, 1.5), (4.2, 24.0, -1.5), (-4.5, 36.0, 1.5))
LAMP_HEIGHT = 5.4
CAR = Car(-2.0, 15.5, (0.55, 0.57, 0.62), "NT 207", oncoming=True)


def render() -> tuple[Picture, Picture]:
    """Render the pair.

    Returns:
        Infrared (grey) and visible (RGB) picture.
    """
    rng = np.random.default_rng(SEED)
    canvas = Canvas(*SIZE, SCALE)
    _draw_sky(canvas)
    lay_ground(canvas, CAMERA, rng, LAYOUT)
    _draw_end_house(canvas, rng)
    _draw_park(canvas, rng)
    build_houses(canvas, CAMERA, rng, HOUSES, lit=0.3)
    _populate(canvas)
    infrared = thermal_picture(canvas, rng, (4.0, 32.0))
    return infrared, _expose(canvas, rng)


def _draw_sky(canvas: Canvas) -> None:
    _, v = canvas.grid()
    height = np.clip(v / CAMERA.horizon, 0.0, 1.0)
    canvas.colour[:] = np.asarray((0.030, 0.036, 0.062)) + (np.asarray((0.075, 0.055, 0.045)) * height[..., None] ** 3)
    canvas.heat[:] = -12.0 + 12.0 * height**2


def _draw_park(canvas: Canvas, rng: np.random.Generator) -> None:
    """Lawn, hedge and trees right of the road, out of reach of the lamps."""
    u, _ = canvas.grid()
    x = (u - CAMERA.centre) * canvas.depth / CAMERA.focal
    blades = fractal_noise(rng, canvas.shape, (5.0, 9.0), 2)
    patches = fractal_noise(rng, canvas.shape, (120.0, 40.0), 4)
    lawn = (x > 5.3) & (canvas.depth < 39.5)
    green = np.asarray((0.20, 0.32, 0.13))
    shade = 0.55 + 0.5 * blades + 0.4 * patches
    canvas.colour[lawn] = (green * shade[..., None])[lawn]
    canvas.heat[lawn] = (9.5 + 1.6 * blades + 2.2 * patches)[lawn]
    canvas.distance = 39.0
    for left in np.arange(8.2, 50.0, 0.9):
        top = CAMERA.project(left, float(rng.uniform(3.5, 8.0)), 39.0)
        low = CAMERA.project(left, 1.0, 39.0)
        canvas.capsule(low, top, (6.0, 3.0), Surface((0.10, 0.15, 0.08), 10.5))
    leaf = (0.22, 0.34, 0.14)
    for place, size in (
        ((12.0, 30.0), (9.0, 3.0)),
        ((6.6, 27.0), (7.0, 2.2)),
        ((14.0, 21.0), (8.0, 2.6)),
        ((8.2, 14.5), (6.6, 2.2)),
    ):
        draw_tree(canvas, CAMERA, rng, place, size, leaf)


def _draw_end_house(canvas: Canvas, rng: np.random.Generator) -> None:
    """House across the end of the road."""
    distance = 40.0
    texture = front(rng, (17.0, 13.0), (0.48, 0.36, 0.30), "GRAND HOTEL", (0.18, 0.16, 0.26), 0.45)
    low, high = (-7.4, 0.0), (7.5, 12.0)
    corners = [
        CAMERA.project(low[0], high[1], distance),
        CAMERA.project(high[0], high[1], distance),
        CAMERA.project(high[0], low[1], distance),
        CAMERA.project(low[0], low[1], distance),
    ]
    canvas.paste(corners, texture, distance)


def _populate(canvas: Canvas) -> None:
    hang_sign(
        canvas,
        CAMERA,
        (1.2, 8.6, 30.0),
        "HOTEL",
        1.5,
        ((0.05, 0.04, 0.06), (1.0, 0.24, 0.40)),
        emission=2.4,
    )
    for x, z, reach in LAMPS[::-1]:
        if z > CAR.z:
            draw_lamp(canvas, CAMERA, (x, z), LAMP_HEIGHT, reach, lit=True)
    draw_person(canvas, CAMERA, Person(6.3, 17.5, (0.2, 0.2, 0.26), (0.16, 0.16, 0.2), -0.2))
    draw_car(canvas, CAMERA, CAR)
    hang_sign(
        canvas,
        CAMERA,
        (-5.35, 4.35, 9.6),
        "BAR",
        0.8,
        ((0.04, 0.05, 0.08), (0.25, 0.85, 1.0)),
        emission=1.8,
    )
    x, z, reach = LAMPS[0]
    draw_lamp(canvas, CAMERA, (x, z), LAMP_HEIGHT, reach, lit=True)
    draw_person(canvas, CAMERA, Person(-4.25, 9.6, (0.62, 0.26, 0.22), (0.24, 0.26, 0.36), 0.24))
    draw_dog(canvas, CAMERA, 3.1, 9.2)
    draw_person(canvas, CAMERA, Person(4.25, 9.0, (0.24, 0.26, 0.22), (0.2, 0.2, 0.2), 0.22))


def _lighting(canvas: Canvas) -> Image:
    """Light that reaches every painted point, from its place in the world."""
    u, v = canvas.grid()
    z = canvas.depth
    x = (u - CAMERA.centre) * z / CAMERA.focal
    y = CAMERA.height - (v - CAMERA.horizon) * z / CAMERA.focal
    light = np.zeros_like(canvas.colour) + np.asarray((0.002, 0.0025, 0.0042), np.float32)
    for lamp_x, lamp_z, reach in LAMPS:
        drop = LAMP_HEIGHT - y
        squared = (x - lamp_x - reach) ** 2 + drop**2 + (z - lamp_z) ** 2
        # The shade of the lamp keeps its light in a downward cone.
        cone = np.clip((drop / np.sqrt(squared) - 0.70) / 0.28, 0.0, 1.0) ** 1.4
        light += (95.0 * cone / squared)[..., None] * np.asarray(SODIUM)
    for side in (-0.69, 0.69):
        ahead = CAR.z - z
        spread = 0.25 + 0.22 * np.maximum(ahead, 0.0)
        beam = np.exp(-(((x - CAR.x - side) / spread) ** 2)) * (y < 0.8)
        path = np.maximum(ahead, 0.0)
        reach_gain = 40.0 * path / (1.5 + path) ** 3.1
        light += (beam * reach_gain)[..., None] * np.asarray(HEADLIGHT)
    for place, power, colour in (
        ((-5.35, 4.35, 9.3), 1.6, (0.25, 0.85, 1.0)),
        ((1.2, 8.6, 29.5), 3.0, NEON),
    ):
        squared = (x - place[0]) ** 2 + (y - place[1]) ** 2 + (z - place[2]) ** 2
        light += (power / (squared + 0.6))[..., None] * np.asarray(colour)
    # Shop windows spill light on the pavement in front of them.
    spill = 0.35 * np.exp(-np.abs(x + 6.3) / 0.9) * np.exp(-np.maximum(y, 0.0) / 1.5)
    light += spill[..., None] * np.asarray((1.0, 0.72, 0.42))
    return np.asarray(light, np.float32)


def _expose(canvas: Canvas, rng: np.random.Generator) -> Picture:
    scene = canvas.depth < FAR
    light = np.where(scene[..., None], _lighting(canvas), 1.0)
    albedo = canvas.colour**2.2
    sky = 0.20 * canvas.colour
    radiance = np.where(scene[..., None], albedo * light, sky)
    radiance = radiance + albedo * canvas.emission[..., None] * 1.3
    small = reduce(radiance.astype(np.float32), SCALE)
    # Wide skirts of the lens: bright lamps bloom over their surroundings.
    bloom = np.minimum(small, 12.0)
    small = 0.86 * small + 0.07 * blur(bloom, 2.2) + 0.045 * blur(bloom, 8.0)
    small += 0.025 * blur(bloom, 26.0)
    small += _headlight_stars(small.shape)
    display = (1.0 - np.exp(-2.1 * small)) ** (1 / 2.2)
    shot = rng.normal(0.0, 1.0, display.shape).astype(np.float32)
    shot = 0.2 * shot + 0.8 * rng.normal(0.0, 1.0, display.shape[:2])[..., None]
    return quantise(display + (0.007 + 0.009 * (1 - display)) * shot)


def _headlight_stars(shape: tuple[int, ...]) -> Image:
    """Thin diffraction spikes around the headlights."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    star = np.zeros(shape[:2], np.float32)
    for side in (-0.69, 0.69):
        u, v = CAMERA.project(CAR.x + side, 0.74, CAR.z)
        for angle in (0.5, 1.55, 2.6):
            across, down = x + 0.5 - u, y + 0.5 - v
            along = across * np.cos(angle) + down * np.sin(angle)
            aside = down * np.cos(angle) - across * np.sin(angle)
            spike = np.exp(-np.abs(along) / 5.0) * np.exp(-((aside / 0.7) ** 2))
            star += spike.astype(np.float32)
    return np.asarray(0.22 * star[..., None] * np.asarray(HEADLIGHT), np.float32)
