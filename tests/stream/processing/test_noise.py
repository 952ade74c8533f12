"""Noise of a frame."""

from __future__ import annotations

import numpy as np
import pytest

from refusion_edge.stream.processing.noise import noise_of


@pytest.mark.parametrize("shape", [(60, 80), (240, 320), (1080, 1920)])
@pytest.mark.parametrize("sigma", [0.001, 0.02])
def test_noise_is_its_standard_deviation(shape: tuple[int, int], sigma: float) -> None:
    plane = 0.4 + sigma * np.random.default_rng(0).standard_normal(shape)
    assert noise_of(plane.astype(np.float32)) == pytest.approx(sigma, rel=0.1)


def test_texture_and_slopes_are_no_noise_beside_smooth_places() -> None:
    rng = np.random.default_rng(1)
    plane = np.tile(np.linspace(0, 1, 320), (240, 1))
    assert noise_of(plane) == pytest.approx(0, abs=1e-6)
    noisy = plane + 0.005 * rng.standard_normal(plane.shape)
    noisy[:120] += 0.2 * rng.random((120, 320))  # trees
    assert noise_of(noisy) == pytest.approx(0.005, rel=0.35)


def test_a_frame_without_a_block_has_none() -> None:
    assert noise_of(np.random.default_rng(0).random((9, 300))) == 0


def test_places_without_a_value_do_not_count() -> None:
    plane = 20_000 + 20 * np.random.default_rng(2).standard_normal((240, 320))
    holes = plane.astype(np.float32)
    holes[50], holes[51], holes[100:103, 7], holes[200] = np.inf, -np.inf, np.nan, 3e38
    assert noise_of(holes) == pytest.approx(20, rel=0.1)
    border = plane.round().astype(np.uint16)
    border[:40] = border[-40:] = 0
    assert noise_of(border) == 0
    assert noise_of(border, border == 0) == pytest.approx(20, rel=0.1)
