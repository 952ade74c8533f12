"""The camera rig: which cameras, how their views lie on one another, and how the infrared side is shown.

Belongs here: what a rig is, and the homography of a working distance. Its file is in ``rig_file``, moving pixels in
``warp``, measuring a rig in ``calibration``.

Coordinates and directions, the same everywhere:

* Pixels are points. The centre of the top left pixel of a picture is (0, 0), x runs to the right, y down.
* A source goes through three pictures. The *frame* is what the camera delivers, ``size_wh`` large. The *straight frame*
  has the lens distortion removed, with the same size and camera matrix. The *view* is the part ``crop_xywh`` of it.
* The fused picture has the view of one source, ``Rig.base``; the other one is the *moving* source.
* A homography takes a point of the base view to the same point of the scene in the moving view:
  ``moving ~ H @ (x, y, 1)``. That is the direction in which a warp looks pixels up.
* Distances are in metres along the optical axis from the base camera, ``inf`` for far away.
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

# Numbers of distortion coefficients that OpenCV knows.
_COEFFICIENTS: dict[LensModel, tuple[int, ...]] = {"pinhole": (0, 4, 5, 8, 12, 14), "fisheye": (0, 4)}
_MIN_SIDE, _MAX_SIDE = 8, 16384
# Two working distances that are closer than this are the same.
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
        uri: Where frames come from, or None if the command that runs it says so.
        crop_xywh: Left, top, width and height of the view in the straight frame, or None for all of it.
        lens: Lens to remove, or None.
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
    """How the two views lie on one another at one working distance.

    Attributes:
        distance_m: Distance that it holds for; ``inf`` for far away, None if nobody stated it.
        homography: Point of the base view to point of the moving view, (3, 3) by rows.
        error_px: RMS error over the base view in pixels of that view, or None if it was not measured.
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
    """What makes the alignment depend on the distance.

    Attributes:
        focal_px: Focal length of the base view in pixels.
        baseline_m: Distance between the two cameras.
    """

    focal_px: float
    baseline_m: float

    def error_px(self, distance_m: float, aligned_m: float) -> float:
        """Misregistration ``f b |1/Z - 1/Z0|`` in pixels of something at ``distance_m`` in views aligned at ``aligned_m``."""
        return self.focal_px * self.baseline_m * abs(1 / distance_m - 1 / aligned_m)


@dataclass(frozen=True, slots=True)
class Rig:
    """What ``rig.yaml`` says.

    Attributes:
        ir: The infrared camera.
        vis: The visible camera.
        alignments: At least one, ordered by distance; with more than one every distance is stated.
        base: Source whose view the fused picture has; the other one is moved onto it.
        polarity: What the infrared camera shows hot things as: ``white``, ``black``, or ``auto`` to find out.
        gain: Gain control of 16-bit infrared frames.
        time_offset_ms: What has to be added to time stamps of ``ir`` so that they agree with those of ``vis``, or None
            if it was not measured.
        time_error_ms: Standard error of that, or None if nobody stated it.
        parallax: Focal length and baseline, or None if they are not known.

    Raises:
        RigError: The parts do not fit one another.
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
            raise RigError(f"expected time_offset_ms as a finite number, got {self.time_offset_ms}; measure it again.")
        if self.time_error_ms is not None and not 0 <= self.time_error_ms < math.inf:
            raise RigError(f"expected time_error_ms of at least 0, got {self.time_error_ms}; measure it with align time.")
        if self.parallax is not None and not (
            0 < self.parallax.focal_px < math.inf and 0 <= self.parallax.baseline_m < math.inf
        ):
            raise RigError(
                f"expected parallax with a focal_px above 0 and a baseline_m of at least 0, got {self.parallax.focal_px:g} "
                f"and {self.parallax.baseline_m:g}; correct them."
            )

    @property
    def moving(self) -> SourceName:
        """Name of the source that is moved onto the view of the base."""
        return "ir" if self.base == "vis" else "vis"

    @property
    def view_size_wh(self) -> tuple[int, int]:
        """Width and height of the base view, and so of the fused picture."""
        return self.source(self.base).view_xywh[2:]

    def source(self, name: SourceName) -> RigSource:
        """One of the two cameras by name."""
        return self.ir if name == "ir" else self.vis

    def homography(self, distance_m: float | None = None) -> Matrix:
        """Homography of a working distance, base view to moving view, (3, 3) float64.

        Between two stated distances it is interpolated linearly in 1 / distance. That is exact for cameras side by side,
        where the homography of a plane parallel to the sensors is ``K' (R + t n^T / Z) K^-1`` with ``t_z = 0``.

        Args:
            distance_m: Working distance in metres, ``inf`` for far away; None for the only or the farthest one of the rig.

        Raises:
            RigError: The rig was not aligned at this distance nor at two around it.
        """
        if distance_m is None:
            return self.alignments[-1].matrix
        if not distance_m > 0:
            raise RigError(f"expected a working distance above 0 m, got {distance_m:g}; correct it.")
        for alignment in self.alignments:
            if alignment.distance_m is not None and _same_distance(alignment.distance_m, distance_m):
                return alignment.matrix
        for near, far in itertools.pairwise(self.alignments):
            if near.distance_m is not None and far.distance_m is not None and near.distance_m < distance_m < far.distance_m:
                weight = (1 / distance_m - 1 / far.distance_m) / (1 / near.distance_m - 1 / far.distance_m)
                mixed: Matrix = weight * near.matrix + (1 - weight) * far.matrix
                return mixed
        raise RigError(
            f"expected a working distance that the rig was aligned for ({self._distances_text()}), got {distance_m:g} m; "
            f"run refusion-edge align with --distance {distance_m:g}m on a scene at that distance."
        )

    def with_alignment(self, alignment: RigAlignment) -> Rig:
        """The same rig with one more working distance, or with a new alignment for one that it had.

        Alignments without a stated distance do not go together with others: the new one replaces them.
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
    """A homography as plain numbers, scaled so that the last one is 1.

    Args:
        matrix: (3, 3), its last element not 0.
    """
    scaled = np.asarray(matrix, np.float64) / float(matrix[2, 2])
    first, second, third = ((float(row[0]), float(row[1]), float(row[2])) for row in scaled)
    return first, second, third


