"""Alignment from the scene alone, accepted only with evidence: two measures and two halves agree, and no rival fits as well.

The search is in ``coarse``, the fine alignment in ``ecc``; this module decides when to trust their result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import cv2
import numpy as np

from refusion_edge.arrays import Array, Float32Array
from refusion_edge.calibration.rig.coarse import SearchRange, search
from refusion_edge.calibration.rig.ecc import Fit, fit
from refusion_edge.calibration.rig.motion import Model, apart_px
from refusion_edge.calibration.rig.structure import (
    Mask,
    Scene,
    averaged,
    edge_strength,
    gradient_structure,
    scaled,
    to_scene,
    warped,
)
from refusion_edge.calibration.rig.windows import Votes, votes
from refusion_edge.errors import AlignmentError
from refusion_edge.rig.model import Matrix

# Larger images are scaled down to this long side, which still aligns them to within the noise of a full-scale pixel.
_SIDE_PX = 640
# So many candidates of the search are fitted roughly, and so many of these finely.
_CANDIDATES, _FINALISTS = 12, 4
# The view that shows the smaller part of the scene is warped onto, unless both show nearly the same.
_NARROWER = 0.87
# Smaller images have too few edges to fit.
_LEAST_SIDE_PX = 120
# Scales of the fine alignment, and the blur in pixels that widens its reach.
_LEVELS = ((0.25, 0.8), (0.5, 0.8))
_LAST, _BY_STRENGTH = ((1.0, 1.0),), ((0.5, 0.0),)
# Long side and blur of the fields whose windows vote, and how much finer the images are that they are taken from.
_VOTING_SIDE_PX, _VOTING_BLUR_PX, _VOTING_FINER = 320, 0.8, 2
# A fit is repeated from its result until it moves the image by less than this, up to this many times.
_SETTLED_PX, _MOST_ROUNDS = 0.05, 5
# Other starts are so far beside the first one; results that correlate by less than this part of the best are no rivals of it.
_BESIDE_PX, _AS_GOOD = 6.0, 0.97
# A fit does not change areas by more than this factor.
_LARGEST_ZOOM = 2.0
# Results closer than this count as one.
_SAME_PLACE_PX = 8.0
# A homography replaces the similarity where it moves the image by more than this many of its own standard errors and by
# more than this many pixels, and where both halves of the image give the same homography up to this.
_REFUTED, _REFUTED_PX, _CONFIRMED_PX = 6.0, 1.5, 0.6
# What makes a result unbelievable; chosen so that no wrong one passes on training pairs, nor any pair of two scenes, see
# benchmarks/alignment.py and benchmarks/alignment_fields.py. Whether the place is right is told by the windows of the image;
# the other limits are about how exact it is.
_LEAST_CORRELATION, _LEAST_SUPPORT, _LEAST_OVERLAP, _MOST_RIVAL = 0.06, 0.2, 0.3, 0.8
_MOST_RIVAL_SUPPORT, _MOST_REPEATING, _MOST_STARTS_PX = 0.7, 0.5, 1.2
# Another place where so few windows agree, relative to this one, is none, however well the edges correlate there.
_LEAST_RIVAL_SUPPORT = 0.4
_MOST_ERROR_PX, _MOST_ERROR_PER_CORRELATION_PX, _MOST_ERROR_PER_SUPPORT_PX = 3.0, 25.0, 12.0
# Halves and measures that disagree by more than this in a well supported place speak of depth.
_DEEP_PX = 3.0
Cause = Literal["nothing in common", "different directions", "several places", "depth", "few edges"]
"""Likely cause of a refusal."""

_REMEDIES: dict[Cause, str] = {
    "nothing in common": (
        "probably the cameras see too few of the same edges: different scenes or moments, an empty road or sky, hardly any "
        "contrast in one image, or one camera that sees more than 2.5 times as much as the other; check the images, choose a "
        "scene with buildings, poles or people, and give --ir-fov and --vis-fov if you know them"
    ),
    "different directions": (
        "probably the cameras point in different directions: turn them the same way, or raise --max-shift"
    ),
    "several places": (
        "probably the scene repeats itself, or both cameras see few of its edges: choose one with buildings, poles or people, "
        "give --ir-fov and --vis-fov, or use align points"
    ),
    "depth": (
        "probably objects at very different distances, or distorted lenses: choose a scene that is all at about your working "
        "distance, or use align points or align calibration"
    ),
    "few edges": (
        "probably too few edges that both cameras see, or blur: choose a scene with more of them, or use align points or align "
        "checkerboard"
    ),
}
_CHECKS = 6  # blocks across the image in the two halves, which lie like the squares of a checkerboard


@dataclass(frozen=True, slots=True)
class Evidence:
    """Evidence for an alignment; distances are RMS over the base view, in its pixels.

    Attributes:
        correlation: Correlation of the gradient structures, at most 1.
        support: Part of the windows of the image that fit best where the alignment has them, see ``windows``.
        repeating: Part of these windows that fit as well a few pixels beside.
        rival: Correlation times root of the overlap of the best other place over that of this one, at half scale; 0 if there
            is none where windows agree, too.
        rival_support: Support of the best other place over that of this one, at half scale; 0 if there is none.
        overlap: Part of the base view that the moving one covers.
        standard_error_px: Standard error of the fit, from the disagreement between blocks of the image.
        halves_px: Distance between the alignments of two interleaved halves of the image.
        measures_px: Distance between the alignment by direction of edges and the one by their strength.
        windows_px: Distance between the alignment of the image as a whole and that of its windows, each by itself.
        starts_px: Largest distance at half scale between the best of five starts, which this one is from, and those that
            correlate nearly as well.
        scales_px: Distance between the alignments at half and at full scale.
        model_px: Distance to what a homography would have given, beyond what its own halves disagree by, where the scene did
            not confirm it; else 0.
    """

    correlation: float
    support: float
    repeating: float
    rival: float
    rival_support: float
    overlap: float
    standard_error_px: float
    halves_px: float
    measures_px: float
    windows_px: float
    starts_px: float
    scales_px: float
    model_px: float

    @property
    def error_px(self) -> float:
        """The error that is stated: the standard error, half of each disagreement of two, and that of other starts.

        Of the three that a few edges can spoil, the one in the middle counts: halves, measures and windows.
        """
        middle_px = sorted((self.halves_px, self.measures_px, self.windows_px))[1]
        of_two = (middle_px, self.scales_px, self.model_px)
        return math.hypot(self.standard_error_px, self.starts_px, *(distance_px / 2 for distance_px in of_two))


@dataclass(frozen=True, slots=True)
class Doubt:
    """A reason not to trust an alignment.

    Attributes:
        text: What was found.
        cause: Its likely cause.
    """

    text: str
    cause: Cause

    @property
    def remedy(self) -> str:
        """The likely cause in a sentence, and what to do about it."""
        return _REMEDIES[self.cause]

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True, eq=False)
class SceneAlignment:
    """An alignment found from the scene.

    Attributes:
        homography: Point of the base view to point of the moving view, (3, 3).
        model: Motion model.
        evidence: Evidence for it.
        field: Field of view of the moving image as a multiple of that of the base, by the widths.
        doubts: Reasons not to trust it, the most telling one first; empty if it is good enough.
    """

    homography: Matrix
    model: Model
    evidence: Evidence
    field: float
    doubts: tuple[Doubt, ...]


def align_scene(
    base: Array,
    moving: Array,
    *,
    sensor_base: bool = False,
    sensor_moving: bool = True,
    model: Model | None = None,
    within: SearchRange | None = None,
) -> SceneAlignment:
    """Find the homography between two views of one scene.

    Args:
        base: Image of the base view, (H, W) or (H, W, 3); uint8, uint16 or float32.
        moving: Image of the moving view, in the same formats.
        sensor_base: Whether 16-bit or float gray of ``base`` is raw sensor data.
        sensor_moving: Whether that of ``moving`` is.
        model: Motion model of the warp; None for a similarity, or a homography where the scene clearly requires one.
        within: Range of the search.

    Returns:
        The best alignment found, with its doubts; see ``require_evidence``.

    Raises:
        AlignmentError: The images have too little structure to try.
        InputError: No pixel of an image has a value.
    """
    whole, target = to_scene(base, sensor=sensor_base), to_scene(moving, sensor=sensor_moving)
    small, up_base = scaled(whole, _SIDE_PX / max(whole.size_wh))
    small_target, up_moving = scaled(target, _SIDE_PX / max(target.size_wh))
    for name, scene in (("base", small), ("moving", small_target)):
        if not np.ptp(scene.luma[scene.mask] if scene.mask.any() else scene.luma[:1, :1]) > 0:
            raise AlignmentError(f"the {name} image has one gray level in every pixel", "point the cameras at a scene")
    found = _places(small, small_target, within or SearchRange())
    if not found:
        raise AlignmentError(
            "the two images share too few edges to try an alignment",
            "choose a scene with buildings, poles or people, or use align points",
        )
    place = found[0]
    roles = place.roles
    start, starts_px = _best_of_starts(roles.fixed, roles.other, roles.inward(place.homography))
    choice = _choose_model(roles.fixed, roles.other, start, model)
    refined = refine(roles.fixed, roles.other, choice.homography, choice.model, levels=_LAST)
    if refined is None:
        raise AlignmentError("the two views hardly overlap", "point both cameras at the same scene")
    homography, last = refined
    zoom = float(up_base[0, 0]) * roles.zoom(homography)
    said = _votes(roles, homography)
    evidence = Evidence(
        correlation=last.correlation,
        support=said.support,
        repeating=said.repeating,
        rival=max((other.weight for other in found[1:] if _is_rival(place, other)), default=0.0) / max(place.weight, 1e-6),
        rival_support=max((other.support for other in found[1:]), default=0.0) / max(place.support, 1e-6),
        overlap=last.overlap,
        standard_error_px=last.error_px * zoom,
        halves_px=choice.halves_px * zoom,
        measures_px=_measures_px(roles.fixed, roles.other, homography) * zoom,
        windows_px=said.offset_px * zoom,
        starts_px=starts_px * zoom,
        scales_px=apart_px(choice.homography, homography, roles.fixed.size_wh) * zoom,
        model_px=choice.model_px * zoom,
    )
    full = up_moving @ roles.outward(homography) @ np.linalg.inv(up_base)
    field = _field(whole, target, full)
    doubts = _doubts(evidence, zoom)
    return SceneAlignment(full / full[2, 2], choice.model, evidence, field, doubts)


def require_evidence(alignment: SceneAlignment) -> None:
    """Check that an alignment can be trusted.

    Raises:
        AlignmentError: It cannot be; names every reason.
    """
    if alignment.doubts:
        raise AlignmentError(
            f"too little evidence for an alignment: {', and '.join(map(str, alignment.doubts))}", alignment.doubts[0].remedy
        )


class Levels:
    """An image at several scales and the fields of its structure, each made once.

    Args:
        scene: The image.
    """

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._scaled: dict[float, tuple[Scene, Matrix]] = {}
        self._fields: dict[tuple[float, float, bool], tuple[Float32Array, Mask]] = {}

    @property
    def size_wh(self) -> tuple[int, int]:
        """Width and height of the image in pixels."""
        return self.scene.size_wh

    def factor(self, factor: float) -> float:
        """The scale of a level, raised for images that would become too small to fit."""
        return min(1.0, max(factor, _LEAST_SIDE_PX / max(self.size_wh)))

    def scaled(self, factor: float) -> tuple[Scene, Matrix]:
        """The image at ``factor``, see ``structure.scaled``."""
        factor = self.factor(factor)
        if factor not in self._scaled:
            self._scaled[factor] = scaled(self.scene, factor)
        return self._scaled[factor]

    def field(self, factor: float, blur_px: float, *, strength: bool) -> tuple[Float32Array, Mask]:
        """Structure of the image at ``factor``, (H, W, C), and where it is known."""
        key = factor, blur_px, strength
        if key not in self._fields:
            self._fields[key] = _field_of(self.scaled(factor)[0], blur_px, strength)
        return self._fields[key]


def refine(
    base: Levels,
    moving: Scene,
    homography: Matrix,
    model: Model,
    *,
    levels: tuple[tuple[float, float], ...] = _LEVELS,
    strength: bool = False,
    rounds: int = _MOST_ROUNDS,
) -> tuple[Matrix, Fit] | None:
    """Refine a homography from coarse to fine.

    Args:
        base: Base image.
        moving: Moving image.
        homography: Point of the base to point of the moving image, to start from.
        model: Motion model of each step.
        levels: Scale of the base image, and blur of the fields in pixels, of each step.
        strength: Whether to use the strength of edges instead of their direction.
        rounds: How often a fit is repeated at most.

    Returns:
        The homography and the last fit, whose numbers are in pixels of the last level; None if nothing could be fitted.
    """
    last: Fit | None = None
    for factor, blur_px in levels:
        small, up = base.scaled(factor)
        field, mask = base.field(factor, blur_px, strength=strength)
        for _ in range(rounds):
            # To look a field up between its pixels smooths it, which raises the correlation by itself: a result is where it
            # should be only when the last fit had nothing left to move.
            there = _field_of(warped(moving, homography @ up, small.size_wh), blur_px, strength)
            last = fit(field, mask, *there, model=model)
            if last is None or not _is_view(last.homography):
                return None
            homography = homography @ up @ last.homography @ np.linalg.inv(up)
            if apart_px(np.eye(3), last.homography, small.size_wh) < _SETTLED_PX:
                break
    return None if last is None else (homography / homography[2, 2], last)


def _is_view(motion: Matrix) -> bool:
    """Tell whether a correction is plausible between two cameras: no collapse, mirror image or blow-up."""
    return bool(np.isfinite(motion).all()) and 1 / _LARGEST_ZOOM < np.linalg.det(motion[:2, :2]) < _LARGEST_ZOOM


def _field_of(scene: Scene, blur_px: float, strength: bool) -> tuple[Float32Array, Mask]:
    field, mask = gradient_structure(scene)
    if strength and mask.any():
        field = edge_strength(field, mask)
    if blur_px:
        field = cv2.GaussianBlur(field, (0, 0), blur_px).reshape(field.shape).astype(np.float32)
    return field, mask


@dataclass(frozen=True, slots=True, eq=False)
class _Roles:
    """Which of the two images is warped onto which: the wider one onto the narrower one, all of which it covers.

    Attributes:
        fixed: The narrower image, no finer than the other one shows the same; the base if both show nearly the same.
        other: The image to warp.
        up: Matrix from points of ``fixed`` to those of the image that it is a copy of.
        swapped: Whether ``fixed`` is the moving image.
    """

    fixed: Levels
    other: Scene
    up: Matrix
    swapped: bool

    def inward(self, homography: Matrix) -> Matrix:
        """From base to moving becomes from ``fixed`` to ``other``."""
        inward: Matrix = (np.linalg.inv(homography) if self.swapped else homography) @ self.up
        return inward

    def outward(self, homography: Matrix) -> Matrix:
        """From ``fixed`` to ``other`` becomes from base to moving."""
        outward: Matrix = homography @ np.linalg.inv(self.up)
        return np.linalg.inv(outward).astype(np.float64) if self.swapped else outward

    def zoom(self, homography: Matrix) -> float:
        """Pixels of the base for one of ``fixed``, given the homography from ``fixed`` to ``other``."""
        return _step(homography if self.swapped else self.up)


def _step(homography: Matrix) -> float:
    """Pixels of the moving image for one of the base."""
    return math.sqrt(abs(float(np.linalg.det((homography / homography[2, 2])[:2, :2]))))


def _field(base: Scene, moving: Scene, homography: Matrix) -> float:
    return moving.size_wh[0] / (_step(homography) * base.size_wh[0])


def _roles(base: Levels, moving: Scene, homography: Matrix) -> _Roles:
    step, field = _step(homography), _field(base.scene, moving, homography)
    if _NARROWER <= field <= 1 / _NARROWER:
        return _Roles(base, moving, np.eye(3), swapped=False)
    swapped = field < 1
    narrow, wide, step = (moving, base.scene, 1 / step) if swapped else (base.scene, moving, step)
    fixed, up = scaled(narrow, max(step, _LEAST_SIDE_PX / max(narrow.size_wh)))
    return _Roles(Levels(fixed), wide, up, swapped)


@dataclass(frozen=True, slots=True, eq=False)
class _Place:
    """An alignment and its score: correlation times the root of the overlap, as small overlaps agree by chance."""

    homography: Matrix
    weight: float
    roles: _Roles
    support: float = 0.0


def _places(base: Scene, moving: Scene, within: SearchRange) -> list[_Place]:
    """Distinct alignments that the candidates of the search converge to, best first."""
    levels = Levels(base)
    starts = [each.homography for each in search(base, moving, within, _CANDIDATES)]
    rough = _fitted(levels, moving, starts, _LEVELS[0], 1)
    fine = _fitted(levels, moving, [place.homography for place in rough[:_FINALISTS]], _LEVELS[1], _MOST_ROUNDS)
    judged = [replace(place, support=_votes(place.roles, place.roles.inward(place.homography)).support) for place in fine]
    return sorted(judged, key=lambda place: -place.support)


def _is_rival(place: _Place, other: _Place) -> bool:
    return other.support > _LEAST_RIVAL_SUPPORT * place.support


def _votes(roles: _Roles, homography: Matrix) -> Votes:
    """What the windows of the narrower image say about a homography to the other one; distances are in its pixels."""
    fixed = roles.fixed
    factor = _VOTING_SIDE_PX / max(fixed.size_wh)
    size_wh = fixed.scaled(factor)[0].size_wh
    # Structure is averaged as in the search: edges that the two views show apart by less than a pixel still agree.
    finer = _VOTING_FINER * fixed.factor(factor)
    fine, up = fixed.scaled(finer)
    there = _field_of(warped(roles.other, homography @ up, fine.size_wh), 0.0, strength=False)
    own, other = (averaged(*each, size_wh, _VOTING_BLUR_PX) for each in (fixed.field(finer, 0.0, strength=False), there))
    said = votes(*own, *other)
    return replace(said, offset_px=said.offset_px / fixed.factor(factor))


def _fitted(base: Levels, moving: Scene, starts: list[Matrix], level: tuple[float, float], rounds: int) -> list[_Place]:
    places: list[_Place] = []
    for start in starts:
        roles = _roles(base, moving, start)
        refined = refine(roles.fixed, roles.other, roles.inward(start), "similarity", levels=(level,), rounds=rounds)
        if refined is None:
            continue
        homography = roles.outward(refined[0])
        near = (apart_px(roles.inward(place.homography), refined[0], roles.fixed.size_wh) for place in places)
        if any(distance_px < _SAME_PLACE_PX for distance_px in near):
            continue
        # Of images of different size, as many pixels as the smaller one has are compared.
        area = refined[1].overlap * roles.fixed.scene.mask.size / max(base.scene.mask.size, moving.mask.size)
        places.append(_Place(homography, refined[1].correlation * math.sqrt(area), roles))
    return sorted(places, key=lambda place: -place.weight)


@dataclass(frozen=True, slots=True, eq=False)
class _Choice:
    """A motion model, its homography at half scale, and the distances of the halves and of a richer model from it."""

    model: Model
    homography: Matrix
    halves_px: float
    model_px: float = 0.0


def _choose_model(base: Levels, moving: Scene, homography: Matrix, model: Model | None) -> _Choice:
    """The requested model, or the simplest one that the scene does not refute."""
    if model == "similarity":
        return _Choice(model, homography, _halves_px(base, moving, homography, model))
    richer: Model = "homography" if model is None else model
    better = refine(base, moving, homography, richer, levels=_LEVELS[1:])
    if better is None and model is None:
        return _Choice("similarity", homography, _halves_px(base, moving, homography, "similarity"))
    if better is None:
        raise AlignmentError(f"too few edges to determine the model {richer}", "use --model similarity or align points")
    halves_px = _halves_px(base, moving, better[0], richer)
    if model is not None:
        return _Choice(richer, better[0], halves_px)
    moved_px, error_px = apart_px(homography, better[0], base.size_wh), better[1].error_px / base.factor(_LEVELS[1][0])
    if moved_px > max(_REFUTED * error_px, _REFUTED_PX) and halves_px < _CONFIRMED_PX:
        return _Choice(richer, better[0], halves_px)
    # What its halves disagree on is no evidence against the similarity.
    beyond_px = math.sqrt(max(0.0, moved_px**2 - halves_px**2))
    return _Choice("similarity", homography, _halves_px(base, moving, homography, "similarity"), beyond_px)


def _halves_px(base: Levels, moving: Scene, homography: Matrix, model: Model) -> float:
    """Distance between the alignments of the two halves of a checkerboard, in pixels of the base."""
    factor, blur_px = _LEVELS[-1]
    small, up = base.scaled(factor)
    field, mask = base.field(factor, blur_px, strength=False)
    other, other_mask = _field_of(warped(moving, homography @ up, small.size_wh), blur_px, strength=False)
    height, width = mask.shape
    block = max(width, height) / _CHECKS
    rows, columns = (np.arange(side) // block for side in (height, width))
    even = (rows[:, None] + columns[None, :]) % 2 == 0
    halves = [fit(field, mask & half, other, other_mask, model=model) for half in (even, ~even)]
    if halves[0] is None or halves[1] is None:
        return float("inf")
    return apart_px(halves[0].homography, halves[1].homography, small.size_wh) / base.factor(factor)


def _measures_px(base: Levels, moving: Scene, homography: Matrix) -> float:
    """Distance to the alignment by edge strength, in pixels of the base."""
    found = refine(base, moving, homography, "similarity", levels=_BY_STRENGTH, strength=True)
    return float("inf") if found is None else apart_px(homography, found[0], base.size_wh)


def _best_of_starts(base: Levels, moving: Scene, homography: Matrix) -> tuple[Matrix, float]:
    """The best similarity at half scale of those from starts beside one, and how far equally good ones are off in pixels."""
    ends: list[tuple[float, Matrix]] = []
    for shift in ((0.0, 0.0), (_BESIDE_PX, 0.0), (-_BESIDE_PX, 0.0), (0.0, _BESIDE_PX), (0.0, -_BESIDE_PX)):
        beside = np.eye(3)
        beside[:2, 2] = shift
        found = refine(base, moving, homography @ beside, "similarity", levels=_LEVELS[1:])
        if found is not None:
            ends.append((found[1].correlation, found[0]))
    if not ends:
        return homography, float("inf")
    most, best = max(ends, key=lambda end: end[0])
    as_good = [other for correlation, other in ends if correlation >= _AS_GOOD * most]
    return best, max(apart_px(best, other, base.size_wh) for other in as_good)


def _doubts(evidence: Evidence, zoom: float) -> tuple[Doubt, ...]:
    """Every reason not to trust the alignment; distances are in pixels of the image that was aligned."""
    per_evidence_px = _MOST_ERROR_PER_CORRELATION_PX * evidence.correlation, _MOST_ERROR_PER_SUPPORT_PX * evidence.support
    most_px = min(_MOST_ERROR_PX, *per_evidence_px) * zoom
    found = (
        (
            evidence.correlation < _LEAST_CORRELATION,
            Doubt(f"edges that correlate only by {evidence.correlation:.2f}", "nothing in common"),
        ),
        (
            evidence.overlap < _LEAST_OVERLAP,
            Doubt(f"an overlap of only {100 * evidence.overlap:.0f} % of the view that shows less", "different directions"),
        ),
        (
            evidence.support < _LEAST_SUPPORT,
            Doubt(f"windows of the image of which only {100 * evidence.support:.0f} % agree", "nothing in common"),
        ),
        (
            evidence.repeating > _MOST_REPEATING,
            Doubt("a pattern that fits as well a few pixels beside", "several places"),
        ),
        # Views that overlap little agree by chance more easily.
        (
            evidence.rival > _MOST_RIVAL * math.sqrt(evidence.overlap) or evidence.rival_support > _MOST_RIVAL_SUPPORT,
            Doubt("another alignment that fits nearly as well", "several places"),
        ),
        (
            evidence.starts_px > _MOST_STARTS_PX * zoom,
            Doubt(f"results that depend on the start by {evidence.starts_px:.1f} px", "few edges"),
        ),
    )
    doubts = tuple(doubt for holds, doubt in found if holds)
    if not doubts and evidence.error_px > most_px:
        deep = min(evidence.halves_px, evidence.measures_px) > _DEEP_PX * zoom
        doubts = (Doubt(f"an error of {evidence.error_px:.1f} px", "depth" if deep else "few edges"),)
    return doubts
