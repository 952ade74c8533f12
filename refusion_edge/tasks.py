"""The four fusion tasks: what sources a and b are, and how each is read."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from refusion_edge.errors import UsageError


@dataclass(frozen=True, slots=True)
class Task:
    """One fusion task.

    Attributes:
        name: Name on the command line and in files.
        title: Name in print.
        folder_a: Folder name and short word for source a (network input a).
        folder_b: Folder name and short word for source b (network input b).
        description_a: Source a in words.
        description_b: Source b in words.
        ranged_a: Whether 16-bit or float gray of source a is raw sensor data whose own range has to be found
            (thermal counts, CT numbers) rather than an image that uses its full scale.
    """

    name: str
    title: str
    folder_a: str
    folder_b: str
    description_a: str
    description_b: str
    ranged_a: bool


_ALL = (
    Task("ir_vis", "infrared-visible", "ir", "vis", "infrared image", "visible image", ranged_a=True),
    Task("medical", "medical", "func", "mri", "CT, PET or SPECT image", "MRI image", ranged_a=True),
    Task("multi_focus", "multi-focus", "near", "far", "near-focused image", "far-focused image", ranged_a=False),
    Task("multi_exposure", "multi-exposure", "under", "over", "under-exposed image", "over-exposed image", ranged_a=False),
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}


def find_task(name: str) -> Task:
    """Look a task up by its name.

    Raises:
        UsageError: There is no such task; the message suggests the nearest one.
    """
    task = TASKS.get(name)
    if task is None:
        nearest = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.4)
        hint = f" (did you mean '{nearest[0]}'?)" if nearest else ""
        raise UsageError(f"unknown task '{name}'{hint}", f"choose one of {', '.join(TASKS)}", expected=tuple(TASKS), got=name)
    return task
