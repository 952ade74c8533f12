"""The indoor pairs: a desk in front of a bookcase at two focus distances, and a room with a bright window at two exposures."""

from itertools import cycle, product

import cv2
import numpy as np
from numpy.typing import ArrayLike

from samples.canvas import Camera, Canvas, Paint, Point, Uint8Image, blur, ellipse, mix, noise, quantize, reduce, tone

WIDTH, HEIGHT, SCALE, DESK_EDGE = 360, 270, 3, 172.0
CREAM, TEAL, RED, INK = (0.90, 0.86, 0.76), (0.08, 0.34, 0.40), (0.72, 0.20, 0.14), (0.13, 0.13, 0.16)
COFFEE, MUG, MUG_RADIUS, MUG_HEIGHT, MUG_TILT = (0.20, 0.10, 0.05), (108.0, 134.0), 43.0, 102.0, 0.27
TITLES = """
SIGNALS SENSORS CAMERAS PHOTON STEREO VISION PRISM FILTERS LENSES DEPTH SHUTTER ATLAS SPECTRA WAVES RADAR MATHS LIGHT GRAPHS
WAVELETS FIELDS NOISE OPTICS EDGES COLOUR FOURIER PIXELS TENSORS MIRRORS PHASE GAMMA
"""
SPINES = (
    (0.55, 0.16, 0.13), (0.14, 0.28, 0.42), (0.20, 0.38, 0.26), (0.74, 0.60, 0.30), (0.36, 0.20, 0.36),
    (0.82, 0.76, 0.64), (0.16, 0.18, 0.22), (0.72, 0.38, 0.18), (0.30, 0.50, 0.54), (0.60, 0.30, 0.34),
)  # fmt: skip
CONTINENTS = ((-7, -7, 6, 4.5, 0.5), (-4, 3, 3.4, 6, -0.3), (7.5, -6, 6, 5, -0.3), (7, 3.5, 3.6, 5.5, 0.25))
HALF_WIDTH, CEILING, NEAR, BACK = 2.5, 2.6, 0.9, 4.3
LEFT, RIGHT, SILL, LINTEL, BAR = -1.25, 1.25, 0.78, 2.3, 1.874
OAK, CLOTH, BLOSSOMS = (0.56, 0.38, 0.22), (0.26, 0.42, 0.46), ((0.95, 0.78, 0.23), (0.88, 0.35, 0.38), (0.94, 0.93, 0.90))
VASE = ((0.05, 0.0), (0.10, 0.08), (0.09, 0.16), (0.045, 0.22), (0.06, 0.26))


def render_desk() -> tuple[Uint8Image, Uint8Image]:
    """Render the image focused on the mug and the image focused on the shelf, both RGB."""
    rng = np.random.default_rng(4409)
    layers = _draw_wall(rng), _draw_desk(rng), _draw_mug(rng)
    return _photograph(layers, 240.0), _photograph(layers, DESK_EDGE)


def _photograph(layers: tuple[Canvas, ...], focus: float) -> Uint8Image:
    """Blur each layer by its distance from the focused row of the desk, and lay it over those behind it."""
    rows, image = (np.arange(HEIGHT * SCALE) + 0.5) / SCALE, np.zeros((HEIGHT * SCALE, WIDTH * SCALE, 3), np.float32)
    for layer, (top, bottom) in zip(layers, ((DESK_EDGE, DESK_EDGE), (DESK_EDGE, HEIGHT), (240, 240)), strict=True):
        plane = np.dstack([layer.color**2.2, np.ones_like(layer.depth)]) * (layer.depth < layer.FAR)[..., None]
        radii, soft = np.maximum(0.0, 0.088 * np.abs(np.clip(rows, top, bottom) - focus) - 0.9), np.zeros_like(plane)
        # Between two levels of blur, rows are blended.
        for level in range(int(np.ceil(radii.max())) + 1):
            y, x = np.mgrid[-level * SCALE : level * SCALE + 1, -level * SCALE : level * SCALE + 1]
            disc = np.clip(level * SCALE + 0.5 - np.hypot(x, y), 0.0, 1.0)
            # Beyond the frame the scene goes on, hence no dark border.
            blurred = cv2.filter2D(plane, -1, disc / disc.sum(), borderType=cv2.BORDER_REPLICATE)
            soft += blurred * np.clip(1.0 - np.abs(radii - level), 0.0, 1.0)[:, None, None].astype(np.float32)
        image = image * (1.0 - soft[..., 3:]) + soft[..., :3]
    return quantize(reduce(image, SCALE) ** (1 / 2.2))


