"""The medical pair: a section of a head, as fine soft tissue and as blurred uptake of a tracer."""

import cv2
import numpy as np

from samples.canvas import Canvas, Image, Pair, Uint8Image, blur, noise, quantize, reduce

SIZE, SCALE = 256, 3
SKIN, SKULL, CAVITY, BRAIN = (97.0, 115.0), (92.0, 110.0), (85.5, 103.0), (83.0, 100.5)
# Place, half axes and turn of one half: caudate, putamen and thalamus, then the horns of the ventricles.
NUCLEI = (((13, -16), (4.4, 8.5), 0.25), ((25, -3), (5.4, 14.5), -0.28), ((9, 10), (7.4, 11.5), -0.35))
HORNS = (((7, -21), (3.4, 13), 0.35), ((3.2, -8), (2.4, 10), 0.05), ((17, 33), (4.4, 15), -0.38), ((0, 8), (1.5, 9), 0.0))
# Place, radius and strength of what only the tracer shows.
LESIONS = ((-37.0, -28.0, 6.0, 0.78), (31.0, 40.0, 7.5, 0.74))
STOPS = (0.0, 0.14, 0.32, 0.50, 0.68, 0.85, 1.0)
HOT = ((0, 0.16, 0.52, 0.86, 0.98, 1, 1), (0, 0.02, 0.03, 0.20, 0.55, 0.88, 1), (0, 0.28, 0.30, 0.08, 0.04, 0.26, 0.92))


def render() -> tuple[Uint8Image, Uint8Image]:
    """Render the functional (RGB) and the magnetic resonance (grayscale) image."""
    rng = np.random.default_rng(3307)
    plane = Canvas(SIZE, SIZE, SCALE)
    x, y, shape = plane.u - SIZE / 2, plane.v - SIZE / 2, plane.shape
    gray, white, fluid = _draw_brain(rng, x, y)
    inside, bone = _step(_egg(x, y, SKIN)), _step(_egg(x, y, SKULL))
    scalp, spongy = inside * (1 - bone), _egg(x, y, SKULL)
    marrow = _step(spongy - 2.2) * (1 - _step(spongy - 4.6))
    silhouette = reduce(inside, SCALE) > 0.5
    fibres = noise(rng, shape, 26) - 0.5
    signal = (0.80 * white + 0.52 * gray) * (1.0 + 0.10 * fibres) + 0.88 * scalp * (1.0 + 0.25 * fibres)
    signal += 0.13 * fluid + 0.34 * marrow + 0.035 * inside
    resonance = reduce(signal * (1.0 + 0.06 * np.tanh((x - y) / 120.0)), SCALE)
    resonance += 0.010 * rng.normal(0.0, 1.0, resonance.shape).astype(np.float32)
    uptake = 0.62 * gray * (0.80 + 0.4 * noise(rng, shape, 150, 3)) + 0.22 * white + 0.10 * scalp + 0.05 * inside
    # The visual cortex at the back works hardest.
    uptake = blur(uptake * (1.0 + 0.22 * np.clip((y - 55.0) / 30.0, 0.0, 1.0)), 3.6 * SCALE)
    for across, down, radius, strength in LESIONS:
        uptake += strength * np.exp(-((x - across) ** 2 + (y - down) ** 2) / (2 * radius**2))
    grains = blur(rng.normal(0.0, 1.0, shape).astype(np.float32), 1.8 * SCALE)
    small = reduce(uptake + 0.022 * grains / grains.std(), SCALE)
    functional = np.stack([np.interp(small, STOPS, channel) for channel in HOT], axis=-1)
    return quantize(functional * silhouette[..., None]), quantize(resonance * silhouette)


def _egg(x: Image, y: Image, radii: Pair) -> Image:
    """Depth below an outline of the head in pixels; the forehead is narrower than the back of the head."""
    radius = np.hypot(x / (radii[0] * (1.0 + 0.04 * np.tanh(y / 60.0))), y / radii[1])
    return np.asarray((1.0 - radius) * min(radii), np.float32)


