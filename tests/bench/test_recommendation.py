"""INT8 is recommended only where its gate passed and it is faster, on engines whose times are made up."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from refusion_edge.bench.comparison import compare
from refusion_edge.bench.measurement import Row, measure
from refusion_edge.bench.recommendation import Recommendation, from_comparison, from_rows
from refusion_edge.bench.subjects import Quality, Subject
from tests.bench.conftest import QUICK, MadeUpClock

Make = Callable[[str, float, Quality | None], Subject]
# Enough turns for an interval.
TURNS = replace(QUICK, iterations=30)
GOOD, POOR, BLURRED, EQUAL = Quality(50.2, 0.9993), Quality(44.9, 0.9993), Quality(50.2, 0.98), Quality(None, 1.0)


@pytest.fixture
def make(make_subject: Callable[..., Subject]) -> Make:
    """Make an engine: ``make(precision, time_ms, quality)``."""

    def subject(precision: str, time_ms: float, quality: Quality | None) -> Subject:
        made = make_subject(itertools.repeat(time_ms), name=f"bundle-{precision}")
        return replace(made, identity=replace(made.identity, precision=precision), quality=quality)

    return subject


def advice(clock: MadeUpClock, *subjects: Subject) -> tuple[Recommendation, ...]:
    rows: list[Row] = [measure(subject, QUICK, clock, None) for subject in subjects]
    return from_rows(rows)


@pytest.mark.parametrize(
    ("int8_ms", "quality", "recommended", "words"),
    [
        (6.0, GOOD, True, "1.33x faster, 6 against 8 ms"),
        (6.0, EQUAL, True, "1.33x faster"),
        (7.9, GOOD, False, "not faster than fp16, 7.9 against 8 ms"),
        (9.0, GOOD, False, "not faster than fp16"),
        (6.0, POOR, False, "too far from fp32: 44.9 dB"),
        (6.0, BLURRED, False, "SSIM 0.9800"),
        (6.0, None, False, "gate has not run"),
    ],
)
def test_int8_has_to_pass_its_gate_and_to_be_faster(
    clock: MadeUpClock, make: Make, int8_ms: float, quality: Quality | None, recommended: bool, words: str
) -> None:
    (found,) = advice(clock, make("fp32", 20.0, EQUAL), make("fp16", 8.0, GOOD), make("int8", int8_ms, quality))
    assert found.recommended is recommended
    assert found.against.precision == "fp16"
    assert words in str(found)
    assert ("use bundle-fp16" in str(found)) is not recommended


def test_nothing_is_said_where_nothing_can_be_compared(clock: MadeUpClock, make: Make) -> None:
    assert advice(clock, make("int8", 6.0, GOOD)) == ()
    assert advice(clock, make("fp16", 6.0, GOOD), make("fp32", 6.0, GOOD)) == ()
    larger = make("fp16", 8.0, GOOD)
    other_size = replace(larger, identity=replace(larger.identity, size_hw=(32, 48)))
    assert advice(clock, make("int8", 6.0, GOOD), other_size) == ()


@pytest.mark.parametrize("int8_first", [True, False])
@pytest.mark.parametrize(
    ("int8_ms", "quality", "recommended", "words"),
    [
        (6.0, GOOD, True, "1.33x faster than fp16"),
        (8.0, GOOD, False, "not faster than fp16"),
        (9.0, GOOD, False, "not faster than fp16"),
        (6.0, POOR, False, "too far"),
    ],
)
def test_two_engines_in_turns_are_judged_by_their_interval(
    clock: MadeUpClock,
    make: Make,
    int8_first: bool,
    int8_ms: float,
    quality: Quality | None,
    recommended: bool,
    words: str,
) -> None:
    pair = [make("int8", int8_ms, quality), make("fp16", 8.0, GOOD)]
    first, second = pair if int8_first else reversed(pair)
    (found,) = from_comparison(compare(first, second, TURNS, clock))
    assert (found.recommended, found.identity.precision) == (recommended, "int8")
    assert words in found.reason


def test_engines_of_one_kind_need_no_advice_in_turns(clock: MadeUpClock, make: Make) -> None:
    assert from_comparison(None) == ()
    assert from_comparison(compare(make("fp16", 6.0, GOOD), make("fp32", 8.0, GOOD), QUICK, clock)) == ()


def test_an_unsteady_comparison_recommends_nothing(
    clock: MadeUpClock, make_subject: Callable[..., Subject], make: Make
) -> None:
    times = itertools.chain.from_iterable([1.5**n] * 9 for n in itertools.count())
    unsteady = make_subject(times, name="bundle-int8")
    int8 = replace(unsteady, identity=replace(unsteady.identity, precision="int8"), quality=GOOD)
    (found,) = from_comparison(compare(int8, make("fp16", 8.0, GOOD), TURNS, clock))
    assert not found.recommended
    assert "not stable" in found.reason
