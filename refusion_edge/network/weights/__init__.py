"""The weights that ship with the package, one safetensors file and one model card per task and network."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from refusion_edge.network.family import DEFAULT_NETWORK, find_network
from refusion_edge.tasks import find_task


def weights_path(task_name: str, network: str = DEFAULT_NETWORK) -> Path:
    """Locate the weights file of a task.

    Args:
        task_name: Name of the task.
        network: Name of the network.

    Raises:
        UsageError: There is no such task or network.
    """
    suffix = "" if find_network(network).name == DEFAULT_NETWORK else f"-{network}"
    # Installed wheels are always unpacked, so resources are files.
    return Path(str(resources.files(__name__))) / f"{find_task(task_name).name}{suffix}.safetensors"
