"""Pixels without a value: left out of every metric, as if the image ended there."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import entropy
from skimage.metrics import structural_similarity

from refusion_edge.errors import InputError
from refusion_edge.metrics import METRICS, Metric, find_metric, score, score_transition, sweep
from refusion_edge.metrics.planes import Plane
from tests.raising import raises

Triple = Callable[..., tuple[Plane, Plane, Plane]]
ALL = [metric for by_convention in METRICS.values() for metric in by_convention.values() if metric.reads != "transition"]
OVER_THE_SPECTRUM = {"FMI_dct", "Qcb", "Qcv"}
COARSE = {"MS-SSIM", "VIF", "MEF-SSIM"}
"""Those that need many pixels for a window at their coarsest scale that touches none of the missing ones."""


def as_float(plane: Plane) -> np.ndarray:
    """The same image as float32 in [0, 1], which may hold NaN."""
    return (plane / 255).astype(np.float32)


def with_sights(a: Plane, b: Plane, fused: Plane) -> tuple[Plane, Plane, Plane]:
    """The images with what the convention ``appearance`` looks for: glare, a clipped roof, a hot object, a wall, an edge."""
    a, b = a.copy(), b.copy()
    b[:50, :25] = 255
    a[:25, 25:45] = 255
    a[55:75, 62:85] = 20
    a[62:68, 70:76] = 254
    b[50:, :45], b[50:, 45:] = 100, 180
    return a, b, fused


@pytest.mark.parametrize("where", ["a", "b", "fused"])
@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.key)
def test_an_empty_border_is_like_a_crop(triple: Triple, metric: Metric, where: str) -> None:
    planes = with_sights(*triple(190, 201)) if metric.convention == "appearance" else triple(190, 201)
    images = dict(zip(("a", "b", "fused"), map(as_float, planes), strict=True))
    inner = (slice(9, 180), slice(13, None))
    expected = score(*(image[inner] for image in images.values()), [metric])[metric]
    bordered = images[where].copy()
    images[where][...] = np.nan
    images[where][inner] = bordered[inner]
    assert score(*images.values(), [metric])[metric] == expected
    assert math.isfinite(expected)


def holes(shape: tuple[int, int]) -> np.ndarray:
    """Dead pixels and a dead row, away from the border."""
    mask = np.zeros(shape, np.bool_)
    mask[20, 5:20] = True
    mask[30, 30] = mask[44, 12] = True
    mask[80:81, 30:31] = mask[60:61, 72:73] = True  # if there are as many
    return mask


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.key)
def test_a_pixel_without_a_value_has_no_influence(triple: Triple, metric: Metric) -> None:
    planes = triple(*((460, 450) if metric.name in COARSE else (100, 90)))
    a, b, fused = map(as_float, with_sights(*planes) if metric.convention == "appearance" else planes)
    mask = holes(a.shape)
    values = []
    for written in (0.0, 1.0):
        other = a.copy()
        other[mask] = written
        values.append(score(other, b, fused, [metric], invalid=mask)[metric])
    a[mask] = np.nan
    values.append(score(a, b, fused, [metric])[metric])
    if metric.name in OVER_THE_SPECTRUM:
        assert all(math.isnan(value) for value in values)
    else:
        assert values[0] == values[1] == values[2]
        assert math.isfinite(values[0])


def information(x: Plane, y: Plane) -> float:
    """Mutual information in nat by SciPy, from a histogram of single levels."""
    joint, _, _ = np.histogram2d(x, y, bins=np.arange(257) - 0.5)
    return float(entropy(joint.sum(axis=0)) + entropy(joint.sum(axis=1)) - entropy(joint.ravel()))


def test_what_is_left_out_agrees_with_independent_formulas(triple: Triple) -> None:
    a, b, fused = triple(60, 52)
    mask = holes(a.shape)
    valid = ~mask
    names = ("SD", "MSE", "CC", "MI", "SSIM255", "SF", "AG", "survey:EI")
    metrics = [find_metric(name) for name in names]
    found = dict(zip(names, score(*map(as_float, (a, b, fused)), metrics, invalid=mask).values(), strict=True))
    assert found["SD"] == pytest.approx(fused[valid].std())
    assert found["MSE"] == pytest.approx(np.mean([(a[valid] - fused[valid]) ** 2, (b[valid] - fused[valid]) ** 2]))
    assert found["CC"] == pytest.approx(np.mean([np.corrcoef(source[valid], fused[valid])[0, 1] for source in (a, b)]))
    assert found["MI"] == pytest.approx(sum(information(source[valid], fused[valid]) for source in (a, b)))

    def whole(y: int, x: int, reach: int) -> bool:
        inside = reach <= y < mask.shape[0] - reach and reach <= x < mask.shape[1] - reach
        return inside and not mask[y - reach : y + reach + 1, x - reach : x + reach + 1].any()

    windows = np.array([[whole(y, x, 3) for x in range(mask.shape[1])] for y in range(mask.shape[0])])
    maps = [structural_similarity(source, fused, data_range=255, full=True)[1] for source in (a, b)]
    assert found["SSIM255"] == pytest.approx(sum(float(of_source[windows].mean()) for of_source in maps), abs=2e-5)

    holed = np.where(mask, np.nan, fused)
    steps = [np.nanmean(np.diff(holed, axis=axis) ** 2) for axis in (0, 1)]
    assert found["SF"] == pytest.approx(math.sqrt(sum(steps)))
    y, x = np.gradient(holed)
    assert found["AG"] == pytest.approx(np.nanmean(np.where(mask, np.nan, np.sqrt((x**2 + y**2) / 2))))


def test_flicker_is_that_of_the_pixels_that_both_frames_have() -> None:
    metric = find_metric("Flicker")
    still, changed = np.full((20, 20), 100, np.uint8), np.full((20, 20), 100, np.uint8)
    changed[:10] = 130
    before, after = np.zeros((20, 20), np.bool_), np.zeros((20, 20), np.bool_)
    before[:5], after[10:12] = True, True
    value = score_transition(
        (still, still, still), (still, still, changed), [metric], invalid=after, previous_invalid=before
    )[metric]  # fmt: skip
    assert value == pytest.approx(30 * 5 / (5 + 8))


def test_a_sweep_leaves_out_what_has_no_value_at_any_offset(triple: Triple) -> None:
    a, b, fused = (plane.astype(np.uint8) for plane in triple(60, 64))
    mask = np.zeros(a.shape, np.bool_)
    mask[:, :20] = True
    other = a.copy()
    other[mask] = 0
    metrics = [find_metric("MSE")]
    values = [sweep(source, b, fused, metrics, (0, 1.5, 4), invalid=mask) for source in (a, other)]
    assert values[0] == values[1]


def test_images_that_have_no_pixel_in_common_are_refused() -> None:
    a, b = np.full((2, 20, 20), 0.5, np.float32)
    a[:12], b[8:] = np.nan, np.nan
    with raises(InputError, "no pixel"):
        score(a, b, np.zeros((20, 20), np.uint8))
