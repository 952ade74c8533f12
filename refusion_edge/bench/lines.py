"""Long sweeps that can be interrupted: one JSON line for each measurement, and a first line that says of what."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from refusion_edge.bench.measurement import Row
from refusion_edge.bench.report import machine_differences, row_document, row_from_document
from refusion_edge.bench.subjects import Identity
from refusion_edge.documents import parse_json, typed
from refusion_edge.errors import InputError, UsageError
from refusion_edge.files import output_error, read_file, write_atomically

SCHEMA = "refusion-edge/bench-lines/1"
# A measurement has 10 kB.
_MOST_BYTES = 64 << 20


class SweepLog:
    """A file of measurements that grows line by line. Each line is on the disk before the next measurement starts.

    Args:
        path: The file; it is made if it is not there, and continued if it is.
        configuration: Everything that the numbers depend on; a file of another one is refused.

    Raises:
        UsageError: The file is of another configuration; names the difference.
        InputError: The file is something else.
        OutputError: It cannot be written.
    """

    def __init__(self, path: Path, configuration: Mapping[str, Any]) -> None:
        self._path = path
        header = {"schema": SCHEMA, "configuration": json.loads(json.dumps(configuration, sort_keys=True))}
        kept = _whole_lines(path)
        self.rows: dict[Identity, Row] = {}
        if kept:
            _check_header(path, kept[0], header)
            found = (_row(path, line) for line in kept[1:])
            # What was not stable is measured again, perhaps at a quieter time.
            self.rows = {row.identity: row for row in found if row.stages is not None}
        # What a killed run left behind the last whole line goes away.
        write_atomically(path, "".join(f"{line}\n" for line in kept or [_to_line(header)]).encode())

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
    """Read a finished or unfinished file.

    Returns:
        Its configuration and its measurements.

    Raises:
        InputError: It is something else.
    """
    lines = _whole_lines(path)
    if not lines:
        raise InputError(f"expected JSON lines of the schema {SCHEMA} in {path}, got none; make them with bench --lines.")
    return _header(path, lines[0])["configuration"], tuple(_row(path, line) for line in lines[1:])


def _whole_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    try:
        text = read_file(path, kind="file of measurements", most_bytes=_MOST_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} holds no JSON lines of the schema {SCHEMA}; name another file.") from error
    *whole, unfinished = text.split("\n")
    # The first line is never half-written, so this is somebody else's file.
    if unfinished and not whole:
        raise InputError(f"{path} holds no JSON lines of the schema {SCHEMA}; name another file.")
    return whole


def _check_header(path: Path, line: str, wanted: Mapping[str, Any]) -> None:
    found = _header(path, line)
    differences = machine_differences(_flat(wanted["configuration"]), _flat(found["configuration"]))
    if differences:
        raise UsageError(
            f"expected {path} to hold measurements of this configuration, got others ({'; '.join(differences[:3])}); name "
            "another file for --lines."
        )


def _header(path: Path, line: str) -> dict[str, Any]:
    found = typed(dict[str, Any], parse_json(line, f"the first line of {path}"), f"the first line of {path}")
    if found.get("schema") != SCHEMA or not isinstance(found.get("configuration"), dict):
        raise InputError(f"{path} holds no JSON lines of the schema {SCHEMA}; name another file.")
    return found


def _row(path: Path, line: str) -> Row:
    return row_from_document(parse_json(line, f"a line of {path}"), str(path))


def _to_line(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, allow_nan=False)


def _flat(value: object, name: str = "") -> dict[str, Any]:
    """Nested names joined with dots."""
    if not isinstance(value, dict):
        return {name: value}
    return {key: one for inner, part in value.items() for key, one in _flat(part, f"{name}.{inner}".strip(".")).items()}
