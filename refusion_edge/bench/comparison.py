"""Two engines in turns in one process, so that what disturbs the machine disturbs both."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refusion_edge.bench.clock import Clock
from refusion_edge.bench.measurement import open_pipeline
from refusion_edge.bench.stages import END_TO_END, Lap, times_of
from refusion_edge.bench.statistics import Ratio, Spread, ratio, spread
from refusion_edge.bench.subjects import Identity, Quality, Subject, require_comparable
from refusion_edge.bench.windows import Plan, measure_windows


@dataclass(frozen=True, slots=True)
class Turn:
    """One picture by each of the two.

    Attributes:
        first: Times of the first.
        second: Times of the second.
    """

    first: Lap
    second: Lap


@dataclass(frozen=True, slots=True)
class Comparison:
    """What two engines gave in turns. Where the windows did not agree, there is no number.

    Attributes:
        first: The one.
        second: The other.
        stable: Whether the ratio of the last three windows agrees.
        windows: Ratio of the medians end to end, second over first, in each window.
        turns: Turns in the last three windows.
        stages: Stage to the distributions of both, for stages that both have; None if not stable.
        ratios: The same stages to time of the second over time of the first; None if not stable.
        qualities: Verdicts of the two accuracy gates, or None.
        graph_problems: Why runs of the two were not replayed from a recorded CUDA graph; empty as in ``Row``.
    """

    first: Identity
    second: Identity
    stable: bool
    windows: tuple[float, ...]
    turns: int
    stages: dict[str, tuple[Spread, Spread]] | None
    ratios: dict[str, Ratio] | None
    qualities: tuple[Quality | None, Quality | None]
    graph_problems: tuple[str, str]


def compare(first: Subject, second: Subject, plan: Plan, clock: Clock) -> Comparison:
    """Measure two subjects in turns; which one goes first changes from turn to turn.

    Args:
        first: The one; both stay open at the same time.
        second: The other.
        plan: How long; what has to agree is the ratio.
        clock: The clock.

    Raises:
        UsageError: They are for different tasks or sizes; names the difference.
        MeasurementError: The clock keeps jumping.
    """
    require_comparable((first, second))
    with open_pipeline(first, clock) as one, open_pipeline(second, clock) as other:
        backwards = itertools.cycle((False, True))

        def turn() -> Turn:
            if next(backwards):
                later = other.run()
                return Turn(one.run(), later)
            return Turn(one.run(), other.run())

        series = measure_windows(turn, _median_ratio, plan, clock, lambda: None)
        problems = one.graph_problem, other.graph_problem
    for subject in (first, second):
        subject.check_unchanged()
    figures = tuple(window.figure for window in series.windows)
    turns, qualities = series.laps, (first.quality, second.quality)
    if not series.stable:
        return Comparison(first.identity, second.identity, False, figures, len(turns), None, None, qualities, problems)
    times_first, times_second = (times_of(laps) for laps in _sides(turns))
    common = [stage for stage in times_first if stage in times_second]
    return Comparison(
        first.identity,
        second.identity,
        True,
        figures,
        len(turns),
        {stage: (spread(times_first[stage]), spread(times_second[stage])) for stage in common},
        {stage: ratio(times_second[stage], times_first[stage]) for stage in common if np.median(times_first[stage]) > 0},
        qualities,
        problems,
    )


def _median_ratio(turns: Sequence[Turn]) -> float:
    first, second = (np.median(times_of(laps)[END_TO_END]) for laps in _sides(turns))
    return float(second / first)


def _sides(turns: Sequence[Turn]) -> tuple[list[Lap], list[Lap]]:
    return [turn.first for turn in turns], [turn.second for turn in turns]
