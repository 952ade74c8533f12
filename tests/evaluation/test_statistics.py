"""Means, ranks, paired intervals."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refusion_edge.evaluation.statistics import Difference, difference, image_quality, mean_of_defined, ranks, summarize

NAN = math.nan


def test_undefined_values_are_counted_and_left_out() -> None:
    summary = summarize(np.array([1.0, NAN, 3.0]))
    assert (summary.mean, summary.images, summary.undefined) == (2.0, 2, 1)
    assert summary.standard_error == pytest.approx(1.0)
    nothing = summarize(np.array([NAN]))
    assert (nothing.mean, nothing.standard_error, nothing.undefined) == (None, None, 1)
    assert summarize(np.array([4.0])).standard_error is None


def test_equal_means_share_a_rank() -> None:
    values = np.array([[0.5, 1.5], [3, 3], [2, 4], [9, NAN]])
    assert ranks(values, higher_is_better=True) == [3, 1, 1, 4]
    assert ranks(values, higher_is_better=False) == [1, 2, 2, 4]
    # An image that is undefined for all of them says nothing about any.
    assert ranks(np.array([[1, NAN, 5], [2, NAN, 5]]), higher_is_better=True) == [2, 1]
    assert ranks(np.full((2, 3), NAN), higher_is_better=True) == [None, None]


def test_interval_is_the_same_in_every_run() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(1, 1, 40), rng.normal(0, 1, 40)
    assert difference(first, second) == difference(first.copy(), second.copy())


def test_interval_of_many_images_is_that_of_the_normal_distribution() -> None:
    paired = np.random.default_rng(1).normal(0.2, 1, 400)
    found = difference(paired, np.zeros(400))
    half = 1.96 * paired.std() / 20
    assert found.low == pytest.approx(paired.mean() - half, abs=0.01)
    assert found.high == pytest.approx(paired.mean() + half, abs=0.01)
    assert found.distinct


def test_pairing_removes_what_both_methods_share() -> None:
    hard = np.random.default_rng(2).normal(0, 100, 30)
    found = difference(hard + 1, hard)
    assert found.low == pytest.approx(1)
    assert found.high == pytest.approx(1)


def test_too_few_images_have_no_interval() -> None:
    assert difference(np.array([2.0, NAN]), np.array([1.0, 5.0])) == Difference(1.0, None, None, 1)
    assert difference(np.array([NAN]), np.array([1.0])) == Difference(None, None, None, 0)
    assert not Difference(1.0, None, None, 1).distinct


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20))
def test_interval_holds_the_mean_and_turns_with_the_order(values: list[float]) -> None:
    paired = np.array(values)
    there, back = difference(paired, np.zeros_like(paired)), difference(np.zeros_like(paired), paired)
    assert None not in (there.mean, there.low, there.high, back.low)
    assert there.low - 1e-9 <= there.mean <= there.high + 1e-9
    assert back.low == pytest.approx(-there.high, abs=1e-9)


def test_mean_over_nothing_is_undefined() -> None:
    means = mean_of_defined(np.array([[1.0, NAN], [3.0, NAN]]), axis=0)
    assert means[0] == 2
    assert math.isnan(means[1])


def test_image_quality_orders_images_over_all_metrics() -> None:
    values = np.array([[3.0, 1.0], [2.0, 2.0], [1.0, 3.0], [NAN, 9.0]])
    quality = image_quality(values, np.array([True, False]))
    assert quality.tolist() == [1, pytest.approx(2 / 3), pytest.approx(1 / 3), 0]
