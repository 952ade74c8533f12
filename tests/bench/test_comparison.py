"""Two engines measured in turns, and the advice about INT8."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from refusion_edge.arrays import Float32Array
from refusion_edge.bench.comparison import Recommendation, compare, from_comparison, from_rows
from refusion_edge.bench.measurement import Row, measure
from refusion_edge.bench.subjects import Quality, Subject
from refusion_edge.errors import UsageError
from tests.bench.conftest import QUICK, MadeUpBackend, MadeUpClock
from tests.raising import raises

MakeSubject = Callable[..., Subject]
Make = Callable[[str, float, Quality | None], Subject]
# Enough turns for an interval.
TURNS = replace(QUICK, iterations=30)
GOOD, POOR, BLURRED, EQUAL = Quality(50.2, 0.9993), Quality(44.9, 0.9993), Quality(50.2, 0.98), Quality(None, 1.0)


def test_what_disturbs_the_machine_disturbs_both(clock: MadeUpClock, make_subject: MakeSubject) -> None:
    disturbance = np.random.default_rng(0).uniform(1, 4, 1000)

    def times(factor: float) -> Iterator[float]:
        return (factor * one for one in disturbance)

    found = compare(make_subject(times(1)), make_subject(times(3)), QUICK, clock)
    assert found.stable
    assert found.ratios is not None
    for stage in ("infer", "end_to_end", "cpu"):
        assert found.ratios[stage].value == pytest.approx(3, rel=0.2)
    assert found.windows == pytest.approx((3, 3, 3))
    assert found.turns == 9


def test_the_one_that_goes_first_changes(clock: MadeUpClock, make_subject: MakeSubject) -> None:
    order: list[str] = []

    class Noting(MadeUpBackend):
        """Notes its turn."""

        letter = ""

        def fuse(self, a: Float32Array, b: Float32Array) -> Float32Array:
            order.append(self.letter)
            return super().fuse(a, b)

    backends = [Noting(clock, itertools.repeat(2.0)) for _ in range(2)]
    backends[0].letter, backends[1].letter = "A", "B"
    backends[1].graph_problem = "no graph"
    found = compare(*(make_subject(iter(()), backend=backend) for backend in backends), QUICK, clock)
    assert found.graph_problems == ("", "no graph")
    assert "".join(order) == "ABBA" * 5
    assert not any(backend.is_open for backend in backends)


def test_ratios_that_never_agree_are_not_stable(clock: MadeUpClock, make_subject: MakeSubject) -> None:
    unsteady = itertools.chain([1.0], itertools.cycle([5.0] * 3 + [9.0] * 3))
    found = compare(make_subject(itertools.repeat(5.0)), make_subject(unsteady), QUICK, clock)
    assert (found.stable, found.stages, found.ratios) == (False, None, None)
    assert len(found.windows) == QUICK.most_windows


@pytest.mark.parametrize(
    ("other", "what", "expected", "got"),
    [({"size_hw": (32, 24)}, "size", "16x24", "32x24"), ({"task": "medical"}, "task", "ir_vis", "medical")],
)
def test_different_work_is_refused(
    clock: MadeUpClock, make_subject: MakeSubject, other: dict[str, object], what: str, expected: str, got: str
) -> None:
    backend = MadeUpBackend(clock, itertools.repeat(1.0))
    with raises(UsageError, what, expected=expected, got=got):
        compare(make_subject(iter(()), backend=backend), make_subject(iter(()), backend=backend, **other), QUICK, clock)
    assert backend.calls == 0


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


@pytest.mark.slow
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
