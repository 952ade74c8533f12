"""Two engines measured in turns, and whether an INT8 engine is worth using.

Taking turns in one process exposes both engines to the same disturbances. INT8 costs accuracy in every image, and layer norms,
GELU and attention run in higher precision around every INT8 convolution, so it is not faster by itself: it is recommended only
if its accuracy gate passed and it is also faster than an engine of another precision for the same task, size and back end.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from refusion_edge.accuracy.gate import LIMITS
from refusion_edge.bench.measurement import END_TO_END, Lap, Row, open_pipeline, times_of
from refusion_edge.bench.statistics import Ratio, Spread, ratio, spread
from refusion_edge.bench.subjects import Identity, Quality, Subject, require_comparable
from refusion_edge.bench.timing import Clock, Plan, measure_windows
from refusion_edge.network.forms import Precision

_INT8: Precision = "int8"
# Two equal engines measured one after the other differ slightly; turns (--compare) resolve smaller differences.
_SURELY_FASTER = 0.95


@dataclass(frozen=True, slots=True)
class Turn:
    """One run of each engine.

    Attributes:
        first: Times of the first engine.
        second: Times of the second engine.
    """

    first: Lap
    second: Lap


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two engines measured in turns; without numbers if the windows did not agree.

    Attributes:
        first: First engine.
        second: Second engine.
        stable: Whether the ratios of the last three windows agree.
        windows: Ratio of the end-to-end medians, second over first, for each window.
        turns: Number of turns in the last three windows.
        stages: Distributions of both engines for each stage that both have; None if not stable.
        ratios: Time of the second over time of the first for the same stages; None if not stable.
        qualities: Results of the two accuracy gates; None where a gate has not run.
        graph_problems: Why their runs were not replayed from a recorded CUDA graph; empty as in ``Row``.
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
    """Measure two subjects in turns, alternating which one goes first.

    Args:
        first: First subject; both stay open at the same time.
        second: Second subject.
        plan: How long to measure; the ratios of the windows have to agree.
        clock: The clock.

    Raises:
        UsageError: Their tasks or sizes differ.
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


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Advice about one INT8 engine.

    Attributes:
        identity: The INT8 engine.
        against: The engine it was compared with, the fastest of another precision.
        recommended: Whether to use it.
        reason: Why, or why not.
    """

    identity: Identity
    against: Identity
    recommended: bool
    reason: str

    def __str__(self) -> str:
        verdict = "recommended" if self.recommended else f"not recommended, use {self.against.label}"
        return f"{self.identity.label}: {verdict} ({self.reason})"


def from_rows(rows: Sequence[Row]) -> tuple[Recommendation, ...]:
    """Advise on every INT8 engine measured along with one of another precision for the same task, size and back end."""
    return tuple(_advice(rows))


def from_comparison(found: Comparison | None) -> tuple[Recommendation, ...]:
    """Advise on an INT8 engine that was measured in turns with one of another precision."""
    if found is None or (found.first.precision == _INT8) == (found.second.precision == _INT8):
        return ()
    first_is_int8 = found.first.precision == _INT8
    int8, other = (found.first, found.second) if first_is_int8 else (found.second, found.first)
    if problem := _gate_problem(found.qualities[0 if first_is_int8 else 1]):
        return (Recommendation(int8, other, recommended=False, reason=problem),)
    if found.ratios is None:
        return (Recommendation(int8, other, recommended=False, reason="its speed is not stable"),)
    ratio = found.ratios[END_TO_END]
    # Time of the INT8 engine over time of the other.
    relative = 1 / ratio.value if first_is_int8 else ratio.value
    faster = ratio.distinct and relative < 1
    reason = f"{1 / relative:.2f}x faster than {other.precision}" if faster else f"not faster than {other.precision}"
    return (Recommendation(int8, other, recommended=faster, reason=reason),)


def _advice(rows: Sequence[Row]) -> Iterator[Recommendation]:
    for row in rows:
        others = [
            (other.stages[END_TO_END].median_ms, other)
            for other in rows
            if other.identity.precision != _INT8 and _place(other.identity) == _place(row.identity) and other.stages is not None
        ]
        if row.identity.precision != _INT8 or not others:
            continue
        fastest_ms, fastest = min(others, key=lambda item: item[0])
        against = fastest.identity
        if problem := _gate_problem(row.quality):
            yield Recommendation(row.identity, against, recommended=False, reason=problem)
        elif row.stages is None:
            yield Recommendation(row.identity, against, recommended=False, reason="its speed is not stable")
        else:
            own_ms = row.stages[END_TO_END].median_ms
            faster = own_ms < _SURELY_FASTER * fastest_ms
            figures = f"{own_ms:.3g} against {fastest_ms:.3g} ms"
            reason = f"{fastest_ms / own_ms:.2f}x faster" if faster else f"not faster than {against.precision}"
            yield Recommendation(row.identity, against, recommended=faster, reason=f"{reason}, {figures}")


def _place(identity: Identity) -> tuple[object, ...]:
    return identity.task, identity.size_hw, identity.backend


def _gate_problem(quality: Quality | None) -> str:
    """Why the accuracy of an engine rules it out; empty if it does not."""
    if quality is None:
        return "its accuracy gate has not run on this engine"
    limits = LIMITS[_INT8]
    if (quality.psnr_db is not None and not quality.psnr_db >= limits.psnr_db) or not quality.ssim >= limits.ssim:
        psnr = "equal" if quality.psnr_db is None else f"{quality.psnr_db:.1f} dB"
        return f"too far from fp32: {psnr}, SSIM {quality.ssim:.4f}"
    return ""
