"""Two engines in turns."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from refusion_edge.arrays import Float32Array
from refusion_edge.bench.comparison import compare
from refusion_edge.bench.subjects import Subject
from refusion_edge.errors import UsageError
from tests.bench.conftest import QUICK, MadeUpBackend, MadeUpClock
from tests.conftest import one_sentence

MakeSubject = Callable[..., Subject]


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
    ("other", "hint"), [({"size_hw": (32, 24)}, "one size, got 16x24 and 32x24"), ({"task": "medical"}, "ir_vis and medical")]
)
def test_different_work_is_refused(clock: MadeUpClock, make_subject: MakeSubject, other: dict[str, object], hint: str) -> None:
    backend = MadeUpBackend(clock, itertools.repeat(1.0))
    with pytest.raises(UsageError, match=hint) as caught:
        compare(make_subject(iter(()), backend=backend), make_subject(iter(()), backend=backend, **other), QUICK, clock)
    assert one_sentence(str(caught.value))
    assert backend.calls == 0
