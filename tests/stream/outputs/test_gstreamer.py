"""Pipelines of GStreamer as outputs: frames, times, ends and failures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.errors import MissingDependencyError, OutputError
from refusion_edge.stream.frames import MS, FusedFrame
from refusion_edge.stream.outputs import gstreamer
from refusion_edge.stream.outputs.gstreamer import GStreamerSink
from refusion_edge.stream.uri import parse_output
from tests.raising import raises
from tests.stream.conftest import camera
from tests.stream.gstreamer import needs_gstreamer


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gstreamer, "_START_S", 300.0)
    monkeypatch.setattr(gstreamer, "_END_S", 300.0)


def fused(image: Array, index: int) -> FusedFrame:
    return FusedFrame(image, None, None, index, 5_000_000_000 + index * 40 * MS, 0, "fused")


@needs_gstreamer
@pytest.mark.parametrize("shape", [(48, 65, 3), (48, 66)])
def test_a_pipeline_gets_every_frame_as_it_is(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    images = rng.integers(0, 256, (5, *shape), np.uint8)
    name = "BGR" if len(shape) == 3 else "GRAY8"
    text = f"gst:video/x-raw,format={name} ! filesink location=out.raw"
    with GStreamerSink(parse_output(text), rate_hz=25, live=False) as sink:
        for index, image in enumerate(images):
            sink.write(fused(image, index))
    stride = -(-shape[1] * (3 if len(shape) == 3 else 1) // 4) * 4
    rows = np.frombuffer(Path("out.raw").read_bytes(), np.uint8).reshape(5, 48, stride)
    assert np.array_equal(rows[..., : images[0][0].size].reshape(images.shape), images)


@needs_gstreamer
def test_times_that_go_back_go_on_from_where_they_are() -> None:
    with GStreamerSink(parse_output("gst:filesink location=out.raw sync=false"), rate_hz=25, live=False) as sink:
        for index, time_ms in enumerate((5000, 5040, 1000, 1040, 1040)):
            sink.write(replace(fused(np.full((48, 64), index, np.uint8), index), time_ns=time_ms * MS))
    frames = np.frombuffer(Path("out.raw").read_bytes(), np.uint8).reshape(-1, 48, 64)
    assert frames[:, 0, 0].tolist() == [0, 1, 2, 3, 4]


@needs_gstreamer
def test_a_pipeline_that_does_not_end_is_an_output_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gstreamer, "_END_S", 1.0)
    # The second source of the funnel sends frames for ever.
    text = "gst:funnel name=all ! fakesink videotestsrc is-live=true ! all."
    with raises(OutputError, text), GStreamerSink(parse_output(text), rate_hz=25, live=False) as sink:
        sink.write(fused(np.zeros((48, 64), np.uint8), 0))


@needs_gstreamer
def test_files_are_complete_when_the_stream_ends(stream: Callable[..., Any]) -> None:
    output = "gst:videoconvert ! x264enc ! mp4mux ! filesink location=out.mp4"
    stream(ir=camera("ir", live=0, frames=8), vis=camera("vis", live=0, frames=8), outputs=(output,))
    assert b"moov" in Path("out.mp4").read_bytes()


@needs_gstreamer
def test_a_pipeline_that_does_not_start_is_one_sentence() -> None:
    for text in ("gst:nosuchelement", "gst:filesink location=/no/such/folder/out.raw"):
        with raises(OutputError, text, remedy="gst-launch-1.0"), GStreamerSink(parse_output(text), rate_hz=25, live=True):
            pass


@needs_gstreamer
def test_a_pipeline_that_fails_later_is_an_output_error(rng: np.random.Generator) -> None:
    # An encoder that takes no frames of this size.
    text = "gst:video/x-raw,width=32 ! fakesink"
    image = rng.integers(0, 256, (48, 64), np.uint8)

    def write_until_it_fails() -> None:
        with GStreamerSink(parse_output(text), rate_hz=25, live=True) as sink:
            for index in range(2000):
                sink.write(fused(image, index))

    with raises(OutputError, text):
        write_until_it_fails()


def test_without_a_system_python_the_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_words: object) -> None:
        raise FileNotFoundError("no python3")

    monkeypatch.setattr("refusion_edge.stream.system_python.start", missing)
    with (
        raises(MissingDependencyError, "gst:fakesink", remedy="python3-gi"),
        GStreamerSink(parse_output("gst:fakesink"), rate_hz=None, live=True),
    ):
        pass
