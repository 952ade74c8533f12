"""Alignment from points and checkerboards: exact where they are, with an error that is true, and strict."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.calibration.rig.motion import MODELS, Model, apart_px, motion_matrix
from refusion_edge.calibration.rig.points import align_points, checkerboard_points, read_points
from refusion_edge.errors import AlignmentError, InputError
from refusion_edge.rig.warp import warp_points
from tests.raising import raises

SIZE = (640, 480)


def spread_points(rng: np.random.Generator, count: int) -> Array:
    return rng.uniform((20, 20), (620, 460), (count, 2))


@pytest.mark.parametrize("model", MODELS)
def test_exact_points_give_the_exact_homography(rng: np.random.Generator, model: Model) -> None:
    truth = motion_matrix(np.array([9.0, -5, 12, 7, 4, -3, 6, -5])[: MODELS[model]], SIZE)
    base = spread_points(rng, 12)
    found = align_points(base, warp_points(truth, base), SIZE, model)
    # OpenCV stops refining a homography when it changes by 1e-5.
    assert apart_px(truth, found.homography, SIZE) < 1e-4
    assert found.error_px is not None
    assert found.error_px < 1e-4


@pytest.mark.parametrize("model", MODELS)
def test_the_stated_error_is_that_of_repeated_picking(rng: np.random.Generator, model: Model) -> None:
    truth = motion_matrix(np.array([9.0, -5, 12, 7, 4, -3, 6, -5])[: MODELS[model]], SIZE)
    true, stated = [], []
    for _ in range(40):
        base = spread_points(rng, 14)
        found = align_points(base, warp_points(truth, base) + rng.normal(0, 0.7, base.shape), SIZE, model)
        true.append(apart_px(truth, found.homography, SIZE))
        stated.append(found.error_px)
    assert np.sqrt(np.mean(np.square(stated))) == pytest.approx(np.sqrt(np.mean(np.square(true))), rel=0.35)


def test_points_without_one_to_spare_state_no_error() -> None:
    base = np.array([[0, 0], [600, 0], [0, 400], [600, 400.0]])
    found = align_points(base, base + 5, SIZE)
    assert (found.error_px, found.left_out_px, found.count) == (None, None, 4)
    np.testing.assert_allclose(found.homography, [[1, 0, 5], [0, 1, 5], [0, 0, 1]], atol=1e-9)


@pytest.mark.parametrize(
    ("base", "model", "named", "got"),
    [
        (np.array([[0, 0], [10, 0], [0, 10.0]]), "homography", "homography", 3),
        (np.array([[0, 0.0]]), "similarity", "similarity", 1),
        (np.array([[5, 5.0], [5, 5.0]]), "similarity", "similarity", None),
        (np.array([[0, 0], [40, 0], [0, 40], [40, 40.0], [20, 10]]), "homography", " 5 %", 40 * 40 / (SIZE[0] * SIZE[1])),
        (np.column_stack((np.arange(8) * 50.0, np.arange(8) * 30.0)), "affine", "affine", None),
    ],
)
def test_points_that_determine_nothing_are_refused(base: Array, model: Model, named: str, got: object) -> None:
    with raises(AlignmentError, named, got=got):
        align_points(base, base + 1, SIZE, model)


def test_a_point_that_was_picked_wrongly_is_named(rng: np.random.Generator) -> None:
    base = spread_points(rng, 10)
    moving = base + 3 + rng.normal(0, 0.5, base.shape)
    moving[6] += (40, -25)
    with raises(AlignmentError, "point 7"):
        align_points(base, moving, SIZE, "affine")


def test_points_are_read_with_further_columns_and_spaces() -> None:
    Path("p.csv").write_text("\ufeffname, ir_x, ir_y, vis_x, vis_y\nlamp, 1.5, 2, 3, 4\ndoor,5,6,7,8.25\n")
    points = read_points(Path("p.csv"))
    np.testing.assert_array_equal(points.ir, [[1.5, 2], [5, 6]])
    np.testing.assert_array_equal(points.vis, [[3, 4], [7, 8.25]])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b"x,y\n1,2\n", "ir_x"),
        (b"", "ir_x"),
        (b"ir_x,ir_y,vis_x,vis_y\n1,2,3\n", "line 2"),
        (b"ir_x,ir_y,vis_x,vis_y\n1,2,3,lots\n", "line 2"),
        (b"ir_x,ir_y,vis_x,vis_y\n1,2,3,inf\n", "line 2"),
        (b"\xff\xfe\x00", "p.csv"),
        (b"ir_x,ir_y,vis_x,vis_y\n1,2,3,1e300\n", "line 2"),
        (b"ir_x,ir_y,vis_x,vis_y\n1,2,3," + b"4" * 200_000, "p.csv"),
        (b"ir_x,ir_y,vis_x,vis_y\n1,2,3,4\0\n", "p.csv"),
        (None, "p.csv"),
    ],
)
def test_files_that_hold_no_points_are_refused(text: bytes | None, named: str) -> None:
    if text is not None:
        Path("p.csv").write_bytes(text)
    with raises(InputError, named):
        read_points(Path("p.csv"))


def board_picture(homography: Array, *, inverted: bool = False) -> Array:
    """A board with 7x5 inner corners, seen through a homography of the plane in units of 40 pixels."""
    squares = np.indices((6 * 40, 8 * 40)) // 40
    board = np.where(squares.sum(axis=0) % 2 == 0, 230, 40).astype(np.uint8)
    board = cv2.copyMakeBorder(board, 60, 60, 60, 60, cv2.BORDER_CONSTANT, value=230)
    seen = cv2.warpPerspective(board, homography, SIZE, flags=cv2.INTER_AREA, borderValue=230)
    smooth = cv2.GaussianBlur(seen, (0, 0), 1.0)
    return 255 - smooth if inverted else smooth


@pytest.mark.parametrize("inverted", [False, True])
def test_a_checkerboard_is_found_in_both_images(inverted: bool) -> None:
    base = np.array([[1.0, 0.03, 60], [-0.02, 1.0, 50], [1e-5, 0, 1]])
    move = np.array([[0.8, 0.02, 40], [-0.02, 0.8, 30], [0, 0, 1.0]])
    points = checkerboard_points(board_picture(move @ base, inverted=inverted), board_picture(base), (7, 5))
    assert points.ir.shape == points.vis.shape == (35, 2)
    found = align_points(points.vis, points.ir, SIZE)
    assert found.left_out_px is not None
    assert found.left_out_px < 0.1
    corners = warp_points(base, np.array([[100, 100.0], [340, 100], [100, 260], [340, 260]]))
    apart = warp_points(found.homography, corners) - warp_points(move, corners)
    assert np.linalg.norm(apart, axis=1).max() < 0.1


def test_a_image_without_the_board_is_refused() -> None:
    with raises(AlignmentError, "7x5", " ir "):
        checkerboard_points(np.full((480, 640), 90, np.uint8), board_picture(np.eye(3)), (7, 5))
