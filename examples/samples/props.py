"""Things that stand in a street: cars, people, trees and lamps."""

from dataclasses import dataclass

import numpy as np

from samples.canvas import (
    Camera,
    Canvas,
    Colour,
    Point,
    Surface,
    mix,
    mix_points,
    oval_points,
    tone,
)
from samples.lettering import text_width

SKIN: Colour = (0.80, 0.60, 0.48)
RUBBER = Surface((0.05, 0.05, 0.055), 21.0)
CAR_LENGTH = 4.2
CAR_HALF_WIDTH = 0.9
# Side view of a car from its tail: metres along the car, metres above the ground.
CAR_PROFILE: tuple[Point, ...] = (
    (0.06, 0.30),
    (0.0, 0.55),
    (0.05, 0.95),
    (0.40, 1.02),
    (1.00, 1.45),
    (1.50, 1.50),
    (2.35, 1.46),
    (3.10, 1.02),
    (3.95, 0.88),
    (4.18, 0.60),
    (4.15, 0.30),
)
CAR_GLASS = (3, 6)


@dataclass(frozen=True)
class Car:
    """One car that is parallel to the road.

    Attributes:
        x: Metres of its middle to the right of the camera.
        z: Distance of the end that faces the camera.
        paint: Body colour.
        plate: Licence number.
        oncoming: Whether its front faces the camera.
        running: Whether the engine is warm and the lights are on.
    """

    x: float
    z: float
    paint: Colour
    plate: str
    oncoming: bool = False
    running: bool = True


@dataclass(frozen=True)
class Person:
    """One person on foot.

    Attributes:
        x: Metres to the right of the camera.
        z: Distance.
        coat: Colour of the coat.
        trousers: Colour of the trousers.
        stride: Half the distance of the feet in metres, negative to mirror.
        height: Body height in metres.
    """

    x: float
    z: float
    coat: Colour
    trousers: Colour
    stride: float = 0.22
    height: float = 1.78


def draw_car(canvas: Canvas, camera: Camera, car: Car) -> None:
    """Paint a car with its contact shadow.

    Args:
        canvas: Canvas.
        camera: Camera.
        car: Car.
    """
    canvas.distance = car.z
    half = CAR_HALF_WIDTH
    shadow = [
        camera.project(car.x + side * (half + 0.1), 0.0, car.z + along)
        for side, along in ((-1, -0.15), (1, -0.15), (1, 4.4), (-1, 4.4))
    ]
    canvas.shade(shadow, 0.22, 0.16 * camera.focal / car.z, 7.0 if car.running else 0.0)
    _draw_shell(canvas, camera, car)
    if abs(car.x) > half:
        _draw_flank(canvas, camera, car)
    _draw_end(canvas, camera, car)


def draw_person(canvas: Canvas, camera: Camera, person: Person) -> None:
    """Paint a walking person with a contact shadow.

    Args:
        canvas: Canvas.
        camera: Camera.
        person: Person.
    """
    canvas.distance = person.z
    size = person.height / 1.78
    gain = camera.focal / person.z * size

    def at(x: float, y: float) -> Point:
        return camera.project(person.x + x * size, y * size, person.z)

    def limb(points: tuple[Point, ...], radii: tuple[float, ...], surface: Surface) -> None:
        # A second, thinner and brighter pass models the roundness of the limb.
        light = Surface(tone(surface.colour, 1.22), surface.heat + 2.5)
        for share, paint, shift in ((1.0, surface, 0.0), (0.5, light, -0.012)):
            for index in range(len(points) - 1):
                (x0, y0), (x1, y1) = points[index], points[index + 1]
                canvas.capsule(
                    at(x0 + shift, y0),
                    at(x1 + shift, y1),
                    (radii[index] * gain * share, radii[index + 1] * gain * share),
                    paint,
                )

    foot = at(0.12, 0.0)
    canvas.shade(oval_points(foot, (0.42 * gain, 0.08 * gain)), 0.5, 0.04 * gain)
    legs = Surface(person.trousers, 25.0)
    shoes = Surface((0.08, 0.06, 0.05), 20.5)
    coat = Surface(person.coat, 26.5)
    step = person.stride
    for side in (-1.0, 1.0):
        toe = side * step
        rear = Surface(tone(legs.colour, 0.8 if side < 0 else 1.0), legs.heat)
        knee = (toe * 0.65 + 0.06 * np.sign(step), 0.47)
        limb(((0.05 * side, 0.9), knee, (toe, 0.1)), (0.10, 0.075, 0.055), rear)
        limb(((toe, 0.05), (toe + 0.13 * np.sign(step), 0.04)), (0.05, 0.04), shoes)
    swing = -step * 0.35
    dark = Surface(tone(coat.colour, 0.78), coat.heat)
    hand = Surface(SKIN, 30.5)
    limb(((-0.18, 1.40), (-0.25, 1.14), (-0.27 + swing, 0.92)), (0.075, 0.06, 0.05), dark)
    limb(((-0.27 + swing, 0.9), (-0.27 + swing, 0.86)), (0.045, 0.04), hand)
    limb(((0.0, 1.36), (0.0, 0.92)), (0.20, 0.165), coat)
    limb(((0.18, 1.40), (0.25, 1.14), (0.27 + swing, 0.92)), (0.075, 0.06, 0.05), coat)
    limb(((0.27 + swing, 0.9), (0.27 + swing, 0.86)), (0.045, 0.04), hand)
    limb(((0.0, 1.48), (0.0, 1.56)), (0.06, 0.055), Surface(tone(SKIN, 0.8), 32.0))
    hair = Surface((0.16, 0.11, 0.08), 29.0)
    canvas.oval(at(-0.01, 1.665), (0.105 * gain, 0.125 * gain), hair)
    canvas.oval(at(0.01, 1.635), (0.088 * gain, 0.105 * gain), Surface(SKIN, 34.5))
    canvas.oval(at(0.0, 1.70), (0.095 * gain, 0.068 * gain), hair)


