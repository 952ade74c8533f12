"""Street at the end of the day: smoke blinds the visible camera."""

import numpy as np

from samples.canvas import (
    FAR,
    Camera,
    Canvas,
    Image,
    Picture,
    Surface,
    blur,
    box_points,
    fractal_noise,
    quantise,
    reduce,
)
from samples.props import (
    Car,
    Person,
    draw_car,
    draw_lamp,
    draw_person,
    draw_tree,
)
from samples.road import (
    SKY_TEMPERATURE,
    House,
    Layout,
    build_houses,
    hang_sign,
    lay_ground,
    thermal_picture,
)

SIZE = (384, 288)
SCALE = 3
SEED = 1101
CAMERA = Camera(focal=300.0, centre=188.0, horizon=132.0, height=2.2)
LAYOUT = Layout(left=-3.6, right=5.0, line=-0.15, bay=2.85, crossing=(13.2, 16.2))
HOUSES = (
    House(6.9, 42, 60, 13, (0.50, 0.40, 0.34), "TOOLS", (0.20, 0.22, 0.30)),
    House(-5.9, 40, 60, 11, (0.52, 0.44, 0.38), "PAPER", (0.35, 0.28, 0.16)),
    House(6.9, 27, 42, 10, (0.62, 0.52, 0.40), "FLOWERS", (0.42, 0.16, 0.24)),
    House(-5.9, 26, 40, 13.5, (0.47, 0.30, 0.25), "RECORDS", (0.16, 0.20, 0.36)),
    House(6.9, 15, 27, 14, (0.58, 0.31, 0.24), "BOOKS", (0.14, 0.30, 0.22)),
    House(-5.9, 15.5, 26, 9.6, (0.66, 0.56, 0.43), "BAKERY", (0.52, 0.18, 0.14)),
    House(6.9, 5, 15, 11, (0.60, 0.50, 0.42), "CINEMA", (0.20, 0.20, 0.38)),
    House(-5.9, 4, 15.5, 12.5, (0.60, 0.30, 0.22), "GREEN GROCER", (0.14, 0.36, 0.22)),
)
SMOKE_SOURCE = (-2.75, 12.2)


def render() -> tuple[Picture, Picture]:
    """Render the pair.

    Returns:
        Infrared (grey) and visible (RGB) picture.
    """
    rng = np.random.default_rng(SEED)
    canvas = Canvas(*SIZE, SCALE)
    _draw_sky(canvas, rng)
    lay_ground(canvas, CAMERA, rng, LAYOUT)
    _draw_skyline(canvas, rng)
    build_houses(canvas, CAMERA, rng, HOUSES)
    _cast_sunlight(canvas)
    _populate(canvas, rng)
    infrared = thermal_picture(canvas, rng, (3.0, 33.5))
    colour = _apply_air(canvas, rng)
    visible = reduce(colour, SCALE)
    visible += 0.006 * rng.normal(0.0, 1.0, visible.shape[:2])[..., None]
    return infrared, quantise(visible)


def _draw_sky(canvas: Canvas, rng: np.random.Generator) -> None:
    _, v = canvas.grid()
    height = np.clip(v / CAMERA.horizon, 0.0, 1.0)[..., None]
    top = np.asarray((0.36, 0.50, 0.72))
    low = np.asarray((0.96, 0.80, 0.62))
    clouds = fractal_noise(rng, canvas.shape, (330.0, 110.0), 6, 0.55)
    share = np.clip((clouds - 0.46) * 3.2, 0.0, 1.0)[..., None]
    shine = blur(clouds, 12.0) - clouds
    white = np.asarray((0.95, 0.88, 0.82)) + 0.9 * shine[..., None]
    sky = top + (low - top) * height**1.6
    canvas.colour[:] = sky * (1 - 0.8 * share) + white * 0.8 * share
    canvas.heat[:] = SKY_TEMPERATURE + 9.0 * height[..., 0] ** 2 + 4.0 * share[..., 0]


def _draw_skyline(canvas: Canvas, rng: np.random.Generator) -> None:
    canvas.distance = 120.0
    for left in np.arange(-16.0, 16.0, 2.6):
        roof = float(rng.uniform(9.0, 22.0))
        low = CAMERA.project(left, 0.0, 60.0)
        high = CAMERA.project(left + 2.7, roof, 60.0)
        shade = float(rng.uniform(0.50, 0.62))
        canvas.box(low, high, Surface((shade, shade * 0.97, shade), 11.5))
        for row in np.arange(3.0, roof - 0.8, 1.5):
            for offset in (0.5, 1.4):
                canvas.box(
                    CAMERA.project(left + offset, row, 60.0),
                    CAMERA.project(left + offset + 0.5, row + 0.8, 60.0),
                    Surface((shade * 0.8, shade * 0.82, shade * 0.88), 9.0),
                )


def _cast_sunlight(canvas: Canvas) -> None:
    """Warm low sun from the left: the right side is lit, the left is in shade."""
    u, _ = canvas.grid()
    x = (u - CAMERA.centre) * canvas.depth / CAMERA.focal
    ground = np.abs(canvas.depth) < FAR
    sun = np.clip((x - 0.9) / 0.25, 0.0, 1.0) * ground
    sun = blur(sun.astype(np.float32), 1.5)
    lit = np.asarray((1.30, 1.16, 0.94))
    shade = np.asarray((0.80, 0.82, 0.90))
    light = shade + (lit - shade) * sun[..., None]
    canvas.colour *= np.where(ground[..., None], light, 1.0).astype(np.float32)
    canvas.heat += np.where(ground, 1.8 * sun, 0.0).astype(np.float32)