def _draw_wall(rng: np.random.Generator) -> Canvas:
    canvas, red = Canvas(WIDTH, HEIGHT, SCALE), (0.75, 0.12, 0.10)
    weave = np.cos(canvas.u * 0.9) * np.cos((canvas.v + 3.5 * np.round(canvas.u / 7.0)) * 0.9)
    canvas.fill([(0, 0), (WIDTH, HEIGHT)], (0.62, 0.64, 0.58), grain=1.0 + 0.06 * np.sign(weave))
    canvas.paste([(0, 0), (238, 179)], _bookcase(rng, 2))
    canvas.shade([(240, 0), (252, 181)], 0.72, 4.0)
    for x, top, bottom, white in ((257, 6, 88, (0.94, 0.93, 0.88)), (259, 98, 160, (0.95, 0.95, 0.93))):
        canvas.shade([(x + 3, top + 4), (349, bottom + 4)], 0.6, 2.5)
        canvas.fill([(x, top), (346, bottom)], white)
    canvas.fill([(257, 6), (346, 24)], tone(red, 0.9))
    canvas.text("OCTOBER", (301.5, 15.0), 9.0, (0.98, 0.95, 0.90))
    for day in range(1, 32):
        row, column = divmod(day + 2, 7)
        canvas.text(str(day), (265.5 + column * 12.0, 32.6 + row * 12.0), 5.2, red if column == 6 else INK)
    ring = ellipse((301.8, 57.0), (6.2, 5.6))
    canvas.stroke([*ring, ring[0]], 0.9, red)
    # Siemens star and line patterns: their finest lines show the focus at a glance.
    for low in np.linspace(0.0, 2.0 * np.pi, 18, endpoint=False):
        rim = [(286.0 + 23.0 * np.cos(turn), 129.0 + 23.0 * np.sin(turn)) for turn in (low, low + np.pi / 18)]
        canvas.fill([(286.0, 129.0), *rim], tone(INK, 0.6))
    for row, pitch in enumerate((4.0, 3.0, 2.0)):
        for left in np.arange(315.0, 341.0 - pitch / 2, pitch):
            canvas.fill([(left, 104.0 + 16.0 * row), (left + pitch / 2, 116.0 + 16.0 * row)], tone(INK, 0.6))
    canvas.text("2  3  4", (328, 154), 4.4, INK)
    canvas.color *= (1.12 - 0.30 * canvas.u / WIDTH)[..., None]
    return canvas


def _bookcase(rng: np.random.Generator, rows: int) -> Canvas:
    canvas, books, wood = Canvas(238, 89 * rows + 1, SCALE), cycle(enumerate(TITLES.split())), (0.46, 0.30, 0.18)
    canvas.color[:] = (0.16, 0.10, 0.07)
    grain = 0.7 + 0.6 * noise(rng, canvas.shape, (160.0, 9.0), 4)
    for floor in np.arange(82.0, 89.0 * rows, 89.0):
        left = 4.0
        while left < 211.0:
            index, title = next(books)
            wide, tall = rng.uniform(11.0, 16.0), rng.uniform(56.0, 72.0)
            right, top, middle, paint = left + wide, floor - tall, left + 0.4 * wide, SPINES[3 * index % 10]
            canvas.fill([(left, top), (right, floor)], paint)
            ink = (0.12, 0.10, 0.10) if sum(paint) > 1.5 else (0.93, 0.82, 0.52)
            for band in (0.06, 0.09, 0.90):
                canvas.fill([(left, top + band * tall), (right, top + band * tall + 1.0)], ink)
            cap = min(wide * 0.46, 0.68 * tall / canvas.text_width(title, 1.0))
            center = ((left + right) / 2, top + 0.14 * tall + canvas.text_width(title, cap) / 2)
            canvas.text(title, center, cap, ink, down=True)
            canvas.fill([(left, top), (middle, floor)], None, (0.55, 1.15), axis=0)
            canvas.fill([(middle, top), (right, floor)], None, (1.15, 0.5), axis=0)
            left += wide + 0.5
            if title == "LENSES":
                (x, y), brass, line = (left + 18.0, floor - 29.0), (0.72, 0.56, 0.26), (0.80, 0.84, 0.84)
                canvas.limb((x - 8, y + 27), (x + 8, y + 27), (2.0, 2.0), brass)
                canvas.limb((x, y + 26), (x, y + 19), (2.0, 1.4), brass)
                canvas.oval((x, y), (19.0, 19.0), brass)
                canvas.oval((x, y), (17.2, 17.2), (0.20, 0.40, 0.60))
                for across, down, wide, tall, angle in CONTINENTS:
                    canvas.oval((x + across, y + down), (wide, tall), (0.66, 0.60, 0.34), angle)
                for row in (-14.5, -7.5, 0.0, 7.5, 14.5):
                    half = float(np.sqrt(17.0**2 - row**2))
                    canvas.stroke([(x - half, y + row), (x + half, y + row)], 0.4, line)
                for half in (6.0, 12.5):
                    canvas.stroke(ellipse((x, y), (half, 17.0)), 0.4, line)
                canvas.fill(ellipse((x, y), (17.2, 17.2)), None, (1.3, 0.6), axis=0)
                canvas.fill(ellipse((x, y), (17.2, 17.2)), None, (1.1, 0.7))
                left += 37.0
        canvas.fill([(0, floor), (236, floor + 8)], wood, (1.25, 0.7), grain=grain)
        canvas.shade([(0, floor + 8), (230, floor + 15)], 0.55, 3.0)
    canvas.fill([(228, 0), (238, 89 * rows + 1)], wood, (1.2, 0.75), axis=0)
    return canvas


