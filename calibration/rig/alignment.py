"""The alignment of two cameras from images: views of a pair, the report and overlay of an alignment, and later checks of a rig.

How a homography is found is in ``scene``, ``points`` and ``stereo``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np

from refusion_edge.arrays import Array, Float32Array, Uint8Array
from refusion_edge.calibration.rig.causes import find_cause
from refusion_edge.calibration.rig.coarse import SearchRange
from refusion_edge.calibration.rig.motion import Model, apart_px
from refusion_edge.calibration.rig.points import PointPairs, align_points
from refusion_edge.calibration.rig.scene import SceneAlignment, align_scene, require_evidence
from refusion_edge.calibration.rig.structure import shown_part, shrunk, to_scene
from refusion_edge.errors import AlignmentError
from refusion_edge.images.montage import MontageRow, montage
from refusion_edge.rig.model import (
    SOURCE_NAMES,
    ParallaxModel,
    Rig,
    RigAlignment,
    RigSource,
    SourceName,
    distance_text,
    to_rows,
)
from refusion_edge.rig.warp import make_view, make_warp

SCHEMA = "refusion-edge/alignment/1"
PARALLAX_DISTANCES_M = (0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, math.inf)
# Little misalignment remains between cameras that were aligned before.
_CHECK_RANGE = SearchRange(shift=0.08, rotation_deg=2.0, field=(0.95, 1.05))
_PANEL_PX = 560
_TILES = 8
# Gradients at this percentile are drawn in full.
_FULL_EDGE = 97.0
_BORDER_PX = 5


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """The views of both cameras at one moment, undistorted and cropped.

    Attributes:
        ir: Infrared view, (H, W) or (H, W, 3); uint8, uint16 or float32.
        vis: Visible view.
        base: Source whose view the fused image has.
    """

    ir: Array
    vis: Array
    base: SourceName

    def of_base(self) -> Array:
        """The base view."""
        return self.ir if self.base == "ir" else self.vis

    def of_moving(self) -> Array:
        """The other view."""
        return self.vis if self.base == "ir" else self.ir

    @property
    def base_size_wh(self) -> tuple[int, int]:
        """Width and height of the base view."""
        height, width = self.of_base().shape[:2]
        return width, height


@dataclass(frozen=True, slots=True, eq=False)
class CheckResult:
    """Misalignment of a rig, measured on a later pair.

    Attributes:
        offset_px: RMS over the base view of the distance between the rig's alignment and the scene's, in its pixels.
        stated_px: Error stated by the rig, or None.
        scene: Alignment of the views as warped by the rig; for a perfect rig its homography is the identity.
    """

    offset_px: float
    stated_px: float | None
    scene: SceneAlignment


def make_views(sources: Mapping[SourceName, RigSource], frames: Mapping[SourceName, Array], base: SourceName) -> Views:
    """Undistort and crop the frames of both cameras.

    Raises:
        RigError: The size of a frame differs from that of its source.
    """
    ir, vis = (make_view(name, sources[name]).apply(frames[name]) for name in SOURCE_NAMES)
    return Views(ir, vis, base)


def align_views(
    views: Views, distance_m: float | None, *, model: Model | None = None, within: SearchRange | None = None
) -> tuple[RigAlignment, SceneAlignment]:
    """Align two views from the scene.

    Raises:
        AlignmentError: The scene provides too little evidence; names every reason.
        InputError: No pixel of a view has a value.
    """
    sensors = {"sensor_base": views.base == "ir", "sensor_moving": views.base == "vis"}
    try:
        scene = align_scene(views.of_base(), views.of_moving(), **sensors, model=model, within=within)
        require_evidence(scene)
    except AlignmentError as error:
        cause = find_cause(views.of_base(), views.of_moving(), **sensors, within=within or SearchRange())
        if cause is None:
            raise
        raise AlignmentError(f"{error.problem}: {cause[0]}", cause[1]) from error
    method = (
        f"from the scene ({scene.model}): standard error {scene.evidence.standard_error_px:.2f} px, halves of the image "
        f"{scene.evidence.halves_px:.2f} px apart, two measures {scene.evidence.measures_px:.2f} px apart; "
        f"{100 * scene.evidence.support:.0f} % of the windows agree, {scene.evidence.windows_px:.2f} px off on average"
    )
    return RigAlignment(distance_m, to_rows(scene.homography), scene.evidence.error_px, method), scene


def align_point_pairs(
    points: PointPairs, base: SourceName, size_wh: tuple[int, int], distance_m: float | None, *, model: Model, kind: str
) -> RigAlignment:
    """Align two views from points visible in both.

    Args:
        points: The points.
        base: Source whose view the fused image has.
        size_wh: Size of its view.
        distance_m: Working distance, or None.
        model: Motion model of the warp.
        kind: What the points are, in the plural, for the report.

    Raises:
        AlignmentError: See ``align_points``.
    """
    ends = (points.vis, points.ir) if base == "vis" else (points.ir, points.vis)
    found = align_points(*ends, size_wh, model)
    if found.error_px is None or found.left_out_px is None:
        method = f"not measured: {found.count} {kind} determine a {model} with none to spare"
    else:
        method = (
            f"from {found.count} {kind} over {100 * found.coverage:.0f} % of the view ({model}): standard error over the whole "
            f"view; left-out points {found.left_out_px:.2f} px off"
        )
    return RigAlignment(distance_m, to_rows(found.homography), found.error_px, method)


def check_rig(rig: Rig, frames: Mapping[SourceName, Array], distance_m: float | None = None) -> CheckResult:
    """Measure the misalignment of a rig on a later pair.

    Args:
        rig: The rig.
        frames: Frame of each source.
        distance_m: Working distance of the pair; None for the only or the farthest one of the rig.

    Raises:
        RigError: The frames or the distance do not fit the rig.
        AlignmentError: The pair provides too little evidence.
    """
    ir, vis = make_warp(rig, distance_m).apply(frames["ir"], frames["vis"])
    base, moved = (vis, ir) if rig.base == "vis" else (ir, vis)
    scene = align_scene(
        base, moved, sensor_base=rig.base == "ir", sensor_moving=rig.base == "vis", model="similarity", within=_CHECK_RANGE
    )
    require_evidence(scene)
    stated = [a.error_px for a in rig.alignments if distance_m is None or a.distance_m == distance_m]
    return CheckResult(apart_px(np.eye(3), scene.homography, rig.view_size_wh), stated[-1] if stated else None, scene)


def draw(rig: Rig, frames: Mapping[SourceName, Array], distance_m: float | None, caption: str) -> Uint8Array:
    """Draw both views on top of each other as aligned by the rig, see ``overlay``."""
    warp = make_warp(rig, distance_m)
    aligned = dict(zip(SOURCE_NAMES, warp.apply(frames["ir"], frames["vis"]), strict=True))
    before = make_view(rig.moving, rig.source(rig.moving)).apply(frames[rig.moving])
    return overlay(
        aligned[rig.base],
        before,
        aligned[rig.moving],
        sensor_base=rig.base == "ir",
        sensor_moving=rig.base == "vis",
        caption=caption,
    )


def parallax_table(model: ParallaxModel, aligned_m: float) -> list[tuple[float, float]]:
    """Parallax error in pixels at several distances in meters, for views aligned at ``aligned_m``."""
    return [(distance_m, model.error_px(distance_m, aligned_m)) for distance_m in PARALLAX_DISTANCES_M]


def to_document(rig: Rig, alignment: RigAlignment, scene: SceneAlignment | None) -> dict[str, Any]:
    """The result as strict JSON; an infinite distance is the text ``far``."""
    table = (
        [
            {"distance_m": _json_distance(z), "error_px": error}
            for z, error in parallax_table(rig.parallax, alignment.distance_m)
        ]
        if rig.parallax is not None and alignment.distance_m is not None
        else None
    )
    return {
        "schema": SCHEMA,
        "base": rig.base,
        "distance_m": _json_distance(alignment.distance_m),
        "homography": alignment.homography,
        "error_px": alignment.error_px,
        "error_method": alignment.error_method,
        "evidence": None if scene is None else asdict(scene.evidence),
        "parallax": table,
    }


def summary(alignment: RigAlignment) -> str:
    """Error and distance of an alignment as text."""
    error = "error not measured" if alignment.error_px is None else f"error {alignment.error_px:.2f} px"
    return f"{error} ({distance_text(alignment.distance_m)})"


def field_of_view_focal_px(width_px: int, degrees: float) -> float:
    """Focal length in pixels of a view from its horizontal field of view in degrees."""
    return width_px / 2 / math.tan(math.radians(degrees) / 2)


def _json_distance(distance_m: float | None) -> float | str | None:
    return "far" if distance_m is not None and math.isinf(distance_m) else distance_m


def overlay(base: Array, moving: Array, aligned: Array, *, sensor_base: bool, sensor_moving: bool, caption: str) -> Uint8Array:
    """Draw the edges of both views on top of each other, before and after, and the views in alternating tiles.

    Args:
        base: Base view, (H, W) or (H, W, 3); uint8, uint16 or float32.
        moving: Moving view as captured, of any size.
        aligned: Moving view warped onto the base, of the size of ``base``.
        sensor_base: Whether 16-bit or float gray of ``base`` is raw sensor data.
        sensor_moving: Whether that of the moving view is.
        caption: Caption of the result, such as its error.

    Returns:
        (H', W', 3) RGB uint8: base edges green, moving edges magenta, white where they coincide.
    """
    gray = _gray(base, sensor=sensor_base)
    size = (gray.shape[1], gray.shape[0])
    before = cv2.resize(_gray(moving, sensor=sensor_moving), size).astype(np.uint8)
    after = _gray(aligned, sensor=sensor_moving)
    rows = np.arange(size[1])[:, None] * _TILES // max(size)
    columns = np.arange(size[0])[None, :] * _TILES // max(size)
    tiles = np.where((rows + columns) % 2 == 0, gray, after)
    blend = cv2.addWeighted(gray, 0.5, after, 0.5, 0)
    return montage(
        [
            MontageRow(
                (_edges(gray, before), _edges(gray, after)), ("edges before: base green, other magenta", f"after: {caption}")
            ),
            MontageRow((tiles, blend), ("tiles of both views after", "mean of both views after")),
        ],
        _PANEL_PX,
    )


def _edges(base: Uint8Array, other: Uint8Array) -> Uint8Array:
    green, magenta = _strength(base), _strength(other)
    return np.dstack((magenta, green, magenta))


def _strength(gray: Uint8Array) -> Uint8Array:
    # The border of a warped view is not an edge of the scene.
    shown = shrunk(shown_part(gray), _BORDER_PX)
    smooth: Float32Array = cv2.GaussianBlur(np.log(gray.astype(np.float32) + 8), (0, 0), 1.2).astype(np.float32)
    strength = np.hypot(cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)) * shown
    full = max(float(np.percentile(strength[shown], _FULL_EDGE)) if shown.any() else 0.0, 1e-6)
    return (strength / full * 255).clip(0, 255).astype(np.uint8)


def _gray(image: Array, *, sensor: bool) -> Uint8Array:
    return np.rint(to_scene(image, sensor=sensor).luma).clip(0, 255).astype(np.uint8)
