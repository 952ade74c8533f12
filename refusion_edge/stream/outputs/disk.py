"""Room for what is being written, and whether it arrives on the disk.

The video library reports no error of a file that it writes: at a limit of the file system, of the user or of the process it
goes on without a word, and every later picture is lost. So the limits are tried out ahead of it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import time
from pathlib import Path

from typing_extensions import Self

from refusion_edge.errors import OutputError
from refusion_edge.files import output_error

# Ending with this much left on the disk closes every file properly; a full disk would not.
_LEAST_FREE_BYTES = 64 << 20
_CHECK_S = 1.0
# What a file may grow by from one check to the next, and the index that is written at its end.
_RESERVE_BYTES = 16 << 20
_LIMITS = (errno.EFBIG, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)
# The video library holds less than 512 KiB back, and even a picture without any change takes some 20 bytes.
_MOST_STANDING = 30_000


class Claim:
    """Keeps every other stream away from a file or a folder while this one writes it. Leaving twice does no harm.

    Args:
        path: What is written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        """Claim it; it must exist.

        Raises:
            OutputError: Another stream writes it, or it cannot be opened.
        """
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise output_error(self._path, error) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise OutputError(f"cannot write {self._path}: another stream is writing it; choose another name") from error
        except OSError:
            pass  # this file system has no locks
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others write it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


class DiskWatch:
    """Ends a run while there is still room to close its files. One instance, in the thread that writes.

    Args:
        path: The folder, or the file that somebody else's code writes; of that it is also checked that it can grow.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next_s = 0.0
        self._checked_bytes = 0
        self._bytes = 0
        self._standing = 0

    def check(self) -> None:
        """Look before each picture; what costs more than a look is done once a second, or after 8 MiB.

        Raises:
            OutputError: Less than 64 MiB are left on the disk, the file has reached a limit, or it has stopped growing.
        """
        if self._path.is_file():
            self._check_growth()
        now_s = time.monotonic()
        if now_s < self._next_s and self._bytes - self._checked_bytes < _RESERVE_BYTES // 2:
            return
        self._next_s, self._checked_bytes = now_s + _CHECK_S, self._bytes
        free = shutil.disk_usage(self._path if self._path.is_dir() else self._path.parent).free
        if free < _LEAST_FREE_BYTES:
            raise OutputError(
                f"cannot go on writing {self._path}: its disk has {free >> 20} MiB left; free some space, what was written so "
                "far is kept"
            )
        if self._path.is_file():
            self._reserve()

    def _check_growth(self) -> None:
        size = self._path.stat().st_size
        self._standing = self._standing + 1 if size == self._bytes else 0
        self._bytes = size
        if self._standing > _MOST_STANDING:
            raise OutputError(
                f"cannot go on writing {self._path}: it has not grown for {_MOST_STANDING} pictures; choose another place"
            )

    def _reserve(self) -> None:
        """Take the room that the file needs next, and give it back at once."""
        try:
            with self._path.open("r+b") as file:
                try:
                    os.posix_fallocate(file.fileno(), self._bytes, _RESERVE_BYTES)
                finally:
                    file.truncate(self._bytes)
        except OSError as error:
            # Not every file system can reserve; what it then allows shows at the end.
            if error.errno in _LIMITS:
                raise output_error(self._path, error) from error
