"""This machine, its GPU and its installed packages, as far as engines and the command line need to know."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import os
import platform
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from refusion_edge.errors import MissingDependencyError, UsageError

ANY = "any"

# More would not run faster on any machine, and thousands would stall it.
MAX_THREADS = 256

# Names and numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8
_NEVER = 2**31 - 1
_GROWTH_BYTES = 64 << 20
# Parts of the heap that threads share. By default there are up to 8 for each core, and every one keeps the peak of all threads
# that ever used it: a process whose threads come and go would grow for hours.
_ARENAS = 4


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of machine that an engine runs on; each field may be ``any``.

    Attributes:
        system: Operating system, as Python names it in lower case (``linux``).
        architecture: Processor architecture (``x86_64``, ``aarch64``).
        device: Name of the accelerator (``none`` without one).
    """

    system: str = ANY
    architecture: str = ANY
    device: str = ANY

    def __str__(self) -> str:
        if self == ANY_MACHINE:
            return "any machine"
        parts = [f"{self.system}/{self.architecture}"]
        if self.device != ANY:
            parts.append("no accelerator" if self.device == "none" else self.device)
        return " with ".join(parts)

    def fits(self, machine: Target) -> bool:
        """Tell whether an engine for this target runs on ``machine``."""
        pairs = (
            (self.system, machine.system),
            (self.architecture, machine.architecture),
            (self.device, machine.device),
        )
        return all(wanted in (ANY, there) for wanted, there in pairs)


ANY_MACHINE = Target()


def this_machine() -> Target:
    """Describe the current machine."""
    return Target(platform.system().lower(), platform.machine().lower(), accelerator() or "none")


def accelerator() -> str | None:
    """Name the NVIDIA device that the system reports, or None, without loading any driver library."""
    board = Path("/proc/device-tree/model")
    if board.exists():
        model = board.read_text(errors="replace").strip("\0 \n")
        if "jetson" in model.lower():
            return model
    for information in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        for line in information.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "Model":
                return value.strip()
    return None


def processor() -> str:
    """Name the CPU model."""
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in {"model name", "Model"}:
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Count the processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


ARCHITECTURES = (80, 86, 87, 89, 90, 110, 120)
"""10 times the compute capabilities: A100, consumer Ampere, Orin, Ada, Hopper, Thor, consumer Blackwell."""


def choose_architecture(known: Iterable[int], here: int) -> int | None:
    """Choose the architecture whose kernels run best on a device.

    That is the device's own architecture or, on compute capability 8.x, the highest one below it, whose kernels run there
    too. Kernels never run across major versions.

    Args:
        known: Architectures with compiled kernels.
        here: Architecture of the device.

    Returns:
        One of them, or None if none runs there.
    """
    return max((one for one in known if one == here or (one // 10 == here // 10 == 8 and one < here)), default=None)


def parse_architectures(text: str) -> tuple[int, ...]:
    """Parse a list of GPU architectures such as ``sm_87,sm_110``.

    Raises:
        UsageError: An item is not one of ``ARCHITECTURES``.
    """
    found = []
    for word in text.split(","):
        match = re.fullmatch(r"sm_(\d{2,3})", word.strip(), re.ASCII)
        if match is None or int(match[1]) not in ARCHITECTURES:
            known = ", ".join(f"sm_{architecture}" for architecture in ARCHITECTURES)
            raise UsageError(
                f"unknown GPU architecture '{word.strip()[:40]}'", f"choose from {known}, separated by commas", got=word.strip()
            )
        found.append(int(match[1]))
    return tuple(dict.fromkeys(found))


def missing_packages() -> dict[str, tuple[str, ...]]:
    """The extras of this package, each with the packages for this machine that it still lacks; empty if that is unknown."""
    lacking: dict[str, list[str]] = {}
    with contextlib.suppress(metadata.PackageNotFoundError):
        for line in metadata.requires("refusion-edge") or ():
            requirement, _, marker = line.partition(";")
            extra = re.search(r"""extra == ["']([\w-]+)["']""", marker)
            if extra is None:
                continue
            missing = lacking.setdefault(extra[1], [])
            name = re.split(r"[^\w.-]", requirement.strip())[0]
            if not _has_distribution(name) and _is_for_this_machine(marker):
                missing.append(name)
    return {extra: tuple(names) for extra, names in lacking.items()}


def _has_distribution(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _is_for_this_machine(marker: str) -> bool:
    """Whether the conditions of a requirement hold, of which ours name the machine, the system and the version of Python."""
    machines = re.findall(r"""platform_machine == ["'](\w+)["']""", marker)
    system = re.search(r"""sys_platform == ["'](\w+)["']""", marker)
    before, since = (re.search(rf"""python_version {sign} ["'](\d+)\.(\d+)["']""", marker) for sign in ("<", ">="))
    return (
        (not machines or platform.machine() in machines)
        and (system is None or sys.platform == system[1])
        and (before is None or sys.version_info[:2] < (int(before[1]), int(before[2])))
        and (since is None or sys.version_info[:2] >= (int(since[1]), int(since[2])))
    )


def is_installed(name: str) -> bool:
    """Tell whether a package can be found, without importing it."""
    return importlib.util.find_spec(name) is not None


def require(name: str, extra: str, purpose: str) -> Any:
    """Import a package, or say what needs it and how to install it.

    Args:
        name: Name of the module.
        extra: Extra of refusion-edge that installs it.
        purpose: What it is needed for, a noun.

    Raises:
        MissingDependencyError: It is absent or cannot be imported.
    """
    try:
        module: ModuleType = importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            f"{purpose} needs the package {name}, which cannot be imported ({error})",
            f"run: pip install 'refusion-edge[{extra}]'",
        ) from error
    return module


def keep_freed_memory() -> bool:
    """Make the process keep freed memory for its own later allocations; it stays at its peak until it ends.

    Affects the whole process, so only a program that owns it should call this.

    Returns:
        Whether the C library accepted the settings; only glibc has them.
    """
    if sys.platform != "linux":
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:
        return False
    options = (
        (_M_TRIM_THRESHOLD, _NEVER), (_M_TOP_PAD, _GROWTH_BYTES), (_M_MMAP_MAX, 0), (_M_ARENA_MAX, _ARENAS)
    )  # fmt: skip
    taken = [set_option(*option) for option in options]
    return all(taken)
