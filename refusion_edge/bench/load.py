"""Whether other programs leave this machine enough room to be measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from refusion_edge.bench.clock import NS_PER_S, Clock
from refusion_edge.errors import MeasurementError
from refusion_edge.machine import usable_cores

ROOT = Path("/")
# Cores that others may keep busy, out of all: beyond this, medians move by more than they are worth.
_MOST_BUSY = 0.2
_SAMPLE_NS = NS_PER_S // 2


@dataclass(frozen=True, slots=True)
class Load:
    """How busy the machine is.

    Attributes:
        average: The system's load average over the last minute; None where it has none.
        busy_cores: Cores kept busy by everything but this process, over half a second; None where the system cannot tell.
        cores: Cores that this process may use.
    """

    average: float | None
    busy_cores: float | None
    cores: int

    @property
    def is_too_high(self) -> bool:
        """Whether numbers measured now would say more about other programs than about ours."""
        return self.busy_cores is not None and self.busy_cores > _MOST_BUSY * self.cores

    def __str__(self) -> str:
        parts = [] if self.average is None else [f"a load average of {self.average:.1f}"]
        if self.busy_cores is not None:
            parts.append(f"{self.busy_cores:.1f} of {self.cores} cores kept busy by other programs")
        return " and ".join(parts) or "an unknown load"


def read_load(clock: Clock, root: Path = ROOT) -> Load:
    """Watch the machine for half a second."""
    started_ns, busy_ticks, own_ns = clock.now_ns(), _busy_ticks(root), clock.cpu_ns()
    clock.sleep_until(started_ns + _SAMPLE_NS)
    seconds = (clock.now_ns() - started_ns) / NS_PER_S
    busy_after, own_s = _busy_ticks(root), (clock.cpu_ns() - own_ns) / NS_PER_S
    busy_cores = None
    if busy_ticks is not None and busy_after is not None and seconds > 0:
        busy_cores = max(0.0, (busy_after - busy_ticks) / _ticks_per_second() - own_s) / seconds
    return Load(_average(root), busy_cores, usable_cores())


def require_room(load: Load) -> None:
    """Make sure that the machine can be measured.

    Raises:
        MeasurementError: Other programs keep it too busy; says how busy.
    """
    if load.is_too_high:
        raise MeasurementError(
            f"expected a machine with free cores, got {load}; close other programs, or measure anyway with --loaded, which "
            "marks every number."
        )


def _average(root: Path) -> float | None:
    try:
        return float((root / "proc/loadavg").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def _busy_ticks(root: Path) -> float | None:
    """Ticks in which any core did anything, stolen time of a virtual machine included."""
    try:
        fields = [float(field) for field in (root / "proc/stat").read_text().splitlines()[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return None
    idle = sum(fields[3:5])
    return sum(fields) - idle


def _ticks_per_second() -> int:
    import os

    return os.sysconf("SC_CLK_TCK")
