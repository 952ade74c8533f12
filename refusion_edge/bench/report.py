"""The result of a benchmark, and its conversion to and from strict JSON and to CSV."""

from __future__ import annotations

import csv
import datetime
import io
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from refusion_edge._version import __version__
from refusion_edge.backends.registry import status
from refusion_edge.bench.comparison import Comparison, Recommendation, from_comparison, from_rows
from refusion_edge.bench.deadline import Deadline
from refusion_edge.bench.limits import DeviceLimits, Limits
from refusion_edge.bench.measurement import END_TO_END, STAGES, Row
from refusion_edge.bench.statistics import PERCENTILES, Spread, percentile_name
from refusion_edge.bench.timing import Load, Plan
from refusion_edge.documents import shown, typed
from refusion_edge.errors import InputError
from refusion_edge.machine import accelerator, processor, this_machine, usable_cores
from refusion_edge.report.bootstrap import CONFIDENCE, RESAMPLES, SEED

SCHEMA = "refusion-edge/bench/1"
NOT_STABLE = "not stable"
SYNCHRONIZATION = "the call to the back end returns when the device is done, and is part of the measured time"

_GIT_TIMEOUT_S = 5


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine a report was measured on.

    Attributes:
        system: Operating system and architecture.
        processor: Name of the processor.
        cores: Cores available to the process.
        accelerator: Name of the NVIDIA device, or None.
    """

    system: str
    processor: str
    cores: int
    accelerator: str | None


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a benchmark.

    Attributes:
        started: Start, ISO 8601 in UTC.
        machine: The machine.
        versions: Versions of everything involved.
        clock: Name of the clock.
        plan: How long each measurement lasted.
        load_before: Load of the machine before.
        load_after: Load of the machine after.
        limits: Limits of the processor; None if not measured.
        device_limits: Limits of the CUDA device; None if not measured or nothing ran on one.
        rows: Measurements.
        comparison: Two engines in turns, or None.
        deadlines: Runs at a fixed rate.
    """

    started: str
    machine: Machine
    versions: dict[str, str]
    clock: str
    plan: Plan
    load_before: Load
    load_after: Load
    limits: Limits | None
    device_limits: DeviceLimits | None
    rows: tuple[Row, ...] = ()
    comparison: Comparison | None = None
    deadlines: tuple[Deadline, ...] = ()

    @property
    def loaded(self) -> bool:
        """Whether other programs disturbed the numbers."""
        return self.load_before.is_too_high or self.load_after.is_too_high

    @property
    def passed(self) -> bool:
        """Whether everything was stable and every rate was held."""
        stable = all(row.stable for row in self.rows) and (self.comparison is None or self.comparison.stable)
        return stable and all(deadline.holds for deadline in self.deadlines)

    @property
    def recommendations(self) -> tuple[Recommendation, ...]:
        """Which INT8 engines are worth using on this machine."""
        return (*from_rows(self.rows), *from_comparison(self.comparison))

    def to_document(self) -> dict[str, Any]:
        """The report as strict JSON; null for what was not measured or is not stable."""
        return {
            "schema": SCHEMA,
            "started": self.started,
            "machine": asdict(self.machine),
            "versions": self.versions,
            "clock": self.clock,
            "synchronization": SYNCHRONIZATION,
            "plan": asdict(self.plan),
            "load_before": asdict(self.load_before),
            "load_after": asdict(self.load_after),
            "loaded": self.loaded,
            "limits": None if self.limits is None else asdict(self.limits),
            "device_limits": None if self.device_limits is None else asdict(self.device_limits),
            "bootstrap": {"resamples": RESAMPLES, "seed": SEED, "confidence": CONFIDENCE},
            "rows": [row_document(row) for row in self.rows],
            "comparison": None if self.comparison is None else _comparison_document(self.comparison),
            "deadlines": [_deadline_document(deadline) for deadline in self.deadlines],
            "recommendations": [asdict(one) for one in self.recommendations],
        }

    def to_csv(self) -> str:
        """CSV with one line per measurement and stage; empty fields are not available or not stable."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = [percentile_name(percent) for percent in PERCENTILES]
        writer.writerow(
            ["name", "task", "precision", "size", "backend", "threads", "stable", "stage", "count", "mean_ms", "median_ms"]
            + [f"{name}_ms" for name in names]
            + ["max_ms", "pairs_per_s", "peak_mib", "energy_mj", "roofline_share"]
        )
        for row in self.rows:
            one = row.identity
            common = [one.name, one.task, one.precision, one.size_text, one.backend, one.threads, int(row.stable)]
            share = row.roofline.share if row.roofline else None
            extra = [row.pairs_per_s, row.memory.peak_mib, row.energy_mj, share]
            if row.stages is None:
                writer.writerow([*common, END_TO_END, *[""] * (4 + len(names)), *map(_csv_number, extra)])
                continue
            for stage, found in row.stages.items():
                writer.writerow([*common, stage, *map(_csv_number, _csv_times(found, names)), *map(_csv_number, extra)])
        return text.getvalue()


def now_utc() -> str:
    """The current time, ISO 8601 in UTC, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def describe_machine() -> Machine:
    """Describe this machine."""
    return Machine(str(this_machine()), processor(), usable_cores(), accelerator())


