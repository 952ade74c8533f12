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
