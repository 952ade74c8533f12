"""Reading untrusted files within limits, and writing files atomically.

All reading goes through ``read_file``, which checks the kind and the size of a file before it reads a byte. All writing under a
name chosen by the user goes through ``write_atomically``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from typing_extensions import Self

from refusion_edge.errors import DiskFullError, InputError, OutputError, RefusionError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a block device",
}
_MORE_BYTES = 1 << 16
_MOST_LINKS = 40  # the limit of the system


def read_file(path: Path, *, kind: str, most_bytes: int, error: type[RefusionError] = InputError) -> bytes:
    """Read a regular file from an untrusted source.

    Pipes, devices and folders are refused without opening them, and oversized files without reading them.

    Args:
        path: The file; symbolic links are followed.
        kind: Kind of file, for messages, such as ``rig file``.
        most_bytes: Largest size that a file of this kind can have, in bytes.
        error: Type of exception to raise.

    Raises:
        RefusionError: Of the type ``error``: the file is missing, not regular, too large, or cannot be read.
    """
    try:
        # Checked before opening: opening a device can have side effects, and opening a pipe waits for its other end.
        _require_regular(path, path.stat(), kind, most_bytes, error)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            _require_regular(path, status, kind, most_bytes, error)
            # Python takes memory for all that is asked for. Files of the system have the size 0, and others may still grow.
            data = file.read(status.st_size)
            while len(data) <= most_bytes and (more := file.read(_MORE_BYTES)):
                data += more
    except FileNotFoundError:
        raise error(f"there is no {kind} at {path}", "check the path") from None
    except (OSError, ValueError) as problem:  # a name with a NUL is a ValueError
        if isinstance(problem, RefusionError):
            raise
        reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
        raise error(f"cannot read the {kind} {path}: {reason}", "check the path and its permissions") from problem
    if len(data) > most_bytes:
        raise _too_large(path, len(data), kind, most_bytes, error)
    return data


def write_atomically(path: Path, data: bytes, *, mode: int | None = None) -> None:
    """Write a file atomically: it appears under its name only once it is complete and on the disk.

    A symbolic link is kept and its target replaced; a replaced file keeps its mode. Pipes and devices, including
    ``/dev/stdout`` and ``/dev/fd/N``, are written to in place.

    Args:
        path: The file.
        data: Its whole content.
        mode: Permission bits; None for those of the file it replaces, or else for the default under the process's umask.

    Raises:
        OutputError: The file cannot be written, or the disk is full; nothing is left behind.
    """
    try:
        target = _follow(path)
        if isinstance(target, int):
            _flush_standard_streams()
            _write_all(os.dup(target), data)
            return
        before = _status(target)
        if before is not None and not stat.S_ISREG(before.st_mode):
            _require_stream(before)
            _write_all(os.open(target, os.O_WRONLY | os.O_NOCTTY), data)
        else:
            _replace(target, before, data, mode)
    except OSError as error:
        raise output_error(path, error) from error


class Claim:
    """An exclusive lock on a file or a folder while this process writes it. Leaving the context twice is harmless.

    Args:
        path: The file or folder to lock.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        """Lock the path, which must exist.

        Raises:
            OutputError: Another process is writing it, or it cannot be opened.
        """
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise output_error(self._path, error) from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise OutputError(f"cannot write {self._path}: another process is writing it", "choose another name") from error
        except OSError:
            pass  # this file system has no locks
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def natural_key(name: str) -> tuple[list[object], str]:
    """Key that sorts names as people count: ``frame_9`` before ``frame_10``."""
    parts: list[object] = list(re.split(r"([0-9]+)", name))
    # Numbers by their length, then as text: a name may hold more digits than Python converts.
    parts[1::2] = [(len(number), number) for number in (str(part).lstrip("0") for part in parts[1::2])]
    return parts, name


def is_occupied(path: Path) -> bool:
    """Whether writing to a path would destroy something: the content of a regular file.

    An empty file holds nothing, and pipes, devices and descriptors such as ``/dev/stdout`` are written to in place.
    """
    try:
        target = _follow(path)
        if isinstance(target, int):
            return False
        status = target.stat()
    except (OSError, ValueError):  # it does not exist, or its name is too long or has a zero byte: the writer says so
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size > 0


def require_writable(path: Path) -> None:
    """Check, without changing anything, that a file can most likely be written; call this before expensive work.

    Raises:
        OutputError: The file cannot be written.
    """
    try:
        target = _follow(path)
        if isinstance(target, int):
            os.fstat(target)
            return
        before = _status(target)
        if before is not None:
            if not stat.S_ISREG(before.st_mode):
                _require_stream(before)
            _require_access(target, os.W_OK)
            if not stat.S_ISREG(before.st_mode):
                return
        folder = target.parent
        while not folder.exists():
            folder = folder.parent
        if not folder.is_dir():
            raise _system_error(errno.ENOTDIR)
        _require_access(folder, os.W_OK | os.X_OK)
    except OSError as error:
        raise output_error(path, error) from error