def draw_dog(canvas: Canvas, camera: Camera, x: float, z: float) -> None:
    """Paint a dog seen from the side.

    Args:
        canvas: Canvas.
        camera: Camera.
        x: Metres to the right of the camera.
        z: Distance.
    """
    canvas.distance = z
    gain = camera.focal / z
    fur = Surface((0.30, 0.22, 0.15), 27.0)
    warm = Surface((0.34, 0.25, 0.17), 30.5)

    def bone(start: Point, end: Point, radii: Point, paint: Surface) -> None:
        canvas.capsule(
            camera.project(x + start[0], start[1], z),
            camera.project(x + end[0], end[1], z),
            (radii[0] * gain, radii[1] * gain),
            paint,
        )

    for leg, lean in ((-0.30, -0.06), (-0.22, 0.08), (0.20, -0.07), (0.27, 0.06)):
        bone((leg, 0.36), (leg + lean, 0.04), (0.055, 0.035), fur)
    bone((-0.30, 0.46), (0.26, 0.48), (0.115, 0.135), fur)
    bone((-0.26, 0.47), (0.24, 0.49), (0.06, 0.08), warm)
    bone((-0.38, 0.52), (-0.58, 0.72), (0.035, 0.02), fur)
    bone((0.30, 0.52), (0.42, 0.68), (0.09, 0.075), warm)
    bone((0.43, 0.71), (0.60, 0.66), (0.085, 0.045), Surface(warm.colour, 32.0))
    bone((0.39, 0.76), (0.36, 0.84), (0.035, 0.02), fur)


def draw_tree(
    canvas: Canvas,
    camera: Camera,
    rng: np.random.Generator,
    place: Point,
    size: tuple[float, float],
    leaf: Colour,
) -> None:
    """Paint a broad-leaved tree.

    Args:
        canvas: Canvas.
        camera: Camera.
        rng: Random source.
        place: x and z of the trunk.
        size: Height and crown radius in metres.
        leaf: Mean colour of the leaves.
    """
    x, z = place
    height, radius = size
    canvas.distance = z
    gain = camera.focal / z
    bark = Surface((0.23, 0.17, 0.13), 14.5)
    root = camera.project(x, 0.0, z)
    canvas.shade(oval_points(root, (0.7 * gain, 0.12 * gain)), 0.55, 0.08 * gain)
    fork = camera.project(x, height - 1.3 * radius, z)
    canvas.capsule(root, fork, (0.17 * gain, 0.11 * gain), bark)
    crown = (x, height - radius)
    for angle in np.linspace(0.25, np.pi - 0.25, 7):
        tip = camera.project(
            crown[0] + 0.8 * radius * np.cos(angle),
            crown[1] + 0.7 * radius * np.sin(angle),
            z,
        )
        canvas.capsule(fork, tip, (0.07 * gain, 0.02 * gain), bark)
    clumps = 34
    centres = np.clip(rng.normal(0.0, 0.46, (clumps, 2)), -0.75, 0.75) * radius
    order = np.argsort(centres[:, 1])
    leaf_size = float(np.clip(0.105 * gain, 1.0, 3.0))
    for clump in order:
        across, up = centres[clump]
        for share in np.linspace(0.0, 1.0, 70):
            spread = rng.normal(0.0, 0.19, 2) * radius
            light = 0.42 + 0.38 * share + 0.24 * (up + spread[1] - across * 0.4) / radius
            light += rng.normal(0.0, 0.09)
            spot = camera.project(crown[0] + across + spread[0], crown[1] + up + spread[1], z)
            hue = mix(leaf, (0.62, 0.58, 0.18), float(np.clip(light - 0.6, 0, 0.4)))
            canvas.oval(
                spot,
                (leaf_size, leaf_size * 0.55),
                Surface(tone(hue, float(np.clip(light, 0.18, 1.3)) * 1.4), 11.5 + light),
                float(rng.uniform(0, np.pi)),
            )


