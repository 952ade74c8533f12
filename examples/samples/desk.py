"""Desk with a mug in front of a bookshelf, photographed at two focus distances."""

import cv2
import numpy as np

from samples.canvas import (
    FAR,
    Canvas,
    Colour,
    Image,
    Picture,
    Point,
    Surface,
    box_points,
    fractal_noise,
    mix,
    quantise,
    reduce,
    tone,
)
from samples.lettering import text_width

SIZE = (360, 270)
SCALE = 3
SEED = 4409
GAMMA = 2.2
DESK_EDGE = 172.0
FOCUS_ROWS = (240.0, DESK_EDGE)
BLUR_PER_ROW = 0.088
SHARP_ZONE = 0.9
MUG_CENTRE = 108.0
MUG_RADIUS = 43.0
MUG_TOP = 134.0
MUG_BOTTOM = 236.0
MUG_TILT = 0.27
TITLES = (
    "OPTICS",
    "PIXELS",
    "ATLAS",
    "SIGNALS",
    "LENSES",
    "COLOUR",
    "WAVES",
    "LIGHT",
    "VISION",
    "GRAPHS",
    "NOISE",
    "CAMERAS",
    "FILTERS",
    "PRISM",
    "DEPTH",
    "SENSORS",
    "MIRRORS",
    "SHUTTER",
    "EDGES",
    "SPECTRA",
    "STEREO",
    "RADAR",
    "MATHS",
    "FOURIER",
    "WAVELETS",
    "TENSORS",
    "FIELDS",
    "PHOTON",
)
# Number of titles still to be placed when the globe gets its turn.
GLOBE_AFTER = 19
SPINES: tuple[Colour, ...] = (
    (0.55, 0.16, 0.13),
    (0.14, 0.28, 0.42),
    (0.20, 0.38, 0.26),
    (0.74, 0.60, 0.30),
    (0.36, 0.20, 0.36),
    (0.82, 0.76, 0.64),
    (0.16, 0.18, 0.22),
    (0.72, 0.38, 0.18),
    (0.30, 0.50, 0.54),
    (0.60, 0.30, 0.34),
)


def render() -> tuple[Picture, Picture]:
    """Render the pair.

    Returns:
        Picture focused on the mug and picture focused on the shelf, both RGB.
    """
    rng = np.random.default_rng(SEED)
    shelf = _draw_shelf(rng)
    desk = _draw_desk(rng)
    mug = _draw_mug(rng)
    near, far = (_photograph((shelf, desk, mug), row) for row in FOCUS_ROWS)
    return near, far


def _blank() -> Canvas:
    canvas = Canvas(*SIZE, SCALE)
    canvas.distance = 1.0
    return canvas


def _draw_shelf(rng: np.random.Generator) -> Canvas:
    canvas = _blank()
    canvas.box((0, 0), SIZE, Surface((0.62, 0.64, 0.58)))
    _paper_wall(canvas)
    canvas.box((0, 0), (236, 180), Surface((0.16, 0.10, 0.07)))
    titles = rng.permutation(TITLES).tolist()
    for floor, height in ((82.0, 74.0), (171.0, 76.0)):
        titles = _fill_row(canvas, rng, titles, (floor, height))
    wood = Surface((0.46, 0.30, 0.18))
    for board in (82.0, 171.0):
        canvas.box((0, board), (236, board + 8), wood)
        canvas.ramp(
            box_points((0, board), (236, board + 8)),
            ((0, board), (0, board + 8)),
            (1.25, 0.7),
        )
        canvas.shade(box_points((0, board + 8), (230, board + 15)), 0.55, 3.0)
    canvas.box((228, 0), (238, 181), wood)
    canvas.ramp(box_points((228, 0), (238, 181)), ((228, 0), (238, 0)), (1.2, 0.75))
    grain = fractal_noise(rng, canvas.shape, (160.0, 9.0), 4)
    for board in (82.0, 171.0):
        canvas.grain(box_points((0, board), (236, board + 8)), grain, 0.6)
    canvas.shade(box_points((240, 0), (252, 181)), 0.72, 4.0)
    _hang_calendar(canvas)
    _hang_chart(canvas)
    light = canvas.grid()[0] / SIZE[0]
    canvas.colour *= (1.12 - 0.30 * light)[..., None]
    return canvas


def _paper_wall(canvas: Canvas) -> None:
    x, y = canvas.grid()
    weave = np.cos(x * 0.9) * np.cos((y + 3.5 * np.round(x / 7.0)) * 0.9)
    canvas.colour *= (1.0 + 0.06 * np.sign(weave) * (x > 236))[..., None]


