"""The four fusion tasks: what sources a and b are, and how each is read."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from refusion_edge.errors import UsageError


@dataclass(frozen=True, slots=True)
class Role:
    """What the values of a source mean.

    Attributes:
        name: Short word for the source, such as ``ir``.
        ranged: Whether 16-bit or float gray is sensor data whose own range has to be found (thermal counts, CT numbers, MRI
            signal) rather than an image that uses its full scale.
        dark: Whether an image that fills only a small part of its scale is as it should be (underexposed).
    """

    name: str
    ranged: bool
    dark: bool = False


SENSOR = Role("sensor", ranged=True)
"""Sensor data of any kind."""

DISPLAY = Role("display", ranged=False)
"""An image made to be shown."""


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
        ranged_a: ``Role.ranged`` of source a.
        ranged_b: ``Role.ranged`` of source b.
        one_camera: Whether both sources come from one camera, and so share their bit depth.
    """

    name: str
    title: str
    folder_a: str
    folder_b: str
    description_a: str
    description_b: str
    ranged_a: bool
    ranged_b: bool = False
    one_camera: bool = False

    @property
    def roles(self) -> tuple[Role, Role]:
        """The roles of source a and source b."""
        dark = self.name == "multi_exposure"
        return Role(self.folder_a, self.ranged_a, dark), Role(self.folder_b, self.ranged_b, dark)


_ALL = (
    Task("ir_vis", "infrared-visible", "ir", "vis", "infrared image", "visible image", ranged_a=True),
    Task("medical", "medical", "func", "mri", "CT, PET or SPECT image", "MRI image", ranged_a=True, ranged_b=True),
    Task(
        "multi_focus", "multi-focus", "near", "far", "near-focused image", "far-focused image", ranged_a=False, one_camera=True
    ),
    Task(
        "multi_exposure",
        "multi-exposure",
        "under",
        "over",
        "under-exposed image",
        "over-exposed image",
        ranged_a=False,
        one_camera=True,
    ),
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
