"""Measuring one subject: warm-up, windows, stages, memory, energy, and how near it came to the limits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from refusion_edge.bench.clock import Clock
from refusion_edge.bench.limits import Rates, Roofline, roofline
from refusion_edge.bench.memory import MemoryUse, MemoryWatch
from refusion_edge.bench.sensors import MachineState, open_meter, read_state
from refusion_edge.bench.stages import END_TO_END, Lap, Pipeline, median_end_to_end, times_of
from refusion_edge.bench.statistics import Spread, spread
from refusion_edge.bench.subjects import Identity, Quality, Subject
from refusion_edge.bench.windows import AGREEING, Plan, Series, measure_windows
from refusion_edge.errors import BackendError
from refusion_edge.network.cost import work_per_pixel

_OUTLINE = 101


@dataclass(frozen=True, slots=True)
class WindowSummary:
    """One window in short.

    Attributes:
        started_s: When it started, after the warm-up.
        count: Iterations.
        median_ms: Median of the end-to-end time.
        max_ms: Largest end-to-end time.
    """

    started_s: float
    count: int
    median_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True)
class Row:
    """What one measurement gave. Where it was not stable, there is no number but the windows.

    Attributes:
        identity: What was measured.
        files: SHA-256 of what it is made from.
        quality: Verdict of its accuracy gate, or None.
        stable: Whether the last three windows agree.
        warmup_iterations: Iterations of the warm-up.
        warmup_ms: Time of the warm-up.
        windows: All windows.
        jumps_ms: Jumps of the clock, whose windows were thrown away.
        stages: Stage, ``end_to_end`` and ``cpu`` to their distributions over the last three windows.
        outline_ms: 101 quantiles of the end-to-end time, from the least to the largest.
        pairs_per_s: Pairs fused in a second, one after the other.
        drift: Median of the last window over that of the first.
        memory: Peak memory.
        energy_mj: Energy of the machine for one pair, mJ; None where nothing counts it.
        energy_source: What counted it; empty if nothing did.
        before: State of the machine before the warm-up.
        after: State of the machine after the last window.
        roofline: How near the network came to the limits of the processor or device; None where they were not measured.
        graph_problem: Why runs were not replayed from a recorded CUDA graph; empty if they were, and without a device.
    """

    identity: Identity
    files: dict[str, str]
    quality: Quality | None
    stable: bool
    warmup_iterations: int
    warmup_ms: float
    windows: tuple[WindowSummary, ...]
    jumps_ms: tuple[float, ...]
    stages: dict[str, Spread] | None
    outline_ms: tuple[float, ...] | None
    pairs_per_s: float | None
    drift: float
    memory: MemoryUse
    energy_mj: float | None
    energy_source: str
    before: MachineState
    after: MachineState
    roofline: Roofline | None
    graph_problem: str = ""


def measure(subject: Subject, plan: Plan, clock: Clock, limits: Rates | None) -> Row:
    """Open a subject, measure it, and close it.

    Args:
        subject: What to measure.
        plan: How long.
        clock: The clock.
        limits: Limits of the processor or device that runs it, or None.

    Raises:
        BackendError: Another back end would run than the one asked for.
        BundleError: The bundle was changed meanwhile.
        CheckpointError: The weights were changed meanwhile.
        MeasurementError: The clock keeps jumping.
    """
    before = read_state()
    with MemoryWatch() as memory, open_pipeline(subject, clock) as pipeline, open_meter() as meter:
        # Energy of the windows only: the meter runs through the warm-up, and what it had read then is taken off.
        marks_j: list[float | None] = []

        def mark() -> None:
            energy = meter.read()
            marks_j.append(None if energy is None else energy.joules)

        series = measure_windows(pipeline.run, median_end_to_end, plan, clock, mark)
        energy = meter.read()
        used, graph_problem = memory.use(), pipeline.graph_problem
    after = read_state()
    subject.check_unchanged()

    times_ms = times_of(series.laps)
    stages = {stage: spread(times) for stage, times in times_ms.items()} if series.stable else None
    outline = np.quantile(times_ms[END_TO_END], np.linspace(0, 1, _OUTLINE)) if series.stable else None
    started_j = marks_j[-AGREEING] if len(marks_j) >= AGREEING else None
    energy_mj = None
    if series.stable and energy is not None and started_j is not None and not series.jumps_ms:
        energy_mj = 1e3 * (energy.joules - started_j) / len(series.laps)
    return Row(
        identity=subject.identity,
        files=subject.files,
        quality=subject.quality,
        stable=series.stable,
        warmup_iterations=series.warmup_iterations,
        warmup_ms=series.warmup_ms,
        windows=_summaries(series),
        jumps_ms=series.jumps_ms,
        stages=stages,
        outline_ms=None if outline is None else tuple(float(value) for value in outline),
        pairs_per_s=1e3 / stages[END_TO_END].mean_ms if stages else None,
        drift=series.drift,
        memory=used,
        energy_mj=energy_mj,
        energy_source=energy.source if energy is not None else "",
        before=before,
        after=after,
        roofline=_roofline(subject.identity, stages, limits),
        graph_problem=graph_problem,
    )


@contextlib.contextmanager
def open_pipeline(subject: Subject, clock: Clock) -> Iterator[Pipeline]:
    """Open what a subject names, and close it at the end.

    Raises:
        BackendError: Another back end would run than the one asked for.
    """
    with subject.open() as fuser:
        wanted = subject.identity.backend
        if fuser.backend.name != wanted:
            raise BackendError(f"expected the back end {wanted} to run {subject.identity.name}, got {fuser.backend.name}.")
        identity = subject.identity
        yield Pipeline(fuser, subject.source, captured=subject.captured, clock=clock, colour=identity.colour)


def _summaries(series: Series[Lap]) -> tuple[WindowSummary, ...]:
    return tuple(
        WindowSummary(window.started_s, len(window.laps), window.figure, max(lap.end_to_end_ms for lap in window.laps))
        for window in series.windows
    )


def _roofline(identity: Identity, stages: dict[str, Spread] | None, limits: Rates | None) -> Roofline | None:
    if stages is None or limits is None or "infer" not in stages:
        return None
    return roofline(work_per_pixel(identity.precision), identity.pixels, stages["infer"].median_ms, limits)
