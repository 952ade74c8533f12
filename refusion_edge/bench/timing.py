"""Timing that can be trusted: a clock that reports its jumps, the load of the machine, and windows that have to agree."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from refusion_edge.errors import MeasurementError
from refusion_edge.machine import usable_cores

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000
# The two clocks are read one after the other, and one of them may be corrected slightly.
_TOLERATED_NS, _TOLERATED_SHARE = 20 * NS_PER_MS, 0.005
ROOT = Path("/")
# Share of the cores that other programs may keep busy; beyond it medians are no longer meaningful.
_MOST_BUSY = 0.2
_SAMPLE_NS = NS_PER_S // 2
AGREEING = 3
_MOST_JUMPS = 3
Lap = TypeVar("Lap")


class Clock(Protocol):
    """A clock; tests use a simulated one."""

    name: str

    def now_ns(self) -> int:
        """Wall time on a monotonic clock."""

    def witness_ns(self) -> int:
        """Time on a second, independent clock, used only to notice jumps of the first."""

    def cpu_ns(self) -> int:
        """Processor time of this process, all threads."""

    def sleep_until(self, moment_ns: int) -> None:
        """Wait until ``now_ns`` reaches a moment."""


class SystemClock:
    """The clocks of this machine. Implements ``Clock``."""

    name = "CLOCK_MONOTONIC"

    def now_ns(self) -> int:
        """Wall time, see ``Clock``."""
        return time.perf_counter_ns()

    def witness_ns(self) -> int:
        """Time since the machine was started, including sleep where the system counts it; see ``Clock``."""
        if hasattr(time, "CLOCK_BOOTTIME"):
            return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return time.time_ns()

    def cpu_ns(self) -> int:
        """Processor time, see ``Clock``."""
        return time.process_time_ns()

    def sleep_until(self, moment_ns: int) -> None:
        """Sleep for most of the time, then poll the clock; see ``Clock``."""
        while (left_ns := moment_ns - time.perf_counter_ns()) > 0:
            time.sleep(max(0.0, (left_ns - NS_PER_MS // 2) / NS_PER_S))


class JumpWatch:
    """Reports whether the clock has jumped since the watch was created or last read.

    Args:
        clock: The clock.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._now_ns, self._witness_ns = clock.now_ns(), clock.witness_ns()

    def jump_ns(self) -> int:
        """How far the two clocks have drifted apart; 0 if reading and correcting them explains it."""
        now_ns, witness_ns = self._clock.now_ns(), self._clock.witness_ns()
        elapsed_ns, witnessed_ns = now_ns - self._now_ns, witness_ns - self._witness_ns
        self._now_ns, self._witness_ns = now_ns, witness_ns
        apart_ns = witnessed_ns - elapsed_ns
        tolerated = elapsed_ns >= 0 and abs(apart_ns) <= max(_TOLERATED_NS, _TOLERATED_SHARE * elapsed_ns)
        return 0 if tolerated else apart_ns or -1


@dataclass(frozen=True, slots=True)
class Load:
    """How busy the machine is.

    Attributes:
        average: Load average over the last minute; None if the system has none.
        busy_cores: Cores kept busy by other processes over half a second; None if the system does not report it.
        cores: Cores available to this process.
    """

    average: float | None
    busy_cores: float | None
    cores: int

    @property
    def is_too_high(self) -> bool:
        """Whether other programs would distort a measurement."""
        return self.busy_cores is not None and self.busy_cores > _MOST_BUSY * self.cores

    def __str__(self) -> str:
        parts = [] if self.average is None else [f"a load average of {self.average:.1f}"]
        if self.busy_cores is not None:
            parts.append(f"{self.busy_cores:.1f} of {self.cores} cores kept busy by other programs")
        return " and ".join(parts) or "an unknown load"


def read_load(clock: Clock, root: Path = ROOT) -> Load:
    """Observe the machine for half a second."""
    started_ns, busy_ticks, own_ns = clock.now_ns(), _busy_ticks(root), clock.cpu_ns()
    clock.sleep_until(started_ns + _SAMPLE_NS)
    seconds = (clock.now_ns() - started_ns) / NS_PER_S
    busy_after, own_s = _busy_ticks(root), (clock.cpu_ns() - own_ns) / NS_PER_S
    busy_cores = None
    if busy_ticks is not None and busy_after is not None and seconds > 0:
        busy_cores = max(0.0, (busy_after - busy_ticks) / _ticks_per_second() - own_s) / seconds
    return Load(_average(root), busy_cores, usable_cores())


def require_room(load: Load) -> None:
    """Check that the machine is idle enough to be measured.

    Raises:
        MeasurementError: Other programs keep it too busy.
    """
    if load.is_too_high:
        raise MeasurementError(
            f"the machine is too busy to be measured: {load}",
            "close other programs, or measure anyway with --loaded, which marks every number",
        )


