"""The weights that ship with the package, one safetensors file and one model card per task and network."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from refusion_edge.errors import UsageError
from refusion_edge.network.family import DEFAULT_NETWORK, find_network
from refusion_edge.tasks import TASKS, find_task


def weights_path(task_name: str, network: str = DEFAULT_NETWORK) -> Path:
    """Locate the weights file of a task.

    Args:
        task_name: Name of the task.
        network: Name of the network.

    Raises:
        UsageError: There is no such task or network, or the package has no weights of this network for the task.
    """
    suffix = "" if find_network(network).name == DEFAULT_NETWORK else f"-{network}"
    # Installed wheels are always unpacked, so resources are files.
    path = Path(str(resources.files(__name__))) / f"{find_task(task_name).name}{suffix}.safetensors"
    if not path.is_file():
        raise UsageError(
            f"the package has no weights of the network {network} for {task_name}",
            f"train them: refusion-edge train --task {task_name} --network {network} --teacher {task_name} --data DIR",
        )
    return path


def shipped_tasks(network: str = DEFAULT_NETWORK) -> tuple[str, ...]:
    """Names of the tasks for which the package has weights of a network."""
    suffix = "" if find_network(network).name == DEFAULT_NETWORK else f"-{network}"
    folder = resources.files(__name__)
    return tuple(name for name in TASKS if folder.joinpath(f"{name}{suffix}.safetensors").is_file())