def _planks(rng: np.random.Generator, wide: float, long: float, paint: Paint) -> Canvas:
    floor = Canvas(5.0, 3.4, 260)
    plank, across = np.divmod(floor.u, wide)
    piece, along = np.divmod(floor.v + rng.uniform(0.0, long, 40)[plank.astype(int)], long)
    gain = rng.normal(1.0, 0.13, (40, 5))[plank.astype(int), piece.astype(int)]
    gain *= np.where((across < 0.009) | (along < 0.009), 0.35, 1.0) * (0.72 + 0.56 * noise(rng, floor.shape, (14, 320), 5, 0.6))
    floor.color[:] = gain[..., None] * paint
    return floor


def _draw_desk(rng: np.random.Generator) -> Canvas:
    canvas, page, area = Canvas(WIDTH, HEIGHT, SCALE), Canvas(170, 120, 4), [(0, DESK_EDGE), (WIDTH, HEIGHT)]
    corners = [(0, DESK_EDGE), (WIDTH, DESK_EDGE), (699, HEIGHT), (-339, HEIGHT)]
    canvas.paste(corners, _planks(rng, 0.45, 50.0, (0.58, 0.36, 0.20)))
    page.fill([(0, 0), (170, 120)], (0.95, 0.93, 0.86))
    page.text("IMAGE FUSION", (43, 15), 6.6, (0.16, 0.30, 0.56))
    for row, words in enumerate(("TAKE TWO PICTURES", "OF THE SAME SCENE", "AND KEEP WHAT IS", "SHARP IN EACH ONE")):
        page.text(words, (44, 35 + 16 * row), 4.6, INK)
    for bar, height in enumerate((18, 30, 24, 44, 36, 56)):
        page.fill([(96 + 11 * bar, 80 - height), (104 + 11 * bar, 80)], SPINES[bar % 4])
    page.stroke([(94, 18), (94, 80), (164, 80)], 1.0, INK)
    page.text("FIG 1", (132, 91), 7.0, INK)
    page.fill([(70, 0), (86, 120)], None, (1.0, 0.62), axis=0)
    page.fill([(86, 0), (100, 120)], None, (0.70, 1.0), axis=0)
    canvas.shade([(198, 202), (332, 206), (354, 267), (168, 260)], 0.45, 2.5)
    canvas.fill([(193, 198), (333, 202.5), (356, 267), (162, 260)], (0.34, 0.10, 0.10))
    canvas.paste([(196, 199), (330, 203), (352, 264), (166, 257)], page)
    canvas.shade([(212, 254), (318, 234), (318, 230), (212, 249)], 0.55, 1.2)
    canvas.limb((212, 250), (318, 229), (2.5, 2.2), (0.92, 0.66, 0.10))
    canvas.limb((213, 251.2), (318, 230.2), (1.0, 0.9), (0.70, 0.44, 0.05))
    canvas.limb((318, 229), (326, 227.4), (2.2, 2.2), (0.80, 0.36, 0.36))
    canvas.fill([(212.5, 252.5), (211.5, 247.6), (202, 252)], (0.88, 0.72, 0.52))
    canvas.fill(area, None, (0.86, 1.12))
    canvas.fill(area, None, (1.15, 0.82), axis=0)
    canvas.shade([(70, 226), (150, 236), (232, 216), (206, 197), (120, 210)], 0.42, 5.0)
    canvas.shade([(66, 232), (108, 250), (152, 238), (108, 222)], 0.35, 2.5)
    return canvas


