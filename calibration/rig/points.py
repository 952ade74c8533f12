"""Alignment from points visible in both views: picked by hand, or the corners of a checkerboard."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from refusion_edge.arrays import Array, Uint8Array
from refusion_edge.calibration.rig.motion import MODELS, Model, Numbers, basis_at, spread_px
from refusion_edge.documents import shown
from refusion_edge.errors import AlignmentError, InputError
from refusion_edge.files import read_file
from refusion_edge.images.color import split, to_display_range
from refusion_edge.rig.model import Matrix
from refusion_edge.rig.warp import warp_points

_MOST_BYTES = 4 << 20
_MOST_PX = 1e6
COLUMNS = ("ir_x", "ir_y", "vis_x", "vis_y")

# Points have to span at least this part of the base view: outside their hull the homography is unconstrained.
_LEAST_COVERAGE = 0.05
# A point off by this multiple of the typical distance, and by this many pixels, was picked wrongly.
_STRAY, _STRAY_PX = 5.0, 5.0


@dataclass(frozen=True, slots=True, eq=False)
class PointPairs:
    """The same points in two views.

    Attributes:
        ir: (N, 2) as (x, y), pixels of the infrared view.
        vis: (N, 2) of the visible view.
    """

    ir: Numbers
    vis: Numbers


@dataclass(frozen=True, slots=True, eq=False)
class PointAlignment:
    """A homography through points.

    Attributes:
        homography: Point of the base view to point of the moving view, (3, 3).
        error_px: RMS over the base view of the standard error, or None if there was no point to spare to measure it.
        left_out_px: RMS distance of each point from the homography through the others, or None as above.
        coverage: Part of the base view inside the hull of the points.
        count: Number of points.
    """

    homography: Matrix
    error_px: float | None
    left_out_px: float | None
    coverage: float
    count: int


def read_points(path: Path) -> PointPairs:
    """Read hand-picked points.

    Args:
        path: CSV file with the columns ``ir_x, ir_y, vis_x, vis_y`` in pixels; further columns are ignored.

    Raises:
        InputError: The file is missing, lacks a column, or holds a value that is not a finite number.
    """
    data = read_file(path, kind="CSV file of points", most_bytes=_MOST_BYTES)
    try:
        reader = csv.DictReader(io.StringIO(data.decode("utf-8-sig")), skipinitialspace=True)
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise InputError(f"{path} has no columns {', '.join(missing)}", f"name {', '.join(COLUMNS)} in the first line")
        rows = [[_coordinate(row[column], reader.line_num, path) for column in COLUMNS] for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no CSV file of points ({error})", "correct it") from error
    points = np.array(rows, np.float64).reshape(-1, 4)
    return PointPairs(points[:, :2], points[:, 2:])


def _coordinate(text: str | None, line: int, path: Path) -> float:
    try:
        value = float(text or "")
    except (TypeError, ValueError):
        value = math.nan
    if not abs(value) <= _MOST_PX:
        raise InputError(f"line {line} of {path} holds {shown(text)} instead of four coordinates in pixels", "correct it")
    return value


def align_points(base: Numbers, moving: Numbers, size_wh: tuple[int, int], model: Model = "homography") -> PointAlignment:
    """Fit a motion model to points by least squares.

    Args:
        base: (N, 2) as (x, y) in the base view.
        moving: (N, 2), the same points in the moving view.
        size_wh: Size of the base view.
        model: Motion model of the warp.

    Raises:
        AlignmentError: There are too few points, they lie on a line or in one corner, or one of them is far off.
    """
    least = MODELS[model] // 2
    if len(base) < least:
        raise AlignmentError(
            f"{len(base)} points are too few for the model {model}, which needs at least {least}",
            "pick more or use --model similarity",
            expected=least,
            got=len(base),
        )
    homography = _through(base, moving, model)
    coverage = float(cv2.contourArea(cv2.convexHull(base.astype(np.float32)))) / (size_wh[0] * size_wh[1])
    if model != "similarity" and coverage < _LEAST_COVERAGE:
        raise AlignmentError(
            f"the points cover only {100 * coverage:.1f} % of the view, and at least {100 * _LEAST_COVERAGE:.0f} % are needed",
            "pick points near all corners, not along one line",
            expected=_LEAST_COVERAGE,
            got=coverage,
        )
    if len(base) == least:
        return PointAlignment(homography, None, None, coverage, len(base))
    distances = np.array([_left_out(base, moving, index, model, homography) for index in range(len(base))])
    worst = int(np.argmax(distances))
    if distances[worst] > max(_STRAY_PX, _STRAY * float(np.median(distances))) or not np.isfinite(distances).all():
        raise AlignmentError(
            f"point {worst + 1} is {distances[worst]:.1f} px away from where the {model} of the others puts it",
            "correct or remove it (objects at different distances do not fit together)",
        )
    back = warp_points(_inverse(homography), moving) - base
    freedom = 2 * len(base) - MODELS[model]
    variance = float((back**2).sum()) / freedom
    rows = basis_at(base[:, 0], base[:, 1], size_wh, MODELS[model])
    normal = np.einsum("ckn,cln->kl", rows, rows)
    error_px = spread_px(variance * np.linalg.inv(normal), size_wh)
    return PointAlignment(homography, error_px, math.sqrt(float((distances**2).mean())), coverage, len(base))


def checkerboard_points(ir: Array, vis: Array, board: tuple[int, int]) -> PointPairs:
    """Find the inner corners of a checkerboard visible in both images.

    The board may be inverted in the infrared image. Of the two ways to number the corners, the one with the smaller
    rotation between the views is taken.

    Args:
        ir: Infrared image, (H, W) or (H, W, 3); uint8, uint16 or float32.
        vis: Visible image, the same.
        board: Inner corners across and down.

    Raises:
        AlignmentError: An image does not show the board.
        InputError: An image holds NaN or infinities.
    """
    corners_ir = _corners("ir", ir, board, sensor=True)
    corners_vis = _corners("vis", vis, board, sensor=False)
    if _turn(corners_vis, corners_ir) > math.pi / 2:
        corners_ir = corners_ir[::-1]
    return PointPairs(corners_ir, corners_vis)


def _corners(name: str, image: Array, board: tuple[int, int], *, sensor: bool) -> Numbers:
    luma = split(to_display_range(image, sensor=sensor))[0]
    low, high = float(luma.min()), float(luma.max())
    grey: Uint8Array = np.rint((luma - low) * (255 / max(high - low, 1e-6))).clip(0, 255).astype(np.uint8)
    for board_grey in (grey, 255 - grey):
        # Not CALIB_CB_NORMALIZE_IMAGE: with it OpenCV 5.0 was seen to put corners several pixels off.
        found, corners = cv2.findChessboardCornersSB(board_grey, board, flags=cv2.CALIB_CB_EXHAUSTIVE | cv2.CALIB_CB_ACCURACY)
        if found:
            return np.asarray(corners, np.float64).reshape(-1, 2)
    raise AlignmentError(
        f"no checkerboard with {board[0]}x{board[1]} inner corners found in the {name} image",
        "show all of it, warm it for the infrared camera, and count the corners between the squares",
    )


def _turn(one: Numbers, other: Numbers) -> float:
    """Angle by which the first-to-last directions of two point sets differ, [0, pi]."""
    (x, y), (u, v) = one[-1] - one[0], other[-1] - other[0]
    return abs(math.remainder(math.atan2(y, x) - math.atan2(v, u), 2 * math.pi))


def _through(base: Numbers, moving: Numbers, model: Model) -> Matrix:
    matrix: Matrix | None = None
    if model == "homography":
        found, _ = cv2.findHomography(base, moving, 0)
        matrix = None if found is None else np.asarray(found, np.float64)
    else:
        # Linear in its parameters: x' = p0 + p2 x - p3 y + ..., exactly solvable.
        center, count = base.mean(axis=0), MODELS[model]
        x, y = (base - center).T
        one, none = np.ones_like(x), np.zeros_like(x)
        columns = [(one, none), (none, one), (x, y), (-y, x), (x, -y), (y, x)][:count]
        system = np.stack([np.concatenate(pair) for pair in columns], axis=1)
        p = np.zeros(6)
        solution, _, rank, _ = np.linalg.lstsq(system, moving.T.reshape(-1), rcond=None)
        p[:count] = solution
        linear = np.array([[p[2] + p[4], p[5] - p[3]], [p[3] + p[5], p[2] - p[4]]])
        if rank == count:
            matrix = np.eye(3)
            matrix[:2, :2], matrix[:2, 2] = linear, p[:2] - linear @ center
    if matrix is None or not np.isfinite(matrix).all() or abs(np.linalg.det(matrix)) < 1e-9:
        raise AlignmentError(
            f"the points do not determine the model {model}: some lie on one line or in one spot", "pick others"
        )
    scaled: Matrix = matrix / matrix[2, 2]
    return scaled


def _left_out(base: Numbers, moving: Numbers, index: int, model: Model, whole: Matrix) -> float:
    """Distance in the base view of one point from the homography through the others."""
    others = np.arange(len(base)) != index
    try:
        homography = _through(base[others], moving[others], model)
    except AlignmentError:
        homography = whole
    back = warp_points(_inverse(homography), moving[index : index + 1])[0] - base[index]
    return float(np.hypot(*back))


def _inverse(homography: Matrix) -> Matrix:
    return np.linalg.inv(homography).astype(np.float64)
