"""Image folders and numbered patterns as sources; ``frames.csv`` gives the recorded times."""

from __future__ import annotations

import csv
import glob
import itertools
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from typing_extensions import Self

from refusion_edge.errors import InputError, UsageError
from refusion_edge.files import natural_key
from refusion_edge.images.io import READABLE_SUFFIXES, read_still
from refusion_edge.stream.frames import SECOND, Side
from refusion_edge.stream.sources.source import CLOCK_COUNT, CLOCK_RECORDED, CorruptFrameError, Grab
from refusion_edge.stream.uri import Uri, frame_pattern, number_option, read_options

TIMES_NAME = "frames.csv"
_DEFAULT_RATE_HZ = 30.0
# Numbers that leave out more than this many for each file are times or other marks, and give only the order.
_MAX_GAP = 10
_MAX_DIGITS = 18
_LISTED = 3


class FolderSource:
    """Images of a folder, or of a pattern, in order of their numbers. Implements ``Source``.

    The number of a frame is the one number in which the names differ; a missing one is a lost frame, and later frames keep
    their times. Without such a number, frames are counted in the natural order of their names. A file ``frames.csv``,
    with the columns ``file`` and ``time_ns``, gives exact times; without it, the option ``rate`` sets the frames per second.
    """

    live, keeps_noise, timing = False, True, None

    def __init__(self, uri: Uri, side: Side) -> None:
        self.uri, self.side = uri, side
        read_options(uri, ("rate",))
        self._rate_hz = number_option(uri, "rate", _DEFAULT_RATE_HZ, low=0.01, high=1000)
        self._times = _recorded_times(uri)
        self.absolute = self._times is not None
        self.remarks: list[str] = []
        paths = _images(uri, self._times)
        self._numbers = None if self._times is not None else _numbers(paths)
        positions = dict(zip(paths, self._numbers or range(len(paths)), strict=True))
        self._files = _from_zero(positions, min(positions.values()))
        self._next = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    @property
    def clock(self) -> str:
        """See ``Source.clock``."""
        return CLOCK_COUNT if self._times is None else CLOCK_RECORDED

    @property
    def rate_hz(self) -> float | None:
        """Frames per second, or None if the times were recorded."""
        return self._rate_hz if self._times is None else None

    def meet(self, other: FolderSource) -> None:
        """Number the frames of both folders alike: by their numbers, or else by their stems, never by position.

        Folders with recorded times, or of two rates, are left as they are.

        Raises:
            InputError: The folders have neither numbers nor stems in common.
        """
        if self._times is not None or other._times is not None or self._rate_hz != other._rate_hz:
            return
        paths = [[path for _, path in source._files] for source in (self, other)]
        if self._numbers is not None and other._numbers is not None:
            keys: list[list[object]] = [list(self._numbers), list(other._numbers)]
            order: dict[object, int] = {number: number for number in (*self._numbers, *other._numbers)}
        else:
            keys = [[path.stem for path in side] for side in paths]
            stems = sorted({path.stem for side in paths for path in side}, key=natural_key)
            order = {stem: position for position, stem in enumerate(stems)}
        if not set(keys[0]) & set(keys[1]):
            first, second = (", ".join(path.name for path in side[:_LISTED]) for side in paths)
            raise InputError(
                f"no frame of {self.uri} ({first}) has the number or the stem of one of {other.uri} ({second})",
                "rename the files so that those of one moment agree, or add frames.csv with their times",
            )
        start = min(order.values())
        for source, side, names in zip((self, other), paths, keys, strict=True):
            source._files = _from_zero({path: order[key] for path, key in zip(side, names, strict=True)}, start)

    def read(self) -> Grab | None:
        """See ``Source.read``."""
        if self._next >= len(self._files):
            return None
        index, path = self._files[self._next]
        self._next += 1
        time_ns = round(index * SECOND / self._rate_hz) if self._times is None else self._times[path.name]
        try:
            still = read_still(path)
        except InputError as error:
            raise CorruptFrameError(error.problem, error.remedy, expected=error.expected, got=error.got) from error
        self.remarks += [remark for remark in still.encoding.remarks if remark not in self.remarks]
        image = still.pixels[..., ::-1] if still.is_color else still.pixels
        return Grab(np.ascontiguousarray(image), index, time_ns, still.encoding.stated_white)


def _images(uri: Uri, times: dict[str, int] | None) -> list[Path]:
    """The images that a URI names, in natural order of the names."""
    pattern = frame_pattern(uri.target)
    found: Iterable[Path]
    if times is not None:
        # Not in the order of the times: the clock may have been set back while they were recorded.
        found = (uri.path / name for name in sorted(times, key=natural_key))
    elif uri.path.is_dir():
        found = sorted(uri.path.iterdir(), key=lambda path: natural_key(path.name))
    elif pattern is not None:
        field = re.search(r"%(0?\d*)d", pattern)
        assert field is not None
        before, after = pattern[: field.start()], pattern[field.end() :]
        expression = re.compile(re.escape(before) + r"[0-9]+" + re.escape(after))
        names = glob.glob(f"{glob.escape(before)}*{glob.escape(after)}")
        found = (Path(name) for name in sorted(names, key=natural_key) if expression.fullmatch(name))
    else:
        found = [uri.path] if uri.path.is_file() else []
    images = [path for path in found if path.suffix.lower() in READABLE_SUFFIXES and not path.name.startswith(".")]
    if not images:
        raise InputError(f"there are no images at {uri}", "check the path")
    return images


def _numbers(paths: list[Path]) -> list[int] | None:
    """The number in each name, in the order given, or None if the names do not differ in exactly one number.

    Raises:
        InputError: Two files have the same number.
    """
    names = [re.split(r"([0-9]+)", path.stem) for path in paths]
    if len({len(name) for name in names}) > 1 or any(name[::2] != names[0][::2] for name in names):
        return None
    fields = [field for field in range(1, len(names[0]), 2) if len({name[field] for name in names}) > 1]
    if len(paths) == 1 and len(names[0]) > 1:
        fields = [len(names[0]) - 2]
    if len(fields) != 1 or any(len(name[fields[0]]) > _MAX_DIGITS for name in names):
        return None
    numbers = [int(name[fields[0]]) for name in names]
    for (one, path), (another, other) in itertools.pairwise(zip(numbers, paths, strict=True)):
        if one == another:
            raise InputError(
                f"{path.name} and {other.name} in {path.parent} have the same number", "remove or rename one of them"
            )
    return numbers if numbers[-1] - numbers[0] < _MAX_GAP * len(numbers) else None


def _from_zero(positions: dict[Path, int], start: int) -> list[tuple[int, Path]]:
    return [(position - start, path) for path, position in positions.items()]


def _recorded_times(uri: Uri) -> dict[str, int] | None:
    path = uri.path / TIMES_NAME
    if not uri.path.is_dir() or not path.is_file():
        return None
    times: dict[str, int] = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            for row in csv.DictReader(file):
                times[Path(row["file"]).name] = int(row["time_ns"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"cannot read {path} after {len(times)} rows ({error!r}): it needs the columns file and time_ns, with whole "
                "numbers as times",
                "correct or remove the file",
            ) from error
    if "rate" in uri.options:
        raise UsageError(f"{uri} sets a rate, but {path} holds the recorded times of its frames", "leave the rate out")
    return {name: time_ns for name, time_ns in times.items() if (uri.path / name).is_file()}