def _draw_mug(rng: np.random.Generator) -> Canvas:
    canvas, (x, y), depth = Canvas(WIDTH, HEIGHT, SCALE), MUG, MUG_RADIUS * MUG_TILT
    for width, gain in ((11.0, 0.62), (8.0, 0.92), (3.0, 1.05)):
        canvas.stroke(ellipse((x - 37.0, y + 47.0), (27.0, 28.0))[6:19], width, tone(CREAM, gain))
    # A flat label is bent around the mug and lit.
    label = Canvas(MUG_RADIUS * np.pi, MUG_HEIGHT, 6)
    label.color[:] = CREAM
    diamonds = np.abs(np.mod(label.u, 9.0) - 4.5) + np.abs(np.mod(label.v, 9.0) - 4.5)
    # The pattern is the same above and below the words.
    away = np.abs(label.v - 49.5)
    border = (away > 22.5) & (away < 40.5)
    label.color[(border & (diamonds < 3.4)) | (np.abs(away - 21.5) < 0.8) | (np.abs(away - 41.5) < 0.8)] = TEAL
    label.color[border & (diamonds < 1.5)] = RED
    for words, row, size, ink in (("FUSION", 44.5, 17.0, RED), ("MORE IN FOCUS", 62.5, 6.0, TEAL)):
        label.text(words, (MUG_RADIUS * np.pi / 2, row), size, ink)
    label.color *= (0.95 + 0.1 * noise(rng, label.shape, 7.0, 2))[..., None]
    side = (canvas.u - MUG[0]) / MUG_RADIUS
    down = canvas.v - np.sqrt(np.clip(1.0 - side**2, 0.0, 1.0)) * MUG_RADIUS * MUG_TILT - MUG[1]
    inside = (np.abs(side) < 1.0) & (down >= 0) & (down < MUG_HEIGHT)
    angle, down = np.arcsin(side[inside]), down[inside]
    columns = np.minimum((angle + np.pi / 2) * MUG_RADIUS * label.scale, label.shape[1] - 1).astype(int)
    color = label.color[np.minimum(down * label.scale, label.shape[0] - 1).astype(int), columns]
    # Key light from the upper left, a dim bounce from the right and a gloss streak.
    light = 0.30 + 0.85 * np.clip(np.cos(angle + 0.55), 0.0, 1.0) ** 1.2 + 0.16 * np.clip(np.sin(angle), 0.0, 1.0) ** 3
    light *= 1.04 - 0.20 * (down / MUG_HEIGHT) ** 2
    gloss = 0.35 * np.exp(-(((angle + 0.75) / 0.07) ** 2)) * (down > 5) * (down < 92)
    canvas.color[inside] = color * light[:, None] + gloss[:, None]
    canvas.depth[inside] = 1.0
    for drop, thick, low, paint in ((0, 0, 0, tone(CREAM, 1.06)), (0, 2.6, 1.6, tone(CREAM, 0.62)), (2.4, 5.0, 3.2, COFFEE)):
        canvas.oval((x, y + drop), (MUG_RADIUS - thick, depth - low), paint)
    for drop, radii, gain in ((3.6, (16.0, 4.0), 2.2), (3.8, (11.0, 2.3), 1.2)):
        canvas.oval((x + 9, y + drop), radii, tone(COFFEE, gain), 0.1)
    return canvas


