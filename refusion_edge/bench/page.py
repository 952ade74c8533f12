"""The result of a benchmark: as text for tables and pages, and as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refusion_edge.bench.comparison import Comparison
from refusion_edge.bench.deadline import Deadline
from refusion_edge.bench.history import Change
from refusion_edge.bench.measurement import CPU, END_TO_END, STAGES, Row, WindowSummary
from refusion_edge.bench.report import NOT_STABLE, SYNCHRONIZATION, Report, stage_order
from refusion_edge.bench.sensors import NOT_AVAILABLE, MachineState
from refusion_edge.bench.statistics import PERCENTILES, percentile_name, verdict
from refusion_edge.report.html import render
from refusion_edge.report.plots import COLORS, bars, curves, distribution, scatter

ABSENT = "-"
# Equal images have no finite PSNR; they are drawn at this value, above anything a gate measures.
_EQUAL_DB = 120.0


def time_text(value_ms: float | None) -> str:
    """A time in ms to three digits, or a dash."""
    if value_ms is None:
        return ABSENT
    return f"{value_ms:.0f}" if value_ms >= 100 else f"{value_ms:.3g}"


def stage_text(row: Row, stage: str, what: str = "median") -> str:
    """Median, percentile or maximum of a stage; a dash if the stage is absent."""
    if row.stages is None:
        return NOT_STABLE
    found = row.stages.get(stage)
    if found is None:
        return ABSENT
    named = {"median": found.median_ms, "max": found.max_ms, **found.percentiles_ms}
    return time_text(named[what])


def drift_text(row: Row) -> str:
    """Median of the last window over that of the first."""
    return f"{row.drift:.2f}x"


def energy_text(row: Row) -> str:
    """Energy per pair."""
    return NOT_AVAILABLE if row.energy_mj is None else f"{row.energy_mj:.3g} mJ"


def memory_text(row: Row) -> str:
    """Peak memory of the process, and the engine's share of it."""
    added = "" if row.memory.added_mib is None else f" (+{row.memory.added_mib:.0f})"
    return f"{row.memory.peak_mib:.0f}{added}"


def device_memory_text(row: Row) -> str:
    """Memory on the accelerator."""
    return ABSENT if row.memory.device_mib is None else f"{row.memory.device_mib:.0f}"


def roofline_text(row: Row) -> str:
    """Share of the limits of the processor or device."""
    return ABSENT if row.roofline is None else f"{row.roofline.share:.0%} ({row.roofline.bound})"


def throughput_text(row: Row) -> str:
    """Pairs per second."""
    return NOT_STABLE if row.pairs_per_s is None else f"{row.pairs_per_s:.3g}"


def state_texts(state: MachineState) -> dict[str, str]:
    """Clocks, temperatures and power mode."""
    clocks = ", ".join(f"{name} {clock:.0f} MHz" for name, clock in state.clocks_mhz.items())
    temperatures = ", ".join(f"{zone} {degrees:.0f} °C" for zone, degrees in state.temperatures_c.items())
    return {
        "clocks": clocks or NOT_AVAILABLE,
        "temperatures": temperatures or NOT_AVAILABLE,
        "power mode": state.power_mode,
    }


def stability_text(row: Row) -> str:
    """How the row was measured, in one line."""
    counted = sum(window.count for window in row.windows[-3:])
    what = f"{counted} iterations in the last 3 of {len(row.windows)} windows"
    jumps = f", {len(row.jumps_ms)} more discarded because the clock jumped" if row.jumps_ms else ""
    return f"warm-up {row.warmup_iterations} iterations in {row.warmup_ms:.0f} ms; {what}{jumps}"


def graph_texts(report: Report) -> list[str]:
    """A line for each engine whose runs were launched kernel by kernel because no CUDA graph could be recorded."""
    found = [(row.identity, row.graph_problem) for row in report.rows]
    found += [(held.identity, held.graph_problem) for held in report.deadlines]
    if (both := report.comparison) is not None:
        found += zip((both.first, both.second), both.graph_problems, strict=True)
    return [f"{identity.label}: NOT replayed from a recorded CUDA graph: {problem}" for identity, problem in found if problem]


def limits_text(report: Report) -> str:
    """The measured limits of the processor and the device."""
    texts = []
    if (limits := report.limits) is not None:
        texts.append(
            f"float32 matrix product {limits.matrix_gflops:.0f} GFLOP/s, copies {limits.copy_gb_per_s:.1f} GB/s on "
            f"{limits.cores} cores"
        )
    if (device := report.device_limits) is not None:
        texts.append(
            f"{device.device}: half-precision products {device.matrix_gflops:.0f} GFLOP/s, copies "
            f"{device.copy_gb_per_s:.0f} GB/s"
        )
    return f"limits measured here: {'; '.join(texts)}" if texts else "limits of the machine: not measured"


