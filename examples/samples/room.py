"""Room with a bright window: more contrast than one exposure can hold."""

import numpy as np

from samples.canvas import (
    FAR,
    Camera,
    Canvas,
    Colour,
    Image,
    Picture,
    Point,
    Surface,
    blur,
    box_points,
    fractal_noise,
    mix,
    mix_points,
    oval_points,
    quantise,
    reduce,
    tone,
)
from samples.lettering import text_width

SIZE = (360, 270)
SCALE = 3
SEED = 5507
GAMMA = 2.2
CAMERA = Camera(focal=262.0, centre=176.0, horizon=122.0, height=1.35)
HALF_WIDTH = 2.5
CEILING = 2.6
BACK = 4.3
WINDOW = ((-1.25, 0.78), (1.25, 2.3))
DAYLIGHT = 14.0
EXPOSURES = (0.056, 6.4)
LINEN: Colour = (0.78, 0.72, 0.60)
OAK: Colour = (0.56, 0.38, 0.22)
SPINES: tuple[Colour, ...] = (
    (0.60, 0.20, 0.16),
    (0.18, 0.32, 0.48),
    (0.26, 0.44, 0.30),
    (0.78, 0.64, 0.32),
    (0.42, 0.26, 0.42),
    (0.84, 0.78, 0.66),
    (0.34, 0.36, 0.40),
    (0.76, 0.44, 0.22),
)


def render() -> tuple[Picture, Picture]:
    """Render the pair.

    Returns:
        Under-exposed and over-exposed picture, both RGB.
    """
    rng = np.random.default_rng(SEED)
    canvas = Canvas(*SIZE, SCALE)
    _build_room(canvas, rng)
    _furnish(canvas, rng)
    radiance = _radiance(canvas)
    radiance = reduce(radiance, SCALE)
    # Light scattered in the lens veils the surroundings of the window.
    radiance = 0.985 * radiance + 0.012 * blur(radiance, 5.0) + 0.003 * blur(radiance, 24.0)
    under, over = (_expose(radiance, gain, rng) for gain in EXPOSURES)
    return under, over


def _expose(radiance: Image, gain: float, rng: np.random.Generator) -> Picture:
    signal = radiance * gain
    grain = rng.normal(0.0, 1.0, signal.shape[:2]).astype(np.float32)[..., None]
    signal = signal + grain * (0.0002 + 0.006 * np.sqrt(np.clip(signal, 0.0, 1.0)))
    return quantise(np.clip(signal, 0.0, 1.0) ** np.float32(1 / GAMMA))


def _at(x: float, y: float, z: float) -> Point:
    return CAMERA.project(x, y, z)


def _build_room(canvas: Canvas, rng: np.random.Generator) -> None:
    canvas.distance = BACK
    near = 0.9
    low, high = _at(-HALF_WIDTH, 0, BACK), _at(HALF_WIDTH, CEILING, BACK)
    wall: Colour = (0.60, 0.66, 0.60)
    canvas.box(low, high, Surface(wall))
    _paint_view(canvas, rng)
    _frame_window(canvas)
    paper = _wallpaper(rng)
    for side in (-1.0, 1.0):
        x = side * HALF_WIDTH
        ends = (near, BACK) if side < 0 else (BACK, near)
        corners = [
            _at(x, CEILING, ends[0]),
            _at(x, CEILING, ends[1]),
            _at(x, 0, ends[1]),
            _at(x, 0, ends[0]),
        ]
        canvas.paste(corners, paper, _plane_depth(canvas, side * HALF_WIDTH, 0))
    for level, texture in ((CEILING, _plaster(rng)), (0.0, _floorboards(rng))):
        corners = [
            _at(-HALF_WIDTH, level, BACK),
            _at(HALF_WIDTH, level, BACK),
            _at(HALF_WIDTH, level, near),
            _at(-HALF_WIDTH, level, near),
        ]
        canvas.paste(corners, texture, _plane_depth(canvas, CAMERA.height - level, 1))


