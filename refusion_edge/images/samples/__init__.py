"""The sample pairs that ship with the package, rendered by ``examples/render_samples.py``."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from refusion_edge.images.pairs import PairPaths, find_pairs
from refusion_edge.tasks import find_task

# Installed wheels are always unpacked, so resources are files.
FOLDER = Path(str(resources.files(__name__)))
"""Folder of the pairs, one folder for each task."""


def sample_paths(task_name: str) -> tuple[PairPaths, ...]:
    """Locate the sample pairs of a task.

    Raises:
        UsageError: There is no such task.
    """
    task = find_task(task_name)
    folder = FOLDER / task.name
    return find_pairs(str(folder / task.folder_a), str(folder / task.folder_b)).pairs
