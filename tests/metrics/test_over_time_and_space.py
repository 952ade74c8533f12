"""Flicker, and the sweeps over misregistration."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from refusion_edge.errors import UsageError
from refusion_edge.metrics import displace, find_metric, score, score_transition, sweep, sweep_fusion
from refusion_edge.metrics.planes import Plane
from refusion_edge.metrics.temporal import flicker, grain, pumping
from tests.raising import raises

Triple = Callable[..., tuple[Plane, Plane, Plane]]


def test_flicker_is_what_the_result_changes_beyond_its_sources() -> None:
    still = np.full((4, 4), 100.0)
    assert flicker((still, still, still), (still, still, still + 10)) == 10
    assert flicker((still, still, still), (still + 4, still - 6, still + 10)) == 4  # beyond the larger change
    assert flicker((still, still, still), (still + 30, still, still + 20)) == 0
    half = still.copy()
    half[:2] += 8
    assert flicker((still, still, still), (still, still, half)) == 4  # one half of the picture by 8


def test_flicker_has_no_value_without_a_frame_before() -> None:
    picture = np.zeros((8, 8), np.uint8)
    metric = find_metric("Flicker")
    assert math.isnan(score(picture, picture, picture, [metric])[metric])
    frames = (picture, picture, picture), (picture, picture, picture + np.uint8(7))
    assert score_transition(*frames, [metric])[metric] == 7


def test_pumping_and_grain_are_apart() -> None:
    still = np.full((96, 128), 100.0)
    before = (still, still, still)
    brighter = (still, still, still + 10)
    assert (pumping(before, brighter), grain(before, brighter)) == (pytest.approx(10), pytest.approx(0, abs=1e-9))
    rng = np.random.default_rng(0)
    first, second = (still + 5 * rng.standard_normal(still.shape) for _ in range(2))
    noisy = (still, still, first), (still, still, second)
    assert grain(*noisy) == pytest.approx(0.97 * 5, rel=0.03)
    assert pumping(*noisy) < 0.3
    assert pumping(before, (still + 10, still, still + 10)) == 0  # no more than a source


def test_pumping_and_grain_leave_out_what_has_no_value() -> None:
    still = np.full((96, 128), 100.0)
    before, after = (still, still, still.copy()), (still.copy(), still, still + 10)
    after[0][20:40, 30:60] = np.nan  # as all three frames have it
    after[2][20:40, 30:60] = np.nan
    assert (pumping(before, after), grain(before, after)) == (pytest.approx(10), pytest.approx(0, abs=1e-9))


def test_grain_passes_over_a_contour_that_moves() -> None:
    before, after = np.full((96, 128), 100.0), np.full((96, 128), 100.0)
    before[:, 50:] = after[:, 53:] = 200
    assert grain((before,) * 3, (after,) * 3) == pytest.approx(0, abs=1e-9)


def test_displacing_by_whole_pixels_moves_columns() -> None:
    image = np.arange(60, dtype=np.uint8).reshape(6, 10)
    moved = displace(image, 3)
    assert (moved[:, 3:] == image[:, :-3]).all()
    assert (moved[:, :3] == image[:, :1]).all()
    assert (displace(image, 0) == image).all()
    assert displace(np.zeros((6, 10, 3), np.uint16), 1.5).shape == (6, 10, 3)


def test_skew_moves_the_first_and_last_row_in_opposite_directions() -> None:
    image = np.tile(np.arange(0, 100, 5, dtype=np.uint8), (11, 1))
    moved = displace(image, 4, "skew")
    assert (moved[-1, 4:] == image[-1, :-4]).all()
    assert (moved[0, :-4] == image[0, 4:]).all()
    assert (moved[5] == image[5]).all()


def test_sweep_of_a_finished_result_falls_with_the_offset(triple: Triple) -> None:
    a, b, fused = (plane.astype(np.uint8) for plane in triple(60, 80))
    metrics = [find_metric("SSIM255"), find_metric("EN"), find_metric("vifb:EI")]
    points = sweep(a, b, fused, metrics, (0, 1, 3))
    assert points[0] == score(a[:, 3:-3], b[:, 3:-3], fused[:, 3:-3], metrics)
    similarity, entropy = ([point[metric] for point in points] for metric in metrics[:2])
    assert similarity[0] > similarity[1] > similarity[2]
    assert len(set(entropy)) == 1  # the result itself is not touched


def test_sweep_of_a_method_fuses_the_displaced_source(triple: Triple) -> None:
    a, b, _ = (plane.astype(np.uint8) for plane in triple(60, 80))
    seen = []

    def fuse(moved: Plane, other: Plane) -> Plane:
        seen.append(moved)
        return np.maximum(moved, other)

    metric = find_metric("Qabf")
    points = sweep_fusion(a, b, fuse, [metric], (0, 2), "shift")
    assert (seen[1] == displace(a, 2)).all()
    assert points[0][metric] > points[1][metric]


@pytest.mark.parametrize("offsets", [(0, 40), (math.nan,), (math.inf, 0)])
def test_offsets_that_leave_nothing_are_refused(offsets: tuple[float, ...]) -> None:
    picture = np.zeros((50, 100), np.uint8)
    with raises(UsageError, str(offsets[-1] if offsets[0] == 0 else offsets[0])):
        sweep(picture, picture, picture, [find_metric("EN")], offsets)
