"""The corners of a checkerboard in both views, and how far one camera is turned against the other.

A checkerboard looks the same upside down, and a square one from every side. What is around it tells them apart, or the user.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np

from refusion_edge.arrays import Array, Uint8Array
from refusion_edge.calibration.rig.agreement import CLEARLY, LEAST_AGREEMENT, agreement
from refusion_edge.calibration.rig.motion import Numbers
from refusion_edge.calibration.rig.points import PointPairs
from refusion_edge.calibration.rig.structure import Scene, to_scene
from refusion_edge.errors import AlignmentError
from refusion_edge.rig.model import Matrix

TURNS = (0, 90, 180, 270)
"""Turns of the infrared image against the visible one, clockwise, in degrees."""

Known = Literal["told", "seen", "assumed"]


@dataclass(frozen=True, slots=True, eq=False)
class Board:
    """A checkerboard that both cameras see.

    Attributes:
        points: Its corners.
        turn_deg: How far the infrared image is turned against the visible one, clockwise: 0, 90, 180 or 270.
        known: ``told`` by the user, ``seen`` from what is around the board, or ``assumed``, as a board by itself looks the
            same from several sides.
    """

    points: PointPairs
    turn_deg: int
    known: Known


def find_board(pairs: list[tuple[Array, Array]], board: tuple[int, int], turn_deg: int | None = None) -> Board:
    """Find the inner corners of a checkerboard in pairs of views, all at one distance.

    The board may be inverted in the infrared images.

    Args:
        pairs: Infrared and visible views, (H, W) or (H, W, 3); uint8, uint16 or float32. Pairs that do not show the board in
            both views are left out.
        board: Inner corners across and down.
        turn_deg: One of ``TURNS``, or None to find it out.

    Raises:
        AlignmentError: No pair shows the board in both views; or the turn is another one, or remains open between a quarter
            to the left and to the right.
        InputError: No pixel of an image has a value.
    """
    readings: dict[int, list[PointPairs]] = {}
    agreements: dict[int, float] = {}
    last: AlignmentError | None = None
    for ir, vis in pairs:
        try:
            corners = _corners("ir", ir, board, sensor=True), _corners("vis", vis, board, sensor=False)
        except AlignmentError as error:
            last = error
            continue
        for turn, points in _readings(*corners, board):
            readings.setdefault(turn, []).append(points)
            agreements[turn] = agreements.get(turn, 0.0) + _agreement(points, ir, vis, board)
    if not readings:
        raise last or AlignmentError("there are no pairs of images", "check the folders")
    turn, known = _choose(agreements, len(pairs), turn_deg)
    chosen = readings[turn]
    points = PointPairs(np.concatenate([each.ir for each in chosen]), np.concatenate([each.vis for each in chosen]))
    return Board(points, turn, known)


def _choose(agreements: dict[int, float], count: int, told: int | None) -> tuple[int, Known]:
    if told is not None:
        if told not in agreements:
            possible = " or ".join(f"{turn}" for turn in sorted(agreements))
            raise AlignmentError(
                f"the board is turned by {possible} degrees between the two views, not by {told}",
                "correct --turn, or leave it out",
                expected=tuple(sorted(agreements)),
                got=told,
            )
        return told, "told"
    best, *others = sorted(agreements, key=lambda turn: -agreements[turn])
    second = max((agreements[turn] for turn in others), default=0.0)
    if agreements[best] / count > LEAST_AGREEMENT and agreements[best] > CLEARLY * second:
        return best, "seen"
    if 0 not in agreements:
        possible = " or ".join(f"{turn}" for turn in sorted(agreements))
        raise AlignmentError(
            f"the infrared image is turned by {possible} degrees, and the board looks the same either way",
            "say how far the infrared image is turned clockwise, with --turn",
            expected=tuple(sorted(agreements)),
        )
    return 0, "assumed"


def _readings(ir: Numbers, vis: Numbers, board: tuple[int, int]) -> list[tuple[int, PointPairs]]:
    """Every way to match the corners without a mirror image, with its turn."""
    across, down = board
    grid = ir.reshape(down, across, 2)
    if _handedness(grid) != _handedness(vis.reshape(down, across, 2)):
        grid = grid[:, ::-1]
    quarters = (0, 1, 2, 3) if across == down else (0, 2)
    found: list[tuple[int, PointPairs]] = []
    for quarter in quarters:
        points = PointPairs(np.ascontiguousarray(np.rot90(grid, quarter)).reshape(-1, 2), vis)
        linear = _homography(points)[:2, :2]
        angle = math.degrees(math.atan2(linear[1, 0] - linear[0, 1], linear[0, 0] + linear[1, 1]))
        found.append((TURNS[round(angle / 90) % 4], points))
    return found


def _handedness(grid: Numbers) -> bool:
    (x, y), (u, v) = grid[0, -1] - grid[0, 0], grid[-1, 0] - grid[0, 0]
    return bool(x * v - y * u > 0)


def _homography(points: PointPairs) -> Matrix:
    """From the visible to the infrared view, centered on the board so that its linear part shows the turn."""
    matrix = np.asarray(cv2.estimateAffine2D(points.vis, points.ir, method=cv2.LMEDS)[0], np.float64)
    return np.vstack((matrix, (0.0, 0.0, 1.0)))


def _agreement(points: PointPairs, ir: Array, vis: Array, board: tuple[int, int]) -> float:
    homography = np.asarray(cv2.findHomography(points.vis, points.ir, 0)[0], np.float64)
    scenes = (_around(to_scene(vis, sensor=False), points.vis, board), _around(to_scene(ir, sensor=True), points.ir, board))
    return agreement(*scenes, homography)


def _around(scene: Scene, corners: Numbers, board: tuple[int, int]) -> Scene:
    """The scene without the board: its outer squares reach one square beyond the inner corners, and its rim another one."""
    center = corners.mean(axis=0)
    grown = center + (corners - center) * (1 + 4 / (min(board) - 1))
    mask = scene.mask.astype(np.uint8)
    cv2.fillConvexPoly(mask, cv2.convexHull(np.rint(grown).astype(np.int32)), (0,))
    return replace(scene, mask=mask > 0)


def _corners(name: str, image: Array, board: tuple[int, int], *, sensor: bool) -> Numbers:
    scene = to_scene(image, sensor=sensor)
    luma, seen = scene.luma, scene.luma[scene.mask] if scene.mask.any() else scene.luma
    low, high = float(seen.min()), float(seen.max())
    gray: Uint8Array = np.rint((luma - low) * (255 / max(high - low, 1e-6))).clip(0, 255).astype(np.uint8)
    for board_gray in (gray, 255 - gray):
        # Not CALIB_CB_NORMALIZE_IMAGE: with it OpenCV 5.0 was seen to put corners several pixels off.
        found, corners = cv2.findChessboardCornersSB(board_gray, board, flags=cv2.CALIB_CB_EXHAUSTIVE | cv2.CALIB_CB_ACCURACY)
        if found:
            return np.asarray(corners, np.float64).reshape(-1, 2)
    raise AlignmentError(
        f"no checkerboard with {board[0]}x{board[1]} inner corners found in the {name} image",
        "show all of it, warm it for the infrared camera, and count the corners between the squares",
    )
