"""Time stamps of a stream on the clock of this machine."""

from __future__ import annotations

import numpy as np

from refusion_edge.stream.frames import MS, SECOND
from refusion_edge.stream.sources.clock import ClockAnchor


def test_the_least_delay_places_a_stream_on_the_clock_here() -> None:
    anchor, draw = ClockAnchor(), np.random.default_rng(3)
    placed, taken = [], []
    for number in range(300):
        taken_ns = number * 33 * MS
        delay_ns = round((20 + draw.exponential(15)) * MS)
        placed.append(anchor.place(taken_ns + 7 * SECOND, taken_ns + delay_ns))
        taken.append(taken_ns)
    errors_ms = (np.array(placed) - np.array(taken))[50:] / MS
    assert abs(errors_ms - 20).max() < 2  # all but the least delay, which nobody can know
    restarted = anchor.place(0, 300 * 33 * MS)
    assert restarted == 300 * 33 * MS