def output_error(path: Path, error: OSError) -> OutputError:
    """Make the error that says why ``path`` could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(f"cannot write {path}: the disk is full", "free some space or choose another place")
    reason = error.strerror or str(error)
    return OutputError(f"cannot write {path}: {reason}", "choose another place")


def _require_regular(path: Path, status: os.stat_result, kind: str, most_bytes: int, error: type[RefusionError]) -> None:
    if not stat.S_ISREG(status.st_mode):
        found = _KINDS.get(stat.S_IFMT(status.st_mode), "a special file")
        raise error(f"cannot read the {kind} {path}, which is {found}", "give a regular file")
    if status.st_size > most_bytes:
        raise _too_large(path, status.st_size, kind, most_bytes, error)


def _too_large(path: Path, size: int, kind: str, most_bytes: int, error: type[RefusionError]) -> RefusionError:
    problem = f"the {kind} {path} is too large: it has {_amount(size)} of at most {_amount(most_bytes)}"
    return error(problem, "check the path", expected=most_bytes, got=size)


def _amount(size: int) -> str:
    return f"{size / (1 << 20):.4g} MiB" if size >= 1 << 20 else f"{size} bytes"


def _follow(path: Path) -> Path | int:
    """Follow symbolic links to a path, or to the number of a descriptor that is open in this process."""
    descriptors = {f"/proc/{os.getpid()}/fd", "/dev/fd"}
    target = path
    for _ in range(_MOST_LINKS):
        # Only the parent is resolved: resolving a link to a descriptor would give the file behind it, opened from its start.
        parent = os.path.realpath(target.parent)
        if parent in descriptors and target.name.isdecimal():
            return int(target.name)
        target = Path(parent, target.name) if target.name != ".." else Path(os.path.realpath(target))
        if not target.is_symlink():
            return target
        target = target.parent / target.readlink()
    raise _system_error(errno.ELOOP)


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _require_stream(status: os.stat_result) -> None:
    """Refuse what cannot be written in place: folders and block devices."""
    if stat.S_ISDIR(status.st_mode):
        raise _system_error(errno.EISDIR)
    if stat.S_ISBLK(status.st_mode):
        raise OSError(errno.EINVAL, "it is a block device")


def _require_access(path: Path, mode: int) -> None:
    if not os.access(path, mode):
        raise _system_error(errno.EACCES)


def _write_all(descriptor: int, data: bytes) -> None:
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def _replace(target: Path, before: os.stat_result | None, data: bytes, mode: int | None) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if before is not None:
        # Renaming over a file does not check whether it may be written.
        _require_access(target, os.W_OK)
    temporary = target.parent / f".{target.name[:40]}.{secrets.token_hex(4)}"
    usual = 0o666 & ~_umask() if before is None else stat.S_IMODE(before.st_mode)
    bits = usual if mode is None else mode

    def fill(descriptor: int) -> None:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(data)
        if before is not None and (before.st_uid, before.st_gid) != (os.geteuid(), os.getegid()):
            with contextlib.suppress(OSError):
                os.chown(descriptor, before.st_uid, before.st_gid)
        os.fchmod(descriptor, bits)
        # Some file systems report a full disk or a quota only now.
        os.fsync(descriptor)

    # A new file gets its own name at once. A link cannot replace a file, so a replacement has a temporary name first, which a
    # process that is killed before the last step leaves behind.
    name = target if before is None else temporary
    try:
        if not _fill_unnamed(name, fill):
            name = temporary
            descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                fill(descriptor)
            finally:
                os.close(descriptor)
        if name != target:
            name.replace(target)
        _sync_folder(target.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _fill_unnamed(path: Path, fill: Callable[[int], None]) -> bool:
    """Fill a file that gets its name only then, so that a process that is killed leaves nothing.

    Args:
        path: Its name, which must not exist.
        fill: Writes to a descriptor.

    Returns:
        Whether that worked; not every system and file system can do it.
    """
    try:
        descriptor = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY, 0o600)
    except (AttributeError, OSError):
        return False
    try:
        fill(descriptor)
        with contextlib.suppress(OSError):
            # With a folder, which an absolute path ignores, Python follows the link to the file.
            os.link(f"/proc/self/fd/{descriptor}", path, src_dir_fd=descriptor)
            return True
        return False
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    # The file is in place; this makes its name survive a power cut, which not every file system supports.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _flush_standard_streams() -> None:
    """Keep what was printed before in front of what is written now."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()


def _system_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def _umask() -> int:
    with contextlib.suppress(OSError):
        if line := re.search(rb"^Umask:\t([0-7]+)$", Path("/proc/self/status").read_bytes(), re.MULTILINE):
            return int(line[1], 8)
    # Elsewhere it cannot be read without setting it, which other threads can notice.
    mask = os.umask(0)
    os.umask(mask)
    return mask
