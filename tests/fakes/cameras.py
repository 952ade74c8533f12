"""Simulated cameras: when each frame was taken, what its time stamp says, and when it arrives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from refusion_edge.stream.frames import MS, SECOND


@dataclass(frozen=True)
class Shot:
    """One frame of a simulated camera. Times are in ns on the host's clock, the stamp on the camera's own.

    Attributes:
        taken_ns: Time of the capture plus the least delay, the best that can be known from outside.
        stamp_ns: Time stamp, or None where the camera gives none.
        arrived_ns: Arrival on the host.
    """

    taken_ns: int
    stamp_ns: int | None
    arrived_ns: int


@dataclass(frozen=True)
class SimulatedCamera:
    """A camera with a clock and a network of its own. The same seed gives the same shots.

    Attributes:
        seconds: Length of the simulation.
        rate_hz: Frames per second.
        drift: Rate error of the camera's clock; 0.01 runs 1 % fast.
        epoch_s: What the camera's clock shows at the host's zero.
        jitter_ms: Mean of the exponential delay of each frame above the least one.
        stall_every_s: Interval between stalls of the network, after which the held-back frames arrive at once; 0 for none.
        stall_s: Length of a stall.
        burst_s: At the start, this much of the past arrives at once.
        repeated: Share of frames that carry the stamp of the frame before.
        unstamped: Share of frames without a stamp.
        missing: Share of frames that never arrive.
        shaken_ms: Standard deviation of the capture around the even period.
        steps: Times in s at which the camera's clock is set, and by how many s.
        nominal_hz: The stamps are counted at this rate instead of read from a clock.
        seed: Seed of all that is random.
    """

    seconds: float = 60.0
    rate_hz: float = 30.0
    drift: float = 0.0
    epoch_s: float = 0.0
    jitter_ms: float = 0.0
    stall_every_s: float = 0.0
    stall_s: float = 0.4
    burst_s: float = 0.0
    repeated: float = 0.0
    unstamped: float = 0.0
    missing: float = 0.0
    shaken_ms: float = 0.0
    steps: Sequence[tuple[float, float]] = ()
    nominal_hz: float | None = None
    seed: int = 0

    def shots(self, start_ns: int = 1000 * SECOND) -> list[Shot]:
        """All frames in order of arrival, the first one taken at about ``start_ns``."""
        draw = np.random.default_rng(self.seed)
        found: list[Shot] = []
        arrived_ns, stamp_ns, count = 0, 0, 0
        for number in range(round(self.seconds * self.rate_hz)):
            taken_s = number / self.rate_hz + float(draw.normal(0.0, 1.0)) * self.shaken_ms / 1000
            delay_s = float(draw.exponential(1.0)) * self.jitter_ms / 1000
            lost, repeats, unstamped = draw.random(3) < (self.missing, self.repeated, self.unstamped)
            if lost:
                continue
            clock_s = self.epoch_s + taken_s * (1 + self.drift) + sum(step for at, step in self.steps if taken_s >= at)
            if self.nominal_hz is not None:
                clock_s = self.epoch_s + count / self.nominal_hz
            count += 1
            ready_s = max(taken_s, self.burst_s)
            if self.stall_every_s and taken_s >= self.stall_every_s and taken_s % self.stall_every_s < self.stall_s:
                ready_s = taken_s - taken_s % self.stall_every_s + self.stall_s
            arrived_ns = max(arrived_ns + MS // 2, start_ns + round((ready_s + delay_s) * SECOND))
            stamp_ns = stamp_ns if repeats and found else round(clock_s * SECOND)
            found.append(Shot(start_ns + round(taken_s * SECOND), None if unstamped else stamp_ns, arrived_ns))
        return found
