"""Gradient structure: blind to contrast, zero where nothing is known, in place at every scale."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.calibration.rig import coarse, structure
from refusion_edge.calibration.rig.structure import Scene, averaged, gradient_structure, scaled, shown_part, to_scene, warped
from refusion_edge.rig.warp import warp_points
from tests.calibration.conftest import MOVE


def test_structure_does_not_change_when_contrast_is_reversed(noise_scene: Callable[[int], Array]) -> None:
    luma = noise_scene(1).astype(np.float32)
    mask = np.ones(luma.shape, np.bool_)
    # Reversed in the logarithm, in which the structure is taken.
    reverse = (100 * 100 / (luma + 8) - 8).astype(np.float32)
    one, two = (gradient_structure(Scene(each, mask))[0] for each in (luma, reverse))
    np.testing.assert_allclose(one, two, atol=2e-3)
    assert np.linalg.norm(one, axis=2).max() <= 1
    assert np.linalg.norm(one, axis=2).mean() > 0.1


def test_structure_tells_directions_apart() -> None:
    x, y = np.meshgrid(np.arange(64.0), np.arange(64.0))
    mask = np.ones((64, 64), np.bool_)
    for angle in (0.0, 0.5, 1.2, 2.9):
        wave = 128 + 60 * np.sin(0.6 * (x * np.cos(angle) + y * np.sin(angle)))
        field = gradient_structure(Scene(wave.astype(np.float32), mask))[0][16:-16, 16:-16]
        doubled = np.arctan2(field[..., 1], field[..., 0])[np.linalg.norm(field, axis=2) > 0.3]
        assert np.abs(np.angle(np.exp(1j * (doubled - 2 * angle)))).max() < 0.2


def test_black_borders_are_not_part_of_the_scene(noise_scene: Callable[[int], Array], moved: Callable[..., Array]) -> None:
    picture = moved(noise_scene(2))
    scene = to_scene(picture, sensor=False)
    y, x = np.indices(picture.shape)
    inside = warp_points(np.linalg.inv(MOVE), np.column_stack((x.ravel(), y.ravel())).astype(float)).reshape(160, 200, 2)
    covered = ((inside > 1) & (inside < (198, 158))).all(axis=2)
    outside = ((inside < -2) | (inside > (201, 161))).any(axis=2)
    assert scene.mask[covered].mean() > 0.995
    assert not scene.mask[outside].any()
    field, mask = gradient_structure(scene)
    assert (field[~mask] == 0).all()
    assert not (mask & ~scene.mask).any()


@pytest.mark.parametrize("value", [0, 65_535, np.nan])
def test_pixels_without_a_value_are_no_part_of_the_scene_and_no_edges(
    value: float, noise_scene: Callable[[int], Array]
) -> None:
    counts = 20_000 + noise_scene(5).astype(np.float32) * 10
    dead = np.zeros(counts.shape, np.bool_)
    dead[40] = dead[90:92, 60:64] = True
    spoiled = counts.copy()
    spoiled[dead] = value
    kind = np.float32 if np.isnan(value) else np.uint16
    whole, scene = to_scene(counts.astype(kind), sensor=True), to_scene(spoiled.astype(kind), sensor=True)
    assert np.array_equal(scene.mask, ~dead)
    assert np.abs(scene.luma - whole.luma)[~dead].max() < 2.5
    # Some filters see a little beyond the mask.
    near = cv2.dilate(dead.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    assert np.abs(scene.luma - cv2.blur(whole.luma, (3, 3)))[dead].mean() < 40
    assert np.abs(gradient_structure(scene)[0] - gradient_structure(whole)[0])[~near].max() < 0.1


def test_a_dark_object_in_the_middle_is_part_of_the_scene(noise_scene: Callable[[int], Array]) -> None:
    picture = noise_scene(3)
    picture[60:90, 50:100] = 0
    assert shown_part(picture).all()


@pytest.mark.parametrize("factor", [0.5, 0.37, 1.0])
def test_scaling_keeps_points_in_place(factor: float) -> None:
    y, x = np.indices((150, 221)).astype(np.float32)
    for plane, axis in ((x, 0), (y, 1)):
        small, up = scaled(Scene(plane, np.ones((150, 221), np.bool_)), factor)
        points = np.array([[10.0, 12.0], [40.0, 30.0]])
        values = [small.luma[int(row), int(column)] for column, row in points]
        np.testing.assert_allclose(values, warp_points(up, points)[:, axis], atol=0.05)


def test_warping_looks_up_and_masks(noise_scene: Callable[[int], Array]) -> None:
    scene = to_scene(noise_scene(4), sensor=False)
    shift = np.array([[1, 0, 7.0], [0, 1, -5.0], [0, 0, 1]])
    view = warped(scene, shift, (200, 160))
    np.testing.assert_allclose(view.luma[5:, :-7], scene.luma[:-5, 7:], atol=1e-3)
    assert view.mask[5:, :-7].all()
    assert not view.mask[:5].any()
    assert not view.mask[:, -7:].any()


@pytest.mark.parametrize("shape", [(240, 320), (97, 131), (20, 30)])
@pytest.mark.parametrize("sigma_px", [8.0, 15.0])
def test_a_wide_blur_on_a_small_copy_is_nearly_the_same(shape: tuple[int, int], sigma_px: float) -> None:
    noise = np.random.default_rng(5).standard_normal(shape).astype(np.float32)
    values = cv2.GaussianBlur(noise, (0, 0), 2.0)
    values /= values.std()
    near = structure._blurred(values, sigma_px) - cv2.GaussianBlur(values, (0, 0), sigma_px)
    assert np.abs(near).mean() < 0.03
    assert np.abs(near).max() < 0.25  # at the corners, which are reflected otherwise


@pytest.mark.parametrize("angle", [0.05, -0.1])
def test_the_field_of_a_turned_image_is_the_turned_field(noise_scene: Callable[[int], Array], angle: float) -> None:
    scene = to_scene(noise_scene(4), sensor=False)
    turn = coarse._turn(scene.size_wh, angle)
    field, _ = coarse._field(scene, 1.0)
    there = coarse._field(warped(scene, turn, scene.size_wh), 1.0)[0].values[20:-20, 20:-20]
    turned = coarse._turned(field.values, turn, angle)[20:-20, 20:-20]
    unturned = field.values[20:-20, 20:-20]

    def correlation(other: Array) -> float:
        return float(np.vdot(there, other).real / np.sqrt(np.vdot(there, there).real * np.vdot(other, other).real))

    assert correlation(turned) > 0.9
    assert correlation(unturned) < 0.8 * correlation(turned)


def test_an_averaged_field_keeps_edges_that_a_smaller_image_has_lost() -> None:
    x = np.arange(240.0)
    fine = np.tile(128 + 60 * np.sin(x * 2 * np.pi / 6), (160, 1)).astype(np.float32)
    scene = Scene(fine, np.ones(fine.shape, np.bool_))
    small = scaled(scene, 0.25)[0]
    field, mask = averaged(*gradient_structure(scene), small.size_wh)
    inside = np.s_[4:-4, 4:-4]
    assert field.shape == (40, 60, 2)
    # Stripes of six pixels are there in every pixel of a quarter of the size; in an image of that size, some have none.
    assert field[inside][..., 0].min() > 0.2
    assert np.linalg.norm(gradient_structure(small)[0][inside], axis=2).min() < 0.02
    assert mask[inside].all()


def test_an_averaged_field_is_known_where_most_of_it_is() -> None:
    structure_, mask = np.ones((40, 60, 2), np.float32), np.ones((40, 60), np.bool_)
    mask[:, :31] = False
    field, known = averaged(structure_, mask, (30, 20))
    assert not known[:, :15].any()
    assert known[:, 16:].all()
    assert (field[~known] == 0).all()
    assert averaged(structure_, mask, (60, 40))[1] is mask
