"""The result of an evaluation, and its JSON and CSV forms."""

from __future__ import annotations

import csv
import io
import itertools
import math
from dataclasses import asdict, dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from refusion_edge._version import __version__
from refusion_edge.evaluation.cases import CaseList
from refusion_edge.evaluation.scoring import Sweep
from refusion_edge.evaluation.statistics import Difference, Summary, difference, ranks, summarize
from refusion_edge.metrics import CONVENTIONS, Metric
from refusion_edge.report.bootstrap import CONFIDENCE, RESAMPLES, SEED
from refusion_edge.tasks import Task

SCHEMA = "refusion-edge/evaluation/1"
UNDEFINED = "undefined"

_MOST_DECIMALS = 6
FEWEST_IMAGES = 10
"""With fewer images, bootstrap intervals are too narrow."""


@dataclass(frozen=True, slots=True)
class SweepResult:
    """Effect of misregistration.

    Attributes:
        sweep: Offsets tried.
        means: (methods, offsets, metrics), means over the images; NaN where undefined.
    """

    sweep: Sweep
    means: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Report:
    """Result of an evaluation.

    Attributes:
        task: Fusion task.
        found: Methods, cases and files left out.
        metrics: Metrics.
        values: (methods, cases, metrics), NaN where undefined.
        misregistration: Result of the sweep, or None.
    """

    task: Task
    found: CaseList
    metrics: tuple[Metric, ...]
    values: NDArray[np.float64]
    misregistration: SweepResult | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods."""
        return self.found.methods

    @property
    def conventions(self) -> tuple[str, ...]:
        """Conventions in use, in the order of their table."""
        return tuple(name for name in CONVENTIONS if any(metric.convention == name for metric in self.metrics))

    @property
    def caution(self) -> str:
        """A warning about the intervals, in a sentence; empty if there are enough images."""
        count = len(self.found.cases)
        if count >= FEWEST_IMAGES or len(self.methods) < 2:
            return ""
        images = f"only {count} image{'' if count == 1 else 's'}"
        return f"{images}: with fewer than {FEWEST_IMAGES}, intervals are too narrow, and ranks may be due to chance"

    def metrics_in(self, convention: str) -> tuple[Metric, ...]:
        """Metrics of one convention."""
        return tuple(metric for metric in self.metrics if metric.convention == convention)

    def of(self, method: str, metric: Metric) -> NDArray[np.float64]:
        """Values of a method in a metric, (cases,)."""
        return self.values[self.methods.index(method), :, self.metrics.index(metric)]

    def summary(self, method: str, metric: Metric) -> Summary:
        """Summary of a method in a metric."""
        return summarize(self.of(method, metric))

    def ranks(self, metric: Metric) -> dict[str, int | None]:
        """Method to its rank in a metric, 1 for the best."""
        values = self.values[:, :, self.metrics.index(metric)]
        return dict(zip(self.methods, ranks(values, higher_is_better=metric.direction == "higher"), strict=True))

    def ranking(self) -> list[tuple[str, float | None]]:
        """Methods and their mean rank over all metrics that are defined for them, best first."""
        by_metric = [self.ranks(metric) for metric in self.metrics]
        mean_ranks: list[tuple[str, float | None]] = []
        for method in self.methods:
            own = [rank for rank in (found[method] for found in by_metric) if rank is not None]
            mean_ranks.append((method, float(np.mean(own)) if own else None))
        return sorted(mean_ranks, key=lambda entry: math.inf if entry[1] is None else entry[1])

    def difference(self, first: str, second: str, metric: Metric) -> Difference:
        """How much higher ``first`` is than ``second``."""
        return difference(self.of(first, metric), self.of(second, metric))

    def to_document(self) -> dict[str, Any]:
        """Everything as strict JSON: undefined values are null, every number is given with its convention."""
        return {
            "schema": SCHEMA,
            "task": self.task.name,
            "conventions": {name: CONVENTIONS[name] for name in self.conventions},
            "metrics": [_describe(metric) for metric in self.metrics],
            "methods": list(self.methods),
            "images": [case.name for case in self.found.cases],
            "left_out": [str(path) for path in self.found.left_out],
            "ranking": [{"method": method, "mean_rank": rank} for method, rank in self.ranking()],
            "summary": [
                {"method": method, **_name(metric), **asdict(self.summary(method, metric)), "rank": self.ranks(metric)[method]}
                for metric in self.metrics
                for method in self.methods
            ],
            "differences": [
                {"first": first, "second": second, **_name(metric), **asdict(self.difference(first, second, metric))}
                for metric in self.metrics
                for first, second in itertools.combinations(self.methods, 2)
            ],
            "bootstrap": {"resamples": RESAMPLES, "seed": SEED, "confidence": CONFIDENCE},
            "caution": self.caution or None,
            "values": [
                {"image": case.name, "method": method, **_name(metric), "value": _or_none(value)}
                for method, of_method in zip(self.methods, self.values, strict=True)
                for case, of_case in zip(self.found.cases, of_method, strict=True)
                for metric, value in zip(self.metrics, of_case, strict=True)
            ],
            "misregistration": self._misregistration_document(),
            "tools": {"refusion-edge": __version__, "numpy": np.__version__, "opencv": cv2.__version__},
        }

    def to_csv(self) -> str:
        """Values per image as CSV: one row for each image and method, one column for each metric with its convention."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["image", "method", *(metric.label for metric in self.metrics)])
        for method, of_method in zip(self.methods, self.values, strict=True):
            for case, of_case in zip(self.found.cases, of_method, strict=True):
                numbers = (UNDEFINED if math.isnan(value) else f"{value:.10g}" for value in of_case)
                writer.writerow([case.name, method, *numbers])
        return text.getvalue()

    def _misregistration_document(self) -> list[dict[str, Any]]:
        if self.misregistration is None:
            return []
        sweep, means = self.misregistration.sweep, self.misregistration.means
        return [
            {"method": method, "kind": sweep.kind, "offset_px": offset, **_name(metric), "mean": _or_none(mean)}
            for method, of_method in zip(self.methods, means, strict=True)
            for offset, at_offset in zip(sweep.offsets_px, of_method, strict=True)
            for metric, mean in zip(self.metrics, at_offset, strict=True)
        ]


def format_value(value: float | None) -> str:
    """A value with the digits customary in tables, or ``undefined``."""
    if value is None or math.isnan(value):
        return UNDEFINED
    if value == 0:
        return "0"
    digits = max(0, 3 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}" if digits <= _MOST_DECIMALS else f"{value:.2e}"


def format_difference(value: float) -> str:
    """A signed difference to three digits."""
    return f"{value:+.3g}" if abs(value) < 1000 else f"{value:+.0f}"


def _name(metric: Metric) -> dict[str, str]:
    return {"metric": metric.name, "convention": metric.convention}


def _describe(metric: Metric) -> dict[str, Any]:
    return {
        **_name(metric), "title": metric.title, "direction": metric.direction, "unit": metric.unit, "paper": metric.paper,
        "low": metric.low if math.isfinite(metric.low) else None, "high": metric.high if math.isfinite(metric.high) else None,
    }  # fmt: skip


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