def _fill_row(canvas: Canvas, rng: np.random.Generator, titles: list[str], board: Point) -> list[str]:
    """Stand books on a board and return the titles that are left over."""
    floor, height = board
    left = 4.0
    while left < 211.0 and titles:
        width = float(rng.uniform(11.0, 17.0))
        tall = height * float(rng.uniform(0.74, 0.95))
        paint = SPINES[int(rng.integers(len(SPINES)))]
        _draw_book(canvas, (left, floor), (width, tall), paint, titles[0])
        titles = titles[1:]
        left += width + 0.5
        if len(titles) == GLOBE_AFTER:
            _draw_globe(canvas, (left + 18.0, floor))
            left += 37.0
    return titles


def _draw_book(canvas: Canvas, foot: Point, size: Point, paint: Colour, title: str) -> None:
    left, floor = foot
    width, tall = size
    body = box_points((left, floor - tall), (left + width, floor))
    canvas.fill(body, Surface(paint))
    bright = sum(paint) > 1.5
    ink = Surface((0.12, 0.10, 0.10) if bright else (0.93, 0.82, 0.52))
    for band in (0.06, 0.09, 0.90):
        top = floor - tall * (1.0 - band)
        canvas.box((left, top), (left + width, top + 1.0), ink)
    cap = min(width * 0.46, 0.68 * tall / text_width(title, 1.0))
    middle = left + width / 2 - cap / 2
    start = floor - tall * 0.86

    def upright(along: float, up: float) -> Point:
        # Titles run from top to bottom.
        return left + width - (up - start) - (middle - left), start + along

    canvas.text(title, (0.0, start), cap, 0.8, ink, upright)
    canvas.box(
        (left + width * 0.3, floor - tall * 0.08 - 3),
        (left + width * 0.7, floor - tall * 0.08),
        Surface(mix(paint, ink.colour, 0.6)),
    )
    centre = left + width * 0.4
    canvas.ramp(box_points(body[0], (centre, floor)), (body[0], (centre, 0)), (0.55, 1.15))
    right = box_points((centre, body[0][1]), body[2])
    canvas.ramp(right, ((centre, 0), (left + width, 0)), (1.15, 0.5))


def _draw_globe(canvas: Canvas, foot: Point) -> None:
    x, floor = foot
    brass = Surface((0.72, 0.56, 0.26))
    canvas.capsule((x - 8, floor - 2), (x + 8, floor - 2), (2.0, 2.0), brass)
    canvas.capsule((x, floor - 3), (x, floor - 10), (2.0, 1.4), brass)
    centre = (x, floor - 29.0)
    canvas.oval(centre, (19.0, 19.0), brass)
    canvas.oval(centre, (17.2, 17.2), Surface((0.20, 0.40, 0.60)))
    land = Surface((0.66, 0.60, 0.34))
    for across, down, wide, high, angle in (
        (-7.0, -7.0, 6.0, 4.5, 0.5),
        (-4.0, 3.0, 3.4, 6.0, -0.3),
        (7.5, -6.0, 6.0, 5.0, -0.3),
        (7.0, 3.5, 3.6, 5.5, 0.25),
    ):
        canvas.oval((x + across, centre[1] + down), (wide, high), land, angle)
    lines = Surface((0.80, 0.84, 0.84))
    for turn in (0.0, 0.45, 0.85):
        wide = 17.0 * float(np.cos(np.arcsin(turn)))
        for sign in (-1, 1):
            row = centre[1] + sign * turn * 17.0
            canvas.stroke([(x - wide, row), (x + wide, row)], 0.4, lines)
    for wide in (6.0, 12.5):
        turns = np.linspace(0, 2 * np.pi, 40)
        ring = [(x + wide * float(np.cos(t)), centre[1] + 17 * float(np.sin(t))) for t in turns]
        canvas.stroke(ring, 0.4, lines)
    ball = [(x + 17.2 * float(np.cos(t)), centre[1] + 17.2 * float(np.sin(t))) for t in np.linspace(0, 2 * np.pi, 40)]
    canvas.ramp(ball, ((x - 14, centre[1] - 10), (x + 15, centre[1] + 12)), (1.3, 0.45))


