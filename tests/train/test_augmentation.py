"""Tests for the tone curves of training crops."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from refusion_edge.errors import UsageError
from refusion_edge.train.augmentation import ToneSettings, toned
from refusion_edge.train.crops import crop_batch
from refusion_edge.train.settings import resolve
from tests.raising import raises
from tests.train.conftest import PlanePairs

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)
ALWAYS = ToneSettings(share=1.0, gamma=2.0, least_gain=0.2, alike=False)


def _draw(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_without_curves_levels_are_only_put_on_scale() -> None:
    a, b = toned(RAMP, RAMP[::-1], replace(ALWAYS, share=0.0), _draw(0))
    assert a.dtype == b.dtype == np.float32
    assert np.array_equal(a * 255, RAMP)
    assert np.array_equal(b * 255, RAMP[::-1])


def test_curves_keep_order_black_and_range() -> None:
    for seed in range(50):
        for plane in toned(RAMP, RAMP, ALWAYS, _draw(seed)):
            levels = plane.ravel()
            assert levels[0] == 0
            assert (np.diff(levels) > 0).all()
            assert 0.2 <= levels[-1] <= 1


def test_curves_stay_within_their_limits() -> None:
    exponents, gains = [], []
    for seed in range(200):
        plane, _ = toned(RAMP, RAMP, ALWAYS, _draw(seed))
        gains.append(plane[-1, -1])
        exponents.append(np.log(plane[8, 0] / gains[-1]) / np.log(128 / 255))
    assert 0.5 <= min(exponents) < 0.55
    assert 1.8 < max(exponents) <= 2.0 + 1e-5
    assert 0.2 <= min(gains) < 0.25
    assert 0.95 < max(gains) <= 1.0


def test_alike_means_one_curve_for_both() -> None:
    a, b = toned(RAMP, RAMP, replace(ALWAYS, alike=True), _draw(3))
    assert np.array_equal(a, b)
    a, b = toned(RAMP, RAMP, ALWAYS, _draw(3))
    assert not np.array_equal(a, b)


def test_crops_get_curves_by_counter_and_share() -> None:
    pairs = PlanePairs(((np.tile(RAMP, (2, 2)), np.tile(RAMP, (2, 2))),))
    tone = replace(ALWAYS, share=0.5)
    a, b = crop_batch(pairs, 0, batch=64, crop_px=16, seed=0, tone=tone)
    again, _ = crop_batch(pairs, 0, batch=64, crop_px=16, seed=0, tone=tone)
    assert torch.equal(a, again)
    plain, _ = crop_batch(pairs, 0, batch=64, crop_px=16, seed=0)
    changed = (a != plain).flatten(1).any(1)
    assert 20 < changed.sum() < 44
    assert torch.equal(changed, (a != b).flatten(1).any(1))


@pytest.mark.parametrize("assignment", ["tone.gamma=0.5", "tone.least_gain=0", "tone.least_gain=1.5", "tone.share=1.5"])
def test_impossible_curves_are_refused(assignment: str) -> None:
    with raises(UsageError, assignment.partition("=")[0], got=float(assignment.partition("=")[2])):
        resolve("default", "ir_vis", device="cpu", assignments=[assignment])


def test_lamps_shine_into_the_second_source_only() -> None:
    tone = replace(ALWAYS, share=0.0, glare=1.0)
    plain = np.full((64, 96), 51, np.uint8)
    clipped = []
    for seed in range(40):
        a, b = toned(plain, plain, tone, _draw(seed))
        assert (a == np.float32(0.2)).all()
        assert b.dtype == np.float32
        assert b.min() >= np.float32(0.2)
        assert b.max() <= 1
        clipped.append(np.mean(b == 1))
    assert 0.02 < np.mean(clipped) < 0.5
    assert np.mean([share > 0 for share in clipped]) > 0.9


def test_without_lamps_crops_are_as_before() -> None:
    without, with_lamps = (toned(RAMP, RAMP, replace(ALWAYS, glare=glare), _draw(7))[1] for glare in (0.0, 1e-9))
    assert np.array_equal(without, with_lamps)
