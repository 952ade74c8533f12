"""Recordings of raw frames, and reading them for a replay: the same frames in the same order give the same fused frames.

A recording is a folder: ``recording.json`` (pairing settings, and where the run ended), ``frames.csv`` (all frames in order of
arrival), ``pairs.csv`` (pairs that were not shown because the engine was busy), and the folders ``ir`` and ``vis`` with
lossless files, PNG for uint8 and uint16 and else TIFF, and their own ``frames.csv``, so that each folder is also a source by
itself.

A recording of limited size is a folder of such recordings, the parts, and a ``recording.json`` of its own; see
``refusion_edge.stream.outputs.ring``.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from typing_extensions import Self

from refusion_edge.arrays import Array
from refusion_edge.documents import parse_json, shown, typed
from refusion_edge.errors import InputError, OutputError
from refusion_edge.files import Claim, output_error, read_file, write_atomically
from refusion_edge.images.io import encode_tiff, read_image
from refusion_edge.network import NETWORK_NAMES
from refusion_edge.stream.frames import SIDES, Frame, Side
from refusion_edge.stream.outputs.disk import DiskWatch
from refusion_edge.stream.sources.folders import TIMES_NAME

SCHEMA = "refusion-edge/recording/1"
_FRAME_COLUMNS = ("side", "file", "index", "time_ns", "arrived_ns", "unchanged_since_ns", "white")
_LEAST_COLUMNS = 6  # of recordings of version 0.1, without the full scale
_MAX_WHITE = float(1 << 32)
# A day of two cameras at 60 frames per second has some 700 MB of rows, which is too long to replay.
_MAX_TABLE_BYTES, _MAX_SETTINGS_BYTES = 256 << 20, 1 << 20
# Pairing settings that a replay takes from the recording.
_PAIRING: dict[str, Any] = {
    "policy": str,
    "max_skew_ms": float | None,
    "max_age_ms": float,
    "offset_ms": float,
    "lost_after_ms": float | None,
    "max_freeze_ms": float,
}
_MAX_MS = 1e9
_MAX_DIGITS = 18  # 30 years in nanoseconds
# Lossless at every level; for noisy frames the fastest is within a tenth of the size of the default.
_PNG_OPTIONS = (cv2.IMWRITE_PNG_COMPRESSION, 1)
# A file takes whole blocks of the disk; a recording has four tables, a description and three folders.
_BLOCK_BYTES = 4096
_EMPTY_BYTES = 8 * _BLOCK_BYTES

DESCRIPTION = "recording.json"
"""Name of the description of a recording."""
_NAMES = {DESCRIPTION, TIMES_NAME, "pairs.csv", *SIDES}
PART_NAME = re.compile(r"part-([0-9]{6,9})")
"""Names of the parts of a recording of limited size, in the order of their numbers."""


@dataclass(frozen=True, slots=True)
class PairFate:
    """A pair that was made but not shown.

    Attributes:
        number: Number of the pair.
    """

    number: int


class FrameRecorder(Protocol):
    """Records raw frames. Use each instance from one thread, as a context manager.

    Attributes:
        outlasts_full_disk: Whether it can continue after ``write`` raised ``DiskFullError``.
    """

    outlasts_full_disk: bool

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def write(self, item: Frame | PairFate) -> None:
        """Record a frame, or the fate of a pair.

        Raises:
            DiskFullError: The disk is full; what was recorded so far stays intact.
            OutputError: The disk cannot be written, or the frame cannot be recorded.
        """

    def finish(self, end: int, networks: Sequence[tuple[int, str]] = (), lost: int = 0) -> None:
        """Record where the run ended, which networks fused its pairs, and what is missing.

        Args:
            end: Number of the first pair that was not shown because the run ended.
            networks: Number of the first pair of each network, in order, with its name.
            lost: Frames and fates of pairs that were not written.

        Raises:
            OutputError: The disk is full or cannot be written.
        """


class Recorder:
    """Writes a recording. Implements ``FrameRecorder``.

    Every row is written before the next frame, and names only frames that are complete: a process that is killed loses what
    still waits in its queue.

    Args:
        folder: Folder of the recording; it must be empty or absent.
        settings: Pairing settings for ``recording.json``.
        overwrite: Whether the folder may also hold an earlier recording, which is removed.

    Raises:
        OutputError: The folder is not empty, or cannot be created.

    Attributes:
        size_bytes: Size on the disk so far.
    """

    outlasts_full_disk = False

    def __init__(self, folder: Path, settings: dict[str, Any], *, overwrite: bool = False) -> None:
        self._overwrite = overwrite
        self.size_bytes = _EMPTY_BYTES
        self._folder = folder
        self._settings = settings
        self._files: dict[str, io.FileIO] = {}
        self._count = dict.fromkeys(SIDES, 0)
        self._begun_bytes = 0
        self._disk, self._claim = DiskWatch(folder), Claim(folder)

    def __enter__(self) -> Self:
        try:
            if not self._folder.exists():
                self._folder.mkdir(parents=True)
            with contextlib.ExitStack() as on_failure:
                on_failure.enter_context(self._claim)
                on_failure.push(self.__exit__)
                make_room(self._folder, overwrite=self._overwrite)
                self._begin()
                on_failure.pop_all()
        except OSError as error:
            raise error if isinstance(error, OutputError) else output_error(self._folder, error) from error
        return self

    def __exit__(self, *exc: object) -> None:
        self._claim.__exit__()
        files, self._files = self._files, {}
        with contextlib.ExitStack() as closing:
            for file in files.values():
                closing.callback(file.close)
            try:
                closing.close()
            except OSError as error:
                raise output_error(self._folder, error) from error

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been recorded."""
        return self.size_bytes == self._begun_bytes

    def write(self, item: Frame | PairFate) -> None:
        """See ``FrameRecorder.write``."""
        try:
            self._disk.check()
            if isinstance(item, PairFate):
                self._append("pairs.csv", (item.number,))
                return
            suffix, data = _encode(item.image)
            name = f"{self._count[item.side]:06d}{suffix}"
            _write_whole(self._folder / item.side / name, data)
            self.size_bytes += -(-len(data) // _BLOCK_BYTES) * _BLOCK_BYTES
            self._count[item.side] += 1
            white = "" if item.white is None else f"{item.white:.17g}"
            row = (item.index, item.time_ns, item.arrived_ns, item.unchanged_since_ns, white)
            self._append(f"{item.side}/{TIMES_NAME}", (name, item.time_ns))
            self._append(TIMES_NAME, (item.side, name, *row))
        except OSError as error:
            raise error if isinstance(error, OutputError) else output_error(self._folder, error) from error

    def finish(self, end: int, networks: Sequence[tuple[int, str]] = (), lost: int = 0) -> None:
        """See ``FrameRecorder.finish``."""
        describe(self._folder, {**self._settings, **ending(end, networks, lost)})

    def _begin(self) -> None:
        describe(self._folder, self._settings)  # first: it tells the rest from files of others
        for side in SIDES:
            (self._folder / side).mkdir()
        self._start(TIMES_NAME, _FRAME_COLUMNS)
        self._start("pairs.csv", ("not_shown",))
        for side in SIDES:
            self._start(f"{side}/{TIMES_NAME}", ("file", "time_ns"))
        self._begun_bytes = self.size_bytes

    def _start(self, name: str, columns: tuple[str, ...]) -> None:
        self._files[name] = io.FileIO(self._folder / name, "x")
        self._append(name, columns)

    def _append(self, name: str, row: tuple[object, ...]) -> None:
        """Add a row as a whole, or not at all."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(row)
        file, data = self._files[name], text.getvalue().encode()
        before = file.tell()
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.seek(before)
            file.truncate()
            raise
        self.size_bytes += len(data)


def require_room(folder: Path, *, overwrite: bool) -> None:
    """Require that a recording can be written to a folder: that it is absent, empty, or holds a recording to be replaced.

    Args:
        folder: The folder.
        overwrite: Whether a recording in it may be replaced. Any other content is in the way in either case.

    Raises:
        OutputError: It cannot.
    """
    if not folder.exists():
        return
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else {""}
    is_recording = any(DESCRIPTION in name for name in names) and all(map(_is_ours, names))
    if names and not (is_recording and overwrite):
        instead = ", or replace the recording in it with --overwrite" if is_recording else ""
        raise OutputError(f"cannot record to {folder}: it is not an empty folder", f"choose another name{instead}")


def _is_ours(name: str) -> bool:
    # A part that is going, and what a kill leaves of a description, begin with a dot.
    return name in _NAMES or name.startswith(f".{DESCRIPTION}.") or PART_NAME.fullmatch(name.lstrip(".")) is not None


def make_room(folder: Path, *, overwrite: bool) -> None:
    """Remove the recording in a folder where that is allowed, see ``require_room``.

    Raises:
        OutputError: See there.
        OSError: Something cannot be removed.
    """
    require_room(folder, overwrite=overwrite)
    # The description goes last: without it, what is left would be in the way of the next attempt.
    for path in sorted(folder.iterdir(), key=lambda path: path.name == DESCRIPTION):
        # Of a folder on another disk, the link goes, and what it leads to stays.
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def describe(folder: Path, settings: dict[str, Any]) -> None:
    """Write ``recording.json`` into the folder of a recording.

    Raises:
        OutputError: It cannot be written.
    """
    text = json.dumps({"schema": SCHEMA, **settings}, indent=2, sort_keys=True) + "\n"
    write_atomically(folder / DESCRIPTION, text.encode())


def ending(end: int, networks: Sequence[tuple[int, str]], lost: int) -> dict[str, Any]:
    """What ``recording.json`` contains about the end of the run; arguments as in ``FrameRecorder.finish``."""
    return {"end": end, "networks": [list(each) for each in networks], "lost": lost}


def _encode(image: Array) -> tuple[str, bytes]:
    """Encode a frame without loss; returns the suffix and the data of its file."""
    if image.dtype in (np.uint8, np.uint16):
        return ".png", cv2.imencode(".png", image, _PNG_OPTIONS)[1].tobytes()
    return ".tif", encode_tiff(image[..., ::-1] if image.ndim == 3 else image)


def _write_whole(path: Path, data: bytes) -> None:
    """Write a new file; remove it if that fails."""
    try:
        path.write_bytes(data)
    except OSError:
        path.unlink(missing_ok=True)
        raise


Row = tuple[Side, str, int, int, int, int, "float | None"]
"""The columns of a row of ``frames.csv``; the file is named with the folder that it lies in."""


@dataclass(frozen=True, slots=True)
class Recording:
    """An open recording.

    Attributes:
        folder: Folder of the recording.
        settings: The content of ``recording.json``.
        rows: Frames in order of arrival.
        not_shown: Numbers of the pairs that were not shown.
        end: Number of the first pair that the end of the run kept from being shown; None after a crash.
        networks: Number of the first pair of each network, in order from 0, with its name; empty if unknown.
        lost: Frames and fates of pairs that are missing; with any, a replay is another run.
        late: Whether its beginning was removed to stay below a limit. Its pairs are then numbered from its first frame, and it
            is unknown which of them were shown: a replay shows all of them.
    """

    folder: Path
    settings: dict[str, Any]
    rows: tuple[Row, ...]
    not_shown: frozenset[int]
    end: int | None = None
    networks: tuple[tuple[int, str], ...] = ()
    lost: int = 0
    late: bool = False

    def read(self, number: int) -> Frame:
        """Read the frame at an index of ``rows``.

        Raises:
            InputError: Its image is missing or damaged.
        """
        side, name, index, time_ns, arrived_ns, unchanged_since_ns, white = self.rows[number]
        image = read_image(self.folder / name)
        image = np.ascontiguousarray(image[..., ::-1]) if image.ndim == 3 else image
        return Frame(side, image, index, time_ns, arrived_ns, unchanged_since_ns, white=white)


def read_recording(folder: Path) -> Recording:
    """Open a recording without reading its images. An incomplete last row, as a crash leaves it, is ignored.

    Raises:
        InputError: The folder is not a recording, or the recording is damaged.
    """
    path = folder / DESCRIPTION
    if not folder.is_dir() or not path.exists():
        raise InputError(f"{folder} is not a recording of 'stream --record': it has no {path.name}", "check the path")
    data = read_file(path, kind="description of a recording", most_bytes=_MAX_SETTINGS_BYTES)
    settings = typed(dict[str, Any], parse_json(data, str(path)), str(path))
    if settings.get("schema") != SCHEMA:
        raise InputError(
            f"{path} has the schema {shown(settings.get('schema'))} instead of {SCHEMA}",
            "record it again",
            expected=SCHEMA,
            got=settings.get("schema"),
        )
    pairing = typed(dict[str, Any], settings.get("pairing", {}), f"pairing in {path}")
    settings["pairing"] = {name: typed(_PAIRING.get(name, Any), value, f"{name} in {path}") for name, value in pairing.items()}
    if any(isinstance(value, float) and abs(value) > _MAX_MS for value in settings["pairing"].values()):
        raise InputError(f"{path} holds a pairing time of more than {_MAX_MS:g} ms", "record it again")
    parts, late = [folder], typed(int, settings.get("part", 0), f"part in {path}") > 0
    if "limit_bytes" in settings:
        parts = parts_of(folder)
        late = bool(parts) and number_of(parts[0]) > 0
    rows, not_shown = list[Row](), set[int]()
    for part in parts:
        if part is parts[-1] and part is not folder and not (part / "pairs.csv").exists():
            continue  # it was about to begin
        try:
            prefix = "" if part is folder else f"{part.name}/"
            rows += [_read_row(row, prefix) for row in _rows(part / TIMES_NAME, _LEAST_COLUMNS, len(_FRAME_COLUMNS))]
            not_shown.update(_whole_number(row[0]) for row in _rows(part / "pairs.csv", 1, 1))
        except (ValueError, csv.Error) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"the recording {part} is damaged ({error})", "record it again") from error
    if not rows:
        raise InputError(f"the recording {folder} holds no frames", "record it again")
    lost, networks = typed(int, settings.get("lost", 0), f"lost in {path}"), _networks(settings, path)
    if late:
        return Recording(folder, settings, tuple(rows), frozenset(), networks=_last(networks), lost=lost, late=True)
    return Recording(folder, settings, tuple(rows), frozenset(not_shown), _end(settings, path), networks, lost)


def parts_of(folder: Path) -> list[Path]:
    """The parts of a recording of limited size, the oldest one first."""
    return sorted((path for path in folder.iterdir() if PART_NAME.fullmatch(path.name)), key=number_of)


def number_of(part: Path) -> int:
    """The number of a part, from 0."""
    return int(part.name.partition("-")[2])


def _last(networks: tuple[tuple[int, str], ...]) -> tuple[tuple[int, str], ...]:
    return tuple((0, name) for _, name in networks[-1:])


def _end(settings: dict[str, Any], path: Path) -> int | None:
    end = settings.get("end")
    return None if end is None else typed(int, end, f"end in {path}")


def _networks(settings: dict[str, Any], path: Path) -> tuple[tuple[int, str], ...]:
    networks = typed(list[tuple[int, str]], settings.get("networks", []), f"networks in {path}")
    numbers = [number for number, _ in networks]
    if numbers and (numbers[0] != 0 or sorted(set(numbers)) != numbers):
        raise InputError(f"the pairs at which the networks in {path} begin do not rise from 0", "record it again", got=numbers)
    for _, name in networks:
        if name not in NETWORK_NAMES:
            raise InputError(f"{path} names the network {shown(name)}", "record it again", expected=NETWORK_NAMES, got=name)
    return tuple(networks)


def _rows(path: Path, least: int, most: int) -> list[list[str]]:
    text = read_file(path, kind="table of a recording", most_bytes=_MAX_TABLE_BYTES).decode("utf-8-sig")
    lines = text.replace("\r\n", "\n").split("\n")[1:]
    rows = list(csv.reader(lines[:-1]))
    for number, row in enumerate(rows, start=2):
        if not least <= len(row) <= most:
            raise ValueError(f"line {number} of {path.name} has {len(row)} columns instead of {most}")
    return rows


def _read_row(row: list[str], prefix: str) -> Row:
    side: Side = "ir" if row[0] == "ir" else "vis"
    if row[0] != side or Path(row[1]).name != row[1] or "\0" in row[1]:
        raise ValueError(f"a row starts with {shown(row[0])}, {shown(row[1])}")
    index, time_ns, arrived_ns, unchanged_since_ns = map(_whole_number, row[2:_LEAST_COLUMNS])
    name, white = f"{prefix}{side}/{row[1]}", _white("".join(row[_LEAST_COLUMNS:]))
    return side, name, index, time_ns, arrived_ns, unchanged_since_ns, white


def _white(text: str) -> float | None:
    white = float(text) if text else None
    if white is not None and not 1 <= white <= _MAX_WHITE:
        raise ValueError(f"{shown(text)} is no full scale")
    return white


def _whole_number(text: str) -> int:
    if len(text) > _MAX_DIGITS or not text.isascii() or not text.removeprefix("-").isdecimal():
        raise ValueError(f"{shown(text)} is not a whole number")
    return int(text)
