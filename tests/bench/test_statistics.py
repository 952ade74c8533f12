"""Percentiles with enough samples behind them, and ratios with their interval."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusion_edge.bench.statistics import Ratio, percentile_name, ratio, spread, verdict


@pytest.mark.parametrize(
    ("count", "given_names"),
    [(1, []), (9, []), (10, ["p90"]), (20, ["p90", "p95"]), (99, ["p90", "p95"]), (100, ["p90", "p95", "p99"]),
     (999, ["p90", "p95", "p99"]), (1000, ["p90", "p95", "p99", "p99.9"])],
)  # fmt: skip
def test_a_percentile_needs_a_sample_beyond_it(count: int, given_names: list[str]) -> None:
    found = spread(np.arange(1.0, count + 1))
    assert [name for name, value in found.percentiles_ms.items() if value is not None] == given_names
    assert (found.count, found.max_ms) == (count, count)


def test_percentiles_are_samples_and_the_median_is_the_usual_one() -> None:
    found = spread(np.arange(1000.0)[::-1] + 1)
    assert found.percentiles_ms == {"p90": 900, "p95": 950, "p99": 990, "p99.9": 999}
    assert (found.median_ms, found.mean_ms, found.max_ms) == (500.5, 500.5, 1000)
    assert percentile_name(99.9) == "p99.9"


@given(st.lists(st.floats(0.01, 1e4), min_size=10, max_size=60))
def test_numbers_are_in_order(times: list[float]) -> None:
    found = spread(np.array(times))
    known = [value for value in found.percentiles_ms.values() if value is not None]
    assert [*known, found.max_ms] == sorted([*known, found.max_ms])
    assert set(known) <= set(times)


def test_what_disturbs_both_leaves_the_ratio_alone() -> None:
    rng = np.random.default_rng(1)
    disturbed = np.repeat(rng.uniform(1, 5, 40), 5)
    found = ratio(3 * disturbed, disturbed)
    assert (found.value, found.low, found.high) == (pytest.approx(3), pytest.approx(3), pytest.approx(3))
    assert found.distinct


@pytest.mark.slow
def test_interval_of_independent_times_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(40):
        found = ratio(rng.lognormal(0.5, 0.3, 150), rng.lognormal(0.0, 0.3, 150))
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= np.exp(0.5) <= found.high
    assert inside >= 34


def test_interval_is_the_same_in_every_run_and_turns_with_the_order() -> None:
    rng = np.random.default_rng(3)
    first, second = rng.uniform(1, 2, 101), rng.uniform(2, 3, 101)
    there, again, back = ratio(second, first), ratio(second.copy(), first.copy()), ratio(first, second)
    assert there == again
    assert back.value == pytest.approx(1 / there.value)
    assert there.high is not None
    assert back.low == pytest.approx(1 / there.high, rel=1e-3)


def test_few_pairs_have_no_interval() -> None:
    found = ratio(np.full(9, 2.0), np.ones(9))
    assert (found.value, found.low, found.high, found.pairs) == (2, None, None, 9)
    assert not found.distinct
    assert verdict("A", "B", found) == "A and B: 9 pairs are too few to tell"


def test_the_verdict_says_which_way_and_how_sure() -> None:
    assert verdict("A", "B", Ratio(2.814, 2.76, 2.86, 200)) == "A is 2.81x faster than B (2.76 to 2.86)"
    assert verdict("A", "B", Ratio(0.5, 0.4, 0.8, 200)) == "A is 2.00x slower than B (1.25 to 2.50)"
    assert verdict("A", "B", Ratio(1.01, 0.98, 1.03, 200)) == "A and B cannot be told apart: 1.01x (0.98 to 1.03)"
