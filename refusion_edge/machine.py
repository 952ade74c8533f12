"""What this machine is, as far as a built engine cares."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

ANY = "any"

# More would not run faster on any machine, and thousands would stall it.
MAX_THREADS = 256


@dataclass(frozen=True, slots=True)
class Target:
    """The kind of machine that an engine runs on; each field may be ``any``.

    Attributes:
        system: Operating system, as Python names it in lower case (``linux``).
        architecture: Processor architecture (``x86_64``, ``aarch64``).
        device: Accelerator in words (``none`` without one).
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
    """Describe the machine that this runs on."""
    return Target(platform.system().lower(), platform.machine().lower(), accelerator() or "none")


def accelerator() -> str | None:
    """Name the NVIDIA device that the system shows, without loading any driver library; None if there is none."""
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
    """Name the processor."""
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
