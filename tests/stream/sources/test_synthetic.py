"""Synthetic cameras."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from refusion_edge.stream.frames import SECOND
from refusion_edge.stream.pairing.freeze import FreezeWatch
from refusion_edge.stream.sources import synthetic
from refusion_edge.stream.sources.registry import open_source
from refusion_edge.stream.sources.source import (
    CLOCK_SYNTHETIC,
    CorruptFrameError,
    Grab,
    Source,
)
from refusion_edge.stream.sources.synthetic import Painter, Scene
from refusion_edge.stream.uri import parse_source
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
    monkeypatch.setattr(synthetic, "_LAST_START_NS", [])
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
