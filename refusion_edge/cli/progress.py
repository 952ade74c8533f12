"""Progress of a build: the current stage, and below it the nested phases of the compiler."""

from __future__ import annotations

import threading

from rich.progress import Progress, TaskID


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
