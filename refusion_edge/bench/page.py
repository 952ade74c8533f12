"""The result of a benchmark as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refusion_edge.bench import wording
from refusion_edge.bench.comparison import Comparison
from refusion_edge.bench.deadline import Deadline
from refusion_edge.bench.measurement import WindowSummary
from refusion_edge.bench.regression import Change
from refusion_edge.bench.report import NOT_STABLE, SYNCHRONISATION, Report, stage_order
from refusion_edge.bench.stages import CPU, END_TO_END, STAGES
from refusion_edge.bench.statistics import PERCENTILES, percentile_name, verdict
from refusion_edge.report.html import render
from refusion_edge.report.plots import COLOURS, bars, curves, distribution, scatter

# Equal pictures have no finite PSNR; drawn here, above all that a gate lets through.
_EQUAL_DB = 120.0


def render_page(report: Report, changes: Sequence[Change] = ()) -> str:
    """Make the page: tables, distributions, stages, quality against latency, latency over time.

    Args:
        report: What was found.
        changes: Against an earlier report, if there was one.

    Returns:
        HTML that needs nothing from outside.

    Raises:
        MissingDependencyError: Jinja is not installed.
    """
    shown = ["median", *map(percentile_name, PERCENTILES), "max"]
    return render(
        "refusion_edge.bench",
        "page.html.j2",
        report=report,
        changes=changes,
        wording=wording,
        not_stable=NOT_STABLE,
        synchronisation=SYNCHRONISATION,
        figures=shown,
        stages=(*STAGES, END_TO_END, CPU),
        colours=dict(zip(STAGES, COLOURS, strict=False)),
        distributions=_distributions(report),
        stage_bars=_stage_bars(report),
        quality=_quality(report),
        over_time=[(row.identity.label, _over_time(row.windows)) for row in report.rows],
        comparison=None if report.comparison is None else _comparison_lines(report.comparison),
        minutes=[(deadline, _minutes(deadline)) for deadline in report.deadlines],
    )


def _distributions(report: Report) -> str:
    stable = {row.identity.label: row for row in report.rows if row.outline_ms is not None}
    if not stable:
        return ""
    values = {label: np.array(row.outline_ms) for label, row in stable.items()}
    return distribution(values, {label: f"{wording.stage_text(row, END_TO_END)} ms" for label, row in stable.items()})


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
