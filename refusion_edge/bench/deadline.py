"""Whether the engine keeps up with a camera: frames arrive at a fixed rate, and the newest one is fused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refusion_edge.bench.statistics import Spread, spread
from refusion_edge.bench.subjects import Identity
from refusion_edge.bench.timing import NS_PER_MS, NS_PER_S, Clock, JumpWatch, Plan, warm_up
from refusion_edge.errors import MeasurementError, UsageError

_MINUTE_NS = 60 * NS_PER_S
MOST_FPS = 1000.0


@dataclass(frozen=True, slots=True)
class Minute:
    """One minute of the run.

    Attributes:
        arrived: Frames that arrived.
        missed: Frames of these that were dropped or late.
        median_age_ms: Median age of the finished frames; None if none was finished.
        max_age_ms: Largest age.
    """

    arrived: int
    missed: int
    median_age_ms: float | None
    max_age_ms: float | None


@dataclass(frozen=True, slots=True)
class Deadline:
    """Result of a run at a fixed rate.

    Attributes:
        identity: What was measured.
        fps: Frames per second.
        seconds: Duration.
        allowed_share: Share of the frames that may be missed.
        arrived: Frames that arrived.
        dropped: Frames replaced by a newer one before their turn.
        late: Frames finished more than one period after their arrival.
        ages: Distribution of the age, from the arrival of a frame to its fused image.
        minutes: The same minute by minute.
        graph_problem: Why runs were not replayed from a recorded CUDA graph; empty if they were, or if no device is involved.
    """

    identity: Identity
    fps: float
    seconds: float
    allowed_share: float
    arrived: int
    dropped: int
    late: int
    ages: Spread
    minutes: tuple[Minute, ...]
    graph_problem: str = ""

    @property
    def missed_share(self) -> float:
        """Share of the frames that were dropped or late."""
        return (self.dropped + self.late) / self.arrived

    @property
    def holds(self) -> bool:
        """Whether the engine keeps up with the rate."""
        return self.missed_share <= self.allowed_share


def hold(
    run: Callable[[], object], identity: Identity, *, fps: float, seconds: float, allowed_share: float, plan: Plan, clock: Clock
) -> Deadline:
    """Fuse frames that arrive at a fixed rate.

    A frame that arrives while the engine is busy waits until a newer one replaces it. Frames arrive exactly on time, so this
    measures the engine and its pre- and postprocessing, not a camera.

    Args:
        run: Fuses one frame.
        identity: What is measured.
        fps: Rate, up to 1000.
        seconds: Duration.
        allowed_share: Share of the frames that may be missed.
        plan: Only its warm-up is used.
        clock: The clock.

    Raises:
        UsageError: The rate or the time is out of range.
        MeasurementError: The clock jumped.
    """
    total = int(fps * seconds) if 0 < fps <= MOST_FPS and 0 < seconds < float("inf") else 0
    if total < 1:
        raise UsageError(
            f"cannot hold --fps {fps:g} for --seconds {seconds:g}",
            f"choose a rate up to {MOST_FPS:g} and a time that holds at least one frame",
            expected=MOST_FPS,
            got=fps,
        )
    warm_up(run, plan, clock)
    period_ns = NS_PER_S / fps
    ages_ms = np.full(total, np.nan)
    watch = JumpWatch(clock)
    started_ns = clock.now_ns()
    following = 0
    while following < total:
        # One nanosecond more, so that rounding never puts a frame that has just come off to the next look at the clock.
        newest = int((clock.now_ns() - started_ns + 1) / period_ns)
        if newest < following:
            clock.sleep_until(started_ns + int(np.ceil(following * period_ns)))
            continue
        newest = min(newest, total - 1)
        run()
        ages_ms[newest] = (clock.now_ns() - started_ns - newest * period_ns) / NS_PER_MS
        following = newest + 1
    if jump_ns := watch.jump_ns():
        raise MeasurementError(f"the clock jumped by {jump_ns / NS_PER_MS:+.0f} ms", "keep the machine awake and measure again")
    finished = ages_ms[~np.isnan(ages_ms)]
    return Deadline(
        identity=identity,
        fps=fps,
        seconds=seconds,
        allowed_share=allowed_share,
        arrived=total,
        dropped=total - len(finished),
        late=int((finished > period_ns / NS_PER_MS).sum()),
        ages=spread(finished),
        minutes=tuple(_minute(part, period_ns) for part in _by_minute(ages_ms, period_ns)),
    )


def _by_minute(ages_ms: NDArray[np.float64], period_ns: float) -> list[NDArray[np.float64]]:
    per_minute = max(1, round(_MINUTE_NS / period_ns))
    return [ages_ms[first : first + per_minute] for first in range(0, len(ages_ms), per_minute)]


def _minute(ages_ms: NDArray[np.float64], period_ns: float) -> Minute:
    finished = ages_ms[~np.isnan(ages_ms)]
    missed = len(ages_ms) - len(finished) + int((finished > period_ns / NS_PER_MS).sum())
    if not finished.size:
        return Minute(len(ages_ms), missed, None, None)
    return Minute(len(ages_ms), missed, float(np.median(finished)), float(finished.max()))