def distance_text(distance_m: float | None) -> str:
    """A working distance in words."""
    if distance_m is None:
        return "distance not stated"
    return "far away" if math.isinf(distance_m) else f"{distance_m:g} m"


def check_source(name: SourceName, source: RigSource) -> None:
    """Make sure that the size, crop and lens of a source can be.

    Raises:
        RigError: One of them cannot.
    """
    width, height = source.size_wh
    if not (_MIN_SIDE <= width <= _MAX_SIDE and _MIN_SIDE <= height <= _MAX_SIDE):
        raise RigError(f"expected {name}.size_wh with sides from {_MIN_SIDE} to {_MAX_SIDE}, got {width}x{height}; correct it.")
    left, top, view_width, view_height = source.view_xywh
    inside = left >= 0 and top >= 0 and left + view_width <= width and top + view_height <= height
    if not inside or min(view_width, view_height) < _MIN_SIDE:
        raise RigError(
            f"expected {name}.crop_xywh inside the frame of {width}x{height} and at least {_MIN_SIDE}x{_MIN_SIDE}, got "
            f"{list(source.view_xywh)}; correct it."
        )
    if source.lens is not None:
        _check_lens(name, source.lens)


def _check_lens(name: str, lens: Lens) -> None:
    numbers = (*lens.focal_px, *lens.centre_px, *lens.distortion)
    if not all(map(math.isfinite, numbers)) or min(lens.focal_px) <= 0:
        raise RigError(f"expected {name}.lens with finite numbers and focal lengths above 0, got {numbers}; correct it.")
    allowed = _COEFFICIENTS[lens.model]
    if len(lens.distortion) not in allowed:
        raise RigError(
            f"expected {name}.lens.distortion with {', '.join(map(str, allowed))} coefficients ({lens.model}), got "
            f"{len(lens.distortion)}; correct it."
        )


def _check_alignments(alignments: Sequence[RigAlignment]) -> None:
    if not alignments:
        raise RigError("expected at least one entry in alignments, got none; make the file with refusion-edge align.")
    for index, alignment in enumerate(alignments):
        where = f"alignments[{index}]"
        if alignment.distance_m is not None and not alignment.distance_m > 0:
            raise RigError(f"expected {where}.distance_m above 0, got {alignment.distance_m}; correct it.")
        if alignment.error_px is not None and not 0 <= alignment.error_px < math.inf:
            raise RigError(f"expected {where}.error_px of at least 0, got {alignment.error_px}; measure it with align check.")
        matrix = alignment.matrix
        # Rows differ in scale by the size of the picture; compare the determinant with that of their directions.
        size = float(np.prod(np.linalg.norm(matrix, axis=0)))
        if not np.isfinite(matrix).all() or matrix[2, 2] == 0 or not abs(np.linalg.det(matrix)) > 1e-12 * size:
            raise RigError(f"expected {where}.homography to be finite and invertible, got {matrix.tolist()}; align again.")
    stated = [alignment.distance_m for alignment in alignments]
    if len(stated) > 1:
        known = [distance for distance in stated if distance is not None]
        if len(known) < len(stated) or any(near >= far for near, far in itertools.pairwise(known)):
            raise RigError(
                f"expected alignments ordered by distance_m, each stated once, got "
                f"{', '.join(map(distance_text, stated))}; order or remove them."
            )


def _same_distance(one: float, other: float) -> bool:
    return one == other or abs(one - other) <= _SAME_DISTANCE * min(one, other)
