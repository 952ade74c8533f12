"""Alignment from points and checkerboards: exact where they are, with an error that is true, and strict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.calibration.rig.motion import MODELS, Model, apart_px, motion_matrix
from refusion_edge.calibration.rig.points import PointPairs, align_points, check_columns, check_points, read_points
from refusion_edge.calibration.rig.structure import to_scene
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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_points_of_spreadsheets_are_read(encoding: str, separator: str) -> None:
    decimal = "." if separator == "," else ","
    rows = [["ir_x", "ir_y", "vis_x", "vis_y"], [f"1{decimal}5", "2", "3", f"4{decimal}25"]]
    Path("p.csv").write_text("\r\n".join(separator.join(row) for row in rows) + "\r\n", encoding=encoding)
    points = read_points(Path("p.csv"))
    np.testing.assert_array_equal(np.hstack((points.ir, points.vis)), [[1.5, 2, 3, 4.25]])


IR_SIZE, VIS_SIZE = (160, 120), (640, 480)
CORNERS = np.array([[10.0, 8], [150, 10], [12, 110], [148, 112], [80, 60]])


@pytest.mark.parametrize(
    ("ir", "vis", "cause"),
    [
        (4 * CORNERS, CORNERS, "ir and vis"),
        (CORNERS[:, ::-1], 4 * CORNERS, "ir_x and ir_y"),
        (CORNERS, 4 * CORNERS[:, ::-1], "vis_x and vis_y"),
        (CORNERS[:, ::-1], 4 * CORNERS[:, ::-1], "x and y"),
        (CORNERS, 4 * CORNERS + (60, 0), "whole frame"),
        (CORNERS, 40 * CORNERS, "full size"),
    ],
)
def test_points_outside_a_picture_are_refused_with_the_cause(ir: Array, vis: Array, cause: str) -> None:
    sizes = {"ir": IR_SIZE, "vis": VIS_SIZE}
    check_points(PointPairs(CORNERS, 4 * CORNERS), sizes, sizes)
    with pytest.raises(InputError) as caught:
        check_points(PointPairs(ir, vis), sizes, {"ir": IR_SIZE, "vis": (800, 600)} if cause == "whole frame" else sizes)
    assert cause in caught.value.remedy
    assert caught.value.expected in (IR_SIZE, VIS_SIZE)


def test_points_mirrored_by_swapped_columns_are_refused() -> None:
    square = np.array([[100.0, 100], [400, 120], [120, 420], [420, 400], [250, 260]])
    with pytest.raises(AlignmentError) as caught:
        align_points(square, square[:, ::-1], SIZE)
    assert "x and y" in caught.value.remedy


@pytest.mark.parametrize("swap", ["ir and vis", "x and y"])
def test_columns_swapped_inside_both_pictures_are_refused(noise_scene: Callable[[int], Array], swap: str) -> None:
    vis = noise_scene(7)
    move = np.array([[0.96, 0.1, 5.0], [-0.1, 0.96, 9.0], [0, 0, 1]])
    ir = 255 - cv2.warpPerspective(vis, move, (200, 160))
    at = np.array([[30.0, 30], [140, 35], [40, 120], [130, 130], [90, 80]])
    scenes = to_scene(ir, sensor=True), to_scene(vis, sensor=False)
    points = PointPairs(warp_points(move, at), at)
    check_columns(points, *scenes, "similarity")
    wrong = PointPairs(points.vis, points.ir) if swap == "ir and vis" else PointPairs(points.ir[:, ::-1], points.vis[:, ::-1])
    with pytest.raises(InputError) as caught:
        check_columns(wrong, *scenes, "similarity")
    assert swap in caught.value.remedy
