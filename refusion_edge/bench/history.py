"""Measurements kept on disk: sweeps that continue where they stopped, and comparison with an earlier report."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typing_extensions import Self

from refusion_edge.bench.measurement import END_TO_END, Row
from refusion_edge.bench.report import SCHEMA, Report, machine_differences, row_document, row_from_document
from refusion_edge.bench.subjects import Identity
from refusion_edge.bench.timing import Load
from refusion_edge.documents import parse_json, shown, typed
from refusion_edge.errors import InputError, UsageError
from refusion_edge.files import Claim, output_error, read_file, write_atomically

LINES_SCHEMA = "refusion-edge/bench-lines/1"
DEFAULT_THRESHOLD = 0.10
# A measurement has 10 kB.
_MOST_BYTES = 64 << 20
# What has to be the same for two numbers to be about the same thing; the name and the files may change.
_COMPARED = ("task", "size_text", "precision", "backend", "threads", "color", "output_range")


class SweepLog:
    """A file of measurements that grows line by line. Each line is on the disk before the next measurement starts.

    Use it as a context manager; on entry the file is locked, and read.

    Args:
        path: The file; created if it does not exist, continued if it does.
        configuration: Everything the numbers depend on; a file with another configuration is refused.

    Raises:
        UsageError: The file holds another configuration; names the difference.
        InputError: The file is not such a file.
        OutputError: It cannot be written, or another sweep is writing it.
    """

    def __init__(self, path: Path, configuration: Mapping[str, Any]) -> None:
        self._path, self._claim = path, Claim(path)
        self._header = {"schema": LINES_SCHEMA, "configuration": json.loads(json.dumps(configuration, sort_keys=True))}
        self.rows: dict[Identity, Row] = {}

    def __enter__(self) -> Self:
        if not _whole_lines(self._path):
            write_atomically(self._path, f"{_to_line(self._header)}\n".encode())
        # Two sweeps in one file would be one that nobody measured.
        with contextlib.ExitStack() as undo:
            undo.enter_context(self._claim)
            kept = _whole_lines(self._path)
            _check_header(self._path, kept[0], self._header)
            found = (_row(self._path, line) for line in kept[1:])
            # Unstable measurements are repeated, perhaps when the machine is quieter.
            self.rows = {row.identity: row for row in found if row.stages is not None}
            self._drop_partial_line()
            undo.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._claim.close()

    def _drop_partial_line(self) -> None:
        """Remove what a killed run may have left at the end."""
        try:
            with self._path.open("rb+") as file:
                file.truncate(file.read().rfind(b"\n") + 1)
        except OSError as error:
            raise output_error(self._path, error) from error

    def add(self, row: Row) -> None:
        """Append a measurement."""
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_to_line(row_document(row)) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise output_error(self._path, error) from error
        self.rows[row.identity] = row


def read_rows(path: Path) -> tuple[dict[str, Any], tuple[Row, ...]]:
    """Read the file of a finished or unfinished sweep.

    Returns:
        Its configuration and its measurements.

    Raises:
        InputError: It is not such a file.
    """
    lines = _whole_lines(path)
    if not lines:
        raise InputError(f"{path} is missing or empty", f"write measurements of the schema {LINES_SCHEMA} with bench --lines")
    return _header(path, lines[0])["configuration"], tuple(_row(path, line) for line in lines[1:])


def _whole_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    try:
        text = read_file(path, kind="file of measurements", most_bytes=_MOST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} does not hold JSON lines of the schema {LINES_SCHEMA}", "name another file") from error
    *whole, unfinished = text.split("\n")
    # The first line is never half-written, so this is somebody else's file.
    if unfinished and not whole:
        raise InputError(f"{path} does not hold JSON lines of the schema {LINES_SCHEMA}", "name another file")
    return whole


def _check_header(path: Path, line: str, wanted: Mapping[str, Any]) -> None:
    found = _header(path, line)
    differences = machine_differences(_flat(wanted["configuration"]), _flat(found["configuration"]))
    if differences:
        raise UsageError(
            f"{path} holds measurements of another configuration: {'; '.join(differences[:3])}", "name another file for --lines"
        )


def _header(path: Path, line: str) -> dict[str, Any]:
    found = typed(dict[str, Any], parse_json(line, f"the first line of {path}"), f"the first line of {path}")
    if found.get("schema") != LINES_SCHEMA or not isinstance(found.get("configuration"), dict):
        raise InputError(f"{path} does not hold JSON lines of the schema {LINES_SCHEMA}", "name another file")
    configuration = found["configuration"]
    if "pictures" in configuration:  # its name until release 0.2
        configuration["images"] = configuration.pop("pictures")
    return found


def _row(path: Path, line: str) -> Row:
    return row_from_document(parse_json(line, f"a line of {path}"), str(path))


def _to_line(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, allow_nan=False)


def _flat(value: object, name: str = "") -> dict[str, Any]:
    """Flatten nested names, joined with dots."""
    if not isinstance(value, dict):
        return {name: value}
    return {key: one for inner, part in value.items() for key, one in _flat(part, f"{name}.{inner}".strip(".")).items()}


@dataclass(frozen=True, slots=True)
class Change:
    """A measurement and its predecessor.

    Attributes:
        identity: What was measured.
        stage: Stage compared.
        before_ms: Earlier median; None if it was not stable.
        now_ms: Present median; None if it is not stable.
        threshold: Slowdown allowed, as a share.
    """

    identity: Identity
    stage: str
    before_ms: float | None
    now_ms: float | None
    threshold: float

    @property
    def ratio(self) -> float | None:
        """Present time over earlier time; None if either is not stable."""
        return None if self.before_ms is None or self.now_ms is None else self.now_ms / self.before_ms

    @property
    def is_regression(self) -> bool:
        """Whether it slowed down by more than the threshold, or is no longer stable."""
        if self.before_ms is None:
            return False
        return self.ratio is None or self.ratio > 1 + self.threshold


@dataclass(frozen=True, slots=True)
class Baseline:
    """An earlier report.

    Attributes:
        path: Its file.
        machine: The machine it was measured on.
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
        InputError: It cannot be read or is not a report.
    """
    data = read_file(path, kind="earlier report", most_bytes=_MOST_BYTES)
    document = typed(dict[str, Any], parse_json(data, str(path)), str(path))
    if document.get("schema") != SCHEMA:
        raise InputError(
            f"{path} has the schema {shown(document.get('schema'))}, not {SCHEMA}",
            "write one with bench --json",
            expected=SCHEMA,
            got=document.get("schema"),
        )
    machine = typed(dict[str, Any], document.get("machine"), f"machine in {path}")
    rows = typed(list[Any], document.get("rows"), f"rows in {path}")
    # Decided anew, so that the word alone, which may have been edited, is not enough.
    loads = [typed(Load, document.get(name), f"{name} in {path}") for name in ("load_before", "load_after")]
    loaded = typed(bool, document.get("loaded"), f"loaded in {path}") or any(load.is_too_high for load in loads)
    return Baseline(path, machine, tuple(row_from_document(row, str(path)) for row in rows), loaded)


def check_comparable(baseline: Baseline, identities: Sequence[Identity], machine: dict[str, Any]) -> None:
    """Check, before anything is measured, that an earlier report covers the same measurements.

    Raises:
        UsageError: It is from another machine or lacks a measurement; names the difference.
    """
    differences = machine_differences(machine, baseline.machine)
    if differences:
        raise UsageError(
            f"{baseline.path} was measured on another machine: {'; '.join(differences)}", "measure both on one machine"
        )
    for identity in identities:
        _predecessor(baseline, identity)


def changes(report: Report, baseline: Baseline, threshold: float, stage: str = END_TO_END) -> tuple[Change, ...]:
    """Compare every measurement of a report with its predecessor.

    Args:
        report: The present report.
        baseline: The earlier report.
        threshold: Slowdown of a median allowed, as a share.
        stage: Stage to compare.

    Raises:
        UsageError: The earlier report lacks one of them; names the difference.
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
        f"{baseline.path} holds no measurement comparable with {identity.label}: {'; '.join(fewest)}", "compare like with like"
    )


def _median_ms(row: Row, stage: str) -> float | None:
    if row.stages is None:
        return None
    if stage not in row.stages:
        raise UsageError(
            f"{row.identity.label} has no stage {stage}",
            f"choose from {', '.join(row.stages)}",
            expected=tuple(row.stages),
            got=stage,
        )
    return row.stages[stage].median_ms
