"""The manifest of an archive: one line of JSON per result, with hashes, so that a run can be resumed and checked.

Every process appends to its own file, one line as soon as a result is on the disk, and reads the files of all others. An
incomplete line, as a killed process leaves it, is removed, and its result is made again. A shard without a pair, of which an
array job may have some, leaves the line ``{"empty": true}``.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from typing_extensions import Self

from refusion_edge.archive.shards import Shard
from refusion_edge.documents import parse_json, typed
from refusion_edge.errors import InputError
from refusion_edge.files import Claim, output_error, read_file

NAME = "manifest"
_SUFFIX = ".jsonl"
_PATTERN = re.compile(rf"{NAME}(-[0-9]+-of-[0-9]+)?\{_SUFFIX}", re.ASCII)
_EMPTY = {"empty": True}
_MOST_BYTES = 4 << 30
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Entry:
    """A result.

    Attributes:
        name: Name of the pair.
        file: Name of the result in its folder.
        sha256: Of the result.
        a_sha256: Of the file of source a.
        b_sha256: Of the file of source b.
        settings: Digest of everything else that the result depends on, see ``refusion_edge.archive.fusing``.
    """

    name: str
    file: str
    sha256: str
    a_sha256: str
    b_sha256: str
    settings: str

    def holds(self, folder: Path) -> bool:
        """Whether the result is in the folder, with this hash."""
        with contextlib.suppress(OSError):
            return sha256_of(folder / self.file) == self.sha256
        return False


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal digits.

    Raises:
        OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def manifest_path(folder: Path, shard: Shard) -> Path:
    """The file that a shard appends to; for a single shard, the name has no numbers."""
    return folder / (f"{NAME}{_SUFFIX}" if shard.is_all else f"{NAME}-{shard.index}-of-{shard.count}{_SUFFIX}")


def has_manifest(folder: Path) -> bool:
    """Whether a folder has the manifest of some run, complete or not."""
    return bool(_manifests(folder))


def _manifests(folder: Path) -> list[Path]:
    """The manifests of all shards, see ``manifest_path``; other files may have similar names."""
    return sorted(path for path in folder.glob(f"{NAME}*{_SUFFIX}") if _PATTERN.fullmatch(path.name))


class Manifest:
    """The manifest of a folder. Use it as a context manager, which locks the file of this process.

    Args:
        folder: Folder of the results; created if needed.
        shard: The shard of this process.

    Attributes:
        entries: The newest entry of each pair, of this and of all other processes, by its name.

    Raises:
        InputError: A manifest is damaged.
        OutputError: It cannot be written, or another process is working on this shard.
    """

    def __init__(self, folder: Path, shard: Shard) -> None:
        self.entries: dict[str, Entry] = {}
        self._folder, self._path = folder, manifest_path(folder, shard)
        self._claim = Claim(self._path)
        self._own: set[str] = set()

    def __enter__(self) -> Self:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._path.touch()
            with contextlib.ExitStack() as on_failure:
                on_failure.enter_context(self._claim)
                self._cut_off()
                others = _manifests(self._folder)
                for path in (*(path for path in others if path != self._path), self._path):
                    found = list(_read(path))
                    self.entries.update({entry.name: entry for entry in found})
                    if path == self._path:
                        self._own = {entry.name for entry in found}
                on_failure.pop_all()
        except OSError as error:
            raise output_error(self._path, error) from error
        return self

    def __exit__(self, *exc: object) -> None:
        self._claim.__exit__(*exc)

    def add(self, entry: Entry) -> None:
        """Append an entry, unless this process has it already.

        Raises:
            OutputError: It cannot be written as a whole; then nothing of it is.
        """
        if entry.name in self._own and self.entries.get(entry.name) == entry:
            return
        self._append(asdict(entry))
        self.entries[entry.name] = entry
        self._own.add(entry.name)

    def add_empty(self) -> None:
        """Note, once, that this shard has no pairs, so that it is told from one that has not run.

        Raises:
            OutputError: It cannot be written.
        """
        if not self._path.stat().st_size:
            self._append(_EMPTY)

    def _append(self, values: dict[str, Any]) -> None:
        line = json.dumps(values, sort_keys=True).encode() + b"\n"
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
            try:
                before = os.fstat(descriptor).st_size
                if os.write(descriptor, line) != len(line):
                    # What comes after half a line would be lost with it.
                    os.ftruncate(descriptor, before)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise output_error(self._path, error) from error

    def _cut_off(self) -> None:
        """Remove a line without an end, as a kill or a full disk leaves it."""
        with self._path.open("r+b") as file:
            data = file.read()
            file.truncate(data.rfind(b"\n") + 1)


def _read(path: Path) -> Iterator[Entry]:
    # Another process may be appending its last line.
    lines = read_file(path, kind="manifest", most_bytes=_MOST_BYTES).split(b"\n")[:-1]
    for number, line in enumerate(lines, start=1):
        values = parse_json(line, f"line {number} of {path}")
        if values == _EMPTY:
            continue
        entry = typed(Entry, values, f"line {number} of {path}")
        if Path(entry.file).name != entry.file:
            raise InputError(f"line {number} of {path} names a file in another folder", "remove the line", got=entry.file)
        yield entry
