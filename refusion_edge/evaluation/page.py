"""The result of an evaluation as one self-contained HTML page."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import cv2
import numpy as np

from refusion_edge.arrays import Uint8Array
from refusion_edge.evaluation.cases import Case
from refusion_edge.evaluation.report import UNDEFINED, Report, format_difference, format_value
from refusion_edge.evaluation.statistics import image_quality
from refusion_edge.images.io import read_still
from refusion_edge.images.ranges import to_display8
from refusion_edge.images.still import Still
from refusion_edge.metrics import CONVENTIONS, Metric
from refusion_edge.report.bootstrap import CONFIDENCE, RESAMPLES
from refusion_edge.report.html import render
from refusion_edge.report.plots import COLORS, curves, distribution
from refusion_edge.tasks import DISPLAY, Role, Task

_SHOWN = 3
_TILE_HEIGHT = 200
_JPEG_QUALITY = 85


@dataclass(frozen=True, slots=True)
class _Montage:
    name: str
    quality: str
    image: str


@dataclass(frozen=True, slots=True)
class _Cell:
    text: str
    style: str
    hint: str


def render_page(report: Report) -> str:
    """Render the page: ranking, tables with the best three marked, differences, plots, montages, values per image.

    Args:
        report: The report; the files of its cases are read again for the montages.

    Returns:
        Self-contained HTML.

    Raises:
        MissingDependencyError: Jinja is not installed.
        InputError: An image was removed or changed since it was scored.
    """
    ranked = [method for method, _ in report.ranking()]
    return render(
        "refusion_edge.evaluation",
        "page.html.j2",
        report=report,
        conventions=CONVENTIONS,
        confidence=f"{CONFIDENCE:.0%}",
        resamples=f"{RESAMPLES:,}",
        undefined=UNDEFINED,
        ranked=ranked,
        ranking=[(method, COLORS[index % len(COLORS)], rank) for index, (method, rank) in enumerate(report.ranking())],
        mean=lambda method, metric: _mean_cell(report, method, metric),
        difference=lambda first, second, metric: _difference_cell(report, first, second, metric),
        plot=lambda metric: _plot(report, ranked, metric),
        curve=lambda metric: _curve(report, ranked, metric),
        extremes=lambda method: _extremes(report, method),
        rows=lambda method: _rows(report, method),
    )


def _mean_cell(report: Report, method: str, metric: Metric) -> _Cell:
    summary, rank = report.summary(method, metric), report.ranks(metric)[method]
    hint = f"{summary.images} images" + (f", {summary.undefined} {UNDEFINED}" if summary.undefined else "")
    if summary.standard_error is not None:
        hint += f", standard error {format_value(summary.standard_error)}"
    marked = rank is not None and rank <= _SHOWN and len(report.methods) > 1
    text = format_value(summary.mean) + ("*" if summary.undefined and summary.images else "")
    return _Cell(text, f"rank{rank}" if marked else "", hint)


def _difference_cell(report: Report, first: str, second: str, metric: Metric) -> _Cell:
    found = report.difference(first, second, metric)
    if found.mean is None:
        return _Cell(UNDEFINED, "", "")
    text = format_difference(found.mean)
    interval = UNDEFINED
    if found.low is not None and found.high is not None:
        interval = f"{format_difference(found.low)} … {format_difference(found.high)}"
    style = ""
    if found.distinct:
        style = "better" if (found.mean > 0) == (metric.direction == "higher") else "worse"
    return _Cell(text, style, f"[{interval}]")


def _plot(report: Report, methods: list[str], metric: Metric) -> str:
    return distribution(
        {method: report.of(method, metric) for method in methods},
        {method: format_value(report.summary(method, metric).mean) for method in methods},
    )


def _curve(report: Report, methods: list[str], metric: Metric) -> str:
    if report.misregistration is None:
        return ""
    index = report.metrics.index(metric)
    means = {method: report.misregistration.means[report.methods.index(method), :, index] for method in methods}
    return curves(report.misregistration.sweep.offsets_px, means, unit="px")


def _extremes(report: Report, method: str) -> dict[str, list[_Montage]]:
    """Montages of the worst and of the best cases of a method, most extreme first."""
    higher = np.array([metric.direction == "higher" for metric in report.metrics])
    quality = image_quality(report.values[report.methods.index(method)], higher)
    order = np.argsort(quality, kind="stable")
    count = min(_SHOWN, len(order) // 2) or 1
    if not all(case.results[method].color.exists() for case in report.found.cases):
        return {}  # merged shards, whose engines fused into a folder that is gone
    return {
        title: [_montage(report.found.cases[index], report.task, method, quality[index]) for index in indices]
        for title, indices in (("Worst", order[:count]), ("Best", order[::-1][:count]))
    }


def _montage(case: Case, task: Task, method: str, quality: float) -> _Montage:
    sources = zip((case.a, case.b, case.results[method].color), (*task.roles, DISPLAY), strict=True)
    tiles = [_tile(read_still(path), role) for path, role in sources]
    gap = np.full((_TILE_HEIGHT, 6, 3), 255, np.uint8)
    row = np.concatenate([tiles[0], gap, tiles[1], gap, tiles[2]], axis=1)
    _, data = cv2.imencode(".jpg", cv2.cvtColor(row, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return _Montage(case.name, f"{quality:.0%}", "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode())


def _tile(still: Still, role: Role) -> Uint8Array:
    """An image as it is fused, scaled to the common height, (200, W, 3) uint8."""
    shown = to_display8(still.pixels, role, encoding=still.encoding)
    width = max(1, round(shown.shape[1] * _TILE_HEIGHT / shown.shape[0]))
    resized = cv2.resize(shown, (width, _TILE_HEIGHT), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.cvtColor(resized, cv2.COLOR_GRAY2RGB) if resized.ndim == 2 else resized, np.uint8)


def _rows(report: Report, method: str) -> list[tuple[str, list[str]]]:
    values = report.values[report.methods.index(method)]
    return [
        (case.name, [format_value(float(value)) for value in row]) for case, row in zip(report.found.cases, values, strict=True)
    ]