def render_room() -> tuple[Uint8Image, Uint8Image]:
    """Render the underexposed and the overexposed image, both RGB."""
    rng = np.random.default_rng(5507)
    canvas = Canvas(WIDTH, HEIGHT, SCALE, Camera(focal=262.0, column=176.0, row=122.0, height=1.35))
    _build_room(canvas, rng)
    _furnish(canvas, rng)
    x, y, z = canvas.world()
    light, inward = np.full(canvas.shape, 0.030), np.maximum(BACK - z, 0.0)
    for across, up in product(np.linspace(LEFT, RIGHT, 4), (SILL + 0.3, LINTEL - 0.3)):
        light += 0.0525 * inward / ((x - across) ** 2 + (y - up) ** 2 + inward**2 + 0.05)
    # Corners where walls meet receive less of it.
    corner = np.minimum(HALF_WIDTH - np.abs(x), np.minimum(y, CEILING - y))
    light *= 1.0 - 0.35 * np.exp(-np.maximum(corner, 0.0) / 0.16)
    # The sun reaches the floor where a ray back to it passes between the window bars.
    hit_x, hit_y = x - 0.42 * inward, y + 0.78 * inward
    between = (hit_x > LEFT) & (hit_x < RIGHT) & (np.mod(hit_x - LEFT, (RIGHT - LEFT) / 3) > 0.07)
    between &= (hit_y > SILL) & (hit_y < LINTEL) & (np.abs(hit_y - BAR) > 0.04)
    sun = blur((0.55 * (between & (y < 0.03))).astype(np.float32), 1.6)
    albedo, glow = np.clip(canvas.color, 0.0, 1.2) ** 2.2, canvas.glow[..., None]
    inside = light[..., None] * (0.94, 1.0, 1.06) + sun[..., None] * (1.0, 0.86, 0.62)
    radiance = reduce(albedo * (inside * (1.0 - glow) + 14.0 * glow), SCALE)
    # Light that is scattered in the lens veils the surroundings of the window.
    veiled = 0.985 * radiance + 0.012 * blur(radiance, 5.0) + 0.003 * blur(radiance, 24.0)
    images = []
    for exposure in (0.056, 6.4):
        signal, grain = veiled * exposure, rng.normal(0.0, 1.0, veiled.shape[:2])[..., None]
        noisy = signal + grain * (0.0002 + 0.006 * np.sqrt(np.clip(signal, 0.0, 1.0)))
        images.append(quantize(np.clip(noisy, 0.0, 1.0) ** (1 / 2.2)))
    return images[0], images[1]


