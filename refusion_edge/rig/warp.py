"""Warping frames of a rig to registered views: lens, crop and homography in a single lookup.

The tables are computed once for a rig and a working distance; applying them takes one ``cv2.remap`` per source that needs
it. ``model`` describes the coordinate conventions.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from refusion_edge.arrays import Array, Float32Array
from refusion_edge.errors import RigError
from refusion_edge.rig.model import Lens, Matrix, Rig, RigSource, SourceName, check_source, distance_text

# Points this far outside the outermost pixel centers still count as seen, to allow for rounding at the border.
_BORDER_PX = 1e-3
# Points per side of the frame's outline, which bounds where a lens model is valid.
_OUTLINE_POINTS = 64
_NOWHERE = -1e4
# Refinement may move the view a little; what it can reach is part of the frame that is used.
_REFINED_PX = 16


@dataclass(frozen=True, slots=True, eq=False)
class SourceWarp:
    """The warp of frames of one source to the base view.

    Attributes:
        name: Name of the source, for messages.
        size_wh: Width and height of the frames.
        view_size_wh: Width and height of the base view.
        left_top: Where the view starts in the frame, if it is only cropped.
        reduction: Integer factor by which frames are averaged down first, so that fine detail does not alias.
        tables: Columns and rows to look up in the reduced frame, (H, W) float32 each, or None to crop only. ``cv2.remap`` is
            faster with them than with fixed-point ones, and since OpenCV 5 exact instead of accurate to 1/64 pixel.
        mask: (H, W) bool, base view, True where the frame has pixels.
        used_xywh: Left, top, width and height of the part of the frame that the view shows. Gain, freezes and motion are
            measured on it, so that telemetry, clocks and letterboxes that a crop leaves out do not count.
    """

    name: SourceName
    size_wh: tuple[int, int]
    view_size_wh: tuple[int, int]
    left_top: tuple[int, int]
    reduction: int
    tables: tuple[Float32Array, Float32Array] | None
    mask: NDArray[np.bool_]
    used_xywh: tuple[int, int, int, int]

    def used(self, frame: Array) -> Array:
        """The used part of a frame, sharing its memory; the whole frame if its size differs from that in the rig."""
        left, top, width, height = self.used_xywh
        fits = frame.shape[:2] == self.size_wh[::-1]
        return frame[top : top + height, left : left + width] if fits else frame

    def apply(self, frame: Array, out: Array | None = None) -> Array:
        """Warp a frame to the base view.

        Args:
            frame: (H, W) or (H, W, C) of whole or float numbers, of the size in the rig.
            out: Buffer for the result, owned by the caller, or None for new memory.

        Returns:
            The view, same channels and dtype, but float64 for 32-bit whole numbers; ``out`` if given. 0 where the frame has no
            pixels. A view that is only cropped shares memory with ``frame`` unless ``out`` is given.

        Raises:
            RigError: The size of the frame differs from that in the rig.
        """
        width, height = self.size_wh
        if frame.shape[:2] != (height, width):
            raise RigError(
                f"{self.name} frames are {frame.shape[0]}x{frame.shape[1]} (height x width), but {height}x{width} in the rig",
                f"set the camera to {height}x{width} or run refusion-edge align again",
                expected=(height, width),
                got=frame.shape[:2],
            )
        if self.tables is None:
            (left, top), (view_width, view_height) = self.left_top, self.view_size_wh
            view = frame[top : top + view_height, left : left + view_width]
            if out is None:
                return view
            np.copyto(out, view)
            return out
        if frame.dtype.kind in "iu" and frame.dtype.itemsize > 2:
            frame = frame.astype(np.float64)  # OpenCV interpolates no such numbers
        if self.reduction > 1:
            frame = _reduce(frame, self.reduction)
        warped: Array = cv2.remap(frame, *self.tables, cv2.INTER_LINEAR, dst=out, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
        return warped


@dataclass(frozen=True, slots=True, eq=False)
class RigWarp:
    """The warps of both sources to registered views.

    Attributes:
        ir: Warp of infrared frames.
        vis: Warp of visible frames.
        mask: (H, W) bool, base view, True where both sources have pixels.
    """

    ir: SourceWarp
    vis: SourceWarp
    mask: NDArray[np.bool_]

    def apply(self, ir: Array, vis: Array) -> tuple[Array, Array]:
        """Warp two frames to views of the same size, see ``SourceWarp.apply``.

        Raises:
            RigError: The size of a frame differs from that in the rig.
        """
        return self.ir.apply(ir), self.vis.apply(vis)


def make_warp(rig: Rig, distance_m: float | None = None, *, correction: Matrix | None = None) -> RigWarp:
    """Compute the warp of a rig at a working distance.

    Args:
        rig: The rig.
        distance_m: Working distance in meters; None for the only or farthest one of the rig.
        correction: Homography, (3, 3), applied to points of the base view before that of the rig, as found by online
            refinement; None for the rig as it is.

    Raises:
        RigError: The rig was not aligned for this distance, or its homography puts the horizon of the moving source, or
            none of its pixels, into the base view.
    """
    homography = rig.homography(distance_m)
    if correction is not None:
        homography = homography @ correction
    width, height = rig.view_size_wh
    _check_horizon(homography, width, height)
    identity = np.eye(3)
    warps = {
        name: _source_warp(name, rig.source(name), identity if name == rig.base else homography, rig.view_size_wh)
        for name in (rig.base, rig.moving)
    }
    mask = warps["ir"].mask & warps["vis"].mask
    if not mask.any():
        distance = distance_text(distance_m)
        raise RigError(f"the two views do not overlap at the working distance ({distance})", "align again")
    return RigWarp(warps["ir"], warps["vis"], mask)


def make_view(name: SourceName, source: RigSource) -> SourceWarp:
    """Compute the warp of frames of one source to its own view: remove the lens distortion, then crop.

    Raises:
        RigError: The size, crop or lens of the source is invalid.
    """
    check_source(name, source)
    return _source_warp(name, source, np.eye(3), source.view_xywh[2:])


def warp_points(homography: Matrix, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Map points through a homography.

    Args:
        homography: (3, 3).
        points: (N, 2) as (x, y).

    Returns:
        (N, 2); infinite or NaN on the horizon.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        mapped = np.column_stack((points, np.ones(len(points)))) @ homography.T
        result: NDArray[np.float64] = mapped[:, :2] / mapped[:, 2:]
    return result


def _source_warp(name: SourceName, source: RigSource, homography: Matrix, view_size_wh: tuple[int, int]) -> SourceWarp:
    left, top, own_width, own_height = source.view_xywh
    width, height = view_size_wh
    if source.lens is None and own_width >= width and own_height >= height and np.array_equal(homography, np.eye(3)):
        everywhere = np.ones((height, width), np.bool_)
        return SourceWarp(name, source.size_wh, view_size_wh, (left, top), 1, None, everywhere, (left, top, width, height))
    x, y = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))
    straight = warp_points(homography, np.column_stack((x.ravel(), y.ravel()))) + np.array([left, top])
    # Pixels outside the crop stay hidden.
    seen = _inside(straight, left, top, own_width, own_height)
    points = straight
    if source.lens is not None:
        points, holds = _distort(source.lens, straight, source.size_wh)
        seen &= holds & _inside(points, 0, 0, *source.size_wh)
    reduction = _reduction(points.reshape(height, width, 2), seen.reshape(height, width))
    # The center of a reduced pixel is the mean of the centers of its block. At the border, and where no whole block is left,
    # the outermost pixel is repeated; unseen points are moved far outside, where the lookup gives 0.
    reduced = ((points + 0.5) / reduction - 0.5).clip(0, np.array(source.size_wh) // reduction - 1)
    reduced[~seen] = _NOWHERE
    columns, rows = (reduced[:, axis].reshape(height, width).astype(np.float32) for axis in (0, 1))
    used = _used_part(source, points[seen])
    mask = seen.reshape(height, width)
    return SourceWarp(name, source.size_wh, view_size_wh, (left, top), reduction, (columns, rows), mask, used)


def _used_part(source: RigSource, points: NDArray[np.float64]) -> tuple[int, int, int, int]:
    """Bounds of the looked-up points, with room for refinement, inside those of what the crop leaves of the frame."""
    left, top, width, height = source.view_xywh
    outline = _outline(width, height) + np.array([left, top])
    if source.lens is not None:
        outline, holds = _distort(source.lens, outline, source.size_wh)
        outline = outline[holds] if holds.any() else _outline(*source.size_wh)
    frame = np.array(source.size_wh)
    low, high = (np.rint(end).clip(0, frame - 1) for end in (outline.min(axis=0), outline.max(axis=0)))
    if len(points):
        low = np.maximum(low, np.floor(points.min(axis=0)) - _REFINED_PX)
        high = np.minimum(high, np.ceil(points.max(axis=0)) + _REFINED_PX)
    width, height = (int(side) for side in np.maximum(high - low + 1, 1))
    return int(low[0]), int(low[1]), width, height


def _inside(points: NDArray[np.float64], left: int, top: int, width: int, height: int) -> NDArray[np.bool_]:
    x, y = points[:, 0] - left, points[:, 1] - top
    inside: NDArray[np.bool_] = (x >= -_BORDER_PX) & (y >= -_BORDER_PX)
    inside &= (x <= width - 1 + _BORDER_PX) & (y <= height - 1 + _BORDER_PX)
    return inside


def _distort(
    lens: Lens, straight: NDArray[np.float64], size_wh: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Map points of the straight frame to the frame, and tell where the lens model is valid.

    Polynomials fold back far outside the field that they were fitted to, so only rays within the frame's outline count.
    """
    matrix, coefficients = lens.matrix, np.array(lens.distortion)
    rays = (straight - lens.centre_px) / lens.focal_px
    outline = _outline(*size_wh)
    if lens.model == "fisheye":
        coefficients = coefficients if coefficients.size else np.zeros(4)
        points = cv2.fisheye.distortPoints(rays[:, None], matrix, coefficients)
        bound = cv2.fisheye.undistortPoints(outline[:, None], matrix, coefficients)
    else:
        cubes = np.column_stack((rays, np.ones(len(rays))))
        points, _ = cv2.projectPoints(cubes, np.zeros(3), np.zeros(3), matrix, coefficients)
        bound = cv2.undistortPoints(outline[:, None], matrix, coefficients)
    radius = np.linalg.norm(bound.reshape(-1, 2), axis=1).max()
    holds: NDArray[np.bool_] = np.linalg.norm(rays, axis=1) <= radius * (1 + 1e-6)
    return points.reshape(-1, 2).astype(np.float64), holds