def _hang_calendar(canvas: Canvas) -> None:
    canvas.shade(box_points((260, 10), (349, 92)), 0.6, 2.5)
    canvas.box((257, 6), (346, 88), Surface((0.94, 0.93, 0.88)))
    canvas.box((257, 6), (346, 24), Surface((0.66, 0.16, 0.14)))
    cap = 9.0
    word = "OCTOBER"
    canvas.text(
        word,
        (301.5 - text_width(word, cap) / 2, 10.5),
        cap,
        1.5,
        Surface((0.98, 0.95, 0.90)),
    )
    ink, red = Surface((0.14, 0.14, 0.18)), Surface((0.75, 0.12, 0.10))
    for day in range(1, 32):
        column, row = (day + 2) % 7, (day + 2) // 7
        corner = (261.0 + column * 12.0, 29.0 + row * 12.0)
        digits = str(day)
        shift = (7.0 - text_width(digits, 5.2)) / 2
        canvas.text(
            digits,
            (corner[0] + shift + 1, corner[1] + 1),
            5.2,
            0.8,
            red if column == 6 else ink,
        )
    turns = np.linspace(0, 2 * np.pi, 24)
    canvas.stroke(
        [(301.8 + 6.2 * float(np.cos(t)), 57 + 5.6 * float(np.sin(t))) for t in turns],
        0.9,
        red,
    )
    rule = Surface((0.70, 0.69, 0.66))
    for line in range(6):
        canvas.stroke([(259, 27 + line * 12.0), (344, 27 + line * 12.0)], 0.34, rule)


def _hang_chart(canvas: Canvas) -> None:
    """Siemens star and line patterns: their finest lines show the focus at a glance."""
    canvas.shade(box_points((262, 102), (349, 164)), 0.6, 2.5)
    canvas.box((259, 98), (346, 160), Surface((0.95, 0.95, 0.93)))
    ink = Surface((0.08, 0.08, 0.09))
    centre, radius = (286.0, 129.0), 23.0
    for spoke in range(18):
        low, high = 2 * np.pi * spoke / 18, 2 * np.pi * (spoke + 0.5) / 18
        canvas.fill(
            [
                centre,
                (
                    centre[0] + radius * float(np.cos(low)),
                    centre[1] + radius * float(np.sin(low)),
                ),
                (
                    centre[0] + radius * float(np.cos(high)),
                    centre[1] + radius * float(np.sin(high)),
                ),
            ],
            ink,
        )
    top = 104.0
    for pitch in (4.0, 3.0, 2.0):
        for line in range(int(26 / pitch)):
            left = 315.0 + line * pitch
            canvas.box((left, top), (left + pitch / 2, top + 12), ink)
        top += 16.0
    canvas.text("2  3  4", (316, 152), 4.4, 0.6, ink)


def _draw_desk(rng: np.random.Generator) -> Canvas:
    canvas = _blank()
    area = box_points((0, DESK_EDGE), SIZE)
    canvas.fill(area, Surface((0.52, 0.33, 0.19)))
    x, y = canvas.grid()
    z = 60.0 / np.maximum(y - 120.0, 20.0)
    across = (x - 180.0) * z
    boards = fractal_noise(rng, (1024, 1024), (14.0, 330.0), 5, 0.6)
    column = np.mod(across * 4.2 + 512, 1024).astype(int)
    row = np.mod(z * 700.0, 1024).astype(int)
    board = np.floor((across + 400.0) / 62.0)
    grain = boards[row, np.mod(column + board.astype(int) * 211, 1024)]
    seam = np.abs(np.mod(across + 400.0, 62.0) - 1.0) < 0.55
    wood = 0.62 + 0.8 * grain + 0.08 * np.mod(board * 1.7, 2.0)
    canvas.colour *= (wood * np.where(seam, 0.55, 1.0))[..., None]
    _lay_notebook(canvas)
    canvas.ramp(area, ((0, DESK_EDGE), (0, SIZE[1])), (0.86, 1.12))
    canvas.ramp(area, ((0, 0), (SIZE[0], 0)), (1.15, 0.82))
    shadow = [
        (70.0, 226.0),
        (150.0, 236.0),
        (232.0, 216.0),
        (206.0, 197.0),
        (120.0, 210.0),
    ]
    canvas.shade(shadow, 0.42, 5.0)
    canvas.shade([(66.0, 232), (108, 250), (152, 238), (108, 222)], 0.35, 2.5)
    return canvas


