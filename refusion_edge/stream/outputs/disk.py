"""Disk space for the files being written.

At a limit of the file system, the user or the process, a file cannot be closed properly any more: its index no longer fits. So
the limits are probed before a file reaches them.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path

from refusion_edge.errors import DiskFullError
from refusion_edge.files import output_error

# With this much space left, every file can still be closed properly; on a full disk it cannot.
_MIN_FREE_BYTES = 64 << 20
_CHECK_S = 1.0
# Room for the growth of a file between two checks, and for the index at its end.
_RESERVE_BYTES = 16 << 20
_LIMITS = (errno.EFBIG, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS)


class DiskWatch:
    """Ends a run while there is still room to close its files. Use each instance from the thread that writes.

    Args:
        path: The folder or the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next_s = 0.0
        self._checked_bytes = 0
        self._bytes = 0

    def check(self) -> None:
        """Call before each frame; the expensive checks run once a second, or after 8 MiB.

        Raises:
            DiskFullError: Less than 64 MiB is left on the disk.
            OutputError: The file has reached a limit.
        """
        if self._path.is_file():
            self._bytes = self._path.stat().st_size
        now_s = time.monotonic()
        if now_s < self._next_s and self._bytes - self._checked_bytes < _RESERVE_BYTES // 2:
            return
        self._next_s, self._checked_bytes = now_s + _CHECK_S, self._bytes
        free = shutil.disk_usage(self._path if self._path.is_dir() else self._path.parent).free
        if free < _MIN_FREE_BYTES:
            raise DiskFullError(
                f"cannot go on writing {self._path}: its disk has {free >> 20} MiB left, and {_MIN_FREE_BYTES >> 20} MiB are "
                "needed",
                "free some space (what was written so far is kept)",
                expected=_MIN_FREE_BYTES,
                got=free,
            )
        if self._path.is_file():
            self._reserve()

    def _reserve(self) -> None:
        """Allocate the space that the file needs next, and free it at once."""
        try:
            with self._path.open("r+b") as file:
                try:
                    os.posix_fallocate(file.fileno(), self._bytes, _RESERVE_BYTES)
                finally:
                    file.truncate(self._bytes)
        except OSError as error:
            # Not every file system can allocate ahead; writing then finds the limit.
            if error.errno in _LIMITS:
                raise output_error(self._path, error) from error
