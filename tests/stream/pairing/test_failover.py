"""One camera alone: losses, frozen content, and sizes that change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from refusion_edge.stream.frames import MS, SECOND, SIDES, Frame
from refusion_edge.stream.pairing.failover import FROZEN_TOO_LONG, OTHER_SIZE, Failover, Limits
from refusion_edge.stream.pairing.pairer import Pairer
from refusion_edge.stream.run.settings import StreamSettings, choose_pairing


def test_the_offset_moves_infrared_times_in_every_figure(make_frame: Callable[..., Frame]) -> None:
    failover = Failover(Pairer("drop", max_skew_ns=5 * MS), None, offset_ns=18 * MS)
    frames = sorted(
        [make_frame("ir", 40 * number) for number in range(25)] + [make_frame("vis", 40 * number + 18) for number in range(25)],
        key=lambda one: one.arrived_ns,
    )
    pairs = [pair for one in frames for pair in failover.push(one).pairs] + list(failover.flush().pairs)
    assert len(pairs) >= 24
    assert {pair.skew_ns for pair in pairs} == {0}
    assert all(pair.ir is not None and pair.ir.stale_ns == 0 for pair in pairs)


@pytest.mark.parametrize("offset_s", [3, -3])
def test_long_offsets_of_live_cameras_pair(make_frame: Callable[..., Frame], offset_s: int) -> None:
    settings = choose_pairing(StreamSettings(offset_ms=offset_s * 1000), None, None, live=False)
    failover = settings.failover()
    # Both arrive at the same moment; one of them shows what was three seconds ago.
    pairs = []
    for number in range(200):
        for side in SIDES:
            pairs += failover.push(make_frame(side, number * 1000 / 15, number)).pairs
    assert len(pairs) >= 150
    assert {abs(pair.skew_ns) <= MS for pair in pairs if pair.skew_ns is not None} == {True}


def test_a_camera_that_never_fitted_the_rig_ends_the_run_even_after_the_first_frame(
    make_frame: Callable[..., Frame],
) -> None:
    failover = Failover(Pairer("drop"), Limits(lost_after_ns=100 * MS), {"ir": (9, 9), "vis": (8, 8)})
    pairs = [failover.push(make_frame(side, time_ms)).pairs for time_ms in (0, 33, 66) for side in SIDES]
    assert [pair for made in pairs for pair in made if pair.ir and pair.vis]  # passed on to the warp, which rejects them
    assert failover.faults == {}


def test_a_fault_is_marked_and_ends_as_a_loss_where_the_camera_goes_silent(make_frame: Callable[..., Frame]) -> None:
    failover = Failover(Pairer("drop"), Limits(lost_after_ns=100 * MS), {"ir": (8, 8), "vis": (8, 8)})
    for side in SIDES:
        failover.push(make_frame(side, 0))
    small = replace(make_frame("ir", 33), image=np.zeros((4, 6), np.uint16))
    assert failover.push(small).dropped[0][1] == OTHER_SIZE
    alone = failover.push(make_frame("vis", 33)).pairs[-1]
    assert (alone.ir, alone.fault) == (None, "4x6 instead of 8x8")
    silent = failover.push(make_frame("vis", 200)).pairs[-1]
    assert (silent.ir, silent.fault) == (None, "")


def test_failover_goes_on_alone_and_comes_back(make_frame: Callable[..., Frame]) -> None:
    failover = Failover(Pairer("drop", max_skew_ns=20 * MS), Limits(lost_after_ns=200 * MS, frozen_after_ns=SECOND))
    modes = []
    for number in range(60):
        time_ms = number * 33
        frames = [make_frame("vis", time_ms, number)]
        if not 20 <= number < 40:
            frames.append(make_frame("ir", time_ms + 1, number))
        for frame in frames:
            modes += ["pair" if pair.ir and pair.vis else "alone" for pair in failover.push(frame).pairs]
    first, last = modes.index("alone"), len(modes) - 1 - modes[::-1].index("alone")
    assert set(modes[:first]) == set(modes[last + 1 :]) == {"pair"}
    assert set(modes[first : last + 1]) == {"alone"}
    assert 12 <= last - first <= 16


def test_frozen_infrared_counts_as_lost_past_the_limit(make_frame: Callable[..., Frame]) -> None:
    failover = Failover(Pairer("drop", max_skew_ns=20 * MS), Limits(lost_after_ns=100 * MS, frozen_after_ns=300 * MS))
    alone, causes = 0, set()
    for number in range(40):
        time_ms = number * 33
        ir = make_frame("ir", time_ms, number, stale_ms=time_ms)
        for frame in (ir, make_frame("vis", time_ms + 1, number)):
            outcome = failover.push(frame)
            alone += sum(pair.ir is None for pair in outcome.pairs)
            causes |= {cause for _, cause in outcome.dropped}
    assert alone >= 20
    assert FROZEN_TOO_LONG in causes