def _plane_depth(canvas: Canvas, offset: float, axis: int) -> Image:
    """Distance of a wall (axis 0) or of floor and ceiling (axis 1)."""
    plane = canvas.grid()[axis] - (CAMERA.centre, CAMERA.horizon)[axis]
    ratio = np.maximum(plane / offset, 1e-3)
    return np.asarray(CAMERA.focal / ratio, np.float32)


def _wallpaper(rng: np.random.Generator) -> Canvas:
    paper = Canvas(3.4, CEILING, 130)
    x, y = paper.grid()
    stripe = np.mod(x, 0.24) < 0.12
    base = np.where(
        stripe[..., None],
        np.asarray((0.62, 0.69, 0.63)),
        np.asarray((0.52, 0.61, 0.56)),
    )
    paper.colour[:] = base
    leaf = Surface((0.76, 0.78, 0.66))
    for column in np.arange(0.06, 3.4, 0.24):
        for row in np.arange(0.1, 1.75, 0.26):
            for sign in (-1.0, 1.0):
                paper.oval((column + sign * 0.022, row), (0.036, 0.014), leaf, sign * 0.7)
            paper.oval((column, row - 0.04), (0.013, 0.013), Surface((0.80, 0.52, 0.44)))
    panel = y > 1.78
    paper.colour[panel] = (0.80, 0.78, 0.70)
    for left in np.arange(0.08, 3.4, 0.56):
        paper.box((left, 1.9), (left + 0.46, 2.38), Surface((0.70, 0.68, 0.60)))
        paper.box((left + 0.02, 1.93), (left + 0.46, 2.38), Surface((0.86, 0.84, 0.77)))
        paper.box((left + 0.02, 1.93), (left + 0.44, 2.36), Surface((0.78, 0.76, 0.68)))
    for top, gain in ((1.75, 1.1), (1.80, 0.75), (2.46, 1.05)):
        paper.box((0, top), (3.4, top + 0.05), Surface(tone((0.82, 0.80, 0.72), gain)))
    paper.colour *= (0.94 + 0.12 * fractal_noise(rng, paper.shape, 60, 3))[..., None]
    return paper


def _plaster(rng: np.random.Generator) -> Canvas:
    plaster = Canvas(2 * HALF_WIDTH, 3.4, 70)
    plaster.box((0, 0), (5, 3.4), Surface((0.84, 0.82, 0.77)))
    for beam in np.arange(0.35, 5.0, 0.85):
        plaster.box((beam, 0), (beam + 0.16, 3.4), Surface((0.40, 0.27, 0.17)))
    grain = fractal_noise(rng, plaster.shape, (12.0, 200.0), 4)
    plaster.colour *= (0.85 + 0.3 * grain)[..., None]
    return plaster


def _floorboards(rng: np.random.Generator) -> Canvas:
    floor = Canvas(2 * HALF_WIDTH, 3.4, 130)
    x, y = floor.grid()
    plank = np.floor(x / 0.155).astype(int)
    shift = rng.uniform(0.0, 1.2, plank.max() + 1)
    piece = np.floor((y + shift[plank]) / 1.2).astype(int)
    shades = rng.normal(1.0, 0.13, (plank.max() + 1, piece.max() + 1))
    grain = fractal_noise(rng, floor.shape, (7.0, 160.0), 4, 0.6)
    gap = (np.mod(x, 0.155) < 0.009) | (np.mod(y + shift[plank], 1.2) < 0.009)
    gain = shades[plank, piece] * (0.72 + 0.56 * grain) * np.where(gap, 0.35, 1.0)
    floor.colour[:] = gain[..., None] * np.asarray((0.54, 0.36, 0.22))
    return floor