def _lay_notebook(canvas: Canvas) -> None:
    page = Canvas(170, 120, 4)
    page.box((0, 0), (170, 120), Surface((0.95, 0.93, 0.86)))
    ink, blue = Surface((0.13, 0.13, 0.17)), Surface((0.16, 0.30, 0.56))
    lines = (
        "IMAGE FUSION",
        "TAKE TWO PICTURES",
        "OF THE SAME SCENE",
        "AND KEEP WHAT IS",
        "SHARP IN EACH ONE",
    )
    for index, words in enumerate(lines):
        cap = 6.6 if index == 0 else 4.6
        page.text(
            words,
            (9, 12 + index * 16.0 + (index > 0) * 5),
            cap,
            1.2 if index == 0 else 0.8,
            blue if index == 0 else ink,
        )
        page.stroke(
            [(7, 29 + index * 16.0), (80, 29 + index * 16.0)],
            0.3,
            Surface((0.62, 0.70, 0.80)),
        )
    for index, height in enumerate((18, 30, 24, 44, 36, 56)):
        left = 96 + index * 11.0
        page.box((left, 80 - height), (left + 8, 80), Surface(SPINES[index % 4]))
    page.stroke([(94, 18), (94, 80), (164, 80)], 1.0, ink)
    page.text("FIG 1", (116, 88), 7.0, 1.1, ink)
    page.ramp(box_points((70, 0), (86, 120)), ((70, 0), (86, 0)), (1.0, 0.62))
    page.ramp(box_points((86, 0), (100, 120)), ((86, 0), (100, 0)), (0.70, 1.0))
    corners = [(196.0, 199.0), (330.0, 203.0), (352.0, 264.0), (166.0, 257.0)]
    drop = [(u + 2.0, v + 3.0) for u, v in corners]
    canvas.shade(drop, 0.45, 2.5)
    cover = [(193.0, 198.0), (333.0, 202.5), (356.0, 267.0), (162.0, 260.0)]
    canvas.fill(cover, Surface((0.34, 0.10, 0.10)))
    canvas.paste(corners, page, 1.0)
    start, end = (212.0, 250.0), (318.0, 229.0)
    canvas.shade([(212, 254), (318, 234), (318, 230), (212, 249)], 0.55, 1.2)
    canvas.capsule(start, end, (2.5, 2.2), Surface((0.92, 0.66, 0.10)))
    canvas.capsule((213.0, 251.2), (318, 230.2), (1.0, 0.9), Surface((0.70, 0.44, 0.05)))
    canvas.capsule(end, (326.0, 227.4), (2.2, 2.2), Surface((0.80, 0.36, 0.36)))
    canvas.fill([(212.5, 252.5), (211.5, 247.6), (202.0, 252.0)], Surface((0.88, 0.72, 0.52)))
    canvas.fill([(205.0, 252.0), (204.6, 250.6), (201.5, 252.2)], ink)


def _draw_mug(rng: np.random.Generator) -> Canvas:
    canvas = _blank()
    cream: Colour = (0.90, 0.86, 0.76)
    turns = np.linspace(-0.55 * np.pi, 0.55 * np.pi, 24)
    for width, gain in ((11.0, 0.62), (8.0, 0.92), (3.0, 1.05)):
        arc = [
            (
                MUG_CENTRE - 37.0 - 27.0 * float(np.cos(t)),
                181.0 + 28.0 * float(np.sin(t)),
            )
            for t in turns
        ]
        canvas.stroke(arc, width, Surface(tone(cream, gain)))
    _wrap_mug(canvas, rng)
    depth = MUG_RADIUS * MUG_TILT
    rim = (MUG_CENTRE, MUG_TOP)
    canvas.oval(rim, (MUG_RADIUS, depth), Surface(tone(cream, 1.06)))
    canvas.oval(rim, (MUG_RADIUS - 2.6, depth - 1.6), Surface(tone(cream, 0.62)))
    canvas.oval(
        (rim[0], rim[1] + 2.4),
        (MUG_RADIUS - 5.0, depth - 3.2),
        Surface((0.20, 0.10, 0.05)),
    )
    canvas.oval((rim[0] + 9, rim[1] + 3.6), (16.0, 4.0), Surface((0.42, 0.25, 0.13)), 0.1)
    canvas.oval((rim[0] + 9, rim[1] + 3.8), (11.0, 2.3), Surface((0.24, 0.12, 0.06)), 0.1)
    return canvas


