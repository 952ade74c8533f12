"""The clock that everything here is measured with, and how a jump of it is noticed."""

from __future__ import annotations

import time
from typing import Protocol

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

# Two clocks of one machine are read one after the other, and one of them may be corrected by a little.
_TOLERATED_NS, _TOLERATED_SHARE = 20 * NS_PER_MS, 0.005


class Clock(Protocol):
    """What tells the time; replaced by a made-up one in tests."""

    name: str

    def now_ns(self) -> int:
        """Wall time on a monotonic clock."""

    def witness_ns(self) -> int:
        """Time on a second, independent clock that only serves to notice jumps of the first."""

    def cpu_ns(self) -> int:
        """Processor time of this process, all threads."""

    def sleep_until(self, moment_ns: int) -> None:
        """Wait until ``now_ns`` has reached a moment."""


class SystemClock:
    """The clocks of this machine. Implements ``Clock``."""

    name = "CLOCK_MONOTONIC"

    def now_ns(self) -> int:
        """Wall time, see ``Clock``."""
        return time.perf_counter_ns()

    def witness_ns(self) -> int:
        """Time since the machine was started, sleep included where the system counts it; see ``Clock``."""
        if hasattr(time, "CLOCK_BOOTTIME"):
            return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        return time.time_ns()

    def cpu_ns(self) -> int:
        """Processor time, see ``Clock``."""
        return time.process_time_ns()

    def sleep_until(self, moment_ns: int) -> None:
        """Sleep for most of the time, then look at the clock; see ``Clock``."""
        while (left_ns := moment_ns - time.perf_counter_ns()) > 0:
            time.sleep(max(0.0, (left_ns - NS_PER_MS // 2) / NS_PER_S))


class JumpWatch:
    """Tells whether the clock jumped since the watch was made or last asked.

    Args:
        clock: The clock.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._now_ns, self._witness_ns = clock.now_ns(), clock.witness_ns()

    def jump_ns(self) -> int:
        """How far the two clocks have come apart, 0 if by no more than reading and correcting them explains."""
        now_ns, witness_ns = self._clock.now_ns(), self._clock.witness_ns()
        elapsed_ns, witnessed_ns = now_ns - self._now_ns, witness_ns - self._witness_ns
        self._now_ns, self._witness_ns = now_ns, witness_ns
        apart_ns = witnessed_ns - elapsed_ns
        tolerated = elapsed_ns >= 0 and abs(apart_ns) <= max(_TOLERATED_NS, _TOLERATED_SHARE * elapsed_ns)
        return 0 if tolerated else apart_ns or -1
