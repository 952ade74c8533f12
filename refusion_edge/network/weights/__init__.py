"""The weights that ship with the package, one safetensors file and one model card per task."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from refusion_edge.tasks import find_task


def weights_path(task_name: str) -> Path:
    """Locate the weights file of a task.

    Raises:
        UsageError: There is no such task.
    """
    # Installed wheels are always unpacked, so resources are files.
    return Path(str(resources.files(__name__))) / f"{find_task(task_name).name}.safetensors"
