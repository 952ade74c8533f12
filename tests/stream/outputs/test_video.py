"""Video files: every frame, at the speed of the scene."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refusion_edge.stream.frames import MS, FusedFrame
from refusion_edge.stream.outputs.video import VIDEO_ENCODINGS, VideoSink
from refusion_edge.stream.uri import parse_output
from tests.stream.conftest import camera, frames_of

Stream = Callable[..., tuple[dict[str, Any], Any]]


def fused_frame(number: int, time_ms: float = 0.0) -> FusedFrame:
    image = np.full((48, 64, 3), (number * 7) % 256, np.uint8)
    return FusedFrame(image, None, None, number, round(time_ms * MS), 0, "fused")


def file_pair(frames: int = 12) -> dict[str, str]:
    return {"ir": camera("ir", live=0, frames=frames), "vis": camera("vis", live=0, frames=frames)}


@pytest.mark.parametrize("suffix", VIDEO_ENCODINGS)
def test_videos_of_files_hold_every_frame(stream: Stream, suffix: str) -> None:
    stream(**file_pair(), outputs=(f"out{suffix}",))
    assert frames_of(f"out{suffix}") == 12


def test_live_video_runs_at_the_speed_of_the_scene() -> None:
    with VideoSink(parse_output("live.avi"), rate_hz=10) as sink:
        for number, time_ms in enumerate((0, 100, 110, 700, 790, 100_000)):  # two early ones, a gap of six, a long loss
            sink.write(fused_frame(number, time_ms))
    assert frames_of("live.avi") == 10


def test_a_matroska_video_survives_a_power_cut() -> None:
    draw = np.random.default_rng(0)
    with VideoSink(parse_output("cut.mkv"), rate_hz=25) as sink:
        for number in range(200):
            image = draw.integers(0, 256, (48, 64, 3)).astype(np.uint8)
            sink.write(FusedFrame(image, None, None, number, number * 40 * MS, 0, "fused"))
        Path("copy.mkv").write_bytes(Path("cut.mkv").read_bytes())  # the file that a power cut would leave
    assert frames_of("copy.mkv") >= 100
    assert frames_of("cut.mkv") == 200
