"""Motion models: parameters are displacements in pixels, and distances are what they say."""

from __future__ import annotations

import numpy as np
import pytest

from refusion_edge.calibration.rig.motion import MODELS, apart_px, basis_at, distance_px, grid, motion_matrix, spread_px
from refusion_edge.rig.warp import warp_points

SIZE = (201, 121)


@pytest.mark.parametrize("count", MODELS.values())
def test_small_parameters_displace_as_the_basis_says(rng: np.random.Generator, count: int) -> None:
    parameters = rng.uniform(-1, 1, count) * 1e-4
    points = grid(SIZE)
    moved = warp_points(motion_matrix(parameters, SIZE), points) - points
    basis = basis_at(points[:, 0], points[:, 1], SIZE, count)
    np.testing.assert_allclose(moved, np.einsum("ckn,k->nc", basis, parameters), atol=1e-9)


def test_a_shift_is_its_length_apart_and_scale_counts_in_base_pixels() -> None:
    shift = np.array([[1, 0, 3.0], [0, 1, 4.0], [0, 0, 1]])
    double = np.diag([2.0, 2.0, 1.0])
    assert distance_px(np.eye(3), shift, SIZE) == pytest.approx(5)
    assert apart_px(double, double @ shift, SIZE) == pytest.approx(5)
    assert apart_px(double @ shift, double, SIZE) == pytest.approx(5)


def test_spread_of_a_shift_is_its_standard_error() -> None:
    assert spread_px(np.diag([0.09, 0.16, 0.0, 0.0]), SIZE) == pytest.approx(0.5)
