"""Transverse head section: fine soft tissue against blurred tracer uptake."""

from dataclasses import dataclass

import cv2
import numpy as np

from samples.canvas import (
    Image,
    Picture,
    Point,
    blur,
    fractal_noise,
    quantise,
    reduce,
)

SIZE = 256
SCALE = 3
SEED = 3307
HEAD: Point = (97.0, 115.0)
SKULL: Point = (92.0, 110.0)
INNER_SKULL: Point = (85.5, 103.0)
BRAIN: Point = (83.0, 100.5)
# Place (from the middle of the head), radius and strength of what only PET shows.
LESIONS = ((-37.0, -28.0, 6.0, 1.25), (31.0, 40.0, 7.5, 1.2))
HOT_MAP = (
    (0.00, (0.0, 0.0, 0.0)),
    (0.14, (0.16, 0.02, 0.28)),
    (0.32, (0.52, 0.03, 0.30)),
    (0.50, (0.86, 0.20, 0.08)),
    (0.68, (0.98, 0.55, 0.04)),
    (0.85, (1.0, 0.88, 0.26)),
    (1.00, (1.0, 1.0, 0.92)),
)


@dataclass(frozen=True)
class Anatomy:
    """Share of each tissue per painted pixel.

    Attributes:
        inside: 1 inside the skin.
        scalp: Skin and fat.
        marrow: Spongy layer in the skull bone.
        grey: Cortex and deep nuclei.
        white: White matter.
        fluid: Cerebrospinal fluid.
    """

    inside: Image
    scalp: Image
    marrow: Image
    grey: Image
    white: Image
    fluid: Image


def render() -> tuple[Picture, Picture]:
    """Render the pair.

    Returns:
        Functional (RGB) and magnetic resonance (grey) picture.
    """
    rng = np.random.default_rng(SEED)
    anatomy = _draw_anatomy(rng)
    return _functional(anatomy, rng), _resonance(anatomy, rng)


def _plane() -> tuple[Image, Image]:
    axis = np.asarray((np.arange(SIZE * SCALE) + 0.5) / SCALE - SIZE / 2, np.float32)
    shape = (axis.size, axis.size)
    return np.broadcast_to(axis, shape), np.broadcast_to(axis[:, None], shape)


def _egg(x: Image, y: Image, radii: Point) -> Image:
    """Depth below the outline of the head in pixels, positive inside."""
    # The forehead (top) is narrower than the back of the head.
    wide = radii[0] * (1.0 + 0.04 * np.tanh(y / 60.0))
    radius = np.sqrt((x / wide) ** 2 + (y / radii[1]) ** 2)
    return np.asarray((1.0 - radius) * min(radii), np.float32)


def _step(distance: Image, width: float = 0.5) -> Image:
    return np.asarray(np.clip(distance / width + 0.5, 0.0, 1.0), np.float32)


def _ellipse(x: Image, y: Image, centre: Point, radii: Point, angle: float) -> Image:
    cosine, sine = float(np.cos(angle)), float(np.sin(angle))
    u = (x - centre[0]) * cosine + (y - centre[1]) * sine
    v = (y - centre[1]) * cosine - (x - centre[0]) * sine
    radius = np.sqrt((u / radii[0]) ** 2 + (v / radii[1]) ** 2)
    return np.asarray((1.0 - radius) * min(radii), np.float32)


def _folds(rng: np.random.Generator, period: float) -> Image:
    """Labyrinth of stripes, like the gyri of a cortex.

    Args:
        rng: Random source.
        period: Distance of neighbouring stripes in painted pixels.

    Returns:
        Pattern between -1 (furrow) and 1 (ridge).
    """
    # Band-pass and saturate repeatedly: activator-inhibitor growth of stripes.
    coarse = SCALE
    side = SIZE * SCALE // coarse
    pattern = rng.normal(0.0, 1.0, (side, side)).astype(np.float32)
    sigma = period / coarse / 4.6
    for _ in range(14):
        band = blur(pattern, sigma) - blur(pattern, sigma * 1.6)
        pattern = np.tanh(1.6 * band / float(band.std())).astype(np.float32)
    # The plain band has rounded flanks, which give furrows of an even width.
    band = blur(pattern, sigma) - blur(pattern, sigma * 1.6)
    band = np.clip(band / (1.7 * float(band.std())), -1.0, 1.0)
    full = cv2.resize(band, (SIZE * SCALE, SIZE * SCALE), interpolation=cv2.INTER_CUBIC)
    return np.asarray(full, np.float32)