def _step(depth: Image, width: float = 0.5) -> Image:
    """Go from 0 outside to 1 inside."""
    return np.asarray(np.clip(depth / width + 0.5, 0.0, 1.0), np.float32)


def _ovals(x: Image, y: Image, table: tuple[tuple[Pair, Pair, float], ...], width: float) -> Image:
    shares = []
    for (across, down), radii, angle in table:
        u = (x - across) * np.cos(angle) + (y - down) * np.sin(angle)
        v = (y - down) * np.cos(angle) - (x - across) * np.sin(angle)
        shares.append(_step((1.0 - np.hypot(u / radii[0], v / radii[1])) * min(radii), width))
    return np.asarray(np.max(shares, axis=0), np.float32)


def _draw_brain(rng: np.random.Generator, x: Image, y: Image) -> tuple[Image, Image, Image]:
    """Shares of gray matter, white matter and fluid."""
    wobble_x, wobble_y = (7.0 * (noise(rng, x.shape, 120, 3) - 0.5) for _ in range(2))
    depth = _egg(x + 0.25 * wobble_x, y + 0.25 * wobble_y, BRAIN)
    # A labyrinth of stripes grows, like the gyri of a cortex: -1 in a furrow, 1 on a ridge.
    pattern, sigma = rng.normal(0.0, 1.0, (SIZE, SIZE)).astype(np.float32), 9.6 / 4.6
    for _ in range(15):
        band = blur(pattern, sigma) - blur(pattern, sigma * 1.6)
        pattern = np.tanh(1.6 * band / band.std())
    # The plain band has rounded flanks, which give furrows of an even width.
    band = np.clip(band / (1.7 * band.std()), -1.0, 1.0)
    folds = cv2.resize(band, None, fx=SCALE, fy=SCALE, interpolation=cv2.INTER_CUBIC)
    # Both halves share the large folds but never mirror each other exactly.
    folds = np.where(x < 0.02 * wobble_x, folds, 0.25 * folds + 0.75 * folds[:, ::-1])
    midline, ends = np.abs(x + 0.6 * wobble_x), np.abs(y + 2.0)
    reach = np.clip((35.0 + 16.0 * (noise(rng, x.shape, 80, 3) - 0.5) - depth) / 9.0, 0.0, 1.0)
    reach = np.maximum(reach, np.clip((17.0 - midline) / 6.0, 0.0, 1.0) * np.clip((ends - 30.0) / 6.0, 0.0, 1.0))
    # The insula: on both sides, a deep furrow comes in from the temple.
    fissure = np.abs(y - 12.0 - 0.30 * (np.abs(x) - 50.0) + 16.0 * (noise(rng, x.shape, 70, 2) - 0.5))
    insula = np.clip(1.0 - fissure / 6.0, 0.0, 1.0) * np.clip((np.abs(x) - 36.0) / 8.0, 0.0, 1.0)
    split = np.clip(1.5 - midline, 0.0, 1.0) * np.clip((ends - 29.0) / 2.0, 0.0, 1.0)
    furrow = np.max([(0.5 - 0.5 * folds) * reach, insula, split], axis=0)
    u, v = np.abs(x) + 0.2 * wobble_x * np.sign(x), y + 0.2 * wobble_y
    medial = np.clip((5.0 - midline) / 1.2, 0.0, 1.0) * np.clip((ends - 27.0) / 3.0, 0.0, 1.0)
    ribbon = np.maximum(np.clip((furrow - 0.42) * 6.0, 0.0, 1.0), _step(4.4 - depth, 1.2))
    gray = np.max([ribbon, medial, 0.85 * _ovals(u, v, NUCLEI, 1.5)], axis=0)
    cavity = _step(_egg(x, y, CAVITY))
    fluid = cavity * np.max([np.clip((furrow - 0.84) * 9.0, 0.0, 1.0), _step(1.1 - depth), _ovals(u, v, HORNS, 1.0)], axis=0)
    brain = cavity - fluid
    return brain * gray, brain * (1 - gray), fluid
