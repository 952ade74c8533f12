"""Back ends: what can run a fused graph, and whether it can do so here.

One visible table, by dotted name, so that nothing is imported to list them. An explicit request works or fails; only
``auto`` chooses, and it says what it chose and why.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, Self

from refusion_edge.arrays import Float32Array
from refusion_edge.errors import BackendError, UsageError

AUTO = "auto"


class Backend(Protocol):
    """Something that fuses. Use it as a context manager; one instance, one thread."""

    name: str

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def fuse(self, a: Float32Array, b: Float32Array) -> Float32Array:
        """Fuse two luma planes.

        Args:
            a: Source a, (1, 1, H, W), [0, 1].
            b: Source b, same shape.

        Returns:
            (1, 1, H, W), (0, 1), before any stretch. It may be overwritten by the next call.

        Raises:
            ShapeError: The graph has a fixed size and the planes have another one.
        """


@dataclass(frozen=True, slots=True)
class Entry:
    """One row of the table.

    Attributes:
        module: Dotted name of the module, which has ``probe() -> Status``, and ``probe_build() -> Status`` where
            building needs something else than running; None where this release has no such back end.
        summary: What it is, in a few words.
        builds: Whether ``build`` makes bundles for it.
    """

    module: str | None
    summary: str
    builds: bool


@dataclass(frozen=True, slots=True)
class Status:
    """Whether a back end can be used on this machine.

    Attributes:
        usable: Whether it can.
        reason: Version if it can, the reason if it cannot.
        fix: The line that changes this, or empty if nothing on this machine does.
    """

    usable: bool
    reason: str
    fix: str = ""


# In the order of preference of `auto`, which takes the first usable one that builds.
BACKENDS: dict[str, Entry] = {
    "fused": Entry("refusion_edge.backends.fused", "our compiled GPU kernels, without torch", builds=True),
    "tensorrt": Entry(None, "TensorRT engine", builds=True),
    "tensorrt-rtx": Entry(None, "TensorRT-RTX engine", builds=True),
    "native": Entry(None, "our C++ kernels for the CPU", builds=True),
    "openvino": Entry(None, "OpenVINO on the CPU", builds=True),
    "onnxruntime": Entry("refusion_edge.backends.onnxruntime", "ONNX Runtime on the CPU", builds=True),
    "eager": Entry("refusion_edge.backends.eager", "PyTorch, the reference", builds=False),
}


def status(name: str) -> Status:
    """Find out whether a back end can be used here; changes nothing.

    Raises:
        UsageError: There is no such back end; the message suggests the nearest one.
    """
    entry = find_entry(name)
    if entry.module is None:
        from refusion_edge import __version__

        return Status(usable=False, reason=f"not part of refusion-edge {__version__}")
    probed: Status = importlib.import_module(entry.module).probe()
    return probed


def build_status(name: str) -> Status:
    """Find out whether engines for a back end can be built here, which may be a machine that cannot run them.

    Raises:
        UsageError: There is no such back end; the message suggests the nearest one.
    """
    entry = find_entry(name)
    if entry.module is not None:
        module = importlib.import_module(entry.module)
        if hasattr(module, "probe_build"):
            probed: Status = module.probe_build()
            return probed
    return status(name)


def find_entry(name: str) -> Entry:
    """Look a back end up by its name.

    Raises:
        UsageError: There is no such back end; the message suggests the nearest one.
    """
    entry = BACKENDS.get(name)
    if entry is None:
        nearest = difflib.get_close_matches(name, [AUTO, *BACKENDS], n=1, cutoff=0.4)
        hint = f" (did you mean '{nearest[0]}'?)" if nearest else ""
        raise UsageError(f"expected one of the back ends {AUTO}, {', '.join(BACKENDS)}, got '{name}'{hint}.")
    return entry


@dataclass(frozen=True, slots=True)
class Choice:
    """A back end and the reason for it.

    Attributes:
        name: Name of the back end.
        reason: One sentence, to be shown to the user.
    """

    name: str
    reason: str


def choose_builder(name: str) -> Choice:
    """Choose the back end to build for.

    Args:
        name: A back end, or ``auto`` for the first usable one of the table.

    Raises:
        UsageError: There is no such back end, or it does not build engines.
        BackendError: It cannot be used here, or none can.
    """
    if name != AUTO:
        if not find_entry(name).builds:
            builders = ", ".join(other for other, entry in BACKENDS.items() if entry.builds)
            raise UsageError(
                f"expected a back end that builds engines ({builders}), got '{name}', which runs the network as it is."
            )
        _require(name, build_status)
        return Choice(name, "as asked")
    rejected: dict[str, list[str]] = {}
    for candidate, entry in BACKENDS.items():
        if not entry.builds:
            continue
        found = status(candidate)
        # An engine that was not asked for by name should run where it is built.
        found = build_status(candidate) if found.usable else found
        if found.usable:
            chosen = f"auto chose {candidate} ({found.reason})"
            return Choice(candidate, f"{chosen}; not usable here: {_listed(rejected)}." if rejected else f"{chosen}.")
        rejected.setdefault(found.reason, []).append(candidate)
    raise BackendError(f"expected a usable back end, got none: {_listed(rejected)}; run 'refusion-edge doctor' for what to do.")


def _listed(names_by_reason: dict[str, list[str]]) -> str:
    return "; ".join(f"{', '.join(names)} ({reason})" for reason, names in names_by_reason.items())


def require_usable(name: str) -> None:
    """Make sure that a back end can be used here.

    Raises:
        BackendError: It cannot; the message says why, what does change that, and what is usable instead.
    """
    _require(name, status)


def _require(name: str, look: Callable[[str], Status]) -> None:
    found = look(name)
    if found.usable:
        return
    usable = [other for other in BACKENDS if other != name and status(other).usable]
    remedy = f"run: {found.fix}" if found.fix else f"choose {' or '.join(usable)}" if usable else "see 'refusion-edge doctor'"
    raise BackendError(f"expected the back end {name} to be usable here, got '{found.reason}'; {remedy}.")