def _paint_view(canvas: Canvas, rng: np.random.Generator) -> None:
    """Lake between mountains, only there where the window is."""
    view = Canvas(250, 152, 3)
    x, y = view.grid()
    height = np.clip(y / 78.0, 0.0, 1.0)[..., None]
    sky = np.asarray((0.30, 0.54, 0.86)) * (1 - height) + np.asarray((0.80, 0.89, 0.96)) * height
    clouds = fractal_noise(rng, view.shape, (260.0, 90.0), 6, 0.55)
    share = np.clip((clouds - 0.52) * 4.0, 0.0, 1.0)[..., None]
    shine = 2.0 * (np.roll(clouds, 5, axis=0) - clouds)[..., None]
    view.colour[:] = sky * (1 - share) + (0.97 + shine) * share
    rough = fractal_noise(rng, view.shape, 40, 5, 0.6)
    for base, swing, cell, hue in (
        (46.0, 52.0, 210.0, (0.48, 0.57, 0.70)),
        (66.0, 30.0, 130.0, (0.32, 0.44, 0.46)),
    ):
        ridge = base + swing * (0.5 - fractal_noise(rng, (2, x.shape[1]), cell, 6, 0.5)[0])
        inside = (y > ridge) & (y < 92)
        facet = np.clip(np.gradient(blur(rough, 2.0), axis=1) * 60.0, -1.0, 1.0)
        rock = np.asarray(hue) * (1.0 + 0.30 * facet)[..., None]
        snow = (y < ridge + 9.0 + 26.0 * (rough - 0.35)) & (base < 50)
        rock = np.where(snow[..., None], (0.94 + 0.16 * facet)[..., None], rock)
        view.colour[inside] = rock[inside]
    water = y > 90
    ripple = fractal_noise(rng, view.shape, (60.0, 5.0), 4, 0.6)
    lake = np.asarray((0.24, 0.46, 0.60)) * (0.70 + 0.7 * ripple)[..., None]
    view.colour[water] = lake[water]
    _paint_shore(view, rng)
    low, high = WINDOW
    corners = [
        _at(low[0], high[1], BACK),
        _at(high[0], high[1], BACK),
        _at(high[0], low[1], BACK),
        _at(low[0], low[1], BACK),
    ]
    view.emission[:] = 1.0
    canvas.paste(corners, view, BACK)


def _paint_shore(view: Canvas, rng: np.random.Generator) -> None:
    for _ in range(90):
        left = float(rng.uniform(-5, 120))
        tall = float(rng.uniform(6, 13))
        green = tone((0.16, 0.30, 0.17), float(rng.uniform(0.7, 1.3)))
        view.fill([(left - 2.6, 92), (left, 92 - tall), (left + 2.6, 92)], Surface(green))
    plaster, roof = Surface((0.92, 0.88, 0.80)), Surface((0.66, 0.26, 0.18))
    for left, wide, tall in ((66, 15, 9), (84, 12, 8), (99, 14, 10), (42, 13, 8)):
        view.box((left, 92 - tall), (left + wide, 92), plaster)
        view.fill(
            [
                (left - 1.5, 92 - tall),
                (left + wide / 2, 85 - tall),
                (left + wide + 1.5, 92 - tall),
            ],
            roof,
        )
        for pane in np.arange(left + 2.0, left + wide - 2.0, 4.0):
            view.box((pane, 94.5 - tall), (pane + 2, 97.5 - tall), Surface((0.2, 0.24, 0.3)))
    view.box((58, 66), (65, 92), plaster)
    view.fill([(57, 66), (61.5, 50), (66, 66)], Surface((0.30, 0.34, 0.40)))
    view.oval((61.5, 71), (2.0, 2.0), Surface((0.15, 0.15, 0.2)))
    view.box((-1, 91), (122, 93), Surface((0.50, 0.48, 0.40)))
    hull = [(168.0, 113.0), (200.0, 113.0), (195.0, 119.0), (173.0, 119.0)]
    view.fill([(u, 238 - v) for u, v in hull], Surface((0.36, 0.44, 0.50)))
    view.fill(hull, Surface((0.80, 0.20, 0.16)))
    view.fill([(183, 111), (183, 76), (162, 111)], Surface((0.98, 0.97, 0.93)))
    view.fill([(185, 111), (185, 80), (199, 111)], Surface((0.93, 0.90, 0.82)))
    for _ in range(500):
        place = (float(rng.uniform(0, 250)), float(rng.uniform(132, 152)))
        bright = float(rng.uniform(0.6, 1.4))
        hue = mix((0.20, 0.38, 0.14), (0.46, 0.52, 0.18), float(rng.random()))
        view.oval(place, (3.6, 1.3), Surface(tone(hue, bright)), float(rng.uniform(0.9, 2.2)))
    for _ in range(60):
        place = (float(rng.uniform(0, 250)), float(rng.uniform(133, 152)))
        hues = ((0.95, 0.85, 0.25), (0.92, 0.36, 0.40), (0.94, 0.94, 0.92))
        view.oval(place, (1.4, 1.4), Surface(hues[int(rng.integers(3))]))