def _build_room(canvas: Canvas, rng: np.random.Generator) -> None:
    canvas.fill([(-HALF_WIDTH, CEILING, BACK), (HALF_WIDTH, 0, BACK)], (0.60, 0.66, 0.60))
    view = _view(rng)
    for left, top in ((-2.44, 2.22), (1.86, 1.94)):
        canvas.shade([(left + 0.02, top - 0.03, BACK), (left + 0.62, top - 0.45, BACK)], 0.5, 0.025)
        for inset, paint in ((0.0, (0.36, 0.23, 0.11)), (0.035, (0.90, 0.88, 0.80))):
            canvas.fill([(left + inset, top - inset, BACK), (left + 0.6 - inset, top - 0.42 + inset, BACK)], paint)
        canvas.paste([(left + 0.08, top - 0.08, BACK), (left + 0.52, top - 0.34, BACK)], view)
    view.glow[:] = 1.0
    canvas.paste([(LEFT, LINTEL, BACK), (RIGHT, SILL, BACK)], view)
    paint, near = (0.82, 0.80, 0.74), BACK - 0.25
    for x, wide in zip(np.linspace(LEFT, RIGHT, 4), (0.077, 0.035, 0.035, 0.077), strict=True):
        canvas.fill([(x - wide, LINTEL, BACK), (x + wide, SILL, BACK)], paint, (1.0, 0.73), axis=0)
    for y, wide in ((SILL, 0.07), (BAR, 0.035), (LINTEL, 0.07)):
        canvas.fill([(LEFT - 0.08, y + wide, BACK), (RIGHT + 0.08, y - wide, BACK)], paint, (1.0, 0.73))
    sill = [(LEFT - 0.2, SILL, BACK), (RIGHT + 0.2, SILL, BACK), (RIGHT + 0.24, 0.76, near), (LEFT - 0.24, 0.76, near)]
    canvas.fill(sill, (0.92, 0.90, 0.84))
    plaster, paper = Canvas(2 * HALF_WIDTH, 3.4, 70), Canvas(3.4, CEILING, 130)
    plaster.color[:] = np.where(np.mod(plaster.u + 0.5, 0.85)[..., None] < 0.16, (0.40, 0.27, 0.17), (0.84, 0.82, 0.77))
    plaster.color *= (0.85 + 0.3 * noise(rng, plaster.shape, (12.0, 200.0), 4))[..., None]
    paper.color[:] = np.where(np.mod(paper.u, 0.24)[..., None] < 0.12, (0.62, 0.69, 0.63), (0.52, 0.61, 0.56))
    for x, y in product(np.arange(0.06, 3.4, 0.24), np.arange(0.1, CEILING, 0.26)):
        for sign in (-1.0, 1.0):
            paper.oval((x + sign * 0.022, y), (0.036, 0.014), (0.76, 0.78, 0.66), sign * 0.7)
        paper.oval((x, y - 0.04), (0.013, 0.013), (0.80, 0.52, 0.44))
    for x, left, right in ((-HALF_WIDTH, NEAR, BACK), (HALF_WIDTH, BACK, NEAR)):
        canvas.paste([(x, CEILING, left), (x, CEILING, right), (x, 0, right), (x, 0, left)], paper)
    for y, texture in ((CEILING, plaster), (0.0, _planks(rng, 0.155, 1.2, (0.54, 0.36, 0.22)))):
        canvas.paste([(-HALF_WIDTH, y, BACK), (HALF_WIDTH, y, BACK), (HALF_WIDTH, y, NEAR), (-HALF_WIDTH, y, NEAR)], texture)
    rail = BACK - 0.12
    canvas.limb((-1.8, 2.43, rail), (1.8, 2.43, rail), (0.025, 0.025), (0.40, 0.28, 0.14))
    sway = noise(rng, canvas.shape, (90.0, 400.0), 2)
    gain = 1.0 + 0.44 * np.sin(0.95 * canvas.u + 2.2 * sway + 0.012 * canvas.v)
    gain *= 1.0 - 0.35 * ((np.mod(canvas.u + 2 * np.sin(canvas.v), 5.0) < 1.5) & (np.mod(canvas.v, 6.0) < 1.5))
    for left in (-1.78, 1.12):
        canvas.fill([(left, 2.42, rail), (left + 0.66, 0.03, rail)], (0.70, 0.44, 0.22), grain=gain)
    x, z = -1.72, 3.45
    canvas.limb((x, 0.02, z), (x, 1.34, z), (0.013, 0.013), (0.30, 0.27, 0.22))
    linen = [(x - 0.24, 1.26, z), (x + 0.24, 1.26, z), (x + 0.13, 1.64, z), (x - 0.13, 1.64, z)]
    canvas.fill(linen, (0.78, 0.72, 0.60), (0.6, 1.25), axis=0)
    for level, half in ((1.28, 0.233), (1.62, 0.137)):
        canvas.stroke([(x - half, level, z), (x + half, level, z)], 0.013, (0.56, 0.30, 0.16))