def load_text(report: Report) -> str:
    """A warning if other programs disturbed the numbers, otherwise nothing."""
    if not report.loaded:
        return ""
    return f"LOADED MACHINE: {report.load_before} before, {report.load_after} after; do not quote these numbers"


def deadline_text(found: Deadline) -> str:
    """Whether the engine keeps up with the rate."""
    answer = "holds" if found.holds else "does NOT hold"
    return (
        f"{found.identity.label} {answer} {found.fps:g} fps for {found.seconds:g} s: {found.dropped + found.late} of "
        f"{found.arrived} frames missed ({found.missed_share:.2%}; {found.dropped} dropped, {found.late} late; allowed "
        f"{found.allowed_share:.2%})"
    )


def change_text(change: Change) -> str:
    """The ratio of a change, and whether it is a regression."""
    if change.ratio is None:
        return f"{NOT_STABLE} {'before' if change.before_ms is None else 'now'}"
    return f"{change.ratio:.2f}x {'REGRESSION' if change.is_regression else 'ok'}"


def render_page(report: Report, changes: Sequence[Change] = ()) -> str:
    """Render the page: tables, distributions, stages, quality against latency, latency over time.

    Args:
        report: The report.
        changes: Changes since an earlier report, if one was given.

    Returns:
        Self-contained HTML.

    Raises:
        MissingDependencyError: Jinja is not installed.
    """
    shown = ["median", *map(percentile_name, PERCENTILES), "max"]
    return render(
        "refusion_edge.bench",
        "page.html.j2",
        report=report,
        changes=changes,
        **{text.__name__: text for text in _TEXTS},
        not_stable=NOT_STABLE,
        synchronization=SYNCHRONIZATION,
        figures=shown,
        stages=(*STAGES, END_TO_END, CPU),
        colors=dict(zip(STAGES, COLORS, strict=False)),
        distributions=_distributions(report),
        stage_bars=_stage_bars(report),
        quality=_quality(report),
        over_time=[(row.identity.label, _over_time(row.windows)) for row in report.rows],
        comparison=None if report.comparison is None else _comparison_lines(report.comparison),
        minutes=[(deadline, _minutes(deadline)) for deadline in report.deadlines],
    )


_TEXTS = (
    time_text, stage_text, drift_text, energy_text, memory_text, device_memory_text, roofline_text, throughput_text,
    state_texts, stability_text, graph_texts, limits_text, load_text, deadline_text, change_text,
)  # fmt: skip
"""What the template calls."""


def _distributions(report: Report) -> str:
    stable = {row.identity.label: row for row in report.rows if row.outline_ms is not None}
    if not stable:
        return ""
    values = {label: np.array(row.outline_ms) for label, row in stable.items()}
    return distribution(values, {label: f"{stage_text(row, END_TO_END)} ms" for label, row in stable.items()})


def _stage_bars(report: Report) -> str:
    return bars(
        {
            row.identity.label: {stage: row.stages[stage].median_ms for stage in STAGES if stage in row.stages}
            for row in report.rows
            if row.stages is not None
        },
        STAGES,
    )


def _quality(report: Report) -> str:
    points = {}
    for row in report.rows:
        if row.stages is not None and row.quality is not None:
            psnr_db = _EQUAL_DB if row.quality.psnr_db is None else min(row.quality.psnr_db, _EQUAL_DB)
            points[row.identity.label] = (row.stages[END_TO_END].median_ms, psnr_db)
    return scatter(points, unit="ms")


def _over_time(windows: Sequence[WindowSummary]) -> str:
    starts = [window.started_s / 60 for window in windows]
    medians = np.array([window.median_ms for window in windows])
    return curves(starts, {"median": medians}, unit="min")


def _minutes(deadline: Deadline) -> str:
    numbers = [float(index + 1) for index in range(len(deadline.minutes))]
    ages = {
        "median age": [minute.median_age_ms for minute in deadline.minutes],
        "largest age": [minute.max_age_ms for minute in deadline.minutes],
    }
    known = {name: np.array([np.nan if age is None else age for age in of_name]) for name, of_name in ages.items()}
    return curves(numbers, known, unit="min")


def _comparison_lines(found: Comparison) -> list[tuple[str, str]]:
    if found.ratios is None:
        return [(END_TO_END, NOT_STABLE)]
    return [(stage, verdict(found.first.label, found.second.label, found.ratios[stage])) for stage in stage_order(found.ratios)]