def _frame_window(canvas: Canvas) -> None:
    (left, bottom), (right, top) = WINDOW
    paint = Surface((0.82, 0.80, 0.74))
    shade = Surface((0.60, 0.58, 0.53))
    bar = 0.035
    for x in (left, left + (right - left) / 3, left + 2 * (right - left) / 3, right):
        wide = 2.2 * bar if x in (left, right) else bar
        canvas.box(_at(x - wide, top, BACK), _at(x + wide, bottom, BACK), paint)
        canvas.box(_at(x + 0.5 * wide, top, BACK), _at(x + wide, bottom, BACK), shade)
    for y in (bottom, bottom + 0.72 * (top - bottom), top):
        wide = 2.0 * bar if y in (bottom, top) else bar
        canvas.box(_at(left - 0.08, y - wide, BACK), _at(right + 0.08, y + wide, BACK), paint)
        canvas.box(
            _at(left - 0.08, y - wide, BACK),
            _at(right + 0.08, y - 0.4 * wide, BACK),
            shade,
        )
    sill = [
        _at(left - 0.2, bottom, BACK),
        _at(right + 0.2, bottom, BACK),
        _at(right + 0.24, bottom - 0.02, BACK - 0.25),
        _at(left - 0.24, bottom - 0.02, BACK - 0.25),
    ]
    canvas.fill(sill, Surface((0.92, 0.90, 0.84)))


def _block(
    canvas: Canvas,
    low: tuple[float, float, float],
    high: tuple[float, float, float],
    paint: Colour,
) -> None:
    """Paint an axis-parallel block: top, the visible flank and the front."""
    (x0, y0, z0), (x1, y1, z1) = low, high
    canvas.distance = (z0 + z1) / 2
    if y1 < CAMERA.height:
        canvas.fill(
            [_at(x0, y1, z0), _at(x1, y1, z0), _at(x1, y1, z1), _at(x0, y1, z1)],
            Surface(tone(paint, 1.35)),
        )
    flank = x1 if x1 < 0 else x0
    if x1 < 0 or x0 > 0:
        canvas.fill(
            [
                _at(flank, y0, z0),
                _at(flank, y1, z0),
                _at(flank, y1, z1),
                _at(flank, y0, z1),
            ],
            Surface(tone(paint, 0.95)),
        )
    canvas.distance = z0
    front = box_points(_at(x0, y1, z0), _at(x1, y0, z0))
    canvas.fill(front, Surface(tone(paint, 0.62)))
    canvas.ramp(front, (front[0], front[3]), (1.1, 0.8))


def _shadow(canvas: Canvas, low: Point, high: Point) -> None:
    (x0, z0), (x1, z1) = low, high
    corners = [_at(x0, 0, z0), _at(x1, 0, z0), _at(x1, 0, z1), _at(x0, 0, z1)]
    canvas.shade(corners, 0.32, 3.2)