def _outline(width: int, height: int) -> NDArray[np.float64]:
    x, y = np.linspace(0, width - 1, _OUTLINE_POINTS), np.linspace(0, height - 1, _OUTLINE_POINTS)
    sides = [(x, np.zeros_like(x)), (x, np.full_like(x, height - 1)), (np.zeros_like(y), y), (np.full_like(y, width - 1), y)]
    return np.concatenate([np.column_stack(side) for side in sides])


def _reduction(points: NDArray[np.float64], seen: NDArray[np.bool_]) -> int:
    """Integer number of source pixels per pixel of the view, at least 1: the median over the seen points."""
    if not seen.any():
        return 1
    across = np.linalg.norm(np.diff(points, axis=1), axis=2)[:-1]
    down = np.linalg.norm(np.diff(points, axis=0), axis=2)[:, :-1]
    both: Float32Array = np.minimum(across, down)[seen[:-1, :-1]]
    return max(1, int(np.median(both) + 0.05)) if both.size else 1


def _reduce(frame: Array, factor: int) -> Array:
    """Average blocks of ``factor`` by ``factor`` pixels; incomplete blocks at the right and bottom are dropped."""
    height, width = (side // factor for side in frame.shape[:2])
    reduced: Array = cv2.resize(frame[: height * factor, : width * factor], (width, height), interpolation=cv2.INTER_AREA)
    return reduced


def _check_horizon(homography: Matrix, width: int, height: int) -> None:
    corners = np.array([[0, 0, 1], [width - 1, 0, 1], [0, height - 1, 1], [width - 1, height - 1, 1]], np.float64)
    depth = corners @ homography[2]
    if depth.min() * depth.max() <= 0:
        raise RigError("the horizon of the homography crosses the base view", "align again or correct the homography")
