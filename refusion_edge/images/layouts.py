"""The folders of the two sources in the data sets of the field."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refusion_edge.errors import InputError, UsageError
from refusion_edge.tasks import Task

# Data set to the folders of source a and source b; M3FD writes Ir and Vis, and its detection part Inf.
LAYOUTS: dict[str, tuple[str, str]] = {
    "msrs": ("ir", "vi"),
    "m3fd": ("ir", "vis"),
    "m3fd-inf": ("inf", "vis"),
    "llvip": ("infrared", "visible"),
    "roadscene": ("cropinfrared", "crop_lr_visible"),
    "kaist": ("lwir", "visible"),
    "flir": ("thermal", "rgb"),
}
# Some data sets are split outside, others inside the folders of the sources.
_SPLITS = ("", "train", "test")


@dataclass(frozen=True, slots=True)
class SourceFolders:
    """The folders of both sources.

    Attributes:
        a: Folder of source a.
        b: Folder of source b.
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
        raise UsageError(f"there is no layout '{layout}'", f"choose one of {', '.join(LAYOUTS)}")
    own = {"": (task.folder_a, task.folder_b)} if layout is None else {}
    known = LAYOUTS if task.name == "ir_vis" else {}
    for name, (a, b) in (own | ({layout: LAYOUTS[layout]} if layout is not None else known)).items():
        for split in _SPLITS:
            root = data / split
            folders = _below(root, a), _below(root, b)
            if folders[0] is not None and folders[1] is not None:
                return _inside(folders[0], folders[1], name)
    wanted = " and ".join(LAYOUTS[layout] if layout is not None else (task.folder_a, task.folder_b))
    raise InputError(
        f"{data} lacks the folders {wanted} of the two sources", "check the path, or name the layout or the folders"
    )


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