def _furnish(canvas: Canvas, rng: np.random.Generator) -> None:
    weave = fractal_noise(rng, canvas.shape, 4.0, 2)
    _lay_rug(canvas)
    _hang_curtains(canvas, rng)
    _hang_pictures(canvas)
    _stand_bookcase(canvas, rng)
    _place_lamp(canvas)
    _place_armchair(canvas, weave)
    _place_table(canvas, rng)


def _lay_rug(canvas: Canvas) -> None:
    rug = Canvas(2.4, 1.7, 150)
    rug.box((0, 0), (2.4, 1.7), Surface((0.52, 0.15, 0.13)))
    x, y = rug.grid()
    for inset, paint in (
        (0.06, (0.80, 0.70, 0.48)),
        (0.09, (0.16, 0.22, 0.36)),
        (0.24, (0.80, 0.70, 0.48)),
        (0.27, (0.58, 0.18, 0.15)),
    ):
        rug.box((inset, inset), (2.4 - inset, 1.7 - inset), Surface(paint))
    edge = np.minimum(np.minimum(x, 2.4 - x), np.minimum(y, 1.7 - y))
    zigzag = np.abs(np.mod(x + y, 0.12) - 0.06) + np.abs(np.mod(x - y, 0.12) - 0.06)
    rug.colour[(edge > 0.11) & (edge < 0.22) & (zigzag < 0.05)] = (0.84, 0.62, 0.30)
    motif = np.abs(np.mod(x - 0.2, 0.25) - 0.125) + np.abs(np.mod(y - 0.1, 0.25) - 0.125)
    field = edge > 0.30
    rug.colour[field & (motif < 0.085)] = (0.20, 0.28, 0.42)
    rug.colour[field & (motif < 0.055)] = (0.86, 0.76, 0.52)
    rug.colour[field & (motif < 0.025)] = (0.62, 0.18, 0.15)
    threads = np.mod(y, 0.014) < 0.007
    rug.colour *= np.where(threads, 1.06, 0.92)[..., None]
    corners = [
        _at(-1.15, 0, 3.3),
        _at(1.0, 0, 3.3),
        _at(1.0, 0, 1.95),
        _at(-1.15, 0, 1.95),
    ]
    canvas.paste(corners, rug, _plane_depth(canvas, CAMERA.height, 1))


def _hang_curtains(canvas: Canvas, rng: np.random.Generator) -> None:
    canvas.distance = BACK - 0.12
    rail = BACK - 0.12
    canvas.capsule(
        _at(-1.8, 2.43, rail),
        _at(1.8, 2.43, rail),
        (1.6, 1.6),
        Surface((0.40, 0.28, 0.14)),
    )
    u, v = canvas.grid()
    for left, right in ((-1.78, -1.12), (1.12, 1.78)):
        area = [
            _at(left, 2.42, rail),
            _at(right, 2.42, rail),
            _at(right, 0.03, rail),
            _at(left, 0.03, rail),
        ]
        canvas.fill(area, Surface((0.70, 0.44, 0.22)))
        sway = fractal_noise(rng, canvas.shape, (90.0, 400.0), 2)
        fold = 0.5 + 0.34 * np.sin(u * 0.95 + 2.2 * sway + 0.012 * v)
        canvas.grain(area, np.asarray(fold, np.float32), 1.3)
        dots = (np.mod(u + 2 * np.sin(v), 5.0) < 1.5) & (np.mod(v, 6.0) < 1.5)
        canvas.grain(area, (0.5 - 0.35 * dots).astype(np.float32), 1.0)


