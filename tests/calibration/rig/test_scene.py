"""Alignment from the scene: right to a fraction of a pixel, or refused with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.calibration.rig import scene
from refusion_edge.calibration.rig.causes import find_cause
from refusion_edge.calibration.rig.coarse import SearchRange, search
from refusion_edge.calibration.rig.motion import apart_px
from refusion_edge.calibration.rig.scene import Evidence, Levels, align_scene, refine, require_evidence
from refusion_edge.calibration.rig.structure import to_scene
from refusion_edge.errors import AlignmentError, InputError
from refusion_edge.images.io import read_image
from refusion_edge.images.pairs import ImagePair
from refusion_edge.rig.warp import warp_points
from tests.calibration.conftest import MOVE
from tests.raising import raises

Move = Callable[..., Array]

# Name, source that is cut, part of the width, and where: few edges, found only since the search takes structure from finer
# images (the first three), or since a place where no window agrees is no rival (the last).
SMALL_PARTS = [
    ("roadscene__FLIR_04598", "ir", 0.45, (48, 93)),
    ("roadscene__FLIR_06874", "ir", 0.45, (49, 104)),
    ("roadscene__FLIR_07125", "vis", 0.45, (308, 132)),
    ("roadscene__FLIR_00603", "vis", 0.45, (92, 88)),
]

GOOD = Evidence(
    correlation=0.4,
    support=0.5,
    repeating=0.1,
    rival=0.3,
    rival_support=0.1,
    overlap=1.0,
    standard_error_px=0.2,
    halves_px=0.5,
    measures_px=0.5,
    windows_px=0.3,
    starts_px=0.1,
    scales_px=0.3,
    model_px=0.0,
)


def size_of(pair: ImagePair) -> tuple[int, int]:
    return pair.b.shape[1], pair.b.shape[0]


def test_the_search_comes_close(street: ImagePair, moved: Move) -> None:
    base, moving = to_scene(street.b, sensor=False), to_scene(moved(street.a), sensor=False)
    best, *others = search(base, moving, SearchRange(), 3)
    assert apart_px(MOVE, best.homography, size_of(street)) < 8
    assert all(other.agreement <= best.agreement for other in others)


def test_a_moved_view_is_found(street: ImagePair, moved: Move) -> None:
    found = align_scene(street.b, moved(street.a))
    require_evidence(found)
    error_px = apart_px(MOVE, found.homography, size_of(street))
    assert error_px < 0.4
    assert error_px <= found.evidence.error_px
    assert found.model == "similarity"


def test_a_result_does_not_depend_on_where_the_fit_started(street: ImagePair, moved: Move) -> None:
    base, moving = to_scene(street.b, sensor=False), to_scene(moved(street.a), sensor=False)
    ends = []
    for shift in ((0.0, 0.0), (5.0, -2.0), (-3.0, 4.0)):
        start = MOVE.copy()
        start[:2, 2] += shift
        found = refine(Levels(base), moving, start, "similarity")
        assert found is not None
        ends.append(found[0])
    assert max(apart_px(ends[0], end, size_of(street)) for end in ends) < 0.1


def test_contrast_color_depth_and_size_do_not_matter(street: ImagePair, moved: Move) -> None:
    thermal = 20000 - 20 * moved(street.a).astype(np.uint16)
    thermal[moved(np.full_like(street.a, 255)) < 255] = 0
    small = cv2.resize(thermal, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    half = np.array([[0.5, 0, -0.25], [0, 0.5, -0.25], [0, 0, 1]])
    found = align_scene(street.b, small)
    assert apart_px(half @ MOVE, found.homography, size_of(street)) < 1.0
    assert found.doubts == ()


@pytest.mark.slow
def test_a_keystone_asks_for_a_homography(street: ImagePair, moved: Move) -> None:
    keystone = MOVE @ np.array([[1, 0, 0], [0, 1, 0], [2e-4, -1e-4, 1.0]])
    found = align_scene(street.b, moved(street.b[..., 1], keystone))
    assert found.model == "homography"
    assert apart_px(keystone, found.homography, size_of(street)) < 0.3
    simple = align_scene(street.b, moved(street.b[..., 1], keystone), model="similarity")
    assert simple.model == "similarity"
    assert apart_px(keystone, simple.homography, size_of(street)) > 1


@pytest.mark.slow
def test_views_without_anything_in_common_are_refused(noise_scene: Callable[[int], Array]) -> None:
    for seed in range(3):
        found = align_scene(noise_scene(seed), noise_scene(seed + 100))
        assert found.doubts[0].cause == "nothing in common"
        with raises(AlignmentError, *found.doubts):
            require_evidence(found)


def test_a_pattern_that_repeats_is_refused() -> None:
    y, x = np.indices((240, 320))
    stripes = (128 + 100 * np.sin(x * 2 * np.pi / 20) * np.sin(y * 2 * np.pi / 20)).astype(np.uint8)
    found = align_scene(stripes, stripes)
    assert found.doubts[0].cause == "several places"
    with pytest.raises(AlignmentError):
        require_evidence(found)


def test_images_of_nothing_are_refused(street: ImagePair) -> None:
    flat = np.full((120, 160), 9, np.uint8)
    with raises(AlignmentError, "moving"):
        align_scene(street.b, flat)
    with raises(AlignmentError, "base"):
        align_scene(flat, street.a)
    with raises(InputError, "no pixel"):
        align_scene(street.b, np.full(street.a.shape[:2], np.nan, np.float32))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["row", "pixels", "border", "nan"])
def test_pixels_without_a_value_do_not_change_an_alignment(street: ImagePair, moved: Callable[..., Array], how: str) -> None:
    kelvin = 280 + moved(street.a).astype(np.float32) * np.float32(0.1)
    kelvin[moved(np.full_like(street.a, 255)) < 255] = np.nan
    whole, dead = np.where(np.isnan(kelvin), 0, kelvin * 100).astype(np.uint16), np.zeros(kelvin.shape, np.bool_)
    if how == "row":
        dead[50] = dead[:, 70] = True
    elif how == "border":
        dead[:9] = dead[:, :14] = True
    else:
        dead.flat[np.random.default_rng(1).choice(dead.size, dead.size // 500, replace=False)] = True
    spoiled = np.where(dead, np.nan, kelvin) if how == "nan" else np.where(dead, 0, whole)
    one, other = (align_scene(street.b, image) for image in (whole, spoiled.astype(np.float32 if how == "nan" else np.uint16)))
    assert not other.doubts
    assert apart_px(one.homography, other.homography, (street.b.shape[1], street.b.shape[0])) < 0.7


@pytest.mark.slow
@pytest.mark.parametrize("name", ["roadscene__FLIR_00211.jpg", "roadscene__FLIR_08526.jpg"])
def test_known_homographies_of_real_pairs_are_recovered(shared_data: Path, moved: Move, name: str) -> None:
    ir, vis = (read_image(shared_data / "ir_vis" / "test" / side / name) for side in ("ir", "vis"))
    size = vis.shape[1], vis.shape[0]
    untouched, found = align_scene(vis, ir), align_scene(vis, moved(ir))
    require_evidence(found)
    # Relative to where the given pair is by itself, which is off by about a pixel.
    assert apart_px(MOVE @ untouched.homography, found.homography, size) < 1.0
    assert apart_px(MOVE, found.homography, size) < 3.0


@pytest.mark.parametrize("part", [0.45, 0.62, 0.8])
@pytest.mark.parametrize("cut", ["ir", "vis"])
def test_a_narrower_field_of_view_is_found(street: ImagePair, part: float, cut: str) -> None:
    height, width = street.b.shape[:2]
    own_width, own_height = round(part * width), round(part * height)
    left, top = round(0.3 * (width - own_width)), round(0.6 * (height - own_height))
    window = np.s_[top : top + own_height, left : left + own_width]
    found = align_scene(*(street.b, street.a[window]) if cut == "ir" else (street.b[window], street.a))
    require_evidence(found)
    assert found.field == pytest.approx(part if cut == "ir" else 1 / part, rel=0.01)
    corners = np.array([[0, 0], [own_width - 1, 0], [0, own_height - 1], [own_width - 1, own_height - 1]], float)
    to_whole = np.linalg.inv(found.homography) if cut == "ir" else found.homography
    apart = np.linalg.norm(warp_points(to_whole, corners) - corners - (left, top), axis=1)
    assert apart.mean() < 1.5


def test_the_resolution_does_not_matter_to_the_field(street: ImagePair) -> None:
    height, width = street.b.shape[:2]
    piece = street.a[: round(0.6 * height), : round(0.6 * width)]
    found = align_scene(street.b, cv2.resize(piece, (width, height), interpolation=cv2.INTER_CUBIC))
    require_evidence(found)
    assert found.field == pytest.approx(0.6, rel=0.01)


def test_a_thermal_core_of_few_pixels_is_found(street: ImagePair) -> None:
    height, width = street.b.shape[:2]
    piece = street.a[: round(0.7 * height), : round(0.7 * width)]
    found = align_scene(street.b, cv2.resize(piece, (120, 90), interpolation=cv2.INTER_AREA))
    require_evidence(found)
    assert found.field == pytest.approx(0.7, rel=0.015)


@pytest.mark.parametrize(
    ("change", "causes"),
    [
        ({}, []),
        ({"correlation": 0.05}, ["nothing in common"]),
        ({"support": 0.197}, ["nothing in common"]),
        ({"overlap": 0.29}, ["different directions"]),
        ({"repeating": 0.6}, ["several places"]),
        ({"rival": 0.9}, ["several places"]),
        ({"rival_support": 0.75}, ["several places"]),
        ({"starts_px": 1.3}, ["few edges"]),
        ({"scales_px": 8.0}, ["few edges"]),
        ({"halves_px": 8.0, "measures_px": 8.0}, ["depth"]),
        ({"correlation": 0.05, "overlap": 0.2}, ["nothing in common", "different directions"]),
    ],
)
def test_each_kind_of_doubt_has_its_likely_cause(change: dict[str, float], causes: list[str]) -> None:
    doubts = scene._doubts(replace(GOOD, **change), 1.0)
    assert [doubt.cause for doubt in doubts] == causes
    assert all(doubt.remedy for doubt in doubts)


@pytest.mark.slow
def test_views_that_hardly_overlap_point_in_different_directions(street: ImagePair) -> None:
    width = street.b.shape[1]
    left, right = street.b[:, : round(0.58 * width)], street.a[:, round(0.44 * width) :]
    found = align_scene(left, right, within=SearchRange(shift=0.9, rotation_deg=1.0, field=(0.95, 1.05)))
    assert "different directions" in {doubt.cause for doubt in found.doubts}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "cut", "part", "at"), SMALL_PARTS)
def test_a_small_part_of_a_real_scene_is_found(
    shared_data: Path, name: str, cut: str, part: float, at: tuple[int, int]
) -> None:
    ir, vis = (read_image(shared_data / "ir_vis" / "train" / side / f"{name}.jpg") for side in ("ir", "vis"))
    height, width = ir.shape[:2]
    left, top = at
    own_width, own_height = round(part * width), round(part * height)
    window = np.s_[top : top + own_height, left : left + own_width]
    found = align_scene(*(vis, ir[window]) if cut == "ir" else (vis[window], ir))
    require_evidence(found)
    corners = np.array([[0, 0], [own_width - 1, 0], [0, own_height - 1], [own_width - 1, own_height - 1]], float)
    to_whole = np.linalg.inv(found.homography).astype(np.float64) if cut == "ir" else found.homography
    apart = np.linalg.norm(warp_points(to_whole, corners) - corners - at, axis=1)
    assert apart.mean() < 3


@pytest.mark.slow
def test_an_alignment_outside_the_range_is_not_found_but_named(street: ImagePair) -> None:
    piece = np.ascontiguousarray(street.a[40:-40, 60:-60])
    share = piece.shape[1] / street.b.shape[1]
    narrow = SearchRange(field=(0.9, 1.1))
    assert align_scene(street.b, piece, within=narrow).doubts
    cause = find_cause(street.b, piece, sensor_base=False, sensor_moving=True, within=narrow)
    assert cause is not None
    assert f"{share:.2f} times" in cause[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "named"),
    [(lambda image: image[::-1, ::-1], "180"), (np.rot90, "270"), (lambda image: image[:, ::-1], "mirrored")],
)
def test_a_turned_or_mirrored_camera_is_named(street: ImagePair, change: Callable[[Array], Array], named: str) -> None:
    moving = np.ascontiguousarray(change(street.a))
    assert align_scene(street.b, moving).doubts
    cause = find_cause(street.b, moving, sensor_base=False, sensor_moving=True, within=SearchRange())
    assert cause is not None
    assert named in cause[0]


@pytest.mark.slow
def test_no_cause_is_made_up(noise_scene: Callable[[int], Array]) -> None:
    assert find_cause(noise_scene(1), noise_scene(2), sensor_base=False, sensor_moving=True, within=SearchRange()) is None
