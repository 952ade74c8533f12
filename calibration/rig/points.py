"""Alignment from points visible in both views, such as those picked by hand."""

from __future__ import annotations

import codecs
import csv
import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from refusion_edge.calibration.rig.agreement import CLEARLY, LEAST_AGREEMENT, agreement
from refusion_edge.calibration.rig.motion import MODELS, Model, Numbers, basis_at, spread_px
from refusion_edge.calibration.rig.structure import Scene
from refusion_edge.documents import shown
from refusion_edge.errors import AlignmentError, InputError
from refusion_edge.files import read_file
from refusion_edge.rig.model import Matrix, SourceName
from refusion_edge.rig.warp import warp_points

_MOST_BYTES = 4 << 20
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_MOST_PX = 1e6
_SWAPPED = "the columns {} seem to be swapped: exchange their names in the first line"
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
        path: CSV file with the columns ``ir_x, ir_y, vis_x, vis_y`` in pixels, separated by commas, semicolons or tabs;
            UTF-8 with or without a byte order mark, or UTF-16 with one; further columns are ignored.

    Raises:
        InputError: The file is missing, lacks a column, or holds a value that is not a finite number.
    """
    data = read_file(path, kind="CSV file of points", most_bytes=_MOST_BYTES)
    try:
        text = data.decode("utf-16" if data[:2] in _UTF16 else "utf-8-sig")
        # Spreadsheets of many countries write semicolons, and decimal commas; some write tabs.
        first = text.partition("\n")[0]
        delimiter = max(",;\t", key=first.count)
        reader = csv.DictReader(io.StringIO(text), skipinitialspace=True, delimiter=delimiter)
        missing = [column for column in COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise InputError(f"{path} has no columns {', '.join(missing)}", f"name {', '.join(COLUMNS)} in the first line")
        rows = [
            [_coordinate(row[column], reader.line_num, path, decimal_comma=delimiter != ",") for column in COLUMNS]
            for row in reader
        ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no CSV file of points ({error})", "correct it") from error
    points = np.array(rows, np.float64).reshape(-1, 4)
    return PointPairs(points[:, :2], points[:, 2:])


def _coordinate(text: str | None, line: int, path: Path, *, decimal_comma: bool) -> float:
    try:
        value = float((text or "").replace(",", ".") if decimal_comma else text or "")
    except (TypeError, ValueError):
        value = math.nan
    if not abs(value) <= _MOST_PX:
        raise InputError(f"line {line} of {path} holds {shown(text)} instead of four coordinates in pixels", "correct it")
    return value


def check_points(
    points: PointPairs, sizes_wh: Mapping[SourceName, tuple[int, int]], frames_wh: Mapping[SourceName, tuple[int, int]]
) -> None:
    """Check that the points lie in the pictures.

    Args:
        points: The points.
        sizes_wh: Width and height of both views.
        frames_wh: Width and height of both frames, of which the views may be parts.

    Raises:
        InputError: Points lie outside a picture; names the likely cause.
    """
    ends: dict[SourceName, Numbers] = {"ir": points.ir, "vis": points.vis}
    outside = {name: ~_inside(ends[name], sizes_wh[name]) for name in ends}
    for name, flags in outside.items():
        if not flags.any():
            continue
        index = int(np.argmax(flags))
        x, y = ends[name][index]
        raise InputError(
            f"{int(flags.sum())} of {len(flags)} points lie outside the {name} picture, such as point {index + 1} at "
            f"({x:g}, {y:g})",
            _cause_outside(ends, sizes_wh, frames_wh),
            expected=sizes_wh[name],
            got=(float(x), float(y)),
        )


def _cause_outside(
    ends: Mapping[SourceName, Numbers],
    sizes_wh: Mapping[SourceName, tuple[int, int]],
    frames_wh: Mapping[SourceName, tuple[int, int]],
) -> str:
    """The remedy for the likely cause of points outside a picture."""

    def fit(ir: Numbers, vis: Numbers, sizes: Mapping[SourceName, tuple[int, int]]) -> bool:
        return bool(_inside(ir, sizes["ir"]).all() and _inside(vis, sizes["vis"]).all())

    ir, vis = ends["ir"], ends["vis"]
    if fit(vis, ir, sizes_wh):
        return _SWAPPED.format("ir and vis")
    for names, turned in (
        ("ir_x and ir_y", (ir[:, ::-1], vis)),
        ("vis_x and vis_y", (ir, vis[:, ::-1])),
        ("x and y", (ir[:, ::-1], vis[:, ::-1])),
    ):
        if fit(*turned, sizes_wh):
            return _SWAPPED.format(names)
    if fit(ir, vis, frames_wh):
        return "the points seem to be picked in the whole frame: pick them in the cropped view, or leave the crop out"
    return "pick the points in these pictures, at their full size, with (0, 0) at the top left pixel"


def check_columns(points: PointPairs, ir: Scene, vis: Scene, model: Model) -> None:
    """Check against the pictures that no columns are swapped, which the points alone cannot tell.

    Args:
        points: The points.
        ir: Infrared view.
        vis: Visible view.
        model: Motion model of the warp.

    Raises:
        InputError: With columns swapped, the pictures agree far better.
    """

    def agree(one: Numbers, other: Numbers) -> float:
        try:
            return agreement(vis, ir, _through(one, other, model))
        except AlignmentError:
            return 0.0

    given = agree(points.vis, points.ir)
    for names, ends in (
        ("ir and vis", (points.ir, points.vis)),
        ("x and y", (points.vis[:, ::-1], points.ir[:, ::-1])),
        ("ir and vis, and of x and y,", (points.ir[:, ::-1], points.vis[:, ::-1])),
    ):
        swapped = agree(*ends)
        if swapped > max(LEAST_AGREEMENT, CLEARLY * given):
            raise InputError(
                f"the pictures agree far better with columns of the points swapped ({swapped:.2f} instead of {given:.2f})",
                _SWAPPED.format(names),
            )


def _inside(points: Numbers, size_wh: tuple[int, int]) -> NDArray[np.bool_]:
    # Pixels are points, so the picture ends half a pixel outside the outermost ones.
    inside = (points >= -0.5) & (points <= np.array(size_wh) - 0.5)
    return inside[:, 0] & inside[:, 1]


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
    if _mirrors(homography, size_wh):
        raise AlignmentError(
            "the points are mirrored between the two pictures",
            _SWAPPED.format("x and y of one picture") + ", or mirror the picture of that camera back",
        )
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


def _mirrors(homography: Matrix, size_wh: tuple[int, int]) -> bool:
    """Tell whether a homography turns a right hand into a left one at the center of the base view."""
    x, y = (np.array(size_wh) - 1) / 2
    depth = float(homography[2] @ (x, y, 1.0))
    # The determinant of the derivative of a homography is its own over the cube of the depth.
    return float(np.linalg.det(homography)) / depth**3 < 0 if depth else False


def _inverse(homography: Matrix) -> Matrix:
    return np.linalg.inv(homography).astype(np.float64)