def _hang_pictures(canvas: Canvas) -> None:
    for left, top, words in ((-2.42, 2.28, "HDR"), (1.86, 1.98, "F 11")):
        art = Canvas(60, 60, 6)
        art.box((0, 0), (60, 60), Surface((0.36, 0.23, 0.11)))
        art.box((4, 4), (56, 56), Surface((0.90, 0.88, 0.80)))
        art.box((10, 10), (50, 50), Surface((0.74, 0.60, 0.36)))
        art.oval((38, 21), (6, 6), Surface((0.90, 0.50, 0.24)))
        art.fill(
            [(10, 50), (10, 36), (24, 24), (34, 36), (42, 30), (50, 38), (50, 50)],
            Surface((0.24, 0.38, 0.42)),
        )
        cap = 9.0
        art.text(
            words,
            (30 - text_width(words, cap) / 2, 38.5),
            cap,
            1.7,
            Surface((0.95, 0.92, 0.84)),
        )
        low, high = _at(left, top, BACK), _at(left + 0.52, top - 0.52, BACK)
        canvas.shade(box_points((low[0] + 1, low[1] + 2), (high[0] + 1, high[1] + 2)), 0.5, 1.5)
        canvas.paste(box_points(low, high), art, BACK)


def _stand_bookcase(canvas: Canvas, rng: np.random.Generator) -> None:
    front = Canvas(1.7, 2.05, 130)
    front.box((0, 0), (1.7, 2.05), Surface(OAK))
    for row in range(5):
        top = 0.06 + row * 0.395
        front.box((0.05, top), (1.65, top + 0.345), Surface((0.15, 0.10, 0.07)))
        left = 0.06
        while left < 1.56:
            wide = float(rng.uniform(0.035, 0.085))
            tall = float(rng.uniform(0.22, 0.32))
            if rng.random() < 0.9:
                paint = SPINES[int(rng.integers(len(SPINES)))]
                book = box_points((left, top + 0.345 - tall), (left + wide, top + 0.345))
                front.fill(book, Surface(paint))
                front.ramp(book, (book[0], book[1]), (1.2, 0.65))
                label = Surface((0.90, 0.84, 0.62))
                front.box(
                    (left + 0.2 * wide, top + 0.40 - tall),
                    (left + 0.8 * wide, top + 0.43 - tall),
                    label,
                )
            left += wide + 0.004
    grain = fractal_noise(rng, front.shape, (9.0, 120.0), 3)
    front.colour *= (0.85 + 0.3 * grain)[..., None]
    x = HALF_WIDTH - 0.32
    _shadow(canvas, (x - 0.15, 1.75), (HALF_WIDTH, 3.6))
    canvas.distance = 1.85
    corners = [_at(x, 2.05, 3.5), _at(x, 2.05, 1.8), _at(x, 0, 1.8), _at(x, 0, 3.5)]
    canvas.paste(corners, front, _plane_depth(canvas, x, 0))


def _place_armchair(canvas: Canvas, weave: Image) -> None:
    cloth: Colour = (0.26, 0.42, 0.46)
    _shadow(canvas, (-2.2, 1.95), (-0.92, 3.0))
    _block(canvas, (-2.15, 0.10, 2.15), (-1.95, 0.66, 2.95), cloth)
    _block(canvas, (-2.2, 0.35, 2.80), (-1.0, 1.06, 2.98), cloth)
    for button in (-1.75, -1.45):
        canvas.oval(_at(button, 0.86, 2.80), (1.1, 1.1), Surface(tone(cloth, 0.35)))
    _block(canvas, (-1.98, 0.12, 2.12), (-1.18, 0.46, 2.80), tone(cloth, 1.12))
    cushion = [
        _at(-1.82, 0.48, 2.74),
        _at(-1.40, 0.50, 2.74),
        _at(-1.36, 0.86, 2.80),
        _at(-1.84, 0.84, 2.80),
    ]
    canvas.fill(cushion, Surface((0.80, 0.62, 0.26)))
    canvas.ramp(cushion, (cushion[3], cushion[0]), (1.15, 0.7))
    for line in np.linspace(0.12, 0.88, 6):
        start = mix_points(cushion[0], cushion[1], float(line))
        end = mix_points(cushion[3], cushion[2], float(line))
        canvas.stroke([start, end], 0.7, Surface((0.60, 0.24, 0.14)))
    _block(canvas, (-1.20, 0.10, 2.10), (-1.0, 0.66, 2.95), cloth)
    for leg in (-2.1, -1.08):
        canvas.box(_at(leg, 0.10, 2.12), _at(leg + 0.07, 0.0, 2.12), Surface((0.2, 0.12, 0.07)))
    area = box_points(_at(-2.25, 1.1, 2.6), _at(-0.9, 0.1, 2.1))
    canvas.grain(area, weave, 0.45)


