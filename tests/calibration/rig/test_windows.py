"""Windows of an image vote for an alignment where it is right, and only there."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np
import pytest

from refusion_edge.arrays import Array, Float32Array
from refusion_edge.calibration.rig.structure import Mask, gradient_structure, to_scene
from refusion_edge.calibration.rig.windows import Votes, votes

Noise = Callable[[int], Array]


def field(image: Array) -> tuple[Float32Array, Mask]:
    return gradient_structure(to_scene(image, sensor=False))


def moved(image: Array, x: float, y: float, scale: float = 1.0) -> Array:
    matrix = np.array([[scale, 0, x], [0, scale, y]])
    return cv2.warpAffine(image, matrix, image.shape[::-1], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)


def test_all_windows_agree_where_the_images_coincide(noise_scene: Noise) -> None:
    found = votes(*field(noise_scene(1)), *field(noise_scene(1)))
    assert found.windows == found.agreeing > 20
    assert found.ambiguous == 0
    assert found.offset_px < 0.05
    reversed_contrast = (255 - noise_scene(1)).astype(np.uint8)
    found = votes(*field(noise_scene(1)), *field(reversed_contrast))
    assert found.agreeing > 0.85 * found.windows


@pytest.mark.parametrize(("x", "y"), [(1.5, 0.0), (-0.7, 1.2)])
def test_the_windows_measure_a_small_error(noise_scene: Noise, x: float, y: float) -> None:
    found = votes(*field(noise_scene(1)), *field(moved(noise_scene(1), x, y)))
    assert found.agreeing > 0.85 * found.windows
    assert found.offset_px == pytest.approx(math.hypot(x, y), abs=0.25)


def test_windows_agree_only_near_the_fixed_point_of_a_wrong_scale(noise_scene: Noise) -> None:
    image = noise_scene(3)
    grown = moved(image, -0.08 * image.shape[1] / 2, -0.08 * image.shape[0] / 2, 1.08)
    found = votes(*field(image), *field(grown))
    assert 0 < found.agreeing < 0.7 * found.windows


def test_windows_do_not_agree_on_a_large_error_or_on_another_scene(noise_scene: Noise) -> None:
    assert votes(*field(noise_scene(1)), *field(moved(noise_scene(1), 7, 0))).support < 0.1
    shares = [votes(*field(noise_scene(seed)), *field(noise_scene(seed + 50))).support for seed in range(8)]
    assert max(shares) < 0.2
    # A window hits the area around the middle by chance.
    assert np.mean(shares) < 2 * math.pi * 2.5**2 / 21**2


def test_a_pattern_that_repeats_is_ambiguous() -> None:
    y, x = np.indices((160, 200))
    pattern = (128 + 100 * np.sin(x * 2 * np.pi / 16) * np.sin(y * 2 * np.pi / 16)).astype(np.uint8)
    found = votes(*field(pattern), *field(pattern))
    assert found.repeating == 1


def test_windows_beyond_the_content_have_no_vote(noise_scene: Noise) -> None:
    base, mask = field(noise_scene(1))
    half = mask.copy()
    half[:, : half.shape[1] // 2] = False
    found = votes(base, mask, base, half)
    assert 0 < found.windows < 0.7 * votes(base, mask, base, mask).windows
    assert votes(base, mask, base, np.zeros_like(mask)) == Votes(0, 0, 0, math.inf)
    tiny = np.zeros((40, 60, 2), np.float32), np.ones((40, 60), np.bool_)
    assert votes(*tiny, *tiny).support == 0


def test_few_windows_are_little_support() -> None:
    assert Votes(8, 8, 0, 0.1).support < 0.2 < Votes(40, 20, 0, 0.1).support
    assert Votes(0, 0, 0, math.inf).repeating == 0
