"""Counters and distributions of a run."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from refusion_edge.stream.statistics import Distribution, Statistics


def test_percentiles_are_right_to_one_percent() -> None:
    values = np.random.default_rng(4).lognormal(2, 1, 20_000)
    distribution = Distribution()
    for value in values:
        distribution.add(float(value))
    for percent in (50, 90, 95, 99):
        assert distribution.percentile(percent) == pytest.approx(np.percentile(values, percent), rel=0.02)
    assert distribution.summary()["max_ms"] == values.max()
    assert Distribution().percentile(50) is None


def test_a_listener_may_ask_for_figures() -> None:
    statistics = Statistics()
    seen: list[int] = []
    statistics.listen(lambda _where, _text: seen.append(statistics.snapshot()["pairs"]["shown"]))
    worker = threading.Thread(target=statistics.note, args=("ir", "lost"), daemon=True)
    worker.start()
    worker.join(10)
    assert seen == [0]
