"""Printing for the verbs: results on standard output, progress and remarks on standard error."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from refusion_edge.files import write_atomically
from refusion_edge.text import printable

# A pipe has no width; do not wrap lines that a program or a log will read.
_PIPE_WIDTH = 200
_MOST_SHOWN = 2000


def output() -> Console:
    """Console for results."""
    return _console(stderr=False)


def remarks() -> Console:
    """Console for progress and remarks; control characters quoted from files are escaped."""
    return _console(stderr=True, kind=_Remarks)


def progress_bar() -> Progress:
    """Progress bar with the time left; hidden if standard error is not a terminal."""
    console = remarks()
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        console=console, disable=not console.is_terminal, transient=True,
    )  # fmt: skip


class BuildProgress:
    """Shows stages and phases on a progress bar. Other threads may report phases.

    Args:
        progress: The bar to show them on.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._stage: TaskID | None = None
        self._phases: dict[str, TaskID] = {}
        self._depths: dict[str, int] = {}
        self._lock = threading.Lock()

    def enter(self, stage: str) -> None:
        """Show a new stage in place of the previous one."""
        with self._lock:
            if self._stage is not None:
                self._progress.remove_task(self._stage)
            self._stage = self._progress.add_task(f"building: {stage}", total=None)

    def started(self, phase: str, parent: str | None, steps: int) -> None:
        """Show a phase below its parent; see ``PhaseListener``."""
        with self._lock:
            depth = self._depths.get(parent or "", 0) + 1
            self._depths[phase] = depth
            self._phases[phase] = self._progress.add_task("  " * depth + phase, total=steps)

    def stepped(self, phase: str, step: int) -> None:
        """Advance a phase."""
        with self._lock:
            if phase in self._phases:
                self._progress.update(self._phases[phase], completed=step + 1)

    def finished(self, phase: str) -> None:
        """Remove a phase."""
        with self._lock:
            if phase in self._phases:
                self._progress.remove_task(self._phases.pop(phase))


def plain_table(*headings: str) -> Table:
    """Table without lines and with all columns aligned left."""
    table = Table(*headings, box=None, pad_edge=False, header_style="bold")
    for column in table.columns:
        column.overflow = "fold"
    return table


def print_facts(facts: Mapping[str, object]) -> None:
    """Print names and values in two columns, with each value on one line so that it can be copied."""
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name.ljust(width)}  {'none' if value is None else value}")


def write_json(target: str, document: dict[str, Any]) -> None:
    """Write strict JSON to a file, or to standard output for ``-``.

    Raises:
        OutputError: The file cannot be written.
    """
    text = json.dumps(document, indent=2, sort_keys=True, allow_nan=False) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        write_atomically(Path(target), text.encode())


class _Remarks(Console):
    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(printable(each, _MOST_SHOWN) if isinstance(each, str) else each for each in objects), **options)


def _console(*, stderr: bool, kind: type[Console] = Console) -> Console:
    console = kind(stderr=stderr, highlight=False, soft_wrap=True, markup=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console
