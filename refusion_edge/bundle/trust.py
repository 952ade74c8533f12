"""Which compiled engines may run: those that were built here, and those that the user trusts.

A compiled engine (a TensorRT plan or a GPU program) is code. The hashes in its bundle show that it is intact, not who made it.
The hashes of the engines that may run are therefore kept in a file of this user, ``$REFUSION_EDGE_TRUSTED`` or
``refusion-edge/trusted-engines`` in the user's state folder: one line per engine, with its SHA-256 and its origin.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from refusion_edge.backends.registry import BACKENDS
from refusion_edge.bundle.folder import EngineBundle, read_bundle
from refusion_edge.bundle.manifest import MODEL, WEIGHTS
from refusion_edge.errors import BundleError, OutputError
from refusion_edge.files import output_error, read_file
from refusion_edge.text import printable

_MOST_BYTES = 16 << 20
_DIGITS = 64


def trusted_file() -> Path:
    """The file with the hashes of trusted engines."""
    if chosen := os.environ.get("REFUSION_EDGE_TRUSTED"):
        return Path(chosen)
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "refusion-edge" / "trusted-engines"


def is_code(bundle: EngineBundle) -> bool:
    """Whether the engine of a bundle is compiled; the others are made anew from the weights, as data."""
    manifest = bundle.manifest
    # Whoever wrote the manifest chose the name: a compiled engine may be called model.onnx, too.
    return manifest.engine not in (MODEL, WEIGHTS) or BACKENDS[manifest.backend].on_gpu


def is_trusted(digest: str) -> bool:
    """Whether an engine with this SHA-256 may run.

    Raises:
        BundleError: The file with the hashes belongs to somebody else, or others can write it.
    """
    path = trusted_file()
    try:
        status = path.stat()
    except OSError:
        return False
    if status.st_uid not in (os.geteuid(), 0) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise BundleError(
            f"other users can change {path}, which lists the compiled engines that may run",
            f"as its owner, run: chmod go-w {path}",
        )
    lines = read_file(path, kind="list of trusted engines", most_bytes=_MOST_BYTES, error=BundleError).splitlines()
    return digest.encode() in {line[:_DIGITS] for line in lines}


def require_trusted(bundle: EngineBundle) -> None:
    """Require that a compiled engine was built here, or that the user trusts it.

    Raises:
        BundleError: Neither is the case.
    """
    if not is_code(bundle):
        return
    name = bundle.manifest.engine
    digest = bundle.manifest.files[name]
    if not is_trusted(digest):
        raise BundleError(
            f"{bundle.path / name} is compiled code (SHA-256 {digest[:12]}...) that was not built here",
            f"add --trust if you would run any program from its author, or build it here: {bundle.rebuild_command()}",
            got=digest,
        )


def trust(bundle: EngineBundle, origin: str) -> None:
    """Let the engine of a bundle run from now on.

    Args:
        bundle: The bundle; its files have been checked.
        origin: Where it came from, for people who read the file.

    Raises:
        OutputError: The file cannot be written.
        BundleError: See ``is_trusted``.
    """
    digest = bundle.manifest.files[bundle.manifest.engine]
    if not is_code(bundle) or is_trusted(digest):
        return
    path = trusted_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, f"{digest}  {printable(origin)}\n".encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise output_error(path, error) from error


def trust_built(bundle: EngineBundle, remarks: list[str]) -> None:
    """Let an engine run that was just built here; if it cannot be recorded, add a remark."""
    try:
        trust(bundle, f"built here: {bundle.path.absolute()}")
    except (OutputError, BundleError) as error:
        remarks.append(
            f"The engine will run only with --trust, because it could not be recorded as built here ({error.problem})"
        )


def trust_path(path: str | os.PathLike[str]) -> None:
    """Let the engine of a bundle run from now on, because the user trusts it.

    Raises:
        BundleError: It is not a sound bundle; see also ``is_trusted``.
        OutputError: It cannot be recorded.
    """
    bundle = read_bundle(path)
    trust(bundle, f"by --trust: {bundle.path.absolute()}")