def _average(root: Path) -> float | None:
    try:
        return float((root / "proc/loadavg").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return None


def _busy_ticks(root: Path) -> float | None:
    """Ticks in which any core was busy, including the stolen time of a virtual machine."""
    try:
        fields = [float(field) for field in (root / "proc/stat").read_text().splitlines()[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return None
    idle = sum(fields[3:5])
    return sum(fields) - idle


def _ticks_per_second() -> int:
    import os

    return os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to measure.

    Attributes:
        warmup_ms: Minimum duration of the warm-up.
        warmup_iterations: Minimum number of its iterations.
        iterations: Minimum number of iterations in the last three windows together.
        seconds: Minimum duration of the last three windows together.
        tolerance: Three windows agree if the largest figure exceeds the smallest by at most this share.
        most_windows: A measurement that has not settled after this many windows is not stable.
    """

    warmup_ms: float = 200.0
    warmup_iterations: int = 10
    iterations: int = 200
    seconds: float = 3.0
    tolerance: float = 0.05
    most_windows: int = 10


@dataclass(frozen=True, slots=True)
class Window(Generic[Lap]):
    """One window.

    Attributes:
        started_s: Start, in seconds after the warm-up.
        laps: Result of each iteration.
        figure: The figure that has to agree.
    """

    started_s: float
    laps: tuple[Lap, ...]
    figure: float


@dataclass(frozen=True, slots=True)
class Series(Generic[Lap]):
    """All windows of one measurement.

    Attributes:
        warmup_iterations: Iterations before the first window.
        warmup_ms: How long they took.
        windows: The windows, in order.
        stable: Whether the last three agree.
        jumps_ms: Jumps of the clock; the windows in which they occurred are not in ``windows``.
    """

    warmup_iterations: int
    warmup_ms: float
    windows: tuple[Window[Lap], ...]
    stable: bool
    jumps_ms: tuple[float, ...]

    @property
    def laps(self) -> tuple[Lap, ...]:
        """Iterations of the last three windows, which are the ones that count."""
        return tuple(lap for window in self.windows[-AGREEING:] for lap in window.laps)

    @property
    def drift(self) -> float:
        """Figure of the last window over that of the first; above 1 if it slowed down."""
        return self.windows[-1].figure / self.windows[0].figure


def measure_windows(
    run: Callable[[], Lap], figure: Callable[[Sequence[Lap]], float], plan: Plan, clock: Clock, at_start: Callable[[], None]
) -> Series[Lap]:
    """Warm up, then measure windows until the last three agree or there are too many.

    Args:
        run: Runs one iteration.
        figure: Computes the figure that has to agree, above 0, from the iterations of a window.
        plan: How long to measure.
        clock: The clock.
        at_start: Called before each window.

    Raises:
        MeasurementError: The clock keeps jumping.
    """
    warmup_iterations, warmup_ms = warm_up(run, plan, clock)
    warm_ns = clock.now_ns()
    windows: list[Window[Lap]] = []
    jumps_ms: list[float] = []
    watch = JumpWatch(clock)
    while len(windows) < plan.most_windows and not _agree(windows, plan.tolerance):
        at_start()
        began_ns = clock.now_ns()
        laps = _one_window(run, plan, clock)
        if jump_ns := watch.jump_ns():
            jumps_ms.append(jump_ns / NS_PER_MS)
            if len(jumps_ms) == _MOST_JUMPS:
                raise MeasurementError(
                    f"the clock jumped {_MOST_JUMPS} times, the last time by {jumps_ms[-1]:+.0f} ms",
                    "keep the machine awake and its virtual machine running, then measure again",
                )
            continue
        windows.append(Window((began_ns - warm_ns) / NS_PER_S, laps, figure(laps)))
    stable = _agree(windows, plan.tolerance)
    return Series(warmup_iterations, warmup_ms, tuple(windows), stable, tuple(jumps_ms))


def warm_up(run: Callable[[], object], plan: Plan, clock: Clock) -> tuple[int, float]:
    """Run without measuring.

    Returns:
        Number of iterations, and how long they took in ms.
    """
    started_ns = clock.now_ns()
    iterations = 0
    while iterations < plan.warmup_iterations or clock.now_ns() - started_ns < plan.warmup_ms * NS_PER_MS:
        run()
        iterations += 1
        if clock.now_ns() < started_ns:
            break  # the clock went backwards, and might never get there
    return iterations, (clock.now_ns() - started_ns) / NS_PER_MS


def _one_window(run: Callable[[], Lap], plan: Plan, clock: Clock) -> tuple[Lap, ...]:
    least, least_ns = math.ceil(plan.iterations / AGREEING), plan.seconds / AGREEING * NS_PER_S
    began_ns = clock.now_ns()
    laps: list[Lap] = []
    while len(laps) < least or clock.now_ns() - began_ns < least_ns:
        laps.append(run())
        if clock.now_ns() < began_ns:
            break  # the clock went backwards; the watch reports it
    return tuple(laps)


def _agree(windows: Sequence[Window[Lap]], tolerance: float) -> bool:
    figures = [window.figure for window in windows[-AGREEING:]]
    return len(figures) == AGREEING and max(figures) <= min(figures) * (1 + tolerance)