def _place_table(canvas: Canvas, rng: np.random.Generator) -> None:
    _shadow(canvas, (0.28, 1.95), (1.34, 2.75))
    canvas.distance = 2.3
    for x, z in ((0.38, 2.62), (1.2, 2.62), (0.36, 2.08), (1.22, 2.08)):
        canvas.box(_at(x, 0.5, z), _at(x + 0.06, 0.0, z), Surface(tone(OAK, 0.6)))
    _block(canvas, (0.30, 0.50, 2.02), (1.32, 0.56, 2.70), OAK)
    top = [
        _at(0.30, 0.56, 2.02),
        _at(1.32, 0.56, 2.02),
        _at(1.32, 0.56, 2.70),
        _at(0.30, 0.56, 2.70),
    ]
    canvas.grain(top, fractal_noise(rng, canvas.shape, (120.0, 5.0), 4), 0.5)
    canvas.distance = 2.3
    for index, (wide, paint) in enumerate(
        (
            (0.34, (0.60, 0.20, 0.16)),
            (0.30, (0.18, 0.32, 0.48)),
            (0.26, (0.84, 0.78, 0.66)),
        )
    ):
        level = 0.56 + 0.045 * index
        _block(canvas, (0.40, level, 2.14), (0.40 + wide, level + 0.045, 2.36), paint)
    _draw_vase(canvas, rng, (0.98, 0.56, 2.32))


def _draw_vase(canvas: Canvas, rng: np.random.Generator, place: tuple[float, float, float]) -> None:
    x, y, z = place
    gain = CAMERA.focal / z
    canvas.distance = z
    foot = _at(x, y, z)
    canvas.shade(oval_points((foot[0] - 2, foot[1] + 1), (12.0, 3.0)), 0.5, 1.5)
    for _ in range(46):
        angle = float(rng.normal(np.pi / 2, 0.42))
        reach = float(rng.uniform(0.22, 0.46))
        tip = _at(
            x + 0.8 * reach * float(np.cos(angle)),
            y + 0.22 + reach * float(np.sin(angle)),
            z,
        )
        neck = _at(x, y + 0.22, z)
        canvas.stroke([neck, tip], 0.5, Surface((0.22, 0.34, 0.16)))
        if rng.random() < 0.45:
            hues = ((0.90, 0.72, 0.22), (0.84, 0.34, 0.36), (0.92, 0.90, 0.86))
            hue = hues[int(rng.integers(3))]
            for petal in range(5):
                turn = 2 * np.pi * petal / 5
                canvas.oval(
                    (
                        tip[0] + 1.7 * float(np.cos(turn)),
                        tip[1] + 1.7 * float(np.sin(turn)),
                    ),
                    (1.3, 1.3),
                    Surface(hue),
                )
            canvas.oval(tip, (1.0, 1.0), Surface((0.42, 0.24, 0.10)))
        else:
            green = tone((0.28, 0.44, 0.20), float(rng.uniform(0.7, 1.3)))
            canvas.oval(tip, (4.0, 1.5), Surface(green), -angle)
    glaze: Colour = (0.86, 0.88, 0.90)
    outline = [
        (-0.05, 0.0),
        (-0.10, 0.08),
        (-0.09, 0.16),
        (-0.045, 0.22),
        (-0.06, 0.26),
        (0.06, 0.26),
        (0.045, 0.22),
        (0.09, 0.16),
        (0.10, 0.08),
        (0.05, 0.0),
    ]
    body = [_at(x + u, y + v, z) for u, v in outline]
    canvas.fill(body, Surface(glaze))
    for level in (0.07, 0.10, 0.15):
        canvas.stroke(
            [_at(x - 0.09, y + level, z), _at(x + 0.09, y + level, z)],
            0.9,
            Surface((0.16, 0.28, 0.58)),
        )
    canvas.ramp(body, ((foot[0] - 0.1 * gain, 0), (foot[0] + 0.1 * gain, 0)), (1.15, 0.45))


