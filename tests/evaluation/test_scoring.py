"""Workers: what they do when one dies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from refusion_edge.errors import InputError
from refusion_edge.evaluation.cases import find_cases
from refusion_edge.evaluation.scoring import score_cases
from refusion_edge.metrics import metrics_of
from refusion_edge.tasks import find_task
from tests.raising import raises


class _Deadly(str):
    """A name that ends the process which receives it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (1,)


def test_a_worker_that_dies_is_an_error_and_not_a_hang(dataset: Path) -> None:
    cases = list(find_cases("ir", "vis", {"good": "good"}).cases)
    object.__setattr__(cases[2], "name", _Deadly("03"))
    with raises(InputError, "worker process", remedy="--jobs"):
        score_cases(cases, metrics_of("evaluator"), task=find_task("ir_vis"), jobs=2, done=lambda: None)


def test_every_case_is_reported_once(dataset: Path) -> None:
    cases = find_cases("ir", "vis", {"good": "good", "black": "black"}).cases
    steps: list[int] = []
    values = score_cases(cases, metrics_of("evaluator"), task=find_task("ir_vis"), jobs=2, done=lambda: steps.append(1))
    assert len(steps) == len(cases)
    assert values.shape == (2, 5, 13)