def _populate(canvas: Canvas, rng: np.random.Generator) -> None:
    leaf = (0.30, 0.44, 0.17)
    draw_tree(canvas, CAMERA, rng, (5.9, 30.0), (7.5, 2.4), leaf)
    draw_tree(canvas, CAMERA, rng, (-4.6, 27.0), (7.0, 2.2), leaf)
    draw_car(canvas, CAMERA, Car(-1.9, 27.0, (0.62, 0.60, 0.58), "LX 480", True))
    draw_lamp(canvas, CAMERA, (-4.0, 21.0), 6.0, 1.5, lit=False)
    draw_car(canvas, CAMERA, Car(4.0, 19.8, (0.24, 0.34, 0.50), "VIS 31", running=False))
    draw_tree(canvas, CAMERA, rng, (5.8, 19.0), (6.4, 1.9), leaf)
    hang_sign(
        canvas,
        CAMERA,
        (6.1, 4.4, 15.2),
        "HOTEL",
        0.62,
        ((0.13, 0.16, 0.34), (0.96, 0.90, 0.72)),
    )
    draw_person(canvas, CAMERA, Person(-1.75, 15.2, (0.25, 0.28, 0.42), (0.2, 0.2, 0.22)))
    draw_person(
        canvas,
        CAMERA,
        Person(-0.9, 14.4, (0.46, 0.20, 0.18), (0.26, 0.24, 0.22), -0.25),
    )
    draw_person(canvas, CAMERA, Person(5.35, 9.2, (0.72, 0.60, 0.30), (0.20, 0.24, 0.36), 0.2))
    _draw_barrel(canvas)
    hang_sign(
        canvas,
        CAMERA,
        (-5.0, 4.75, 11.4),
        "CAFE",
        0.52,
        ((0.45, 0.11, 0.09), (0.98, 0.93, 0.80)),
    )
    draw_car(canvas, CAMERA, Car(3.9, 10.2, (0.75, 0.71, 0.62), "IR 814", running=False))
    draw_car(canvas, CAMERA, Car(1.15, 8.0, (0.66, 0.13, 0.10), "FUS 10N"))
    draw_person(canvas, CAMERA, Person(-4.15, 7.4, (0.20, 0.36, 0.42), (0.17, 0.17, 0.20), 0.24))


def _draw_barrel(canvas: Canvas) -> None:
    x, z = SMOKE_SOURCE
    canvas.distance = z - 1.3
    gain = CAMERA.focal / z
    low, high = CAMERA.project(x - 0.3, 0.0, z), CAMERA.project(x + 0.3, 0.85, z)
    canvas.shade(box_points((low[0] - 3, low[1] - 2), (high[0] + 3, low[1] + 2)), 0.5, 1.5)
    canvas.box(low, high, Surface((0.36, 0.22, 0.14), 33.0))
    canvas.ramp(box_points(low, high), (low, (high[0], low[1])), (0.6, 1.3))
    for rib in (0.28, 0.56):
        canvas.box(
            CAMERA.project(x - 0.31, rib, z),
            CAMERA.project(x + 0.31, rib + 0.04, z),
            Surface((0.25, 0.16, 0.11), 34.0),
        )
    rim = CAMERA.project(x, 0.87, z)
    canvas.oval(rim, (0.31 * gain, 0.09 * gain), Surface((0.16, 0.10, 0.08), 46.0))
    canvas.oval(rim, (0.22 * gain, 0.06 * gain), Surface((0.95, 0.48, 0.12), 60.0))


def _smoke_density(canvas: Canvas, rng: np.random.Generator) -> Image:
    """Plume that rises from the barrel and is blown along the crossing."""
    x, z = SMOKE_SOURCE
    gain = CAMERA.focal / z
    u, v = canvas.grid()
    start = CAMERA.project(x, 0.85, z)
    warp = fractal_noise(rng, canvas.shape, 130, 4) - 0.5
    bend = fractal_noise(rng, canvas.shape, 90, 4) - 0.5
    across = (u - start[0]) / gain + 1.1 * warp
    up = (start[1] - v) / gain + 0.9 * bend
    body = np.zeros(canvas.shape, np.float32)
    for along in np.linspace(0.0, 1.0, 22):
        centre = (3.3 * along, 0.15 + 2.4 * along**1.5 - 0.75 * np.sin(np.pi * along))
        radius = 0.22 + 1.25 * along**0.7
        far = ((across - centre[0]) ** 2 + (up - centre[1]) ** 2) / radius**2
        body += np.exp(-1.6 * far) * (0.62 - 0.30 * along)
    curl = fractal_noise(rng, canvas.shape, 84, 5, 0.5)
    return np.asarray(body * (0.45 + 1.1 * curl), np.float32)


def _apply_air(canvas: Canvas, rng: np.random.Generator) -> Image:
    distance = np.where(canvas.depth < FAR, canvas.depth, 0.0)
    haze = (1.0 - np.exp(-distance / 95.0))[..., None]
    air = np.asarray((0.88, 0.78, 0.68))
    glow = (canvas.emission * 0.25)[..., None]
    colour = canvas.colour * (1 + glow) * (1 - haze) + air * haze
    density = _smoke_density(canvas, rng)
    # The plume has a thickness: what is inside it is veiled in part.
    behind = np.clip((canvas.depth - SMOKE_SOURCE[1] + 1.8) / 1.8, 0.0, 1.0)
    veil = (1.0 - np.exp(-3.4 * density)) * behind
    light = fractal_noise(rng, canvas.shape, 90, 5, 0.5)
    # The side towards the sun is brighter than the folds in the plume.
    lift = 0.76 + 0.14 * light + 0.24 * np.clip(density - blur(density, 14.0), -0.4, 0.4)
    grey = np.asarray((1.0, 0.96, 0.92)) * lift[..., None]
    share = veil[..., None]
    return np.asarray(colour * (1 - share) + grey * share, np.float32)