def describe_versions(backends: set[str]) -> dict[str, str]:
    """Versions of everything involved; with the commit if the package runs from a checkout."""
    versions = {"refusion-edge": __version__, "python": platform.python_version()}
    versions |= {package: metadata.version(package) for package in ("numpy", "opencv-python") if _is_distributed(package)}
    versions |= {name: status(name).reason for name in sorted(backends)}
    commit = _commit()
    return {**versions, "commit": commit} if commit else versions


def row_document(row: Row) -> dict[str, Any]:
    """A measurement as strict JSON."""
    document = asdict(row)
    document["stages"] = None if row.stages is None else {name: _spread_document(one) for name, one in row.stages.items()}
    return document


def row_from_document(document: object, source: str) -> Row:
    """The inverse of ``row_document``.

    Args:
        document: What JSON gave.
        source: Where it is from, for errors.

    Raises:
        InputError: It is something else, or holds a time that is none.
    """
    fields = typed(dict[str, Any], document, f"a measurement in {source}")
    identity = fields.get("identity")
    if isinstance(identity, dict) and "colour" in identity:  # its name until release 0.2
        fields["identity"] = {"color" if key == "colour" else key: value for key, value in identity.items()}
    row = typed(Row, {**fields, "stages": None}, f"a measurement in {source}")
    if fields.get("stages") is None:
        return row
    stages = typed(dict[str, dict[str, Any]], fields["stages"], f"stages in {source}")
    where = f"of {shown(row.identity.label)} in {source}"
    return replace(row, stages={name: _spread(one, name, where) for name, one in stages.items()})


def machine_differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Differences between two descriptions, in words."""
    return [
        f"{name} {theirs.get(name)} there and {ours.get(name)} here"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]


def stage_order(names: Mapping[str, object]) -> list[str]:
    """Names of stages in chronological order, totals last."""
    return [stage for stage in STAGES if stage in names] + [name for name in names if name not in STAGES]


def _spread_document(one: Spread) -> dict[str, Any]:
    percentiles = {f"{name}_ms": value for name, value in one.percentiles_ms.items()}
    return {"count": one.count, "mean_ms": one.mean_ms, "median_ms": one.median_ms, **percentiles, "max_ms": one.max_ms}


def _spread(fields: Mapping[str, Any], stage: str, where: str) -> Spread:
    plain = {key: fields.get(key) for key in ("count", "mean_ms", "median_ms", "max_ms")}
    percentiles = {percentile: fields.get(f"{percentile}_ms") for percentile in map(percentile_name, PERCENTILES)}
    found = typed(Spread, {**plain, "percentiles_ms": percentiles}, f"{shown(stage)} {where}")
    times_ms = [found.mean_ms, found.median_ms, *(time for time in found.percentiles_ms.values() if time is not None)]
    # A little more than the largest, as a mean of equal numbers is rounded; and 0 where a clock does not see a stage.
    ordered = all(0 <= time_ms <= found.max_ms * (1 + 1e-9) for time_ms in times_ms)
    if found.count < 1 or not ordered or (stage == END_TO_END and found.median_ms == 0):
        raise InputError(
            f"{stage} {where} is no measurement: every time must be above 0 and at most the largest", "measure again"
        )
    return found


def _comparison_document(found: Comparison) -> dict[str, Any]:
    stages = found.stages or {}
    return {
        "first": asdict(found.first),
        "second": asdict(found.second),
        "stable": found.stable,
        "windows": list(found.windows),
        "turns": found.turns,
        "stages": None if found.stages is None else {
            name: {"first": _spread_document(first), "second": _spread_document(second)}
            for name, (first, second) in stages.items()
        },
        "ratios": None if found.ratios is None else {name: asdict(one) for name, one in found.ratios.items()},
        "graph_problems": list(found.graph_problems),
    }  # fmt: skip


def _deadline_document(found: Deadline) -> dict[str, Any]:
    document = asdict(found)
    return {**document, "ages": _spread_document(found.ages), "missed_share": found.missed_share, "holds": found.holds}


def _csv_times(found: Spread, names: list[str]) -> list[float | None]:
    return [found.count, found.mean_ms, found.median_ms, *(found.percentiles_ms[name] for name in names), found.max_ms]


def _csv_number(value: float | None) -> str:
    return "" if value is None else f"{value:.10g}"


def _is_distributed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def _commit() -> str | None:
    """Commit of the checkout that the package runs from, marked if it is modified."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip()