def _view(rng: np.random.Generator) -> Canvas:
    """Paint the view from the window, a lake between mountains."""
    view = Canvas(250, 152, 3)
    height = np.clip(view.v / 78.0, 0.0, 1.0)[..., None]
    clouds = noise(rng, view.shape, (260.0, 90.0), 6, 0.55)
    share = np.clip((clouds - 0.52) * 4.0, 0.0, 1.0)[..., None]
    sky = (1 - height) * (0.30, 0.54, 0.86) + height * (0.80, 0.89, 0.96)
    view.color[:] = sky * (1 - share) + (0.97 + 2.0 * (np.roll(clouds, 5, axis=0) - clouds)[..., None]) * share
    rough = noise(rng, view.shape, 40, 5, 0.6)
    facet = np.clip(np.gradient(blur(rough, 2.0), axis=1) * 60.0, -1.0, 1.0)
    for base, swing, cell, hue in ((46.0, 52.0, 210.0, (0.48, 0.57, 0.70)), (66.0, 30.0, 130.0, (0.32, 0.44, 0.46))):
        ridge = base + swing * (0.5 - noise(rng, (2, view.shape[1]), cell, 6)[0])
        inside, snow = view.v > ridge, (view.v < ridge + 9.0 + 26.0 * (rough - 0.35)) & (base < 50)
        view.color[inside] = np.outer((1.0 + 0.30 * facet)[inside], hue)
        view.color[inside & snow] = (0.94 + 0.16 * facet)[inside & snow, None]
    water = view.v > 90
    view.color[water] = np.outer((0.70 + 0.7 * noise(rng, view.shape, (60.0, 5.0), 4, 0.6))[water], (0.24, 0.46, 0.60))
    for left in rng.uniform(-5, 120, 90):
        tip = (left, 92 - rng.uniform(6, 13))
        view.fill([(left - 2.6, 92), tip, (left + 2.6, 92)], tone((0.16, 0.30, 0.17), rng.uniform(0.7, 1.3)))
    for left, right, tall in ((66, 81, 9), (84, 96, 8), (99, 113, 10), (42, 55, 8), (58, 65, 26)):
        view.fill([(left, 92 - tall), (right, 92)], (0.92, 0.88, 0.80))
        rise, roof = (16, (0.30, 0.34, 0.40)) if tall > 20 else (7, (0.66, 0.26, 0.18))
        view.fill([(left - 1.5, 92 - tall), ((left + right) / 2, 92 - tall - rise), (right + 1.5, 92 - tall)], roof)
        for pane in np.arange(left + 2.0, right - 2.0, 4.0):
            view.fill([(pane, 94.5 - tall), (pane + 2, 97.5 - tall)], (0.2, 0.24, 0.3))
    view.fill([(-1, 91), (122, 93)], (0.50, 0.48, 0.40))
    view.fill([(168, 125), (200, 125), (195, 119), (173, 119)], (0.36, 0.44, 0.50))
    view.fill([(168, 113), (200, 113), (195, 119), (173, 119)], (0.80, 0.20, 0.16))
    view.fill([(183, 111), (183, 76), (162, 111)], (0.98, 0.97, 0.93))
    view.fill([(185, 111), (185, 80), (199, 111)], (0.93, 0.90, 0.82))
    for u, v in rng.uniform((0, 132), (250, 152), (500, 2)):
        blade = mix((0.20, 0.38, 0.14), (0.46, 0.52, 0.18), rng.random())
        view.oval((u, v), (3.6, 1.3), tone(blade, rng.uniform(0.6, 1.4)), rng.uniform(0.9, 2.2))
    for index, (u, v) in enumerate(rng.uniform((0, 133), (250, 152), (60, 2))):
        view.oval((u, v), (1.4, 1.4), BLOSSOMS[index % 3])
    return view


def _block(canvas: Canvas, low: Point, high: Point, paint: Paint, grain: ArrayLike = 1) -> None:
    """Paint the top, the visible side and the front of a block."""
    (x0, y0, z0), (x1, y1, z1) = low, high
    canvas.fill([(x0, y1, z0), (x1, y1, z0), (x1, y1, z1), (x0, y1, z1)], tone(paint, 1.35), grain=grain)
    side = x1 if x1 < 0 else x0
    canvas.fill([(side, y0, z0), (side, y1, z0), (side, y1, z1), (side, y0, z1)], tone(paint, 0.95), grain=grain)
    canvas.fill([(x0, y1, z0), (x1, y0, z0)], tone(paint, 0.62), (1.1, 0.8), grain=grain)


