"""Recordings of limited size: parts that are recordings themselves, of which the oldest are removed to make space."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typing_extensions import Self

from refusion_edge.errors import OutputError
from refusion_edge.files import Claim, output_error
from refusion_edge.stream.frames import Frame
from refusion_edge.stream.outputs.recording import PairFate, Recorder, describe, ending, make_room

# The more parts, the less is removed at once, and the more folders there are.
PARTS = 8
# A frame that cannot be compressed takes a little more than its pixels: for its rows, its chunks, and the rest of a block.
_CHUNKS, _REST_BYTES = 64, 8192


class RingRecorder:
    """Writes a recording in parts that together never exceed a limit. Implements ``FrameRecorder``.

    The parts are called ``part-000000`` and so on. A part is full at an eighth of the limit; then the oldest parts are
    removed. If the disk is full, recording can pause, and resume when there is space again.

    Args:
        folder: Folder of the recording; it must be empty or absent.
        settings: Pairing settings for ``recording.json``.
        limit_bytes: Largest size of all parts together on the disk.
        overwrite: Whether the folder may also hold an earlier recording, which is removed.

    Raises:
        OutputError: The folder is not empty, or cannot be created.
    """

    outlasts_full_disk = True

    def __init__(self, folder: Path, settings: dict[str, Any], limit_bytes: int, *, overwrite: bool = False) -> None:
        self._overwrite = overwrite
        self._folder, self._settings, self._limit_bytes = folder, settings, limit_bytes
        self._share_bytes = limit_bytes // PARTS
        self._claim = Claim(folder)
        self._part: Recorder | None = None
        self._number = 0
        self._sizes: dict[Path, int] = {}

    def __enter__(self) -> Self:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as on_failure:
                on_failure.enter_context(self._claim)
                make_room(self._folder, overwrite=self._overwrite)
                describe(self._folder, {**self._settings, "limit_bytes": self._limit_bytes})
                self._begin()
                on_failure.pop_all()
        except OSError as error:
            raise error if isinstance(error, OutputError) else output_error(self._folder, error) from error
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.closing(self._claim):
            part = self._part
            self._leave()
            if part is not None and part.is_empty:
                # No frame came, or the disk was full. What is left are recordings that can be replayed.
                try:
                    self._remove(next(reversed(self._sizes)))
                except OSError as error:
                    raise output_error(self._folder, error) from error

    def write(self, item: Frame | PairFate) -> None:
        """See ``FrameRecorder.write``.

        Raises:
            OutputError: The limit is too low for a frame of this size.
        """
        needed = 0 if isinstance(item, PairFate) else item.image.nbytes + item.image.nbytes // _CHUNKS + _REST_BYTES
        if needed > self._share_bytes:
            least = PARTS * needed
            raise OutputError(
                f"the recording {self._folder} is limited to {self._limit_bytes / 1e6:.3g} MB, which is too little for frames "
                f"of {needed / 1e6:.3g} MB",
                f"use --record-limit {-(-least // 1_000_000)}MB or more",
                expected=least,
                got=self._limit_bytes,
            )
        part = self._part
        if part is not None and part.size_bytes + needed > self._share_bytes:
            self._leave()
            part = None
        (part or self._begin()).write(item)

    def finish(self, end: int, networks: Sequence[tuple[int, str]] = (), lost: int = 0) -> None:
        """See ``FrameRecorder.finish``."""
        describe(self._folder, {**self._settings, "limit_bytes": self._limit_bytes, **ending(end, networks, lost)})

    def _begin(self) -> Recorder:
        """Make room, and begin a part."""
        try:
            while sum(self._sizes.values()) + self._share_bytes > self._limit_bytes:
                self._remove(next(iter(self._sizes)))
            folder = self._folder / f"part-{self._number:06d}"
            part = Recorder(folder, {**self._settings, "part": self._number})
            with contextlib.ExitStack() as on_failure:
                on_failure.callback(shutil.rmtree, folder, ignore_errors=True)
                part.__enter__()
                on_failure.pop_all()
        except OSError as error:
            raise error if isinstance(error, OutputError) else output_error(self._folder, error) from error
        self._part = part
        self._number += 1
        return part

    def _leave(self) -> None:
        part, self._part = self._part, None
        if part is not None:
            self._sizes[self._folder / f"part-{self._number - 1:06d}"] = part.size_bytes
            part.__exit__(None, None, None)

    def _remove(self, part: Path) -> None:
        # Under another name first: whoever reads the recording never sees half a part.
        going = self._folder / f".{part.name}"
        with contextlib.suppress(FileNotFoundError):
            part.rename(going)
            shutil.rmtree(going)
        del self._sizes[part]
