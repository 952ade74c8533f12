"""Where the two sources are in well-known data sets."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path

from refusion_edge.errors import InputError, UsageError
from refusion_edge.tasks import Task


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the sources of a data set are.

    Attributes:
        task: Name of its task.
        a: Folder of source a, or a pattern of its files.
        b: The same for source b.
    """

    task: str
    a: str
    b: str

    @property
    def is_pattern(self) -> bool:
        """Whether the files of both sources share folders."""
        return glob.has_magic(self.a)


LAYOUTS: dict[str, Layout] = {
    "msrs": Layout("ir_vis", "ir", "vi"),
    # M3FD writes Ir and Vis, and its detection part Inf.
    "m3fd": Layout("ir_vis", "ir", "vis"),
    "m3fd-inf": Layout("ir_vis", "inf", "vis"),
    "llvip": Layout("ir_vis", "infrared", "visible"),
    "roadscene": Layout("ir_vis", "cropinfrared", "crop_lr_visible"),
    "tno": Layout("ir_vis", "ir", "vi"),
    "kaist": Layout("ir_vis", "lwir", "visible"),
    "flir": Layout("ir_vis", "thermal", "rgb"),
    # Slices of the Whole Brain Atlas of Harvard, in the folders CT-MRI, PET-MRI and SPECT-MRI.
    "harvard-ct": Layout("medical", "ct", "mri"),
    "harvard-pet": Layout("medical", "pet", "mri"),
    "harvard-spect": Layout("medical", "spect", "mri"),
    # lytro-01-A.jpg is focused on what is near, lytro-01-B.jpg on what is far.
    "lytro": Layout("multi_focus", "*-A.*", "*-B.*"),
    # A folder for each scene; A is the underexposed image.
    "mefb": Layout("multi_exposure", "input/*/*_A.*", "input/*/*_B.*"),
}
"""Layout of each data set by its name; the name of the folder does not matter."""
# Some data sets are split outside, others inside the folders of the sources.
_SPLITS = ("", "train", "test")


@dataclass(frozen=True, slots=True)
class SourceFolders:
    """The folders of both sources, or patterns of their files.

    Attributes:
        a: Of source a.
        b: Of source b.
        layout: Name of the data set's layout; empty for the folders of the task.
    """

    a: Path
    b: Path
    layout: str = ""


def find_folders(data: Path, task: Task, layout: str | None = None) -> SourceFolders:
    """Find the folders of both sources.

    The names of the task come first, then those of the known data sets, in any case of letters, each directly in the folder or
    below ``train`` or ``test``, or with these inside them.

    Args:
        data: Folder of the data set.
        task: The task.
        layout: Name of a layout, to look for no other.

    Raises:
        UsageError: There is no such layout.
        InputError: The folder lacks them.
    """
    if layout is not None and layout not in LAYOUTS:
        raise UsageError(f"there is no layout '{layout}'", f"choose one of {', '.join(LAYOUTS)}", got=layout)
    if layout is not None and LAYOUTS[layout].task != task.name:
        raise UsageError(
            f"the layout {layout} is for {LAYOUTS[layout].task}, not for {task.name}",
            f"add --task {LAYOUTS[layout].task}",
            expected=LAYOUTS[layout].task,
            got=task.name,
        )
    own = {"": Layout(task.name, task.folder_a, task.folder_b)}
    known = {name: each for name, each in LAYOUTS.items() if each.task == task.name}
    for name, each in ({layout: LAYOUTS[layout]} if layout is not None else own | known).items():
        for split in _SPLITS:
            if (found := _found(data / split, each, name)) is not None:
                return found
    wanted = LAYOUTS[layout] if layout is not None else own[""]
    raise InputError(
        f"{data} does not contain {wanted.a} and {wanted.b}, the two sources",
        "check the path, or give a layout or both folders",
    )


def _found(root: Path, layout: Layout, name: str) -> SourceFolders | None:
    if layout.is_pattern:
        patterns = [Path(glob.escape(str(root)), pattern) for pattern in (layout.a, layout.b)]
        if all(any(glob.iglob(str(pattern))) for pattern in patterns):
            return SourceFolders(patterns[0], patterns[1], name)
        return None
    a, b = _below(root, layout.a), _below(root, layout.b)
    return None if a is None or b is None else _inside(a, b, name)


def _below(root: Path, name: str) -> Path | None:
    exact = root / name
    if exact.is_dir():
        return exact
    if not root.is_dir():
        return None
    return next((path for path in sorted(root.iterdir()) if path.name.lower() == name.lower() and path.is_dir()), None)


def _inside(a: Path, b: Path, layout: str) -> SourceFolders:
    for split in _SPLITS[1:]:
        if (a / split).is_dir() and (b / split).is_dir():
            return SourceFolders(a / split, b / split, layout)
    return SourceFolders(a, b, layout)
