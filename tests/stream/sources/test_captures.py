"""Cameras, network streams and videos: bit depth and time stamps."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from refusion_edge.errors import ShapeError, SourceLostError
from refusion_edge.stream.frames import MS
from refusion_edge.stream.sources.captures import unpack
from refusion_edge.stream.sources.registry import open_source
from refusion_edge.stream.sources.source import (
    CLOCK_CONTAINER,
    Grab,
    Source,
)
from refusion_edge.stream.uri import parse_source
from tests.raising import raises
from tests.stream.conftest import write_video


def opened(text: str, side: str = "ir") -> Source:
    return open_source(parse_source(text), "ir" if side == "ir" else "vis")


def read_all(text: str, side: str = "ir") -> list[Grab]:
    with opened(text, side) as source:
        return list(itertools.takewhile(lambda grab: grab is not None, iter(source.read, None)))


def test_a_refused_connection_hides_the_password_too() -> None:
    with raises(SourceLostError, "127.0.0.1:9", "refused") as caught, opened("rtsp://admin:geheim@127.0.0.1:9/live"):
        pass
    assert "heim" not in str(caught.value)


def test_sixteen_bit_video_keeps_every_bit(tmp_path: Path, rng: np.random.Generator) -> None:
    frames = [rng.integers(0, 65536, (48, 64)).astype(np.uint16) for _ in range(4)]
    write_video(tmp_path / "thermal.mkv", frames)
    grabs = read_all(str(tmp_path / "thermal.mkv"))
    assert len(grabs) == 4
    assert all(np.array_equal(grab.image, frame) for grab, frame in zip(grabs, frames, strict=True))


def test_y16_and_split_frame_cameras(rng: np.random.Generator) -> None:
    counts = rng.integers(0, 65536, (192, 256)).astype("<u2")
    raw = counts.view(np.uint8).reshape(192, 256, 2)
    assert np.array_equal(unpack(raw, "y16"), counts)
    assert np.array_equal(unpack(counts, "y16"), counts)
    colored = rng.integers(0, 256, (192, 256, 2)).astype(np.uint8)
    assert np.array_equal(unpack(np.concatenate((colored, raw)), "split16"), counts)
    assert unpack(np.zeros((4, 5, 4), np.uint8), "auto").shape == (4, 5, 3)
    for image, pixel_format in (
        (np.zeros((8, 8, 3), np.uint8), "y16"), (np.zeros((7, 8), np.uint16), "split16"), (raw, "auto"),
    ):  # fmt: skip
        with pytest.raises(ShapeError):
            unpack(image, pixel_format)


def test_video_times_come_from_the_container(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mkv", [np.full((48, 64, 3), level, np.uint8) for level in (10, 60, 110)], rate=9)
    grabs = read_all(f"file://{tmp_path}/v.mkv", "vis")
    assert [round(grab.time_ns / MS) for grab in grabs] == [0, 111, 222]
    with opened(str(tmp_path / "v.mkv"), "vis") as source:
        assert source.clock == CLOCK_CONTAINER
        assert source.rate_hz == pytest.approx(9, abs=0.1)
        assert not source.live
