"""The camera rig: its two cameras, the geometric alignment of their views, and how infrared frames are displayed.

This module defines a rig and the homography at a working distance. ``file`` reads and writes rigs, ``warp`` applies them to
frames, and ``calibration`` measures them.

Coordinate conventions, used everywhere:

* Pixels are points. The center of the top left pixel is (0, 0), x runs to the right, y down.
* A source has three stages. The *frame* is what the camera delivers, of the size ``size_wh``. The *straight frame* has the
  lens distortion removed, with the same size and camera matrix. The *view* is its part ``crop_xywh``.
* The fused image has the view of one source, ``Rig.base``; the other one is the *moving* source.
* A homography maps a point of the base view to the same point of the scene in the moving view:
  ``moving ~ H @ (x, y, 1)``. That is the direction in which a warp looks up pixels.
* Distances are in meters along the optical axis from the base camera, ``inf`` for far away.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from refusion_edge.errors import RigError

SourceName = Literal["ir", "vis"]
LensModel = Literal["pinhole", "fisheye"]
Polarity = Literal["white", "black", "auto"]
GainMethod = Literal["linear", "percentile", "plateau", "clahe"]
Matrix: TypeAlias = NDArray[np.float64]
Row: TypeAlias = tuple[float, float, float]

SOURCE_NAMES: tuple[SourceName, ...] = get_args(SourceName)
POLARITIES: tuple[Polarity, ...] = get_args(Polarity)
GAIN_METHODS: tuple[GainMethod, ...] = get_args(GainMethod)
LENS_MODELS: tuple[LensModel, ...] = get_args(LensModel)

# Numbers of distortion coefficients that OpenCV supports.
_COEFFICIENTS: dict[LensModel, tuple[int, ...]] = {"pinhole": (0, 4, 5, 8, 12, 14), "fisheye": (0, 4)}
_MIN_SIDE, _MAX_SIDE = 8, 16384
# Two working distances are the same if their relative difference is below this.
_SAME_DISTANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Lens:
    """Camera matrix and distortion of a source, in OpenCV's conventions, for whole frames.

    Attributes:
        model: ``pinhole`` (k1, k2, p1, p2[, k3[, k4, k5, k6[, s1 to s4[, tx, ty]]]]) or ``fisheye`` (k1 to k4).
        focal_px: Focal lengths (fx, fy) in pixels.
        centre_px: Principal point (cx, cy).
        distortion: Coefficients of the model; empty for none.
    """

    model: LensModel
    focal_px: tuple[float, float]
    centre_px: tuple[float, float]
    distortion: tuple[float, ...] = ()

    @property
    def matrix(self) -> Matrix:
        """Camera matrix, (3, 3)."""
        (fx, fy), (cx, cy) = self.focal_px, self.centre_px
        return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


@dataclass(frozen=True, slots=True)
class RigSource:
    """One camera of a rig.

    Attributes:
        size_wh: Width and height of its frames in pixels.
        uri: Where frames come from, or None if that is given on the command line.
        crop_xywh: Left, top, width and height of the view in the straight frame, or None for all of it.
        lens: Lens whose distortion is removed, or None.
    """

    size_wh: tuple[int, int]
    uri: str | None = None
    crop_xywh: tuple[int, int, int, int] | None = None
    lens: Lens | None = None

    @property
    def view_xywh(self) -> tuple[int, int, int, int]:
        """Left, top, width and height of the view in the straight frame."""
        return (0, 0, *self.size_wh) if self.crop_xywh is None else self.crop_xywh


@dataclass(frozen=True, slots=True)
class RigAlignment:
    """The geometric alignment of the two views at one working distance.

    Attributes:
        distance_m: Distance that it is valid for; ``inf`` for far away, None if not stated.
        homography: Maps points of the base view to points of the moving view, (3, 3) by rows.
        error_px: RMS error over the base view in pixels of that view, or None if not measured.
        error_method: How the error was measured, in words.
    """

    distance_m: float | None
    homography: tuple[Row, Row, Row]
    error_px: float | None = None
    error_method: str = "not measured"

    @property
    def matrix(self) -> Matrix:
        """The homography, (3, 3)."""
        return np.array(self.homography)


@dataclass(frozen=True, slots=True)
class ParallaxModel:
    """The dependence of the alignment on the distance.

    Attributes:
        focal_px: Focal length of the base view in pixels.
        baseline_m: Distance between the two cameras.
    """

    focal_px: float
    baseline_m: float

    def error_px(self, distance_m: float, aligned_m: float) -> float:
        """Misregistration ``f b |1/Z - 1/Z0|``, in pixels, of an object at ``distance_m`` in views aligned at ``aligned_m``."""
        return self.focal_px * self.baseline_m * abs(1 / distance_m - 1 / aligned_m)


@dataclass(frozen=True, slots=True)
class Rig:
    """A rig of two cameras, as stored in ``rig.yaml``.

    Attributes:
        ir: The infrared camera.
        vis: The visible camera.
        alignments: At least one, ordered by distance; if there are several, each states its distance.
        base: Source whose view the fused image has; the other one is moved onto it.
        polarity: Whether the infrared camera shows hot objects ``white`` or ``black``, or ``auto`` to detect it.
        gain: Gain control of 16-bit infrared frames.
        time_offset_ms: Offset to add to time stamps of ``ir`` so that they agree with those of ``vis``, or None if not
            measured.
        time_error_ms: Standard error of that offset, or None if not stated.
        parallax: Focal length and baseline, or None if unknown.

    Raises:
        RigError: A part is invalid, or the parts are inconsistent.
    """

    ir: RigSource
    vis: RigSource
    alignments: tuple[RigAlignment, ...]
    base: SourceName = "vis"
    polarity: Polarity = "white"
    gain: GainMethod = "percentile"
    time_offset_ms: float | None = None
    time_error_ms: float | None = None
    parallax: ParallaxModel | None = None

    def __post_init__(self) -> None:
        for name in SOURCE_NAMES:
            check_source(name, self.source(name))
        _check_alignments(self.alignments)
        if self.time_offset_ms is not None and not math.isfinite(self.time_offset_ms):
            raise RigError(
                f"time_offset_ms is {self.time_offset_ms} instead of a finite number",
                "measure it again",
                got=self.time_offset_ms,
            )
        if self.time_error_ms is not None and not 0 <= self.time_error_ms < math.inf:
            raise RigError(
                f"time_error_ms is {self.time_error_ms}, but must be at least 0",
                "measure it with refusion-edge align time",
                expected=0,
                got=self.time_error_ms,
            )
        if self.parallax is not None and not (
            0 < self.parallax.focal_px < math.inf and 0 <= self.parallax.baseline_m < math.inf
        ):
            raise RigError(
                f"parallax has a focal_px of {self.parallax.focal_px:g} and a baseline_m of {self.parallax.baseline_m:g}",
                "set focal_px to more than 0 and baseline_m to at least 0",
            )

    @property
    def moving(self) -> SourceName:
        """Name of the source that is moved onto the view of the base."""
        return "ir" if self.base == "vis" else "vis"

    @property
    def view_size_wh(self) -> tuple[int, int]:
        """Width and height of the base view, which are those of the fused image."""
        return self.source(self.base).view_xywh[2:]

    def source(self, name: SourceName) -> RigSource:
        """Look up one of the two cameras by name."""
        return self.ir if name == "ir" else self.vis

    def homography(self, distance_m: float | None = None) -> Matrix:
        """Homography from the base view to the moving view at a working distance, (3, 3) float64.

        Between two stated distances it is interpolated linearly in 1 / distance, which is exact for cameras side by side,
        where the homography of a plane parallel to the sensors is ``K' (R + t n^T / Z) K^-1`` with ``t_z = 0``.

        Args:
            distance_m: Working distance in meters, ``inf`` for far away; None for the only or farthest one of the rig.

        Raises:
            RigError: The rig was aligned neither at this distance nor at one on each side of it.
        """
        if distance_m is None:
            return self.alignments[-1].matrix
        if not distance_m > 0:
            raise RigError(
                f"the working distance is {distance_m:g} m, but must be above 0 m", "correct it", expected=0, got=distance_m
            )
        for alignment in self.alignments:
            if alignment.distance_m is not None and _same_distance(alignment.distance_m, distance_m):
                return alignment.matrix
        for near, far in itertools.pairwise(self.alignments):
            if near.distance_m is not None and far.distance_m is not None and near.distance_m < distance_m < far.distance_m:
                weight = (1 / distance_m - 1 / far.distance_m) / (1 / near.distance_m - 1 / far.distance_m)
                mixed: Matrix = weight * near.matrix + (1 - weight) * far.matrix
                return mixed
        raise RigError(
            f"the rig is not aligned for a working distance of {distance_m:g} m (aligned: {self._distances_text()})",
            f"run refusion-edge align with --distance {distance_m:g}m on a scene at that distance",
            got=distance_m,
        )

    def with_alignment(self, alignment: RigAlignment) -> Rig:
        """Copy the rig with an alignment added, or replaced if there was one for the same distance.

        An alignment without a stated distance cannot be combined with others: it replaces them, and is replaced by them.
        """
        if alignment.distance_m is None:
            return replace(self, alignments=(alignment,))
        by_distance = {alignment.distance_m: alignment}
        for old in self.alignments:
            if old.distance_m is not None and not _same_distance(old.distance_m, alignment.distance_m):
                by_distance[old.distance_m] = old
        return replace(self, alignments=tuple(by_distance[distance] for distance in sorted(by_distance)))

    def _distances_text(self) -> str:
        return ", ".join(distance_text(alignment.distance_m) for alignment in self.alignments)


def to_rows(matrix: Matrix) -> tuple[Row, Row, Row]:
    """Convert a homography to rows of floats, scaled so that the last element is 1.

    Args:
        matrix: (3, 3) with a last element other than 0.
    """
    scaled = np.asarray(matrix, np.float64) / float(matrix[2, 2])
    first, second, third = ((float(row[0]), float(row[1]), float(row[2])) for row in scaled)
    return first, second, third


def distance_text(distance_m: float | None) -> str:
    """Describe a working distance in words."""
    if distance_m is None:
        return "distance not stated"
    return "far away" if math.isinf(distance_m) else f"{distance_m:g} m"


def check_source(name: SourceName, source: RigSource) -> None:
    """Check the size, crop and lens of a source.

    Raises:
        RigError: One of them is invalid.
    """
    width, height = source.size_wh
    if not (_MIN_SIDE <= width <= _MAX_SIDE and _MIN_SIDE <= height <= _MAX_SIDE):
        raise RigError(
            f"{name}.size_wh is [{width}, {height}]",
            f"correct it to sides from {_MIN_SIDE} to {_MAX_SIDE} pixels",
            expected=(_MIN_SIDE, _MAX_SIDE),
            got=(height, width),
        )
    left, top, view_width, view_height = source.view_xywh
    inside = left >= 0 and top >= 0 and left + view_width <= width and top + view_height <= height
    if not inside or min(view_width, view_height) < _MIN_SIDE:
        raise RigError(
            f"{name}.crop_xywh is {list(source.view_xywh)}",
            f"choose a crop of at least {_MIN_SIDE}x{_MIN_SIDE} pixels inside the frame of {height}x{width} (height x width)",
            got=source.view_xywh,
        )
    if source.lens is not None:
        _check_lens(name, source.lens)


def _check_lens(name: str, lens: Lens) -> None:
    numbers = (*lens.focal_px, *lens.centre_px, *lens.distortion)
    if not all(map(math.isfinite, numbers)) or min(lens.focal_px) <= 0:
        raise RigError(f"{name}.lens has the numbers {numbers}", "correct them to finite ones with focal lengths above 0")
    allowed = _COEFFICIENTS[lens.model]
    if len(lens.distortion) not in allowed:
        raise RigError(
            f"{name}.lens.distortion has {len(lens.distortion)} coefficients, but the model {lens.model} takes "
            f"{', '.join(map(str, allowed[:-1]))} or {allowed[-1]}",
            "correct it",
            expected=tuple(allowed),
            got=len(lens.distortion),
        )


def _check_alignments(alignments: Sequence[RigAlignment]) -> None:
    if not alignments:
        raise RigError("alignments is empty", "make the file with refusion-edge align")
    for index, alignment in enumerate(alignments):
        where = f"alignments[{index}]"
        if alignment.distance_m is not None and not alignment.distance_m > 0:
            raise RigError(
                f"{where}.distance_m is {alignment.distance_m}, but must be above 0",
                "correct it",
                expected=0,
                got=alignment.distance_m,
            )
        if alignment.error_px is not None and not 0 <= alignment.error_px < math.inf:
            raise RigError(
                f"{where}.error_px is {alignment.error_px}, but must be finite and at least 0",
                "measure it with refusion-edge align check",
                expected=0,
                got=alignment.error_px,
            )
        matrix = alignment.matrix
        # Columns differ in scale by the size of the image; compare the determinant with the product of their lengths.
        size = float(np.prod(np.linalg.norm(matrix, axis=0)))
        if not np.isfinite(matrix).all() or matrix[2, 2] == 0 or not abs(np.linalg.det(matrix)) > 1e-12 * size:
            raise RigError(f"{where}.homography is not finite and invertible: {matrix.tolist()}", "align again")
    stated = [alignment.distance_m for alignment in alignments]
    if len(stated) > 1:
        known = [distance for distance in stated if distance is not None]
        if len(known) < len(stated) or any(near >= far for near, far in itertools.pairwise(known)):
            raise RigError(
                f"the alignments are not in order of distance_m ({', '.join(map(distance_text, stated))})",
                "order them and state each distance once",
            )


def _same_distance(one: float, other: float) -> bool:
    return one == other or abs(one - other) <= _SAME_DISTANCE * min(one, other)
