"""Messages of two topics are fused as the stream that recorded them fused its frames."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from examples.bag import TOPICS, Message, fused, main, messages
from refusion_edge.fuser import Fuser
from refusion_edge.stream.fused_stream import open_stream
from refusion_edge.tasks import find_task
from tests.stream.conftest import MeanBackend, camera, frames_of


def mean() -> Fuser:
    return Fuser(MeanBackend(), find_task("ir_vis"))


def test_a_bag_gives_the_frames_of_the_stream_that_recorded_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ir, vis = camera("ir", live=0, frames=8, rate=10), camera("vis", live=0, frames=24, rate=30)
    expected = list(open_stream(ir, vis, fuser=mean(), record="bag"))
    noise = Message("/imu/data", 0, np.zeros((1, 1), np.uint8))
    found = list(fused([noise, *messages(Path("bag")), noise], mean()))
    assert [frame.time_ns for frame in found] == [frame.time_ns for frame in expected]
    assert len(found) >= 8
    assert all(np.array_equal(one.image, other.image) for one, other in zip(found, expected, strict=True))
    assert {message.topic for message in messages(Path("bag"))} == set(TOPICS)
    monkeypatch.setattr(sys, "argv", ["bag", "bag", "-o", "fused.mkv"])
    assert main() == 0
    assert frames_of("fused.mkv") == len(found)
    assert str(len(found)) in capsys.readouterr().out