def _draw_anatomy(rng: np.random.Generator) -> Anatomy:
    x, y = _plane()
    wobble_x = 7.0 * (fractal_noise(rng, x.shape, 120, 3) - 0.5)
    wobble_y = 7.0 * (fractal_noise(rng, x.shape, 120, 3) - 0.5)
    inside = _step(_egg(x, y, HEAD))
    bone = _step(_egg(x, y, SKULL))
    cavity = _step(_egg(x, y, INNER_SKULL))
    diploe = _step(_egg(x, y, SKULL) - 2.2) * (1 - _step(_egg(x, y, SKULL) - 4.6))
    brain_depth = _egg(x + 0.25 * wobble_x, y + 0.25 * wobble_y, BRAIN)
    folds = _folds(rng, 9.6 * SCALE)
    # Both halves share the large folds but are never exact mirror images.
    folds = np.where(x < 0.02 * wobble_x, folds, 0.25 * folds + 0.75 * folds[:, ::-1])
    folds = folds.astype(np.float32)
    limit = 35.0 + 16.0 * (fractal_noise(rng, x.shape, 80, 3) - 0.5)
    # The insula: on both sides a deep furrow reaches in from the temple.
    sway = 16.0 * (fractal_noise(rng, x.shape, 70, 2) - 0.5)
    fissure = np.abs(y - 12.0 - 0.30 * (np.abs(x) - 50.0) + sway)
    insula = np.clip(1.0 - fissure / 6.0, 0.0, 1.0)
    insula *= np.clip((np.abs(x) - 36.0) / 8.0, 0.0, 1.0)
    cortex_reach = np.clip((limit - brain_depth) / 9.0, 0.0, 1.0)
    midline = np.abs(x + 0.6 * wobble_x)
    medial_reach = np.clip((17.0 - midline) / 6.0, 0.0, 1.0)
    medial_reach *= np.clip((np.abs(y + 2.0) - 30.0) / 6.0, 0.0, 1.0)
    furrow = (0.5 - 0.5 * folds) * np.maximum(cortex_reach, medial_reach)
    furrow = np.maximum(furrow, insula)
    split = np.clip(1.5 - midline, 0.0, 1.0) * np.clip((np.abs(y + 2.0) - 29.0) / 2.0, 0.0, 1.0)
    furrow = np.maximum(furrow, split)
    fluid = np.clip((furrow - 0.84) * 9.0, 0.0, 1.0)
    fluid = np.maximum(fluid, _step(1.1 - brain_depth))
    ribbon = np.clip((furrow - 0.42) * 6.0, 0.0, 1.0)
    ribbon = np.maximum(ribbon, _step(4.4 - brain_depth, 1.2))
    medial = np.clip((5.0 - midline) / 1.2, 0.0, 1.0)
    medial *= np.clip((np.abs(y + 2.0) - 27.0) / 3.0, 0.0, 1.0)
    grey = np.maximum(ribbon, medial)
    deep = np.zeros_like(x)
    cells = np.zeros_like(x)
    for side in (-1.0, 1.0):
        u = x * side + 0.2 * wobble_x
        v = y + 0.2 * wobble_y
        # Caudate, putamen and thalamus, then the horns of the ventricles.
        for centre, radii, angle in (
            ((13.0, -16.0), (4.4, 8.5), 0.25),
            ((25.0, -3.0), (5.4, 14.5), -0.28),
            ((9.0, 10.0), (7.4, 11.5), -0.35),
        ):
            deep = np.maximum(deep, _step(_ellipse(u, v, centre, radii, angle), 1.5))
        for centre, radii, angle in (
            ((7.0, -21.0), (3.4, 13.0), 0.35),
            ((3.2, -8.0), (2.4, 10.0), 0.05),
            ((17.0, 33.0), (4.4, 15.0), -0.38),
        ):
            cells = np.maximum(cells, _step(_ellipse(u, v, centre, radii, angle), 1.0))
    third = _step(_ellipse(x, y, (0.0, 8.0), (1.5, 9.0), 0.0), 0.8)
    grey = np.maximum(grey, 0.85 * deep)
    fluid = np.maximum(fluid, np.maximum(cells, third)) * cavity
    brain = cavity * (1 - fluid)
    return Anatomy(
        inside=inside,
        scalp=inside * (1 - bone),
        marrow=diploe * (1 - cavity),
        grey=np.asarray(brain * grey, np.float32),
        white=np.asarray(brain * (1 - grey), np.float32),
        fluid=np.asarray(fluid, np.float32),
    )


def _resonance(anatomy: Anatomy, rng: np.random.Generator) -> Picture:
    x, y = _plane()
    bias = 1.0 + 0.06 * np.tanh((x - y) / 120.0)
    fibres = fractal_noise(rng, x.shape, 26, 4) - 0.5
    signal = (
        0.80 * anatomy.white * (1.0 + 0.10 * fibres)
        + 0.52 * anatomy.grey * (1.0 + 0.10 * fibres)
        + 0.13 * anatomy.fluid
        + 0.88 * anatomy.scalp * (1.0 + 0.25 * fibres)
        + 0.34 * anatomy.marrow
        + 0.035 * anatomy.inside
    )
    small = reduce((signal * bias).astype(np.float32), SCALE)
    small += 0.010 * rng.normal(0.0, 1.0, small.shape).astype(np.float32)
    return np.where(_silhouette(anatomy), quantise(small), 0).astype(np.uint8)


def _functional(anatomy: Anatomy, rng: np.random.Generator) -> Picture:
    x, y = _plane()
    uneven = fractal_noise(rng, x.shape, 150, 3)
    uptake = 0.62 * anatomy.grey * (0.80 + 0.4 * uneven)
    uptake = uptake + 0.22 * anatomy.white + 0.10 * anatomy.scalp + 0.05 * anatomy.inside
    # The visual cortex at the back works hardest.
    uptake *= 1.0 + 0.22 * np.clip((y - 55.0) / 30.0, 0.0, 1.0)
    image = blur(np.asarray(uptake, np.float32), 3.6 * SCALE)
    for across, down, radius, strength in LESIONS:
        spot = np.exp(-(((x - across) ** 2 + (y - down) ** 2) / (2 * radius**2)))
        image = image + strength * 0.62 * spot.astype(np.float32)
    grains = blur(rng.normal(0.0, 1.0, x.shape).astype(np.float32), 1.8 * SCALE)
    image += 0.022 * grains / float(grains.std())
    small = np.clip(reduce(image, SCALE), 0.0, 1.0)
    stops = [stop for stop, _ in HOT_MAP]
    channels = [np.interp(small, stops, [colour[channel] for _, colour in HOT_MAP]) for channel in range(3)]
    picture = quantise(np.stack(channels, axis=-1).astype(np.float32))
    return np.where(_silhouette(anatomy)[..., None], picture, 0).astype(np.uint8)


def _silhouette(anatomy: Anatomy) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    return np.asarray(reduce(anatomy.inside, SCALE) > 0.5)