def _place_lamp(canvas: Canvas) -> None:
    x, z = -1.72, 3.45
    canvas.distance = z
    steel = Surface((0.30, 0.27, 0.22))
    canvas.capsule(_at(x, 0.02, z), _at(x, 1.34, z), (1.0, 1.0), steel)
    shade = [
        _at(x - 0.24, 1.26, z),
        _at(x + 0.24, 1.26, z),
        _at(x + 0.13, 1.64, z),
        _at(x - 0.13, 1.64, z),
    ]
    canvas.fill(shade, Surface(LINEN))
    canvas.ramp(shade, (_at(x - 0.24, 1.5, z), _at(x + 0.24, 1.5, z)), (0.6, 1.25))
    for share in (0.06, 0.94):
        level = 1.26 + 0.38 * share
        half = 0.24 - 0.11 * share
        canvas.stroke(
            [_at(x - half, level, z), _at(x + half, level, z)],
            1.0,
            Surface((0.56, 0.30, 0.16)),
        )


def _radiance(canvas: Canvas) -> Image:
    """Scene radiance: the window glows, the room gets what falls in through it."""
    u, v = canvas.grid()
    z = np.minimum(canvas.depth, BACK)
    x = (u - CAMERA.centre) * z / CAMERA.focal
    y = CAMERA.height - (v - CAMERA.horizon) * z / CAMERA.focal
    (left, bottom), (right, top) = WINDOW
    light = np.full(canvas.shape, 0.030, np.float32)
    samples = [(a, b) for a in np.linspace(left, right, 4) for b in (bottom + 0.3, top - 0.3)]
    for across, up in samples:
        inward = np.maximum(BACK - z, 0.0)
        squared = (x - across) ** 2 + (y - up) ** 2 + inward**2 + 0.05
        light += (0.42 / len(samples) * inward / squared).astype(np.float32)
    # Corners where the walls meet receive less of the ambient light.
    corner = np.minimum(np.abs(HALF_WIDTH - np.abs(x)), np.minimum(y, CEILING - y))
    light *= (1.0 - 0.35 * np.exp(-np.maximum(corner, 0.0) / 0.16)).astype(np.float32)
    patch = _sun_patch(x, y, z)
    albedo = np.clip(canvas.colour, 0.0, 1.2) ** GAMMA
    cool = np.asarray((0.94, 1.0, 1.06), np.float32)
    sun = np.asarray((1.0, 0.86, 0.62), np.float32)
    inside = albedo * (light[..., None] * cool + patch[..., None] * sun)
    outside = DAYLIGHT * albedo
    glow = canvas.emission[..., None]
    return np.asarray(inside * (1 - glow) + outside * glow, np.float32)


def _sun_patch(x: Image, y: Image, z: Image) -> Image:
    """Sunlight on the floor: each floor point looks back through the window bars."""
    slant_x, slant_y = 0.42, 0.78
    back = BACK - z
    hit_x = x - slant_x * back
    hit_y = y + slant_y * back
    (left, bottom), (right, top) = WINDOW
    pane = (right - left) / 3
    open_x = (hit_x > left) & (hit_x < right) & (np.mod(hit_x - left, pane) > 0.07)
    split = bottom + 0.72 * (top - bottom)
    open_y = (hit_y > bottom) & (hit_y < top) & (np.abs(hit_y - split) > 0.04)
    floor = (y < 0.03) & (z < FAR)
    return blur((0.55 * (open_x & open_y & floor)).astype(np.float32), 1.6)
