"""Pairing by time: properties for any two cameras, and the rates, skews and gaps of real ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from refusion_edge.errors import UsageError
from refusion_edge.stream.frames import MS, SECOND, SIDES, Frame, Pair, Side
from refusion_edge.stream.pairing.failover import Failover, Limits
from refusion_edge.stream.pairing.pairer import NO_COUNTERPART, POLICIES, TIME_WENT_BACK, Outcome, Pairer, Policy

MakeFrame = Callable[..., Frame]
IMAGE = np.zeros((2, 2), np.uint8)


def frame(side: Side, time_ms: float, index: int) -> Frame:
    time_ns = round(time_ms * MS)
    return Frame(side, IMAGE, index, time_ns, time_ns, time_ns)


def push_all(pairer: Pairer, frames: Sequence[Frame]) -> Outcome:
    outcomes = [pairer.push(one) for one in frames] + [pairer.flush()]
    return Outcome(
        tuple(pair for outcome in outcomes for pair in outcome.pairs),
        tuple(drop for outcome in outcomes for drop in outcome.dropped),
    )


def regular(side: Side, period_ms: float, count: int, start_ms: float = 0.0) -> list[Frame]:
    return [frame(side, start_ms + number * period_ms, number) for number in range(count)]


def by_time(*lists: list[Frame]) -> list[Frame]:
    return sorted((one for frames in lists for one in frames), key=lambda one: one.arrived_ns)


def times_ms(pairs: Sequence[Pair]) -> list[tuple[float, float]]:
    assert all(pair.ir is not None and pair.vis is not None for pair in pairs)
    return [(pair.ir.time_ns / MS, pair.vis.time_ns / MS) for pair in pairs if pair.ir and pair.vis]


# Cameras that jitter, drop out, stand still, go back in time, and arrive in any order.
steps_ms = st.lists(st.tuples(st.sampled_from(["ir", "vis"]), st.integers(-20, 150)), max_size=60)


@settings(max_examples=300, deadline=None)
@given(
    steps=steps_ms,
    policy=st.sampled_from(POLICIES),
    max_skew_ms=st.integers(0, 120),
    max_age_ms=st.integers(0, 400),
)
def test_never_beyond_the_limit_never_back_and_every_frame_accounted_for(
    steps: list[tuple[Side, int]], policy: Policy, max_skew_ms: int, max_age_ms: int
) -> None:
    now_ms: Counter[str] = Counter()
    frames = []
    for number, (side, step_ms) in enumerate(steps):
        now_ms[side] += step_ms
        frames.append(frame(side, now_ms[side], number))
    pairer = Pairer(policy, max_skew_ns=max_skew_ms * MS, max_age_ns=max_age_ms * MS)
    outcome = push_all(pairer, frames)
    uses: Counter[int] = Counter()
    for pair in outcome.pairs:
        assert pair.ir is not None
        assert pair.vis is not None
        skew_ms = abs(pair.vis.time_ns - pair.ir.time_ns) / MS
        assert skew_ms <= (max(max_age_ms, max_skew_ms) if policy == "hold" else max_skew_ms)
        assert pair.held == (skew_ms > max_skew_ms)
        uses[pair.ir.index] += 1
        uses[pair.vis.index] += 1
    assert [pair.number for pair in outcome.pairs] == list(range(len(outcome.pairs)))
    for earlier, later in zip(times_ms(outcome.pairs), times_ms(outcome.pairs)[1:], strict=False):
        assert later[0] >= earlier[0]
        assert later[1] >= earlier[1]
        assert later != earlier
    if policy == "drop":
        assert set(uses.values()) <= {1}
    dropped = [one.index for one, _ in outcome.dropped]
    assert len(dropped) == len(set(dropped))
    assert sorted([*uses, *dropped]) == list(range(len(steps)))


@settings(max_examples=60, deadline=None)
@given(steps=steps_ms, policy=st.sampled_from(POLICIES))
def test_the_same_frames_give_the_same_pairs(steps: list[tuple[Side, int]], policy: Policy) -> None:
    now_ms: Counter[str] = Counter()
    frames = []
    for number, (side, step_ms) in enumerate(steps):
        now_ms[side] += step_ms
        frames.append(frame(side, now_ms[side], number))
    first, second = push_all(Pairer(policy), frames), push_all(Pairer(policy), frames)
    assert times_ms(first.pairs) == times_ms(second.pairs)
    assert [cause for _, cause in first.dropped] == [cause for _, cause in second.dropped]


@pytest.mark.parametrize("policy", POLICIES)
def test_equal_rates_pair_one_to_one_without_waiting_for_the_next_frame(policy: Policy) -> None:
    frames = by_time(regular("ir", 33, 60), regular("vis", 33, 60, start_ms=5))
    pairer = Pairer(policy)
    waits = []
    for one in frames:
        outcome = pairer.push(one)
        waits += [one.arrived_ns - pair.newest.time_ns for pair in outcome.pairs]
        assert not outcome.dropped
    assert len(waits) >= 58
    assert set(waits[1:]) == {0}  # before the second frame of each, no rate is known


def test_nine_and_thirty_hertz_under_each_policy() -> None:
    frames = by_time(regular("ir", 1000 / 9, 90), regular("vis", 1000 / 30, 300))
    drop = push_all(Pairer("drop"), frames).pairs
    assert 88 <= len(drop) <= 90
    assert max(abs(vis - ir) for ir, vis in times_ms(drop)) <= 0.6 * 1000 / 30
    nearest = push_all(Pairer("nearest", max_skew_ns=60 * MS), frames).pairs
    assert 285 <= len(nearest) <= 300
    assert max(abs(vis - ir) for ir, vis in times_ms(nearest)) <= 1000 / 18 + 0.01
    held = push_all(Pairer("hold"), frames).pairs
    assert 285 <= len(held) <= 300
    assert 0.4 < np.mean([pair.held for pair in held]) < 0.95


def test_nearest_waits_for_a_nearer_frame_and_hold_does_not() -> None:
    frames = by_time(regular("ir", 100, 20), regular("vis", 33, 60))
    late = frame("vis", 2013, 100), frame("vis", 2080, 101), frame("ir", 2100, 100)
    for policy, counts in (("nearest", [1, 0, 1]), ("hold", [1, 1, 0])):
        pairer = Pairer(policy, max_skew_ns=60 * MS)
        for one in (*frames, frame("ir", 2000, 99)):
            pairer.push(one)
        assert [len(pairer.push(one).pairs) for one in late] == counts


@pytest.mark.parametrize("policy", ["nearest", "hold"])
def test_the_leader_follows_the_rates(policy: Policy) -> None:
    # The visible camera begins with eight frames at 5 per second, then gives 30; later it falls to 5 in the dark.
    slow, fast = regular("vis", 200, 8), regular("vis", 1000 / 30, 300, start_ms=1600)
    dark = regular("vis", 200, 50, start_ms=11_600)
    ir = regular("ir", 1000 / 9, 190)
    pairs = push_all(Pairer(policy, max_skew_ns=101 * MS), by_time(ir, slow, fast, dark)).pairs
    lit = [vis for _, vis in times_ms(pairs) if 3000 <= vis < 11_600]
    assert len(lit) >= 250  # 30 per second, less a few at the change
    late = {ir for ir, _ in times_ms(pairs) if ir >= 15_000}
    assert len(late) >= 50  # of 55 at 9 per second: infrared leads


def test_the_leader_does_not_alternate_between_similar_rates() -> None:
    pairer, changes, before = Pairer("nearest"), 0, None
    for one in by_time(regular("ir", 40, 250), regular("vis", 48, 200)):
        pairer.push(one)
        changes += pairer.leader not in (None, before)
        before = pairer.leader
    assert changes == 1


def test_a_thermal_camera_that_delivers_late_loses_nothing() -> None:
    ir, vis = regular("ir", 33, 60), regular("vis", 33, 60)
    late = sorted(
        [(one.arrived_ns + 120 * MS, one) for one in ir] + [(one.arrived_ns, one) for one in vis], key=lambda item: item[0]
    )
    outcome = push_all(Pairer("nearest"), [one for _, one in late])
    assert all(ir_ms == vis_ms for ir_ms, vis_ms in times_ms(outcome.pairs))
    assert len(outcome.pairs) == 60


def test_times_that_go_back_or_stand_still_are_named() -> None:
    pairer = Pairer("drop")
    pairer.push(frame("ir", 10, 0))
    for time_ms in (10, 9):
        assert [cause for _, cause in pairer.push(frame("ir", time_ms, 1)).dropped] == [TIME_WENT_BACK]


def test_what_waits_for_a_silent_camera_is_bounded() -> None:
    pairer = Pairer("nearest")
    dropped = sum(len(pairer.push(one).dropped) for one in regular("vis", 33, 500))
    assert 460 <= dropped <= 480
    assert {cause for _, cause in pairer.flush().dropped} == {NO_COUNTERPART}


@pytest.mark.parametrize("bad", [{"policy": "nearst"}, {"max_skew_ns": -1}, {"max_age_ns": -1}])
def test_wrong_settings_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Pairer(**bad)


@settings(max_examples=100, deadline=None)
@given(steps=steps_ms, stale=st.lists(st.booleans(), min_size=60, max_size=60))
def test_every_frame_is_accounted_for_while_cameras_come_and_go(steps: list[tuple[Side, int]], stale: list[bool]) -> None:
    failover = Failover(Pairer("nearest", max_skew_ns=40 * MS), Limits(lost_after_ns=100 * MS, frozen_after_ns=200 * MS))
    now_ms, pushed, used, dropped, numbers = 0, Counter[Side](), Counter[Side](), Counter[Side](), []
    outcomes = []
    for number, (side, step_ms) in enumerate(steps):
        now_ms += abs(step_ms)
        time_ns = now_ms * MS
        pushed[side] += 1
        outcomes.append(failover.push(Frame(side, IMAGE, number, time_ns, time_ns, time_ns - stale[number] * SECOND)))
    for outcome in (*outcomes, failover.flush()):
        numbers += [pair.number for pair in outcome.pairs]
        dropped.update(one.side for one, _ in outcome.dropped)
    used.update(failover.used)
    assert numbers == list(range(len(numbers)))
    for side in SIDES:
        assert pushed[side] == used[side] + dropped[side]
