"""GStreamer pipelines as sources: images, times and ends; real pipelines if GStreamer is installed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refusion_edge.errors import MissingDependencyError, SourceLostError, UsageError
from refusion_edge.stream.frames import Side
from refusion_edge.stream.sources import gstreamer
from refusion_edge.stream.sources.registry import open_source
from refusion_edge.stream.sources.source import CLOCK_GSTREAMER, Grab
from refusion_edge.stream.uri import parse_source
from tests.conftest import one_sentence
from tests.raising import raises
from tests.stream.conftest import camera, explained
from tests.stream.gstreamer import needs_gstreamer


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gstreamer, "_START_S", 300.0)
    monkeypatch.setattr(gstreamer, "_READ_S", 300.0)


def read_all(text: str, side: Side = "vis") -> list[Grab]:
    grabs = []
    with open_source(parse_source(text), side) as source:
        while (grab := source.read()) is not None:
            grabs.append(grab)
    return grabs


@needs_gstreamer
def test_a_pipeline_gives_color_in_order_with_the_times_of_its_buffers() -> None:
    # GStreamer pads the rows of this width.
    bars = "gst:videotestsrc is-live=true num-buffers=12 pattern=red ! video/x-raw,width=150,height=100,framerate=30/1"
    grabs = read_all(bars)
    assert {grab.image.shape for grab in grabs} == {(100, 150, 3)}
    assert [grab.index for grab in grabs] == list(range(len(grabs)))
    assert len(grabs) >= 2  # on a busy machine, only the newest arrive
    steps_ms = np.diff([grab.time_ns for grab in grabs]) / 1e6
    assert np.allclose(steps_ms / (1000 / 30), np.rint(steps_ms / (1000 / 30)), atol=0.01)
    blue, green, red = grabs[0].image.reshape(-1, 3).mean(axis=0)
    assert red > 240 > 20 > max(blue, green)


@needs_gstreamer
def test_sixteen_bits_stay_sixteen_bits() -> None:
    frames = np.random.default_rng(0).integers(0, 65536, (3, 46, 62)).astype("<u2")
    Path("thermal.raw").write_bytes(frames.tobytes())
    parse = "rawvideoparse format=gray16-le width=62 height=46 framerate=30/1"
    grabs = read_all(f"gst:filesrc location={Path('thermal.raw').resolve()} blocksize={frames[0].nbytes} ! {parse}")
    assert grabs[0].image.dtype == np.uint16
    assert all(any(np.array_equal(grab.image, frame) for frame in frames) for grab in grabs)


@needs_gstreamer
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("gst:nosuchelement ! videoconvert", "no element"),
        ("gst:filesrc location=/nowhere ! decodebin", "Resource not found"),
        ("csi://0", "nvarguscamerasrc"),
    ],
)
def test_a_pipeline_that_does_not_start_is_one_line(text: str, reason: str) -> None:
    with raises(SourceLostError, text, reason):
        read_all(text)


@needs_gstreamer
def test_a_pipeline_that_fails_on_the_way_is_a_lost_camera_and_leaks_no_password() -> None:
    failing = "gst:videotestsrc ! video/x-raw,width=64,height=48,framerate=30/1 ! identity error-after=3 name=user-pw=geheim"
    with pytest.raises(SourceLostError) as caught:
        read_all(failing)
    assert "geheim" not in str(caught.value)
    assert one_sentence(str(caught.value))


@needs_gstreamer
def test_a_pipeline_is_one_of_two_cameras(stream: Callable[..., tuple[dict[str, Any], Any]]) -> None:
    bars = "gst:videotestsrc is-live=true pattern=ball ! video/x-raw,width=64,height=48,framerate=30/1"
    report, _ = stream(ir=camera("ir"), vis=bars, frames=20)
    vis = report["cameras"]["vis"]
    assert vis["clock"] == CLOCK_GSTREAMER
    assert (vis["size_wh"], vis["dtype"]) == ([64, 48], "uint8")
    assert report["pairs"]["shown"] == 20
    assert explained(report)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("csi://1?width=640&height=480&rate=60", "sensor-id=1 ! video/x-raw(memory:NVMM),width=640,height=480,framerate=60/1"),
        ("csi://0", "sensor-id=0 ! video/x-raw(memory:NVMM),width=1280,height=720,framerate=30/1"),
        ("gst:v4l2src device=/dev/video2 ! image/jpeg ! jpegdec", "v4l2src device=/dev/video2 ! image/jpeg ! jpegdec"),
    ],
)
def test_what_is_run_and_what_it_needs(monkeypatch: pytest.MonkeyPatch, text: str, words: str) -> None:
    asked: list[str] = []

    def start(script: str, arguments: Sequence[str], secrets: dict[str, str]) -> object:
        assert (script, arguments) == (
            "sources/gst_reader.py",
            (),
        )  # a pipeline may hold passwords, which must stay off the command line
        asked.extend(secrets.values())
        raise FileNotFoundError("/usr/bin/python3")

    monkeypatch.setattr("refusion_edge.stream.system_python.start", start)
    with raises(MissingDependencyError, remedy="apt install python3-gi"):
        read_all(text)
    assert words in asked[0]


def test_unknown_options_are_refused() -> None:
    with raises(UsageError, "'width'", got="widht"):
        read_all("csi://0?widht=640")
