"""Frames that come at a fixed rate: which are dropped, which are late, and how old they are."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from refusion_edge.bench.deadline import Deadline, hold
from refusion_edge.bench.subjects import Identity
from refusion_edge.errors import MeasurementError, UsageError
from tests.bench.conftest import QUICK, MadeUpClock
from tests.raising import raises

IDENTITY = Identity("ir_vis", "ir_vis", "fp32", (16, 24), "onnxruntime", 0)


def held(clock: MadeUpClock, times_ms: Iterator[float], *, fps: float = 10, seconds: float = 2, allowed: float = 0) -> Deadline:
    return hold(
        lambda: clock.pass_ms(next(times_ms)),
        IDENTITY,
        fps=fps,
        seconds=seconds,
        allowed_share=allowed,
        plan=QUICK,
        clock=clock,
    )


def test_a_quick_engine_holds_and_its_age_is_its_time(clock: MadeUpClock) -> None:
    found = held(clock, itertools.repeat(60.0))
    assert (found.arrived, found.dropped, found.late, found.holds) == (20, 0, 0, True)
    assert (found.ages.median_ms, found.ages.max_ms) == (60, 60)


def test_an_engine_of_exactly_one_period_holds(clock: MadeUpClock) -> None:
    found = held(clock, itertools.repeat(100.0))
    assert (found.dropped, found.late, found.holds) == (0, 0, True)


def test_a_slow_engine_takes_the_newest_frame_and_drops_the_others(clock: MadeUpClock) -> None:
    # Frames come every 100 ms. Frame 0 starts at 0, 2 at 250, 5 at 500, 7 at 750, 9 at 1000: ages 250, 300, 250, 300, 350.
    found = held(clock, itertools.repeat(250.0), seconds=1)
    assert found.arrived == 10
    assert found.dropped == 5
    assert found.late == 5
    assert found.ages.count == 5
    assert (found.ages.median_ms, found.ages.max_ms) == (300, 350)
    assert (found.missed_share, found.holds) == (1, False)


def test_one_hiccup_costs_what_it_covers(clock: MadeUpClock) -> None:
    times = itertools.chain([1.0], [20.0] * 5, [330.0], itertools.repeat(20.0))
    found = held(clock, times, allowed=0.2)
    # Frame 5 is finished at 830: late. Frames 6 and 7 are overtaken by frame 8, which is 30 ms old by then.
    assert (found.late, found.dropped) == (1, 2)
    assert (found.missed_share, found.holds) == (0.15, True)
    assert found.ages.max_ms == 330


def test_minutes_show_when_it_became_slower(clock: MadeUpClock) -> None:
    times = itertools.chain(itertools.repeat(20.0, 601), itertools.repeat(80.0, 601), itertools.repeat(150.0))
    found = held(clock, times, seconds=150)
    assert [minute.arrived for minute in found.minutes] == [600, 600, 300]
    assert [minute.median_age_ms for minute in found.minutes[:2]] == [20, 80]
    assert [minute.missed for minute in found.minutes[:2]] == [0, 0]
    assert found.minutes[2].missed > 100
    assert sum(minute.missed for minute in found.minutes) == found.dropped + found.late


def test_a_jump_ends_the_run(clock: MadeUpClock) -> None:
    def times() -> Iterator[float]:
        yield from (5.0, 5.0, 5.0)
        clock.jump_ms(60_000)
        yield from itertools.repeat(5.0)

    with raises(MeasurementError, "60000 ms"):
        held(clock, times())


@pytest.mark.parametrize(
    ("fps", "seconds"), [(0, 1), (-5, 1), (1e6, 1), (30, 0), (30, 0.01), (float("nan"), 1), (30, float("inf"))]
)
def test_rates_out_of_range_are_refused(clock: MadeUpClock, fps: float, seconds: float) -> None:
    with raises(UsageError, "--fps", "--seconds"):
        held(clock, itertools.repeat(1.0), fps=fps, seconds=seconds)
