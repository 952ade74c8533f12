"""Checkerboards: found in both pictures, and never taken for upside down or upright without saying so."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.calibration.rig.board import find_board
from refusion_edge.calibration.rig.points import align_points
from refusion_edge.errors import AlignmentError
from refusion_edge.rig.warp import warp_points

SIZE = (640, 480)


def board_picture(homography: Array, *, inverted: bool = False) -> Array:
    """A board with 7x5 inner corners, seen through a homography of the plane in units of 40 pixels."""
    squares = np.indices((6 * 40, 8 * 40)) // 40
    board = np.where(squares.sum(axis=0) % 2 == 0, 230, 40).astype(np.uint8)
    board = cv2.copyMakeBorder(board, 60, 60, 60, 60, cv2.BORDER_CONSTANT, value=230)
    seen = cv2.warpPerspective(board, homography, SIZE, flags=cv2.INTER_AREA, borderValue=230)
    smooth = cv2.GaussianBlur(seen, (0, 0), 1.0)
    return 255 - smooth if inverted else smooth


@pytest.mark.parametrize("inverted", [False, True])
def test_a_checkerboard_is_found_in_both_pictures(inverted: bool) -> None:
    base = np.array([[1.0, 0.03, 60], [-0.02, 1.0, 50], [1e-5, 0, 1]])
    move = np.array([[0.8, 0.02, 40], [-0.02, 0.8, 30], [0, 0, 1.0]])
    board = find_board([(board_picture(move @ base, inverted=inverted), board_picture(base))], (7, 5))
    points = board.points
    assert (board.turn_deg, board.known) == (0, "assumed")
    assert points.ir.shape == points.vis.shape == (35, 2)
    found = align_points(points.vis, points.ir, SIZE)
    assert found.left_out_px is not None
    assert found.left_out_px < 0.1
    corners = warp_points(base, np.array([[100, 100.0], [340, 100], [100, 260], [340, 260]]))
    apart = warp_points(found.homography, corners) - warp_points(move, corners)
    assert np.linalg.norm(apart, axis=1).max() < 0.1


def test_an_image_without_the_board_is_refused() -> None:
    with pytest.raises(AlignmentError, match="7x5 .* ir "):
        find_board([(np.full((480, 640), 90, np.uint8), board_picture(np.eye(3)))], (7, 5))


def street(seed: int = 3) -> Array:
    """Blocks of random gray around a 7x5 board, which is in the middle."""
    rng = np.random.default_rng(seed)
    scene = cv2.resize(rng.integers(20, 236, (12, 16)).astype(np.uint8), SIZE, interpolation=cv2.INTER_NEAREST)
    board = board_picture(np.diag((0.5, 0.5, 1.0)))[:180, :220]
    scene[150:330, 210:430] = board
    return cv2.GaussianBlur(scene, (0, 0), 1.0)


def turned(picture: Array, quarters_clockwise: int) -> Array:
    return np.ascontiguousarray(np.rot90(picture, -quarters_clockwise))


# Where np.rot90 moves the points (100, 60) and (500, 400) of a picture of 640x480.
TURNED = {
    0: [(100, 60), (500, 400)],
    1: [(479 - 60, 100), (479 - 400, 500)],
    2: [(539, 419), (139, 79)],
    3: [(60, 539), (400, 139)],
}


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_what_is_around_a_board_tells_how_a_camera_is_turned(quarters: int) -> None:
    vis = street()
    board = find_board([(turned(255 - vis, quarters), vis)], (7, 5))
    assert (board.turn_deg, board.known) == (90 * quarters, "seen")
    homography = align_points(board.points.vis, board.points.ir, SIZE, "similarity").homography
    np.testing.assert_allclose(warp_points(homography, np.array([[100.0, 60], [500, 400]])), TURNED[quarters], atol=0.7)


@pytest.mark.parametrize("quarters", [0, 2])
def test_a_board_alone_is_taken_as_told(quarters: int) -> None:
    vis = board_picture(np.array([[1.0, 0, 60], [0, 1.0, 50], [0, 0, 1]]))
    board = find_board([(turned(vis, quarters), vis)], (7, 5), 90 * quarters)
    assert (board.turn_deg, board.known) == (90 * quarters, "told")
    homography = align_points(board.points.vis, board.points.ir, SIZE, "similarity").homography
    np.testing.assert_allclose(warp_points(homography, np.array([[100.0, 60], [500, 400]])), TURNED[quarters], atol=0.7)


def test_a_quarter_turn_that_nothing_shows_has_to_be_told() -> None:
    vis = board_picture(np.array([[1.0, 0, 60], [0, 1.0, 50], [0, 0, 1]]))
    with pytest.raises(AlignmentError) as caught:
        find_board([(turned(vis, 1), vis)], (7, 5))
    assert caught.value.expected == (90, 270)
    with pytest.raises(AlignmentError) as caught:
        find_board([(turned(vis, 1), vis)], (7, 5), 180)
    assert (caught.value.expected, caught.value.got) == ((90, 270), 180)
    assert find_board([(turned(vis, 1), vis)], (7, 5), 90).turn_deg == 90
