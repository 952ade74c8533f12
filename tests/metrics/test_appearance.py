"""What a person sees: synthetic scenes whose right value is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from refusion_edge.metrics import find_metric, metrics_of, score
from refusion_edge.metrics.appearance import (
    added_noise,
    ghost_contours,
    kept_infrared,
    kept_visible,
    lost_targets,
    rims,
    target_contrast,
    target_contrasts,
)
from refusion_edge.metrics.planes import Plane

SHAPE = (120, 160)


@pytest.fixture
def glare() -> tuple[Plane, Plane]:
    """A cyclist of 40 levels in the infrared image, behind a lamp that clips the visible one."""
    a, b = np.full(SHAPE, 60.0), np.full(SHAPE, 80.0)
    b[30:90, 40:120] = 255
    a[45:75, 70:90] = 100
    return a, b


@pytest.mark.parametrize(("share", "offset"), [(1.0, 0), (0.5, 20), (0.25, 100), (0.0, 0), (2.0, -60)])
def test_kept_detail_is_the_share_of_the_contrast(glare: tuple[Plane, Plane], share: float, offset: float) -> None:
    a, b = glare
    assert kept_infrared(a, b, share * a + offset) == pytest.approx(share)
    assert kept_visible(b, a, share * a + offset) == pytest.approx(share)  # the other direction, with the sources exchanged


def test_detail_counts_only_where_the_other_source_is_clipped(glare: tuple[Plane, Plane]) -> None:
    a, b = glare
    fused = np.where(b == 255, 255, a)
    a[5:15, 5:25] = 200  # outside the lamp: neither its presence nor its loss counts
    assert kept_infrared(a, b, fused) == 0
    assert math.isnan(kept_visible(a, b, fused))  # nothing of the infrared image is clipped


def test_without_detail_or_glare_nothing_can_be_kept(glare: tuple[Plane, Plane]) -> None:
    a, b = glare
    assert math.isnan(kept_infrared(np.full(SHAPE, 60.0), b, b))
    few = np.full(SHAPE, 80.0)
    few[50:60, 70:80] = 255  # 6x6 pixels after erosion: 0.19 % of the image
    assert math.isnan(kept_infrared(a, few, few))


def test_grain_of_the_infrared_image_is_no_detail(glare: tuple[Plane, Plane]) -> None:
    a, b = glare
    grain = np.random.default_rng(0).integers(0, 2, SHAPE).astype(np.float64)
    # The quarter with the largest gradients lies in the grain, but only the contour exceeds one level per pixel.
    assert kept_infrared(a + grain, b, a) == pytest.approx(1, abs=0.03)


@pytest.fixture
def people() -> Plane:
    """Three hot objects in front of 50 levels, of which the last is too small, and one hot area that is too large."""
    a = np.full(SHAPE, 50.0)
    a[20:40, 20:30] = 150
    a[60:80, 60:66] = 130
    a[90:94, 20:24] = 150
    return a


def test_contrast_of_targets(people: Plane) -> None:
    assert target_contrasts(people, people) == pytest.approx([100, 80])
    assert target_contrast(people, people, 0.5 * people + 30) == pytest.approx(45)
    assert target_contrasts(people, 255 - people) == pytest.approx([-100, -80])


def test_targets_below_eight_levels_are_lost(people: Plane) -> None:
    fused = np.full(SHAPE, 90.0)
    fused[20:40, 20:30] += 8
    fused[60:80, 60:66] += 7.9
    assert lost_targets(people, people, fused) == 1
    assert lost_targets(people, people, people) == 0
    flat = np.full(SHAPE, 90.0)
    assert (lost_targets(flat, flat, flat), math.isnan(target_contrast(flat, flat, flat))) == (0, True)


def test_added_noise_is_in_levels() -> None:
    rng = np.random.default_rng(1)
    sky = np.full((200, 200), 180.0)
    sky[100:] = 20  # dark: not looked at, however noisy
    noise = 4 * rng.standard_normal(sky.shape)
    noise[120:] *= 10
    # White noise of 4 levels, less its mean with a Gaussian of sigma 2, whose center is 0.0398 and sum of squares 0.0199.
    kept = 1 - 2 * 0.0398 + 0.0199
    assert added_noise(sky, sky, sky + noise) == pytest.approx(4 * math.sqrt(kept), rel=0.02)
    assert added_noise(sky, sky, sky) == 0
    assert added_noise(sky, sky, 0 * sky) == pytest.approx(0, abs=0.05)  # what reaches in from the contour
    assert math.isnan(added_noise(sky, 0 * sky, sky))


def test_what_is_not_flat_is_not_looked_at() -> None:
    b = np.full((100, 100), 150.0)
    b[:, ::6] += 40
    assert math.isnan(added_noise(b, b, b))


def test_rims_are_the_excess_near_an_edge() -> None:
    b = np.full((100, 100), 200.0)
    b[:, :40] = 40  # a roof before the sky, its last column 39
    fused = b.copy()
    fused[:, 41:44] += 12  # 2 to 4 pixels from the gradient at columns 39 and 40
    assert rims(b, b, fused) == pytest.approx(12 * 2 / 3)
    assert rims(b, b, b + 30) == pytest.approx(0)
    assert rims(b, b, 2 * b - fused) == pytest.approx(-12 * 2 / 3)
    assert math.isnan(rims(b, np.full((100, 100), 200.0), fused))


def _steps(*columns_and_heights: tuple[int, float]) -> Plane:
    """Vertical contours: from a column on, the plane is higher by so many levels."""
    plane = np.full((100, 100), 60.0)
    for column, height in columns_and_heights:
        plane[:, column:] += height
    return plane


@pytest.mark.parametrize(
    ("fused", "share"),
    [
        (_steps((50, 80)), 0.0),
        (_steps((50, 160)), 0.0),  # stronger, but single
        (_steps((50, 8)), 0.0),  # or weaker
        (_steps((50, 40), (54, 40)), 0.5),  # the average of sources that are 4 pixels apart
        (_steps((50, 80), (54, -20)), 0.2),  # a white line, whichever way the second contour goes
        (_steps((54, 80)), 1.0),  # at the wrong place altogether
        (_steps((51, 80)), 0.5),  # by one pixel: half of the gradient is where it should be
        (_steps((50, 40), (60, 40)), 0.0),  # too far away to belong to it
    ],
)
def test_a_second_contour_is_a_share_of_the_first(fused: Plane, share: float) -> None:
    a, b = _steps((50, 40)), _steps((50, 80))
    assert ghost_contours(a, b, fused) == pytest.approx(share)
    assert ghost_contours(b, a, fused) == pytest.approx(share)


def test_a_ghost_is_not_looked_for_where_there_is_no_value() -> None:
    a, b, fused = (plane.astype(np.float32) / 255 for plane in (_steps((50, 40)), _steps((50, 80)), _steps((50, 40), (54, 40))))
    missing = np.zeros(a.shape, np.bool_)
    missing[40:60, 30:70] = True
    ghost = find_metric("appearance:Ghost")
    for written in (0, 1):
        images = [np.where(missing, np.float32(written), plane) for plane in (a, b, fused)]
        assert score(*images, [ghost], invalid=missing)[ghost] == pytest.approx(0.5)


def test_a_contour_of_one_source_alone_has_no_double() -> None:
    a, b = _steps((50, 40)), _steps((70, 80))
    assert math.isnan(ghost_contours(a, b, np.maximum(a, b)))
    assert math.isnan(ghost_contours(b, b, a[:, ::-1]))  # nothing of the result is near
    a, b = (plane[:40] for plane in (_steps((50, 40)), _steps((50, 80))))  # 80 pixels of contours are too few
    assert math.isnan(ghost_contours(a, b, b))


def test_a_pixel_without_a_value_has_no_influence(glare: tuple[Plane, Plane]) -> None:
    a, b = (plane.astype(np.float32) / 255 for plane in glare)
    a[10:20, 60:66] = b[100:, :] = 0.6  # a target, and a sky
    b[:20] = 0.2
    missing = np.zeros(a.shape, np.bool_)
    missing[60, 80:85] = missing[12, 62] = missing[110, 30] = missing[20, 140] = True
    metrics = [metric for metric in metrics_of("appearance") if metric.name not in ("Kept_b", "Ghost")]
    found = []
    for written in (0.0, 1.0, np.nan):
        images = [np.where(missing, np.float32(written), plane) for plane in (a, b, np.maximum(a, b))]
        found.append(list(score(*images, metrics, invalid=missing).values()))
    assert found[0] == found[1] == found[2]
    assert np.isfinite(found[0]).all()


def test_the_convention_scores_images(glare: tuple[Plane, Plane]) -> None:
    a, b = (plane.astype(np.uint8) for plane in glare)
    found = {metric.name: value for metric, value in score(a, b, np.maximum(a, b), metrics_of("appearance")).items()}
    assert list(found) == ["Kept_a", "Kept_b", "Target", "Lost", "Noise", "Rim", "Ghost"]
    assert found["Kept_a"] == 0  # the maximum shows only the lamp