def _wrap_mug(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paint the pattern on the flat label, then bend it around the cylinder."""
    length = MUG_RADIUS * np.pi
    height = MUG_BOTTOM - MUG_TOP
    label = Canvas(length, height, 6)
    label.box((0, 0), (length, height), Surface((0.90, 0.86, 0.76)))
    x, y = label.grid()
    teal = np.asarray((0.08, 0.34, 0.40))
    red = np.asarray((0.72, 0.20, 0.14))
    diamonds = np.abs(np.mod(x, 9.0) - 4.5) + np.abs(np.mod(y, 9.0) - 4.5)
    border = ((y > 9) & (y < 27)) | ((y > 72) & (y < 90))
    label.colour[border & (diamonds < 3.4)] = teal
    label.colour[border & (diamonds < 1.5)] = red
    for edge in (8.0, 28.0, 71.0, 91.0):
        label.colour[np.abs(y - edge) < 0.8] = teal
    word = "FUSION"
    cap = 17.0
    corner = ((length - text_width(word, cap)) / 2, 36.0)
    label.text(word, corner, cap, 3.4, Surface((0.72, 0.20, 0.14)))
    small = "MORE IN FOCUS"
    begin = (length - text_width(small, 6.0)) / 2
    label.text(small, (begin, 59.5), 6.0, 1.15, Surface((0.08, 0.34, 0.40)))
    specks = fractal_noise(rng, label.shape, 7.0, 2)
    label.colour *= (0.95 + 0.1 * specks)[..., None]
    u, v = canvas.grid()
    side = (u - MUG_CENTRE) / MUG_RADIUS
    inside = np.abs(side) < 1.0
    bow = np.sqrt(np.clip(1.0 - side**2, 0.0, 1.0)) * MUG_RADIUS * MUG_TILT
    down = v - bow - MUG_TOP
    inside &= (down >= 0) & (down < height)
    angle = np.arcsin(np.clip(side, -1.0, 1.0))
    along = ((angle * MUG_RADIUS + length / 2) * label.scale)[inside]
    rows = (down * label.scale)[inside]
    columns = np.clip(along, 0, label.shape[1] - 1).astype(int)
    colour = label.colour[np.clip(rows, 0, label.shape[0] - 1).astype(int), columns]
    # Key light from the upper left, a dim bounce from the right and a gloss streak.
    light = 0.30 + 0.85 * np.clip(np.cos(angle + 0.55), 0.0, 1.0) ** 1.2
    light += 0.16 * np.clip(np.sin(angle), 0.0, 1.0) ** 3
    light *= 1.04 - 0.20 * np.clip(down / height, 0.0, 1.0) ** 2
    gloss = 0.35 * np.exp(-(((angle + 0.75) / 0.07) ** 2)) * (down > 5) * (down < 92)
    canvas.colour[inside] = colour * light[inside][:, None] + gloss[inside][:, None]
    canvas.depth[inside] = 1.0


def _disc(radius: float) -> Image:
    half = int(np.ceil(radius))
    y, x = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float32)
    disc = np.clip(radius + 0.5 - np.sqrt(x**2 + y**2), 0.0, 1.0)
    return np.asarray(disc / disc.sum(), np.float32)


def _defocus(layer: Image, radius: float) -> Image:
    if radius < 0.34:
        return layer
    kernel = _disc(radius * SCALE)
    # Beyond the frame the scene goes on, hence no dark border.
    soft = cv2.filter2D(layer, -1, kernel, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(soft, np.float32)


def _confusion(row: float, focus: float) -> float:
    return max(0.0, BLUR_PER_ROW * abs(row - focus) - SHARP_ZONE)


def _photograph(layers: tuple[Canvas, Canvas, Canvas], focus: float) -> Picture:
    flat = [np.dstack([layer.colour**GAMMA, np.ones_like(layer.depth)]) * (layer.depth < FAR)[..., None] for layer in layers]
    back, table, front = (np.asarray(plane, np.float32) for plane in flat)
    picture = _defocus(back, _confusion(DESK_EDGE, focus))[..., :3]
    soft_table = _defocus_slope(table, focus)
    picture = picture * (1 - soft_table[..., 3:]) + soft_table[..., :3]
    soft_front = _defocus(front, _confusion(MUG_BOTTOM + 4.0, focus))
    picture = picture * (1 - soft_front[..., 3:]) + soft_front[..., :3]
    return quantise(reduce(picture.astype(np.float32), SCALE) ** (1 / GAMMA))


def _defocus_slope(table: Image, focus: float) -> Image:
    """Defocus a receding plane: the blur grows linearly with the distance in rows."""
    rows = (np.arange(table.shape[0]) + 0.5) / SCALE
    radii = np.asarray([_confusion(float(row), focus) for row in rows])
    radii = np.where(rows < DESK_EDGE, _confusion(DESK_EDGE, focus), radii)
    levels = np.arange(int(np.ceil(radii.max())) + 1)
    blend = np.zeros_like(table)
    for level in levels:
        weight = np.clip(1.0 - np.abs(radii - level), 0.0, 1.0).astype(np.float32)
        blend += _defocus(table, float(level)) * weight[:, None, None]
    return blend