def _furnish(canvas: Canvas, rng: np.random.Generator) -> None:
    rug, gold, navy, red = Canvas(2.4, 1.7, 150), (0.82, 0.72, 0.48), (0.18, 0.24, 0.38), (0.58, 0.17, 0.14)
    x, y = rug.u, rug.v
    for inset, paint in ((0.0, red), (0.06, gold), (0.09, navy), (0.24, gold), (0.27, red)):
        rug.fill([(inset, inset), (2.4 - inset, 1.7 - inset)], paint)
    edge = np.minimum(np.minimum(x, 2.4 - x), np.minimum(y, 1.7 - y))
    zigzag = np.abs(np.mod(x + y, 0.12) - 0.06) + np.abs(np.mod(x - y, 0.12) - 0.06)
    rug.color[(edge > 0.11) & (edge < 0.22) & (zigzag < 0.05)] = gold
    motif = np.abs(np.mod(x - 0.2, 0.25) - 0.125) + np.abs(np.mod(y - 0.1, 0.25) - 0.125)
    for reach, paint in ((0.085, navy), (0.055, gold), (0.025, red)):
        rug.color[(edge > 0.30) & (motif < reach)] = paint
    rug.color *= np.where(np.mod(y, 0.014) < 0.007, 1.06, 0.92)[..., None]
    canvas.paste([(-1.15, 0, 3.3), (1.0, 0, 3.3), (1.0, 0, 1.95), (-1.15, 0, 1.95)], rug)
    for left, right, near, far in ((2.03, 2.5, 1.75, 3.6), (-2.2, -0.92, 1.95, 3.0), (0.28, 1.34, 1.95, 2.75)):
        canvas.shade([(left, 0, near), (right, 0, near), (right, 0, far), (left, 0, far)], 0.32, 0.03)
    canvas.paste([(2.18, 2.05, 3.5), (2.18, 2.05, 1.8), (2.18, 0, 1.8), (2.18, 0, 3.5)], _bookcase(rng, 5))
    weave, grain = 0.775 + 0.45 * noise(rng, canvas.shape, 4.0, 2), 0.75 + 0.5 * noise(rng, canvas.shape, (120.0, 5.0), 4)
    _block(canvas, (-2.15, 0.10, 2.15), (-1.95, 0.66, 2.95), CLOTH, weave)
    _block(canvas, (-2.2, 0.35, 2.80), (-1.0, 1.06, 2.98), CLOTH, weave)
    _block(canvas, (-1.98, 0.12, 2.12), (-1.18, 0.46, 2.80), tone(CLOTH, 1.12), weave)
    cushion = [(-1.82, 0.48, 2.74), (-1.40, 0.50, 2.74), (-1.36, 0.86, 2.80), (-1.84, 0.84, 2.80)]
    canvas.fill(cushion, (0.80, 0.62, 0.26), (1.15, 0.7), grain=weave)
    for share in np.linspace(0.12, 0.88, 6):
        canvas.stroke([mix(cushion[0], cushion[1], share), mix(cushion[3], cushion[2], share)], 0.007, (0.60, 0.24, 0.14))
    _block(canvas, (-1.20, 0.10, 2.10), (-1.0, 0.66, 2.95), CLOTH, weave)
    for x, z in ((0.38, 2.62), (1.2, 2.62), (0.36, 2.08), (1.22, 2.08)):
        canvas.fill([(x, 0.5, z), (x + 0.06, 0.0, z)], tone(OAK, 0.6))
    _block(canvas, (0.30, 0.50, 2.02), (1.32, 0.56, 2.70), OAK, grain)
    for level, wide, paint in ((0.56, 0.34, SPINES[0]), (0.605, 0.30, SPINES[1]), (0.65, 0.26, SPINES[5])):
        _block(canvas, (0.40, level, 2.14), (0.40 + wide, level + 0.045, 2.36), paint)
    x, y, z = 0.98, 0.56, 2.32  # the foot of the vase
    canvas.shade(ellipse((x - 0.02, y - 0.01, z), (0.106, 0.027)), 0.5, 0.013)
    neck = (x, y + 0.22, z)
    for stem in range(46):
        angle, reach = rng.normal(np.pi / 2, 0.42), rng.uniform(0.22, 0.46)
        tip = (x + 0.8 * reach * np.cos(angle), neck[1] + reach * np.sin(angle), z)
        canvas.stroke([neck, tip], 0.0045, (0.22, 0.34, 0.16))
        if rng.random() < 0.55:
            canvas.oval(tip, (0.035, 0.013), tone((0.28, 0.44, 0.20), rng.uniform(0.7, 1.3)), angle)
            continue
        for u, v, _ in ellipse(tip, (0.015, 0.015))[::5]:
            canvas.oval((u, v, z), (0.0115, 0.0115), BLOSSOMS[stem % 3])
        canvas.oval(tip, (0.009, 0.009), (0.42, 0.24, 0.10))
    body = [(x + sign * u, y + v, z) for sign, side in ((1, VASE), (-1, VASE[::-1])) for u, v in side]
    canvas.fill(body, (0.86, 0.88, 0.90))
    for level in (0.07, 0.10, 0.15):
        canvas.stroke([(x - 0.09, y + level, z), (x + 0.09, y + level, z)], 0.008, (0.16, 0.28, 0.58))
    canvas.fill(body, None, (1.15, 0.45), axis=0)
