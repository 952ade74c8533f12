"""Clocks of sources, against simulated cameras whose true times are known."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.stream.frames import MS, SECOND
from refusion_edge.stream.sources.clock import CLOCK_ARRIVAL, CLOCK_KERNEL, CLOCK_STREAM, SourceClock
from tests.fakes.cameras import Shot, SimulatedCamera


def placed(shots: list[Shot], clock: SourceClock) -> Array:
    """Errors in ms of the times that a clock gives to frames, against the captures plus the least delay."""
    return np.array([clock.place(shot.stamp_ns, shot.arrived_ns) - shot.taken_ns for shot in shots]) / MS


def placed_and_settled(shots: list[Shot], clock: SourceClock) -> Array:
    """As ``placed``, without the frames whose time is said to be unknown."""
    errors = [(clock.place(shot.stamp_ns, shot.arrived_ns) - shot.taken_ns, clock.settled) for shot in shots]
    return np.array([error for error, settled in errors if settled]) / MS


CAMERAS: dict[str, dict[str, Any]] = {
    "fast by 1 %": {"drift": 0.01},
    "slow by 1 %, 9 Hz": {"drift": -0.01, "rate_hz": 9},
    "jitter": {"drift": 0.003, "jitter_ms": 15},
    "jitter, 60 Hz, uneven captures": {"jitter_ms": 10, "rate_hz": 60, "shaken_ms": 2},
    "stalls": {"drift": -0.01, "jitter_ms": 5, "stall_every_s": 5},
    "repeated and missing stamps": {"jitter_ms": 5, "repeated": 0.05, "unstamped": 0.05},
    "missing frames": {"drift": 0.01, "jitter_ms": 5, "missing": 0.1},
    "step back by 5 s": {"jitter_ms": 5, "steps": ((20, -5),)},
    "step back by 50 ms": {"jitter_ms": 5, "steps": ((20, -0.05),)},
    "step back by less than a period": {"jitter_ms": 5, "steps": ((20, -0.025),)},
    "step forward by an hour": {"jitter_ms": 15, "steps": ((20, 3600),)},
    "step forward by three periods": {"jitter_ms": 5, "steps": ((20, 0.1),)},
    "steps both ways": {"drift": 0.01, "jitter_ms": 10, "steps": ((10, 3), (20, -3), (30, 0.2), (45, -0.2))},
    "another epoch": {"epoch_s": 1.7e9, "jitter_ms": 5},
    "everything": {
        "drift": 0.01, "jitter_ms": 10, "steps": ((20, 3), (40, -3)), "repeated": 0.02, "unstamped": 0.02, "missing": 0.03,
        "stall_every_s": 7, "epoch_s": 1e9,
    },
}  # fmt: skip


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CAMERAS)
def test_times_are_right_within_15_ms(name: str, seed: int) -> None:
    shots = SimulatedCamera(**CAMERAS[name], seed=seed).shots()
    clock = SourceClock()
    errors_ms = placed(shots, clock)
    assert np.percentile(np.abs(errors_ms), 99) < 15
    assert abs(errors_ms[-30:].mean()) < 5  # no lag has grown
    found = clock.state
    assert found.clock == CLOCK_STREAM
    assert found.rate_error_ppm == pytest.approx(1e6 * CAMERAS[name].get("drift", 0.0), abs=300)
    assert found.error_ms is not None
    # What is said about the error holds for 95 % of the frames, once settled.
    assert np.percentile(np.abs(errors_ms[-300:]), 95) < found.error_ms


# Stamps that are number times period, where numbers skip no frame that was left out.
COUNTING: dict[str, dict[str, Any]] = {
    "1 % left out": {"missing": 0.01},
    "3 % left out": {"missing": 0.03, "jitter_ms": 3},
    "3 % left out, more jitter": {"missing": 0.03, "jitter_ms": 5},
    "10 % left out": {"missing": 0.1, "jitter_ms": 3},
    "a camera that runs 0.7 % fast": {"missing": 0.03, "jitter_ms": 3, "rate_hz": 30.2},
    "a burst at the start": {"missing": 0.03, "jitter_ms": 3, "burst_s": 1.0},
    "stalls of the network": {"missing": 0.005, "jitter_ms": 3, "stall_every_s": 7},
    "9 Hz": {"missing": 0.03, "jitter_ms": 10, "rate_hz": 9, "nominal_hz": 9},
    "a camera that runs 1 % fast": {"missing": 0.03, "jitter_ms": 5, "rate_hz": 30.3},
}


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 8))])
@pytest.mark.parametrize("name", COUNTING)
def test_stamps_that_count_frames_are_carried_on_over_those_left_out(name: str, seed: int) -> None:
    camera = SimulatedCamera(**{"nominal_hz": 30, "rate_hz": 30, "seconds": 180, **COUNTING[name]}, seed=seed)
    clock = SourceClock()
    errors_ms = placed_and_settled(camera.shots(), clock)
    assert np.percentile(np.abs(errors_ms), 99) < 15
    assert abs(errors_ms[-100:].mean()) < 5
    found = clock.state
    assert found.clock.startswith(CLOCK_STREAM)
    assert found.clock != CLOCK_STREAM  # says that they count frames
    assert found.error_ms is not None
    assert np.percentile(np.abs(errors_ms[-300:]), 95) < found.error_ms
    assert found.steps == 0
    assert clock.take_news() != ()


@pytest.mark.parametrize("rate_hz", [30.3, pytest.param(29.7, marks=pytest.mark.slow)])
def test_frames_that_are_late_by_a_period_leave_no_lag(rate_hz: float) -> None:
    """At a mean jitter of 6 ms, these are 0.4 % of the frames; at their arrival, nothing tells them from frames left out."""
    wrong = []
    for seed in range(1, 5):
        camera = SimulatedCamera(nominal_hz=30, rate_hz=rate_hz, seconds=180, missing=0.03, jitter_ms=6, seed=seed)
        errors_ms = np.abs(placed_and_settled(camera.shots(), SourceClock())[600:])
        wrong.append(float(np.mean(errors_ms > 15)))
        assert np.mean(errors_ms[-100:]) < 5
    assert np.mean(wrong) < 0.01


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 5))])
@pytest.mark.parametrize(
    "camera",
    [
        {"jitter_ms": 15},
        {"jitter_ms": 15, "missing": 0.05},
        {"stall_every_s": 3, "jitter_ms": 8},
        {"stall_every_s": 2, "jitter_ms": 12},
    ],
)
def test_the_stamps_of_a_clock_are_not_taken_for_counted_ones(camera: dict[str, Any], seed: int) -> None:
    clock = SourceClock()
    errors_ms = placed(SimulatedCamera(**camera, seconds=300, seed=seed).shots(), clock)
    assert clock.state.clock == CLOCK_STREAM
    assert np.percentile(np.abs(errors_ms), 99) < 15


@pytest.mark.parametrize(
    "camera",
    [{}, {"jitter_ms": 5, "drift": 0.01}, {"rate_hz": 9}, {"rate_hz": 60, "jitter_ms": 2}, {"epoch_s": 1.7e9, "drift": -0.01}],
)
@pytest.mark.parametrize("seed", range(1, 6))
def test_frames_that_were_stored_before_the_start_have_no_known_time(camera: dict[str, Any], seed: int) -> None:
    shots = SimulatedCamera(**camera, burst_s=1.0, seed=seed).shots()
    stored = sum(shot.arrived_ns - shot.taken_ns > 50 * MS for shot in shots)
    clock = SourceClock()
    settled = []
    for shot in shots[: stored + 20]:
        clock.place(shot.stamp_ns, shot.arrived_ns)
        settled.append(clock.settled)
    assert not any(settled[: stored - 1])
    assert all(settled[stored + 15 :])
    errors_ms = placed_and_settled(shots, SourceClock())
    assert np.percentile(np.abs(errors_ms), 99) < 15
    assert np.abs(errors_ms).max() < 60  # there is none with the age of the burst


def test_a_source_without_a_burst_is_settled_at_its_second_frame() -> None:
    for clock, stamp_ns in ((SourceClock(), 5), (SourceClock(CLOCK_KERNEL, shared=True), 1000 * SECOND)):
        clock.place(stamp_ns, 1000 * SECOND)
        assert clock.settled == (clock.state.clock == CLOCK_KERNEL)
        clock.place(stamp_ns + 33 * MS, 1000 * SECOND + 33 * MS)
        assert clock.settled
        clock.restart()
        assert not clock.settled
    clock = SourceClock()
    clock.use_arrival()
    clock.place(None, SECOND)
    assert clock.settled


def test_the_delay_and_a_step_are_reported() -> None:
    clock = SourceClock()
    shots = SimulatedCamera(jitter_ms=10, steps=((20, -5),), seed=4).shots()
    placed(shots[: len(shots) // 4], clock)
    assert (clock.state.steps, clock.state.epochs, clock.take_news()) == (0, 1, ())
    placed(shots[len(shots) // 4 :], clock)
    found = clock.state
    assert (found.steps, found.epochs) == (1, 2)
    assert found.delay_ms == pytest.approx(10 * np.log(2), abs=3)  # the median of an exponential distribution
    (news,) = clock.take_news()
    assert "back" in news
    assert "5.0 s" in news
    assert clock.take_news() == ()


@pytest.mark.parametrize(("nominal_hz", "rate_hz"), [(25, 10), (25, 21), (10, 25), (25, 9)])
def test_nominal_stamps_give_way_to_the_arrival(nominal_hz: float, rate_hz: float) -> None:
    clock = SourceClock()
    errors_ms = placed(SimulatedCamera(nominal_hz=nominal_hz, rate_hz=rate_hz, seconds=120).shots(), clock)
    assert np.percentile(np.abs(errors_ms), 99) < 200  # of the first second, before it is known
    assert np.abs(errors_ms[len(errors_ms) // 10 :]).max() < 1
    assert clock.state.clock.startswith(CLOCK_ARRIVAL)
    assert clock.state.delay_ms is None
    assert len(clock.take_news()) == 1


def test_a_rate_that_is_nearly_nominal_is_a_drift() -> None:
    clock = SourceClock()
    errors_ms = placed(SimulatedCamera(nominal_hz=30, rate_hz=29.97, jitter_ms=5, seconds=300).shots(), clock)
    assert np.percentile(np.abs(errors_ms), 99) < 15
    assert clock.state.clock == CLOCK_STREAM
    assert clock.state.rate_error_ppm == pytest.approx(-1e6 * (1 - 29.97 / 30), abs=50)


def test_stamps_that_become_right_are_used_again() -> None:
    clock = SourceClock()
    night = SimulatedCamera(nominal_hz=25, rate_hz=10, seconds=20).shots()
    day = SimulatedCamera(rate_hz=25, seconds=40, jitter_ms=5).shots(night[-1].taken_ns + SECOND // 25)
    placed(night, clock)
    assert clock.state.clock.startswith(CLOCK_ARRIVAL)
    errors_ms = placed(day, clock)
    assert clock.state.clock == CLOCK_STREAM
    assert np.percentile(np.abs(errors_ms[-200:]), 99) < 15


@pytest.mark.parametrize("stamp_ns", [0, None])
def test_stamps_that_do_not_advance_give_way_to_the_arrival(stamp_ns: int | None) -> None:
    clock = SourceClock()
    times = [clock.place(stamp_ns, arrived_ns) for arrived_ns in range(0, 3 * SECOND, 40 * MS)]
    assert times == list(range(0, 3 * SECOND, 40 * MS))
    assert clock.state.clock.startswith(CLOCK_ARRIVAL)


def test_a_source_without_a_clock_is_placed_by_its_arrival() -> None:
    clock = SourceClock()
    clock.use_arrival()
    assert [clock.place(None, arrived_ns) for arrived_ns in (5, 50, 60)] == [5, 50, 60]
    assert clock.state.clock == CLOCK_ARRIVAL
    assert clock.take_news() == ()


def test_the_camera_may_change_its_rate() -> None:
    shots = [
        *SimulatedCamera(rate_hz=5, seconds=1.6, epoch_s=7).shots(),
        *SimulatedCamera(rate_hz=30, seconds=20, epoch_s=7 + 1.6).shots(1000 * SECOND + 1600 * MS),
    ]
    assert np.abs(placed(shots, SourceClock())).max() < 1


def test_stamps_of_the_host_clock_are_used_as_they_are_while_they_can_be() -> None:
    clock = SourceClock(CLOCK_KERNEL, shared=True)
    assert [clock.place(number * 33 * MS, number * 33 * MS + 20 * MS) for number in range(9)] == [
        number * 33 * MS for number in range(9)
    ]
    assert (clock.state.clock, clock.state.delay_ms, clock.state.error_ms) == (CLOCK_KERNEL, 20, 0)
    # Some drivers use the time of day.
    clock = SourceClock(CLOCK_KERNEL, shared=True)
    errors_ms = placed(SimulatedCamera(epoch_s=1.7e9, jitter_ms=3).shots(), clock)
    assert np.percentile(np.abs(errors_ms), 99) < 15
    assert clock.state.clock == CLOCK_STREAM


def test_a_source_that_was_opened_again_has_another_clock() -> None:
    clock = SourceClock()
    placed(SimulatedCamera(seconds=5, epoch_s=50).shots(), clock)
    clock.restart()
    assert np.abs(placed(SimulatedCamera(seconds=5).shots(1010 * SECOND), clock)).max() < 1
    assert clock.state.epochs == 2


def test_times_advance_and_memory_is_bounded() -> None:
    clock = SourceClock()
    shots = SimulatedCamera(jitter_ms=30, steps=((3, -1), (6, 1)), repeated=0.2, seconds=120).shots()
    times = [clock.place(shot.stamp_ns, shot.arrived_ns) for shot in shots]
    assert all(later > earlier for earlier, later in itertools.pairwise(times))
    assert all(time_ns <= shot.arrived_ns for time_ns, shot in zip(times, shots, strict=True))
    assert max(lengths(clock)) <= 100


def lengths(owner: object) -> Iterator[int]:
    """Lengths of all containers that an object and its parts hold."""
    for value in vars(owner).values():
        if hasattr(value, "__len__") and not isinstance(value, str):
            yield len(value)
        elif hasattr(value, "__dict__"):
            yield from lengths(value)


def test_the_simulation_is_repeatable() -> None:
    camera = SimulatedCamera(jitter_ms=5, repeated=0.1, seconds=5, seed=3)
    assert camera.shots() == camera.shots()
    assert camera.shots() != dataclasses.replace(camera, seed=4).shots()