def draw_lamp(canvas: Canvas, camera: Camera, place: Point, height: float, reach: float, lit: bool) -> None:
    """Paint a street lamp.

    Args:
        canvas: Canvas.
        camera: Camera.
        place: x and z of the pole.
        height: Height of the lamp head in metres.
        reach: Length of the arm, negative to the left.
        lit: Whether the lamp is on.
    """
    x, z = place
    canvas.distance = z
    gain = camera.focal / z
    steel = Surface((0.20, 0.22, 0.22), 14.0)
    top = camera.project(x, height, z)
    canvas.capsule(camera.project(x, 0, z), top, (0.08 * gain, 0.05 * gain), steel)
    head = camera.project(x + reach, height + 0.15, z)
    canvas.capsule(top, head, (0.04 * gain, 0.04 * gain), steel)
    canvas.oval(head, (0.34 * gain, 0.10 * gain), steel)
    bulb = Surface((1.0, 0.84, 0.58) if lit else (0.7, 0.7, 0.66), 36.0 if lit else 14.0)
    if lit:
        bulb = Surface(bulb.colour, 42.0, 6.0)
    canvas.oval((head[0], head[1] + 0.05 * gain), (0.24 * gain, 0.07 * gain), bulb)


def _profile(car: Car) -> list[Point]:
    if car.oncoming:
        return [(CAR_LENGTH - along, up) for along, up in reversed(CAR_PROFILE)]
    return list(CAR_PROFILE)


def _half_width(up: float) -> float:
    return CAR_HALF_WIDTH - 0.42 * max(0.0, up - 0.98) - 0.10 * max(0.0, 0.5 - up)


def _draw_shell(canvas: Canvas, camera: Camera, car: Car) -> None:
    profile = _profile(car)
    last = len(profile) - 2
    engine = 15.0 if car.running else 0.0
    for index in reversed(range(last + 1)):
        (s0, y0), (s1, y1) = profile[index], profile[index + 1]
        # Upward facing panels mirror the sky, upright ones the street.
        slope = float(np.arctan2(s1 - s0, y1 - y0))
        panel = last - index if car.oncoming else index
        colour = tone(car.paint, 0.55 + 0.5 * max(0.0, np.sin(slope)))
        heat = 14.5
        if panel in CAR_GLASS:
            colour, heat = (0.17, 0.20, 0.24), 12.0
        elif panel >= 7:
            heat += engine * (0.75 if panel == 7 else 0.55)
        corners = [
            camera.project(car.x + side * _half_width(up), up, car.z + along)
            for side, along, up in (
                (-1, s0, y0),
                (1, s0, y0),
                (1, s1, y1),
                (-1, s1, y1),
            )
        ]
        area = sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(corners, corners[1:] + corners[:1], strict=True))
        if area > 0:
            continue
        canvas.fill(corners, Surface(colour, heat))
        if panel in CAR_GLASS:
            inner = [corners[0], corners[3], mix_points(corners[3], corners[2], 0.55)]
            canvas.fill(inner, Surface((0.33, 0.38, 0.43), 11.0))
            canvas.stroke(
                corners,
                0.05 * camera.focal / car.z,
                Surface(tone(car.paint, 0.5), 14.0),
                True,
            )


