"""Pairing and fusing of what others deliver."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.errors import InputError, RigError, ShapeError, UsageError
from refusion_edge.fuser import Fuser, load
from refusion_edge.stream.frames import MS, SIDES, FusedFrame
from refusion_edge.stream.run import networks
from refusion_edge.stream.run.coupling import Coupling, Settings
from refusion_edge.stream.run.networks import Trial
from tests.raising import raises


@pytest.fixture(scope="module")
def fuser() -> Iterator[Fuser]:
    with load("ir_vis", network="fast", streaming=True) as opened:
        yield opened


@pytest.fixture
def coupling(fuser: Fuser) -> Coupling:
    return Coupling(Settings(), fuser=fuser)


def picture(rng: np.random.Generator, height: int = 32, width: int = 40) -> Array:
    return rng.integers(0, 256, (height, width), np.uint8)


def test_frames_meet_by_their_times(coupling: Coupling, rng: np.random.Generator) -> None:
    fused: list[FusedFrame] = []
    for time_ms in range(0, 2000, 100):  # 10 and 30 per second
        assert coupling.push("ir", picture(rng), time_ms * MS, fused.append)
        for later_ms in (1, 34, 67):
            assert coupling.push("vis", picture(rng), (time_ms + later_ms) * MS, fused.append)
    assert coupling.end("ir", fused.append)
    assert not coupling.end("vis", fused.append)
    assert all(abs(frame.skew_ns or 0) <= 0.6 * 33.4 * MS for frame in fused)
    times = [frame.time_ns for frame in fused]
    assert times == sorted(times)
    assert len(fused) >= 18


def test_a_camera_that_ends_ends_the_video_when_its_frames_are_used_up(coupling: Coupling, rng: np.random.Generator) -> None:
    fused: list[FusedFrame] = []
    for index in range(5):
        assert coupling.push("ir", picture(rng), index * 40 * MS, fused.append)
    assert coupling.end("ir", fused.append)
    results = [coupling.push("vis", picture(rng), index * 40 * MS, fused.append) for index in range(6)]
    assert results == [True, True, True, True, True, False]
    assert [frame.time_ns for frame in fused] == [index * 40 * MS for index in range(5)]


def test_a_camera_that_ends_without_a_frame_ends_the_video(coupling: Coupling) -> None:
    assert not coupling.end("ir", lambda _frame: None)


def test_a_camera_far_ahead_waits_for_the_other(coupling: Coupling, rng: np.random.Generator) -> None:
    asked = threading.Event()

    def never() -> bool:
        asked.set()
        return False

    for index in range(20):  # 0.76 s
        coupling.push("ir", picture(rng), index * 40 * MS, lambda _frame: None)
    waiting = threading.Thread(target=coupling.wait_for_other, args=("ir", never))
    waiting.start()
    assert asked.wait(10)
    assert waiting.is_alive()
    coupling.wait_for_other("vis", never)  # the one behind never waits
    coupling.push("vis", picture(rng), 10 * 40 * MS, lambda _frame: None)
    waiting.join(10)
    assert not waiting.is_alive()
    coupling.push("ir", picture(rng), 5000 * MS, lambda _frame: None)
    stopped = threading.Event()
    waiting = threading.Thread(target=coupling.wait_for_other, args=("ir", stopped.is_set))
    waiting.start()
    stopped.set()
    coupling.wake()
    waiting.join(10)
    assert not waiting.is_alive()


def test_sizes_that_differ_are_a_mistake_at_first_and_pass_later(coupling: Coupling, rng: np.random.Generator) -> None:
    fused: list[FusedFrame] = []
    coupling.push("ir", picture(rng, 16, 20), 0, fused.append)
    with raises(ShapeError, "16x20", "32x40"):
        coupling.push("vis", picture(rng), 0, fused.append)
    coupling.restart()
    for index, height in enumerate((32, 32, 16, 16)):
        for side in ("ir", "vis"):
            coupling.push(side, picture(rng, height, height + 8), index * 40 * MS, fused.append)
    assert [frame.image.shape for frame in fused] == [(32, 40)] * len(fused)
    assert len(fused) >= 3


def test_a_frame_that_cannot_be_used_is_dropped_and_said(fuser: Fuser, rng: np.random.Generator) -> None:
    said: list[str] = []
    fused: list[FusedFrame] = []
    coupling = Coupling(Settings(), said.append, fuser=fuser)
    for index in range(4):
        ir = picture(rng).astype(np.float32)
        if index == 1:
            ir[:] = np.nan
        coupling.push("ir", ir, index * 40 * MS, fused.append)
        coupling.push("vis", picture(rng), index * 40 * MS, fused.append)
    assert [frame.time_ns for frame in fused] == [0, 80 * MS, 120 * MS]
    assert coupling.dropped == {"unusable frame": 1}
    assert said


@pytest.mark.parametrize(("holds", "network"), [(True, "refusion"), (False, "fast")])
def test_auto_takes_the_better_network_that_holds_the_rate(
    holds: bool, network: str, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    said: list[str] = []
    measured = {"refusion": 1.0 if holds else 900.0, "fast": 0.5}
    monkeypatch.setattr(networks, "measure", lambda _fuser, name, *_rest: Trial(name, "native", measured[name], 3))
    with Coupling(Settings(network="auto", threads=1), said.append) as coupling:
        assert coupling.network.startswith("fast")
        images = []
        for index in range(400):
            for side in ("ir", "vis"):
                coupling.push(side, picture(rng), index * 40 * MS, lambda frame: images.append(frame.image))
            if said and coupling.network.startswith(network):
                break
            time.sleep(0.01)
        assert coupling.network.startswith(network)
        coupling.restart()  # keeps it
        assert coupling.network.startswith(network)
    assert any(network in text for text in said)


def test_the_rate_is_not_measured_across_a_seek(coupling: Coupling, rng: np.random.Generator) -> None:
    for start_ms in (0, 60_000):
        for number in range(4):
            for side in SIDES:
                coupling.push(side, picture(rng), (start_ms + number * 40) * MS, lambda _frame: None)
        rates = [coupling._statistics.timing(side)["measured_hz"] for side in SIDES]
        assert rates == [pytest.approx(25)] * 2
        coupling.restart()


def test_settings_that_cannot_be_used_are_refused_at_the_start(rng: np.random.Generator) -> None:
    with raises(UsageError, "brightest", expected=("linear", "percentile", "plateau", "clahe"), got="brightest"):
        Coupling(Settings(gain="brightest"))
    with raises(UsageError, "slow"):
        Coupling(Settings(network="slow"))
    Path("rig.yaml").write_text("no rig")
    with pytest.raises((RigError, InputError)):
        Coupling(Settings(rig="rig.yaml"))
