"""Image folders and numbered patterns as sources; ``frames.csv`` gives the recorded times."""

from __future__ import annotations

import csv
import glob
import re
from pathlib import Path

import cv2
from typing_extensions import Self

from refusion_edge.errors import InputError, UsageError
from refusion_edge.images.io import READABLE_SUFFIXES, read_image
from refusion_edge.stream.frames import SECOND, Side
from refusion_edge.stream.sources.source import CLOCK_COUNT, CLOCK_RECORDED, CorruptFrameError, Grab
from refusion_edge.stream.uri import Uri, frame_pattern, number_option, read_options

TIMES_NAME = "frames.csv"
_DEFAULT_RATE_HZ = 30.0


class FolderSource:
    """Images of a folder in order of their names, or of a pattern in order of their numbers. Implements ``Source``.

    A number missing from a pattern is a lost frame: later frames keep their times. A file ``frames.csv`` in the folder, with
    the columns ``file`` and ``time_ns``, gives exact times; without it, the option ``rate`` sets the frames per second.
    """

    live, timing = False, None

    def __init__(self, uri: Uri, side: Side) -> None:
        self.uri, self.side = uri, side
        read_options(uri, ("rate",))
        self._rate_hz = number_option(uri, "rate", _DEFAULT_RATE_HZ, low=0.01, high=1000)
        self._times = _recorded_times(uri)
        self._files = _numbered(uri, self._times)
        self._next = 0
        self.absolute = self._times is not None

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

    def read(self) -> Grab | None:
        """See ``Source.read``."""
        if self._next >= len(self._files):
            return None
        index, path = self._files[self._next]
        self._next += 1
        time_ns = round(index * SECOND / self._rate_hz) if self._times is None else self._times[path.name]
        try:
            image = read_image(path)
        except InputError as error:
            raise CorruptFrameError(error.problem, error.remedy, expected=error.expected, got=error.got) from error
        return Grab(cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image, index, time_ns)


def _numbered(uri: Uri, times: dict[str, int] | None) -> list[tuple[int, Path]]:
    pattern = frame_pattern(uri.target)
    if uri.path.is_dir():
        names = times if times is not None else (path.name for path in uri.path.iterdir())
        files = sorted(uri.path / name for name in names)
        found = list(enumerate(path for path in files if path.suffix.lower() in READABLE_SUFFIXES))
    elif pattern is not None:
        field = re.search(r"%(0?\d*)d", pattern)
        assert field is not None
        before, after = pattern[: field.start()], pattern[field.end() :]
        expression = re.compile(re.escape(before) + r"(\d+)" + re.escape(after))
        matches = (expression.fullmatch(name) for name in glob.glob(f"{glob.escape(before)}*{glob.escape(after)}"))
        found = sorted((int(match[1]), Path(match[0])) for match in matches if match)
        found = [(number - found[0][0], path) for number, path in found]
    else:
        found = [(0, uri.path)] if uri.path.is_file() else []
    if not found:
        raise InputError(f"there are no images at {uri}", "check the path")
    return found


def _recorded_times(uri: Uri) -> dict[str, int] | None:
    path = uri.path / TIMES_NAME
    if not uri.path.is_dir() or not path.is_file():
        return None
    times: dict[str, int] = {}
    with path.open(newline="") as file:
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
