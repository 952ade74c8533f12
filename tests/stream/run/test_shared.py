"""Engines that several rigs share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from refusion_edge.arrays import Float32Array
from refusion_edge.errors import ShapeError
from refusion_edge.fuser import Fuser
from refusion_edge.stream.run.shared import EnginePool, Turns
from refusion_edge.stream.statistics import Statistics
from refusion_edge.tasks import find_task
from tests.stream.conftest import MeanBackend

PLANES = np.zeros((1, 1, 8, 8), np.float32), np.ones((1, 1, 8, 8), np.float32)


class Watched(MeanBackend):
    """Counts how many calls it serves at once, and fails when it is told to."""

    def __init__(self, delay_s: float = 0.0) -> None:
        super().__init__(delay_s)
        self.at_once = self.most_at_once = 0
        self.fails = self.closed = False

    def __exit__(self, *exc: object) -> None:
        self.closed = True

    def fuse(self, a: Float32Array, b: Float32Array) -> Float32Array:
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if self.fails:
                self.fails = False
                raise RuntimeError("boom")
            return super().fuse(a, b)
        finally:
            self.at_once -= 1


def pool(delay_s: float = 0.0) -> tuple[Callable[..., tuple[Fuser, Statistics]], list[Watched]]:
    engines, opened = EnginePool(), list[Watched]()

    def open_engine() -> Fuser:
        opened.append(Watched(delay_s))
        return Fuser(opened[-1], find_task("ir_vis"))

    def lease(rig: str, key: str = "fast", share: float = 1.0) -> tuple[Fuser, Statistics]:
        statistics = Statistics()
        return engines.lease(key, open_engine, rig, share, statistics), statistics

    return lease, opened


def test_equal_engines_are_opened_once_and_closed_with_the_last_rig() -> None:
    lease, opened = pool()
    (gate, _), (yard, _), (other, _) = lease("gate"), lease("yard"), lease("roof", key="refusion")
    assert len(opened) == 2
    gate.__exit__(None, None, None)
    gate.__exit__(None, None, None)
    assert float(yard.backend.fuse(*PLANES).mean()) == 0.5
    assert not opened[0].closed
    yard.__exit__(None, None, None)
    other.__exit__(None, None, None)
    assert [engine.closed for engine in opened] == [True, True]
    lease("gate")
    assert len(opened) == 3


def test_a_failure_is_counted_by_the_rig_in_whose_turn_it_happened() -> None:
    lease, opened = pool()
    (gate, of_gate), (yard, of_yard) = lease("gate"), lease("yard")
    opened[0].fails = True
    yard.backend.fuse(*PLANES)
    gate.backend.fuse(*PLANES)
    assert len(opened) == 2
    assert [each.snapshot()["engine"]["reopened"] for each in (of_gate, of_yard)] == [0, 1]


def test_planes_that_do_not_fit_end_the_turn() -> None:
    lease, opened = pool()
    (gate, _), (yard, _) = lease("gate"), lease("yard")

    def refuse(_a: Float32Array, _b: Float32Array) -> Float32Array:
        raise ShapeError("too small")

    opened[0].fuse = refuse  # type: ignore[method-assign]
    with pytest.raises(ShapeError):
        gate.backend.fuse(*PLANES)
    del opened[0].fuse
    assert float(yard.backend.fuse(*PLANES).mean()) == 0.5


def use(turns: Turns, work_ms: dict[str, float], shares: dict[str, float], rounds: int) -> dict[str, float]:
    """Let users want turns all the time, until they had so many; returns the time of each."""
    used, left = dict.fromkeys(work_ms, 0.0), [rounds]
    lock = threading.Lock()

    def work(user: str) -> None:
        while True:
            turns.take(user)
            with lock:
                left[0] -= 1
                if left[0] >= 0:
                    used[user] += work_ms[user]
            # The time that counts is told, so that a busy machine decides nothing.
            turns.give_back(user, work_ms[user] / 1000, shares[user])
            if left[0] <= 0:
                return

    # All of them wait before the first turn ends.
    turns.take("warden")
    threads = [threading.Thread(target=work, args=(user,)) for user in work_ms]
    for thread in threads:
        thread.start()
    while len(turns._waiting) < len(threads):
        time.sleep(0.001)
    turns.give_back("warden", 0.0, 1.0)
    for thread in threads:
        thread.join()
    return used


def test_rigs_of_other_sizes_get_the_same_time() -> None:
    used = use(Turns(), {"large": 40.0, "small": 5.0}, {"large": 1.0, "small": 1.0}, 180)
    # Between two turns a thread may not be back in time; most of the time, both wait.
    assert 0.4 < used["large"] / (used["large"] + used["small"]) < 0.75


def test_a_turn_goes_to_the_one_with_the_least_time_for_its_share() -> None:
    turns, order = Turns(), list[str]()
    turns.take("warden")

    def work(user: str, share: float) -> None:
        for _ in range(4):
            turns.take(user)
            order.append(user)
            while len(turns._waiting) < 1 and len(order) < 6:
                time.sleep(0.0005)  # until the other one waits
            turns.give_back(user, 1.0, share)

    threads = [threading.Thread(target=work, args=each) for each in (("one", 1.0), ("two", 2.0))]
    for thread in threads:
        thread.start()
    while len(turns._waiting) < 2:
        time.sleep(0.001)
    turns.give_back("warden", 0.0, 1.0)
    for thread in threads:
        thread.join()
    # After the first round, the one with twice the share has two turns for one of the other.
    assert order[:6].count("two") == 4
    assert order[:6].count("one") == 2


def test_who_was_idle_has_no_credit() -> None:
    turns = Turns()
    for _ in range(100):
        turns.take("busy")
        turns.give_back("busy", 1.0, 1.0)
    turns.take("idle")
    turns.give_back("idle", 1.0, 1.0)
    # It is not owed the hundred seconds of the other one.
    assert turns._used_s["idle"] >= 99


def test_an_engine_serves_one_rig_at_a_time() -> None:
    lease, opened = pool(delay_s=0.002)
    rigs = [lease(name)[0] for name in "abc"]

    def work(rig: Fuser) -> None:
        for _ in range(5):
            assert float(rig.backend.fuse(*PLANES).mean()) == 0.5

    threads = [threading.Thread(target=work, args=(rig,)) for rig in rigs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opened[0].most_at_once == 1
