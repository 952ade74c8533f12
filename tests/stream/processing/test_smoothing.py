"""Ranges that follow the scene slowly."""

from __future__ import annotations

import numpy as np
import pytest

from refusion_edge.stream.frames import SECOND
from refusion_edge.stream.processing.smoothing import SmoothedRange, inner_range


def test_smoothing_follows_with_its_time_constant() -> None:
    smoothed = SmoothedRange(2.0)
    assert smoothed.update(0, 100, 0) == (0, 100)
    _, high = smoothed.update(0, 200, 2 * SECOND)
    assert high == pytest.approx(100 + 100 * (1 - np.exp(-1)))
    narrowing = SmoothedRange(2.0)
    narrowing.update(0, 100, 0)
    assert narrowing.update(0, 50, 20 * SECOND)[1] == pytest.approx(50 + 50 * np.exp(-1))
    assert smoothed.update(0, 200, 2 * SECOND) == (0, pytest.approx(high))  # no time, no change


@pytest.mark.parametrize("count", [1, 2, 7, 1000, 4999])
def test_inner_range_is_that_of_numpy(count: int) -> None:
    values = np.random.default_rng(count).normal(0, 100, count).astype(np.float32)
    assert inner_range(values, (0.1, 99.9)) == pytest.approx(np.percentile(values.astype(np.float64), (0.1, 99.9)), rel=1e-6)


def test_slack_keeps_a_range_that_is_a_little_too_wide() -> None:
    smoothed = SmoothedRange(1.0, slack=0.1)
    smoothed.update(0, 100, 0)
    assert smoothed.update(8, 95, 100 * SECOND) == (0, 100)
    low, high = smoothed.update(20, 80, 10_000 * SECOND)
    assert (low, high) == (pytest.approx(20 - 6), pytest.approx(80 + 6))
    assert smoothed.update(-10, 90, 20_000 * SECOND) == (pytest.approx(-10), pytest.approx(90))  # widens without slack
