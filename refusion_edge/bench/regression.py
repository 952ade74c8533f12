"""Measurements against those of an earlier report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from refusion_edge.bench.load import Load
from refusion_edge.bench.measurement import Row
from refusion_edge.bench.report import SCHEMA, Report, machine_differences, row_from_document
from refusion_edge.bench.stages import END_TO_END
from refusion_edge.bench.subjects import Identity
from refusion_edge.documents import parse_json, shown, typed
from refusion_edge.errors import InputError, UsageError
from refusion_edge.files import read_file

DEFAULT_THRESHOLD = 0.10
_MOST_BYTES = 64 << 20
# What has to be the same for two numbers to be about the same thing; the name and the files may change.
_COMPARED = ("task", "size_text", "precision", "backend", "threads", "colour", "output_range")


@dataclass(frozen=True, slots=True)
class Change:
    """A measurement beside its predecessor.

    Attributes:
        identity: What was measured.
        stage: Stage that is compared.
        before_ms: Median then; None if it was not stable.
        now_ms: Median now; None if it is not stable.
        threshold: Share by which it may be slower.
    """

    identity: Identity
    stage: str
    before_ms: float | None
    now_ms: float | None
    threshold: float

    @property
    def ratio(self) -> float | None:
        """Time now over time then; None where one of them is not stable."""
        return None if self.before_ms is None or self.now_ms is None else self.now_ms / self.before_ms

    @property
    def is_regression(self) -> bool:
        """Whether it became slower by more than the threshold; a number that cannot be given any more counts as one."""
        if self.before_ms is None:
            return False
        return self.ratio is None or self.ratio > 1 + self.threshold


@dataclass(frozen=True, slots=True)
class Baseline:
    """An earlier report.

    Attributes:
        path: Its file.
        machine: The machine that it was measured on.
        rows: Its measurements.
        loaded: Whether other programs disturbed them.
    """

    path: Path
    machine: dict[str, Any]
    rows: tuple[Row, ...]
    loaded: bool = False


def read_baseline(path: Path) -> Baseline:
    """Read the JSON of an earlier run.

    Raises:
        InputError: It cannot be read, or is something else.
    """
    data = read_file(path, kind="report to compare with", most_bytes=_MOST_BYTES)
    document = typed(dict[str, Any], parse_json(data, str(path)), str(path))
    if document.get("schema") != SCHEMA:
        raise InputError(
            f"{path} has the schema {shown(document.get('schema'))} instead of {SCHEMA}; write one with bench --json."
        )
    machine = typed(dict[str, Any], document.get("machine"), f"machine in {path}")
    rows = typed(list[Any], document.get("rows"), f"rows in {path}")
    # Counted anew, so that the word alone, which may have been edited, is not enough.
    loads = [typed(Load, document.get(name), f"{name} in {path}") for name in ("load_before", "load_after")]
    loaded = typed(bool, document.get("loaded"), f"loaded in {path}") or any(load.is_too_high for load in loads)
    return Baseline(path, machine, tuple(row_from_document(row, str(path)) for row in rows), loaded)


def check_comparable(baseline: Baseline, identities: Sequence[Identity], machine: dict[str, Any]) -> None:
    """Make sure that an earlier report is about the same things, before anything is measured.

    Raises:
        UsageError: It is of another machine, or does not hold one of the measurements; names the difference.
    """
    differences = machine_differences(machine, baseline.machine)
    if differences:
        raise UsageError(
            f"expected {baseline.path} to be measured on this machine, got another one ({'; '.join(differences)}); measure "
            "both on one."
        )
    for identity in identities:
        _predecessor(baseline, identity)


def changes(report: Report, baseline: Baseline, threshold: float, stage: str = END_TO_END) -> tuple[Change, ...]:
    """Hold every measurement of a report against its predecessor.

    Args:
        report: What was measured now.
        baseline: The earlier report.
        threshold: Share by which a median may be slower.
        stage: Stage to compare.

    Raises:
        UsageError: The earlier report does not hold one of them; names the difference.
    """
    found = []
    for row in report.rows:
        before = _predecessor(baseline, row.identity)
        found.append(Change(row.identity, stage, _median_ms(before, stage), _median_ms(row, stage), threshold))
    return tuple(found)


def _predecessor(baseline: Baseline, identity: Identity) -> Row:
    wanted = {name: getattr(identity, name) for name in _COMPARED}
    candidates = [{name: getattr(row.identity, name) for name in _COMPARED} for row in baseline.rows]
    if wanted in candidates:
        return baseline.rows[candidates.index(wanted)]
    differences = [machine_differences(wanted, candidate) for candidate in candidates]
    fewest = min(differences, key=len, default=["it is empty"])
    raise UsageError(
        f"expected {baseline.path} to hold a measurement like {identity.label}, got none ({'; '.join(fewest)}); compare like "
        "with like."
    )


def _median_ms(row: Row, stage: str) -> float | None:
    if row.stages is None:
        return None
    if stage not in row.stages:
        raise UsageError(
            f"expected the stage {stage} in {row.identity.label}, got {', '.join(row.stages)}; choose one of them."
        )
    return row.stages[stage].median_ms
