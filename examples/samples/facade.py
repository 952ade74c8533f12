"""Flat building fronts in metres, to be pasted in perspective."""

import numpy as np

from samples.canvas import (
    Canvas,
    Colour,
    Point,
    Surface,
    box_points,
    fractal_noise,
    mix,
    tone,
)
from samples.lettering import text_width

PIXELS_PER_METRE = 44
STOREY = 3.1
GROUND_FLOOR = 3.9
GLASS = Surface((0.20, 0.26, 0.33), 9.5)
LAMPLIGHT: Colour = (1.0, 0.76, 0.42)


def front(
    rng: np.random.Generator,
    size: Point,
    brick: Colour,
    sign: str,
    sign_colour: Colour,
    lit: float = 0.0,
) -> Canvas:
    """Paint a brick house front with a shop on the ground floor.

    Args:
        rng: Random source.
        size: Width and height in metres.
        brick: Colour of the bricks.
        sign: Name of the shop.
        sign_colour: Colour of the sign board.
        lit: Share of the windows with the light on.

    Returns:
        The painted front.
    """
    width, height = size
    canvas = Canvas(width, height, PIXELS_PER_METRE)
    _lay_bricks(canvas, rng, brick)
    trim = Surface(mix(brick, (0.85, 0.82, 0.76), 0.8), 16.5)
    bays = max(2, int(width / 2.1))
    for storey in range(int((height - GROUND_FLOOR - 0.5) / STOREY)):
        sill = height - GROUND_FLOOR - 0.75 - storey * STOREY
        for bay in range(bays):
            left = (bay + 0.5) * width / bays - 0.6
            _window(canvas, rng, (left, sill - 1.75), trim, rng.random() < lit)
    canvas.box((0, 0), (width, 0.35), trim)
    canvas.box((0, 0.35), (width, 0.5), Surface(tone(trim.colour, 0.55), 15.0))
    _shop(canvas, rng, sign, sign_colour, lit > 0)
    dirt = fractal_noise(rng, canvas.shape, 90, 4)
    canvas.colour *= (0.84 + 0.3 * dirt)[..., None]
    canvas.heat += 2.0 * (dirt - 0.5)
    return canvas


def _lay_bricks(canvas: Canvas, rng: np.random.Generator, brick: Colour) -> None:
    x, y = canvas.grid()
    course = np.floor(y / 0.2).astype(int)
    run = x / 0.56 + 0.5 * (course % 2)
    stone = np.floor(run).astype(int)
    shades = rng.normal(1.0, 0.12, (course.max() + 1, stone.max() + 1))
    gain = shades[course, stone]
    mortar = (y / 0.2 - course < 0.17) | (run - stone < 0.07)
    colour = gain[..., None] * np.asarray(brick)
    pale = np.asarray(mix(brick, (0.72, 0.68, 0.62), 0.55))
    canvas.colour[:] = np.where(mortar[..., None], pale, colour)
    canvas.heat[:] = 17.0 + 0.6 * (gain - 1.0)


def _window(canvas: Canvas, rng: np.random.Generator, corner: Point, trim: Surface, lit: bool) -> None:
    left, top = corner
    right, bottom = left + 1.2, top + 1.75
    canvas.box((left - 0.14, top - 0.26), (right + 0.14, top), trim)
    canvas.box((left - 0.16, bottom), (right + 0.16, bottom + 0.14), trim)
    canvas.box((left, top), (right, bottom), Surface((0.80, 0.79, 0.75), 14.0))
    pane = ((left + 0.08, top + 0.08), (right - 0.08, bottom - 0.08))
    if lit:
        glow = mix(LAMPLIGHT, (1.0, 0.9, 0.7), float(rng.random()))
        canvas.box(*pane, Surface(glow, 15.0, float(rng.uniform(0.35, 0.75))))
    else:
        canvas.box(*pane, GLASS)
        streak = rng.uniform(0.2, 0.8)
        canvas.fill(
            [
                (left + 0.1, top + streak + 0.5),
                (left + 0.1, top + 0.1),
                (left + streak + 0.3, top + 0.1),
            ],
            Surface((0.42, 0.50, 0.58), 8.5),
        )
    if rng.random() < 0.55:
        cloth = Surface((0.70, 0.66, 0.58), 13.0, 0.25 if lit else 0.0)
        drop = rng.uniform(0.3, 0.9)
        canvas.box(pane[0], (left + 0.32, bottom - 0.08), cloth)
        canvas.box((right - 0.32, top + 0.08), pane[1], cloth)
        canvas.box(pane[0], (right - 0.08, top + drop * 0.5), cloth)
    frame = Surface((0.78, 0.77, 0.73), 14.0)
    middle = (left + right) / 2
    canvas.box((middle - 0.035, top), (middle + 0.035, bottom), frame)
    canvas.box((left, top + 0.6), (right, top + 0.67), frame)
    canvas.ramp(
        box_points((left, top), (right, top + 0.5)),
        ((left, top), (left, top + 0.5)),
        (0.5, 1.0),
    )


def _shop(
    canvas: Canvas,
    rng: np.random.Generator,
    sign: str,
    sign_colour: Colour,
    lit: bool,
) -> None:
    rows, columns = canvas.shape
    width, height = columns / canvas.scale, rows / canvas.scale
    top = height - GROUND_FLOOR + 0.1
    wood = Surface(tone(sign_colour, 0.45), 16.0)
    canvas.box((0.25, top), (width - 0.25, height), wood)
    pieces = max(2, round(width / 2.3))
    for piece in range(pieces):
        left = 0.5 + piece * (width - 1.0) / pieces
        right = left + (width - 1.0) / pieces - 0.2
        base = height - (0.12 if piece == pieces // 2 else 0.75)
        inside = Surface((0.95, 0.74, 0.44), 14.0, 0.26) if lit else GLASS
        canvas.box((left, top + 1.0), (right, base), inside)
        for _ in range(5):
            x = rng.uniform(left, right - 0.3)
            hue = tuple(float(v) for v in 0.32 * rng.random() + rng.uniform(0.12, 0.34, 3))
            canvas.box(
                (x, base - rng.uniform(0.3, 1.0)),
                (x + 0.3, base),
                Surface((hue[0], hue[1], hue[2]), 12.0, 0.2 if lit else 0.0),
            )
        canvas.ramp(
            box_points((left, top + 1.0), (right, base)),
            ((left, top + 1.0), (left, base)),
            (0.65, 1.25),
        )
    board = Surface(sign_colour, 16.2, 0.35 if lit else 0.0)
    canvas.box((0.3, top + 0.1), (width - 0.3, top + 0.85), board)
    cap = 0.46
    begin = (width - text_width(sign, cap)) / 2
    ink = Surface((0.97, 0.94, 0.84), 16.4, 0.8 if lit else 0.0)
    canvas.text(sign, (begin, top + 0.25), cap, 0.09, ink)
    stripes = int((width - 0.6) / 0.35)
    for stripe in range(stripes):
        left = 0.3 + stripe * 0.35
        cloth = (0.9, 0.88, 0.8) if stripe % 2 else sign_colour
        canvas.box((left, top + 0.85), (left + 0.35, top + 1.35), Surface(cloth, 17.5))
    band = box_points((0.3, top + 0.85), (width - 0.3, top + 1.35))
    canvas.ramp(band, ((0, top + 0.85), (0, top + 1.35)), (1.05, 0.7), (0.8, -0.4))