def _draw_flank(canvas: Canvas, camera: Camera, car: Car) -> None:
    side = -np.sign(car.x)
    profile = _profile(car)

    def at(along: float, up: float) -> Point:
        return camera.project(car.x + side * _half_width(up), up, car.z + along)

    def turned(along: float) -> float:
        return CAR_LENGTH - along if car.oncoming else along

    outline = [at(*p) for p in profile]
    canvas.fill(outline, Surface(tone(car.paint, 0.78), 14.5))
    canvas.ramp(outline, (at(2.0, 1.0), at(2.0, 0.3)), (1.0, 0.5), (0.0, 1.0))
    glass = Surface((0.15, 0.18, 0.22), 12.0)
    for window in (
        ((0.62, 1.06), (1.08, 1.39), (1.80, 1.42), (1.80, 1.06)),
        ((1.90, 1.06), (1.90, 1.42), (2.30, 1.40), (2.86, 1.06)),
    ):
        canvas.fill([at(turned(s), up) for s, up in window], glass)
    seam = Surface(tone(car.paint, 0.4), 14.0)
    width = 0.02 * camera.focal / car.z
    for door in (1.05, 1.85, 2.85):
        canvas.stroke([at(turned(door), 0.42), at(turned(door), 1.02)], width, seam)
    canvas.stroke([at(0.1, 0.78), at(4.0, 0.76)], width, seam)
    for hub in (turned(0.85), turned(3.35)):
        rings = (
            (0.40, Surface((0.04, 0.04, 0.04), 16.0)),
            (0.33, Surface(RUBBER.colour, 25.0 if car.running else 14.5)),
            (0.20, Surface((0.55, 0.56, 0.58), 30.0 if car.running else 14.0)),
            (0.07, Surface((0.25, 0.25, 0.26), 33.0 if car.running else 14.0)),
        )
        for radius, paint in rings:
            wheel = oval_points((hub, 0.34), (radius, radius))
            plane = car.x + side * CAR_HALF_WIDTH
            canvas.fill(
                [camera.project(plane, max(up, 0.0), car.z + s) for s, up in wheel],
                paint,
            )


def _draw_end(canvas: Canvas, camera: Camera, car: Car) -> None:
    gain = camera.focal / car.z

    def at(across: float, up: float) -> Point:
        return camera.project(car.x + across, up, car.z)

    def patch(low: Point, high: Point, surface: Surface) -> None:
        canvas.box(at(*low), at(*high), surface)

    tyre = Surface(RUBBER.colour, 27.0 if car.running else 14.5)
    for side in (-1, 1):
        patch((side * 0.84, 0.0), (side * 0.62, 0.36), tyre)
    engine = 12.0 if car.running and car.oncoming else 0.0
    corners = [
        (-0.88, 0.34),
        (-0.9, 0.62),
        (-0.86, 0.97),
        (0.86, 0.97),
        (0.9, 0.62),
        (0.88, 0.34),
    ]
    outline = [at(*p) for p in corners]
    canvas.fill(outline, Surface(tone(car.paint, 0.92), 15.0 + 0.6 * engine))
    canvas.ramp(outline, (at(0, 0.97), at(0, 0.34)), (1.1, 0.62), (0.0, 0.5))
    bumper = Surface(tone(car.paint, 0.62), 15.5 + 0.4 * engine)
    patch((-0.9, 0.30), (0.9, 0.44), bumper)
    patch((-0.9, 0.43), (0.9, 0.455), Surface(tone(car.paint, 0.35), 15.0))
    glow = 1.0 if car.running else 0.0
    if car.oncoming:
        patch((-0.48, 0.63), (0.48, 0.84), Surface((0.06, 0.06, 0.07), 17.0 + engine))
        for bar in (0.68, 0.74, 0.80):
            patch((-0.46, bar), (0.46, bar + 0.015), Surface((0.5, 0.5, 0.52), 27.0))
        for side in (-1, 1):
            canvas.oval(
                at(side * 0.69, 0.74),
                (0.17 * gain, 0.10 * gain),
                Surface((1.0, 0.97, 0.88), 20.0 + engine, 5.0 * glow),
            )
    else:
        lamp = Surface((0.72, 0.07, 0.06), 17.0, 0.9 * glow)
        for side in (-1, 1):
            patch((side * 0.87, 0.66), (side * 0.60, 0.86), lamp)
            patch(
                (side * 0.72, 0.69),
                (side * 0.63, 0.76),
                Surface((0.95, 0.45, 0.25), 18.0, 0.9 * glow),
            )
        pipe = Surface((0.3, 0.3, 0.3), 48.0 if car.running else 14.0)
        canvas.oval(at(0.55, 0.27), (0.06 * gain, 0.05 * gain), pipe)
    patch((-0.42, 0.46), (0.42, 0.655), Surface((0.05, 0.05, 0.05), 15.5))
    patch((-0.40, 0.475), (0.40, 0.64), Surface((0.93, 0.93, 0.88), 15.5, 0.05 * glow))
    cap = 0.115
    begin = -text_width(car.plate, cap) / 2
    canvas.text(
        car.plate,
        (begin, 0.0),
        cap,
        0.0135 * gain,
        Surface((0.06, 0.06, 0.12), 15.5),
        lambda x, y: at(x, 0.615 - y),
    )
