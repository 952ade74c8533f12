"""The pairs of a training folder: found, checked once, and cached in memory as far as they fit.

Belongs here: which files are used and why others are not. Does not belong here: drawing crops.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.errors import InputError, ShapeError
from refusion_edge.images.depth import NO_DEPTHS, Depths, find_depths
from refusion_edge.images.io import read_still
from refusion_edge.images.layouts import SourceFolders, find_folders
from refusion_edge.images.luma import CONSTANT_REMEDY, to_luma8, to_planes
from refusion_edge.images.names import NameList
from refusion_edge.images.pairs import PairPaths, find_images, find_pairs, read_pair
from refusion_edge.tasks import Task

SHARP_FOLDER = "sharp"
_LISTED = 20


@dataclass(frozen=True, slots=True)
class Entry:
    """A pair or a sharp image to draw crops from.

    Attributes:
        name: Stem of the files.
        a: File of source a, or a sharp image.
        b: File of source b, or None for a sharp image, from which both sources are made.
        task: The task, which determines what the values of each source mean.
        depths: Bit depths of the set that it belongs to.
    """

    name: str
    a: Path
    b: Path | None
    task: Task
    depths: Depths = NO_DEPTHS


@dataclass(slots=True)
class PairCollection:
    """Pairs to draw crops from; a file that becomes unreadable is reported once and then left out.

    Attributes:
        entries: The pairs and sharp images.
        cache_bytes: Memory for decoded planes.
        sharp_scale: Factor by which sharp images are resized.
        report: Called with a remark about an unreadable file.
        repeat: Prefixes of names, and how many times as often such entries are drawn; the first match applies.
    """

    entries: tuple[Entry, ...]
    cache_bytes: int = 2 << 30
    sharp_scale: float = 1.0
    report: Callable[[str], None] = print
    repeat: Mapping[str, int] = field(default_factory=dict)
    _draws: tuple[int, ...] = ()
    _cache: dict[int, tuple[Array, Array]] = field(default_factory=dict)
    _cached_bytes: int = 0
    _bad: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._draws = tuple(index for index, entry in enumerate(self.entries) for _ in range(_repeats(entry.name, self.repeat)))

    def __len__(self) -> int:
        return len(self._draws)

    def is_sharp(self, which: int) -> bool:
        """Tell whether an entry, or the one that replaces it if unreadable, is a sharp image."""
        return self.entries[self._usable(which)].b is None

    def planes(self, which: int) -> tuple[Array, Array]:
        """Luma of both sources, each (H, W) uint8; of the next usable entry if this one is unreadable.

        Raises:
            InputError: No entry can be read any more.
        """
        while True:
            usable = self._usable(which)
            if usable in self._cache:
                return self._cache[usable]
            try:
                planes = read_planes(self.entries[usable], self.sharp_scale)
            except InputError as error:
                self._bad.add(usable)
                self.report(f"left out from here on: {error.problem}")
                continue
            size = sum(plane.nbytes for plane in planes)
            if self._cached_bytes + size <= self.cache_bytes:
                self._cache[usable] = planes
                self._cached_bytes += size
            return planes

    def _usable(self, which: int) -> int:
        for step in range(len(self.entries)):
            candidate = (self._draws[which] + step) % len(self.entries)
            if candidate not in self._bad:
                return candidate
        raise InputError(f"none of the {len(self.entries)} pairs can be read any more", "check the disk")


@dataclass(frozen=True, slots=True)
class Survey:
    """The usable contents of a training folder.

    Attributes:
        entries: Usable pairs and sharp images, ordered by name.
        remarks: What was left out, one sentence per reason.
    """

    entries: tuple[Entry, ...]
    remarks: tuple[str, ...]


def survey(
    data: Path,
    task: Task,
    crop_px: int,
    *,
    folder_a: str | None = None,
    folder_b: str | None = None,
    layout: str | None = None,
    exclude: Sequence[str] = (),
    split: NameList | None = None,
    sharp_scale: float = 1.0,
    progress: Callable[[Iterable[Entry]], Iterable[Entry]] = iter,
) -> Survey:
    """Find the pairs in a folder and check every file once.

    Args:
        data: Folder that holds the two folders of the task; for ``multi_focus`` also, or only, a folder ``sharp`` of
            all-in-focus images.
        task: The task.
        crop_px: Side of the largest crop.
        folder_a: Name of the folder of source a, if not the task's own.
        folder_b: The same for source b.
        layout: Layout of a known data set, see ``refusion_edge.images.layouts``; None to find it.
        exclude: Prefixes of names to leave out.
        split: The pairs and sharp images to take; None for all.
        sharp_scale: Factor by which sharp images are resized.
        progress: Wraps the files to show progress.

    Raises:
        InputError: There is no usable pair, or the split does not fit.
    """
    if not data.is_dir():
        raise InputError(f"there is no folder {data}", "check the path to the pairs")
    if folder_a is None and folder_b is None:
        folders = _folders(data, task, layout)
    else:
        folders = SourceFolders(data / (folder_a or task.folder_a), data / (folder_b or task.folder_b))
    found, reasons, said = _find(data, task, folders)
    if split is not None:
        found, reasons = list(split.select(found, names_of_entry)), {}
    kept = [entry for entry in found if not entry.name.startswith(tuple(exclude))]
    if len(kept) < len(found):
        reasons["excluded by name"] = [entry.name for entry in found if entry.name.startswith(tuple(exclude))]
    usable = []
    for entry in progress(kept):
        reason = _unfit(entry, crop_px, sharp_scale)
        if reason is None:
            usable.append(entry)
        else:
            reasons.setdefault(reason, []).append(entry.name)
    remarks = tuple(f"left out, {reason}: {len(names)} ({_some(names)})" for reason, names in reasons.items()) + tuple(said)
    if not usable:
        raise InputError(
            f"no usable pairs of at least {crop_px}x{crop_px} pixels below "
            f"{data}{' (' + '; '.join(remarks) + ')' if remarks else ''}",
            "check the folder or use smaller crops",
        )
    return Survey(tuple(usable), remarks)


def split_held(entries: Sequence[Entry], share: float) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    """Hold back entries for validation, evenly spaced and always the same.

    Args:
        entries: Ordered by name.
        share: Share to hold back, [0, 0.5]; at least one entry is held back, and a single entry serves both purposes.

    Returns:
        Entries to train on and entries that are held back.
    """
    if len(entries) == 1:
        return tuple(entries), tuple(entries)
    spacing = max(2, min(len(entries), round(1 / share))) if share > 0 else len(entries)
    held = tuple(entry for index, entry in enumerate(entries) if index % spacing == spacing - 1)
    return tuple(entry for entry in entries if entry not in held), held


def names_of_entry(entry: Entry) -> tuple[str, ...]:
    """The names that an entry may have in a list."""
    return entry.name, entry.a.stem, *(() if entry.b is None else (entry.b.stem,))


def read_planes(entry: Entry, sharp_scale: float = 1.0) -> tuple[Array, Array]:
    """Read the luma of both sources as they are fused, rounded to (H, W) uint8; the same plane twice for a sharp image.

    Raises:
        InputError: A file cannot be used.
    """
    if entry.b is None:
        sharp = read_still(entry.a)
        luma = to_luma8(sharp.pixels, entry.task.roles[0], encoding=sharp.encoding)
        if luma.min() == luma.max():
            raise InputError(f"{entry.a} has the same value in every pixel", CONSTANT_REMEDY)
        if sharp_scale != 1:
            luma = cv2.resize(luma, None, fx=sharp_scale, fy=sharp_scale, interpolation=cv2.INTER_AREA).astype(
                np.uint8, copy=False
            )
        return luma, luma
    pair = entry.depths.apply(read_pair(PairPaths(entry.name, entry.a, entry.b)))
    planes = to_planes(pair.a, pair.b, entry.task, encodings=pair.encodings)
    a, b = (np.rint(plane[0, 0] * 255).astype(np.uint8) for plane in (planes.a, planes.b))
    return a, b


def _repeats(name: str, repeat: Mapping[str, int]) -> int:
    return next((times for beginning, times in repeat.items() if name.startswith(beginning)), 1)


def _folders(data: Path, task: Task, layout: str | None) -> SourceFolders:
    if layout is None and task.name == "multi_focus" and (data / SHARP_FOLDER).is_dir():
        return SourceFolders(data / task.folder_a, data / task.folder_b)
    return find_folders(data, task, layout)


def _find(data: Path, task: Task, sources: SourceFolders) -> tuple[list[Entry], dict[str, list[str]], list[str]]:
    folders = sources.a, sources.b
    said = [f"layout {sources.layout}: {sources.a} and {sources.b}"] if sources.layout else []
    sharp = data / SHARP_FOLDER
    has_sharp = task.name == "multi_focus" and sharp.is_dir()
    entries: list[Entry] = []
    reasons: dict[str, list[str]] = {}
    if not has_sharp or sources.layout or any(folder.is_dir() for folder in folders):
        for folder in folders:
            if not folder.is_dir() and not glob.has_magic(str(folder)):
                raise InputError(
                    f"{data} has no folder {folder.name}",
                    f"put the pairs into {folders[0].name} and {folders[1].name}, or name their folders with --a and --b",
                )
        found = find_pairs(str(folders[0]), str(folders[1]))
        depths = find_depths(found.pairs, task)
        entries += [Entry(pair.name, pair.a, pair.b, task, depths) for pair in found.pairs]
        alone = [f"{path.parent.name}/{path.name}" for path in (*found.only_a, *found.only_b)]
        if alone:
            reasons["without a counterpart"] = alone
        if found.ignored:
            reasons["no supported suffix"] = [f"{path.parent.name}/{path.name}" for path in found.ignored]
        said += [*depths.remarks, *found.matching]
    if has_sharp:
        entries += [Entry(stem, path, None, task) for stem, path in find_images(str(sharp)).items()]
    return sorted(entries, key=lambda entry: (entry.name, entry.b is None)), reasons, said


def _unfit(entry: Entry, crop_px: int, sharp_scale: float) -> str | None:
    """Why an entry cannot be used, in a few words, or None."""
    try:
        plane, _ = read_planes(entry, sharp_scale)
    except ShapeError:
        return "sizes that do not fit"
    except InputError as error:
        if error.remedy == CONSTANT_REMEDY:
            return "one value in every pixel"
        return f"unreadable ({error.problem})"
    if min(plane.shape) < crop_px:
        return f"smaller than the crop of {crop_px} pixels"
    return None


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
