"""Synthetic cameras."""

from __future__ import annotations

import itertools
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from refusion_edge.errors import UsageError
from refusion_edge.stream.frames import SECOND, SIDES, Side
from refusion_edge.stream.pairing.freeze import FreezeWatch
from refusion_edge.stream.sources import synthetic
from refusion_edge.stream.sources.registry import open_source
from refusion_edge.stream.sources.source import (
    CLOCK_SYNTHETIC,
    CorruptFrameError,
    Grab,
    Source,
)
from refusion_edge.stream.sources.synthetic import Painter, Scene, SyntheticSource
from refusion_edge.stream.uri import parse_source
from tests.raising import raises
from tests.stream.conftest import camera


def opened(text: str, side: str = "ir") -> Source:
    return open_source(parse_source(text), "ir" if side == "ir" else "vis")


def read_all(text: str, side: str = "ir") -> list[Grab]:
    with opened(text, side) as source:
        return list(itertools.takewhile(lambda grab: grab is not None, iter(source.read, None)))


def test_a_camera_begins_when_it_is_opened_and_the_other_one_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = [5 * SECOND]
    clock = SimpleNamespace(
        monotonic_ns=lambda: now_ns[0], sleep=lambda seconds: now_ns.append(now_ns.pop() + round(seconds * SECOND))
    )
    monkeypatch.setattr(synthetic, "time", clock)
    monkeypatch.setattr(synthetic, "_BEGUN", synthetic._Begun())
    ir, vis = opened(camera("ir")), opened(camera("vis"), "vis")
    now_ns[0] += 3 * SECOND  # an engine is loaded
    with ir:
        now_ns[0] += SECOND // 10
        with vis:
            grabs = [ir.read(), vis.read()]
    assert [grab.index for grab in grabs if grab] == [1, 4]
    assert grabs[1].time_ns - grabs[0].time_ns == pytest.approx(0.1 * SECOND, abs=2)


def test_the_synthetic_pair_is_shifted_and_skewed_as_asked() -> None:
    base, moved = Scene(width=120, height=80, noise=0), Scene(width=120, height=80, noise=0, dx=7, dy=-5)
    one, two = Painter(base, "ir").paint(0), Painter(moved, "ir").paint(0)
    assert one.dtype == np.uint16
    assert np.array_equal(one[10:60, 10:100], two[5:55, 17:107])
    panning = Painter(Scene(width=120, height=80, noise=0, pan=100, walker=0), "vis")
    assert np.array_equal(panning.paint(0)[:, 50:], panning.paint(SECOND // 2)[:, :-50])


def test_synthetic_faults_come_as_asked() -> None:
    frozen = read_all(camera("ir", live=0, frames=90, freeze_every_ms=1000, freeze_ms=300))
    watch = FreezeWatch()
    repeats = [watch.add(grab.image, grab.time_ns).content != "new" for grab in frozen]
    assert (watch.freezes, sum(repeats)) == (2, 2 * 8)
    gaps = read_all(camera("ir", live=0, frames=90, drop_every_ms=1000, drop_ms=200))
    assert len(gaps) == 90 - 2 * 6
    assert {grab.image.shape for grab in read_all(camera("vis", live=0, frames=8, resize_every=3), "vis")} == {
        (48, 64, 3), (24, 32, 3),
    }  # fmt: skip
    with opened(camera("ir", live=0, frames=5, corrupt_every=2)) as source:
        source.read()
        with pytest.raises(CorruptFrameError):
            source.read()
        assert source.clock == CLOCK_SYNTHETIC
    assert {grab.time_ns for grab in read_all(camera("ir", live=0, frames=4, zero_times=1))} == {0}


def test_a_clock_that_is_set_is_followed() -> None:
    with opened(camera("ir", rate=100, step_every_ms=400, step_ms=5000, walker=0)) as source:
        times = [grab.time_ns for grab in itertools.islice(iter(source.read, None), 100) if grab is not None]
    assert source.timing is not None
    assert source.timing.state.steps >= 1
    # The steps of five seconds are not in the times.
    assert times[-1] - times[0] < 2 * SECOND


def test_the_street_is_the_same_for_both_cameras_and_its_people_are_warm_and_move() -> None:
    scene = Scene(width=320, height=240, noise=0)
    nobody = Scene(width=320, height=240, noise=0, walker=0)
    for side in SIDES:
        grounds = [Painter(nobody, side).paint(seconds * SECOND) for seconds in (0, 3)]
        assert np.array_equal(*grounds)
        people = [Painter(scene, side).paint(seconds * SECOND) != grounds[0] for seconds in (0, 3)]
        assert 0.01 < people[0].mean() < 0.2
        assert not np.array_equal(*people)
    infrared = Painter(scene, "ir").paint(0).astype(float) - Painter(nobody, "ir").paint(0)
    assert infrared[infrared != 0].mean() > 300
    changed = [(Painter(scene, side).paint(0) != Painter(nobody, side).paint(0)) for side in SIDES]
    overlap = changed[0] & changed[1].any(axis=2)
    assert overlap.sum() > 0.9 * changed[0].sum()


def test_an_unknown_scene_is_refused() -> None:
    with raises(UsageError, "'beach'", got="beach"):
        opened(camera("ir", scene="beach"))


def test_two_cameras_see_one_scene_however_long_it_takes_to_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Painter.__init__

    def slow(painter: Painter, scene: Scene, side: Side) -> None:
        time.sleep(0.6)
        made(painter, scene, side)

    monkeypatch.setattr(Painter, "__init__", slow)
    ir, vis = opened(camera("ir")), opened(camera("vis"), "vis")
    assert isinstance(ir, SyntheticSource)
    assert isinstance(vis, SyntheticSource)
    with ir, vis:
        assert ir._start_ns == vis._start_ns
    another = opened(camera("vis"), "vis")
    assert isinstance(another, SyntheticSource)
    with another:
        assert another._start_ns > ir._start_ns


def test_a_slow_reader_misses_frames_and_stays_in_the_present() -> None:
    with opened(camera("ir", rate=50)) as source:
        first = source.read()
        time.sleep(1.5)
        late = source.read()
        assert first is not None
        assert late is not None
        assert late.index - first.index > 50
        assert late.time_ns > time.monotonic_ns() - SECOND // 2


def test_a_late_reader_of_a_camera_with_few_frames_gets_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ns = [5 * SECOND]
    clock = SimpleNamespace(
        monotonic_ns=lambda: now_ns[0], sleep=lambda seconds: now_ns.append(now_ns.pop() + round(seconds * SECOND))
    )
    monkeypatch.setattr(synthetic, "time", clock)
    with opened(camera("ir", rate=0.5)) as source:
        first = source.read()
        now_ns[0] += round(3.5 * SECOND)  # the second frame is 1.5 s old, the third one half a second ahead
        late = source.read()
    assert first is not None
    assert late is not None
    assert late.index == first.index + 2
    assert late.time_ns <= now_ns[0]


def test_rigs_that_are_opened_at_the_same_time_do_not_mix_their_cameras() -> None:
    starts: list[set[int]] = []
    turns = threading.Barrier(2)

    def open_pair() -> None:
        pair = [opened(camera(side), side) for side in SIDES]
        for source in pair:
            turns.wait(5)
            source.__enter__()
            time.sleep(0.01)
        assert all(isinstance(source, SyntheticSource) for source in pair)
        starts.append({source._start_ns for source in pair if isinstance(source, SyntheticSource)})

    threads = [threading.Thread(target=open_pair) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(found) for found in starts] == [1, 1]
