"""Windows that have to agree, warm-up, and clocks that jump."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from refusion_edge.bench.timing import JumpWatch, Load, Plan, Series, SystemClock, measure_windows, read_load, require_room
from refusion_edge.errors import MeasurementError
from tests.bench.conftest import QUICK, MadeUpClock, Write
from tests.raising import raises


def series_of(clock: MadeUpClock, times_ms: Iterator[float], plan: Plan = QUICK) -> Series[float]:
    def run() -> float:
        time_ms = next(times_ms)
        clock.pass_ms(time_ms)
        return time_ms

    return measure_windows(run, statistics.median, plan, clock, lambda: None)


def test_three_windows_are_enough_if_they_agree(clock: MadeUpClock) -> None:
    found = series_of(clock, itertools.chain([90.0], itertools.repeat(5.0)))
    assert found.stable
    assert len(found.windows) == 3
    assert found.laps == (5.0,) * 9
    assert (found.warmup_iterations, found.warmup_ms) == (1, 90.0)
    assert found.drift == 1
    assert [window.started_s for window in found.windows] == pytest.approx([0, 0.015, 0.030])


def test_windows_are_repeated_until_the_last_three_agree(clock: MadeUpClock) -> None:
    slowing = [5.0] + [9.0] * 3 + [7.0] * 3 + [5.2] * 3 + [5.1] * 3 + [5.0] * 3
    found = series_of(clock, itertools.chain(slowing, itertools.repeat(1.0)))
    assert found.stable
    assert [window.figure for window in found.windows] == [9.0, 7.0, 5.2, 5.1, 5.0]
    assert sorted(set(found.laps)) == [5.0, 5.1, 5.2]
    assert found.drift == pytest.approx(5 / 9)


def test_windows_that_never_agree_are_not_stable(clock: MadeUpClock) -> None:
    found = series_of(clock, itertools.cycle([5.0, 5.0, 5.0, 6.0, 6.0, 6.0]), replace(QUICK, warmup_iterations=6))
    assert not found.stable
    assert len(found.windows) == QUICK.most_windows


def test_time_and_count_both_have_to_be_reached(clock: MadeUpClock) -> None:
    plan = Plan(warmup_ms=25, warmup_iterations=2, iterations=6, seconds=0.3, tolerance=0.05, most_windows=3)
    found = series_of(clock, itertools.repeat(10.0), plan)
    assert (found.warmup_iterations, found.warmup_ms) == (3, 30.0)
    assert [len(window.laps) for window in found.windows] == [10, 10, 10]
    slow = series_of(clock, itertools.repeat(400.0), plan)
    assert [len(window.laps) for window in slow.windows] == [2, 2, 2]


@pytest.mark.parametrize("seen", [False, True])
def test_a_window_with_a_jump_is_thrown_away(clock: MadeUpClock, seen: bool) -> None:
    calls = itertools.count()

    def times() -> Iterator[float]:
        while True:
            if next(calls) == 2:
                clock.jump_ms(3000, seen=seen)
            yield 5.0

    found = series_of(clock, times())
    assert found.stable
    assert len(found.windows) == 3
    assert found.jumps_ms == (pytest.approx(-3000 if seen else 3000),)
    assert set(found.laps) == {5.0}


# A window is abandoned as soon as the clock runs backwards; otherwise it lasts three iterations.
@pytest.mark.parametrize(("by_ms", "last_ms"), [(-500.0, "+500 ms"), (500.0, "-1500 ms")])
def test_a_clock_that_keeps_jumping_ends_the_run(clock: MadeUpClock, by_ms: float, last_ms: str) -> None:
    def times() -> Iterator[float]:
        while True:
            clock.jump_ms(by_ms, seen=True)
            yield 5.0

    with raises(MeasurementError, "3 times", last_ms):
        series_of(clock, times())


def test_small_corrections_of_the_witness_are_no_jump(clock: MadeUpClock) -> None:
    watch = JumpWatch(clock)
    clock.pass_ms(1000)
    clock.jump_ms(15)
    assert watch.jump_ns() == 0
    clock.pass_ms(100_000)
    clock.jump_ms(400)
    assert watch.jump_ns() == 0
    clock.jump_ms(-30)
    assert watch.jump_ns() != 0
    assert watch.jump_ns() == 0


def test_the_clock_of_the_system_runs_and_waits() -> None:
    system = SystemClock()
    watch, started_ns = JumpWatch(system), system.now_ns()
    system.sleep_until(started_ns + 3_000_000)
    system.sleep_until(started_ns)
    assert system.now_ns() >= started_ns + 3_000_000
    assert system.cpu_ns() > 0
    assert watch.jump_ns() == 0


def test_every_window_is_announced(clock: MadeUpClock, monkeypatch: pytest.MonkeyPatch) -> None:
    announced: list[int] = []

    def run() -> float:
        clock.pass_ms(1)
        return 1.0

    start: Callable[[], None] = lambda: announced.append(clock.now_ns())  # noqa: E731
    found = measure_windows(run, statistics.median, QUICK, clock, start)
    assert len(announced) == len(found.windows) == 3


def test_a_busy_machine_is_refused_with_its_load(write: Write, clock: MadeUpClock) -> None:
    root = write({"proc/loadavg": "3.50 1 1 1/1 1", "proc/stat": "cpu  100 0 50 800 50 0 0 0 0 0"})

    class Busy(MadeUpClock):
        """While it waits, other programs use 90 ticks, ours 20 and the disk some idle ones."""

        def sleep_until(self, moment_ns: int) -> None:
            super().sleep_until(moment_ns)
            self.pass_ms(0, cpu_ms=200)
            write({"proc/stat": "cpu  200 0 60 870 60 0 0 0 0 0"})

    found = read_load(Busy(), root)
    assert found.average == 3.5
    # 110 ticks of 10 ms in half a second, less 0.2 s of our own.
    assert found.busy_cores == pytest.approx((1.1 - 0.2) / 0.5)
    with raises(MeasurementError, "3.5", "1.8 of 2 cores", remedy="--loaded"):
        require_room(Load(3.5, 1.8, 2))
    require_room(Load(3.5, 0.3, 2))


def test_an_unknown_load_is_no_reason_to_refuse(tmp_path: Path, clock: MadeUpClock) -> None:
    found = read_load(clock, tmp_path)
    assert (found.average, found.busy_cores) == (None, None)
    assert str(found) == "an unknown load"
    require_room(found)
