"""Repeating a measurement in windows until the last three agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from refusion_edge.bench.clock import NS_PER_MS, NS_PER_S, Clock, JumpWatch
from refusion_edge.errors import MeasurementError

AGREEING = 3
_MOST_JUMPS = 3

Lap = TypeVar("Lap")


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to measure.

    Attributes:
        warmup_ms: Warm-up lasts at least this long ...
        warmup_iterations: ... and at least so many iterations.
        iterations: The three windows that count hold at least so many iterations together ...
        seconds: ... and last at least this long together.
        tolerance: The largest figure of three windows that agree is at most this share above the smallest.
        most_windows: After so many windows it is not stable.
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
        started_s: When it started, after the end of the warm-up.
        laps: What each iteration gave.
        figure: What has to agree.
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
        jumps_ms: Jumps of the clock that were noticed; the windows they fell into are not among ``windows``.
    """

    warmup_iterations: int
    warmup_ms: float
    windows: tuple[Window[Lap], ...]
    stable: bool
    jumps_ms: tuple[float, ...]

    @property
    def laps(self) -> tuple[Lap, ...]:
        """Iterations that count: those of the last three windows."""
        return tuple(lap for window in self.windows[-AGREEING:] for lap in window.laps)

    @property
    def drift(self) -> float:
        """Figure of the last window over that of the first: above 1, it has become slower."""
        return self.windows[-1].figure / self.windows[0].figure


def measure_windows(
    run: Callable[[], Lap], figure: Callable[[Sequence[Lap]], float], plan: Plan, clock: Clock, at_start: Callable[[], None]
) -> Series[Lap]:
    """Warm up, then measure windows until the last three agree or there are too many.

    Args:
        run: One iteration.
        figure: From the iterations of a window to what has to agree, above 0.
        plan: How long.
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
                    f"expected a steady clock, got {_MOST_JUMPS} jumps (the last by {jumps_ms[-1]:+.0f} ms); keep the machine "
                    "awake and its virtual machine running, then measure again."
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
            break  # it went backwards, and would never get there
    return iterations, (clock.now_ns() - started_ns) / NS_PER_MS


def _one_window(run: Callable[[], Lap], plan: Plan, clock: Clock) -> tuple[Lap, ...]:
    least, least_ns = math.ceil(plan.iterations / AGREEING), plan.seconds / AGREEING * NS_PER_S
    began_ns = clock.now_ns()
    laps: list[Lap] = []
    while len(laps) < least or clock.now_ns() - began_ns < least_ns:
        laps.append(run())
        if clock.now_ns() < began_ns:
            break  # it went backwards; the watch reports it
    return tuple(laps)


def _agree(windows: Sequence[Window[Lap]], tolerance: float) -> bool:
    figures = [window.figure for window in windows[-AGREEING:]]
    return len(figures) == AGREEING and max(figures) <= min(figures) * (1 + tolerance)
