"""Video files: every frame, at the speed of the scene."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from benchmarks.stream_soak import bytes_in_use
from refusion_edge.stream.frames import MS, FusedFrame
from refusion_edge.stream.outputs.video import VIDEO_ENCODINGS, Encoding, VideoSink
from refusion_edge.stream.sources.registry import open_source
from refusion_edge.stream.uri import parse_output, parse_source
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


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_a_video_without_end_takes_no_more_memory(suffix: str) -> None:
    """An index of all frames in memory would take 40 to 72 bytes for each of them, 100 to 200 MB in a day."""
    if not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("needs a C library that tells how much memory is in use")
    before = 0
    with VideoSink(parse_output(f"long{suffix}"), rate_hz=30) as sink:
        for number in range(8001):
            if number == 2000:
                before = bytes_in_use()
            sink.write(fused_frame(number, number * 1000 / 30))
        assert bytes_in_use() - before < 6000 * 10
    with av.open(f"long{suffix}") as container:
        assert container.duration == pytest.approx(8001 / 30 * 1e6, rel=1e-3)
        container.seek(200_000_000)
        assert float(next(container.decode(video=0)).time) == pytest.approx(200, abs=9)


def packets_of(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for packet in container.demux(video=0) if packet.size)


@pytest.mark.parametrize("rate_hz", [30, 9, 4])
@pytest.mark.parametrize("suffix", VIDEO_ENCODINGS)
def test_a_power_cut_costs_less_than_a_second(suffix: str, rate_hz: int) -> None:
    draw, missing = np.random.default_rng(0), 0
    with VideoSink(parse_output(f"cut{suffix}"), rate_hz=rate_hz) as sink:
        for number in range(2 * rate_hz + 20):
            image = draw.integers(0, 256, (48, 64, 3)).astype(np.uint8)
            sink.write(FusedFrame(image, None, None, number, round(number * 1000 / rate_hz * MS), 0, "fused"))
            if number >= 20:
                missing = max(missing, number + 1 - packets_of(Path(f"cut{suffix}")))  # of what a power cut would leave
    # The oldest of them was written this long before the next frame is.
    assert missing / rate_hz < 0.8
    assert frames_of(f"cut{suffix}") == 2 * rate_hz + 20


def test_every_frame_of_a_matroska_video_can_be_decoded_alone() -> None:
    draw = np.random.default_rng(0)
    images = [draw.integers(0, 256, (16, 24, 3)).astype(np.uint8) for _ in range(60)]
    with VideoSink(parse_output("v.mkv"), rate_hz=25) as sink:
        for number, image in enumerate(images):
            sink.write(FusedFrame(image, None, None, number, number * 40 * MS, 0, "fused"))
    with av.open("v.mkv") as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        assert all(packet.is_keyframe for packet in packets)
        [alone] = container.streams.video[0].codec_context.decode(packets[37])
        assert np.array_equal(alone.to_ndarray(format="bgr24"), images[37])


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".m4v"])
def test_browsers_can_play_the_video(suffix: str) -> None:
    if "libx264" not in av.codecs_available:
        pytest.skip("this build of FFmpeg has no H.264 encoder")
    with VideoSink(parse_output(f"v{suffix}"), rate_hz=25) as sink:
        for number in range(5):
            sink.write(fused_frame(number, 40 * number))
    with av.open(f"v{suffix}") as file:
        context = file.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")


def test_an_encoder_whose_parameters_are_only_in_its_packets_gives_a_playable_video(monkeypatch: pytest.MonkeyPatch) -> None:
    """As h264_v4l2m2m does."""
    configure, global_header = VideoSink._configure, 1 << 22

    def without_header(sink: VideoSink, context: Any, encoding: Encoding, size_wh: tuple[int, int]) -> None:
        configure(sink, context, encoding, size_wh)
        context.flags &= ~global_header

    monkeypatch.setattr(VideoSink, "_configure", without_header)
    monkeypatch.setitem(VIDEO_ENCODINGS, ".mp4", (Encoding("libx264", options={"preset": "ultrafast", "bf": "0"}),))
    with VideoSink(parse_output("bare.mp4"), rate_hz=30) as sink:
        for number in range(12):
            sink.write(fused_frame(number, number * 100 / 3))
    assert frames_of("bare.mp4") == 12


def test_another_codec_than_h264_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    encodings = tuple(encoding for encoding in VIDEO_ENCODINGS[".mp4"] if encoding.codec == "mpeg4")
    monkeypatch.setitem(VIDEO_ENCODINGS, ".mp4", (Encoding("no_such_encoder"), *encodings))
    said: list[str] = []
    with VideoSink(parse_output("v.mp4"), rate_hz=25, announce=said.append) as sink:
        sink.write(fused_frame(0))
    assert len(said) == 1
    assert "v.mp4" in said[0]
    assert frames_of("v.mp4") == 1


def test_hardware_is_tried_first_and_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [each.is_hardware for each in VIDEO_ENCODINGS[".mp4"]][:2] == [True, True]
    # x264 in the place of a device that works, behind one that is absent and one that accepts everything and encodes nothing.
    trials, works = list[str](), VideoSink._encodes

    def encodes(sink: VideoSink, context: Any) -> bool:
        trials.append(context.name)
        return len(trials) > 1 and works(sink, context)

    monkeypatch.setattr(VideoSink, "_encodes", encodes)
    software = next(each for each in VIDEO_ENCODINGS[".mp4"] if each.codec in ("libx264", "libopenh264", "mpeg4"))
    device = replace(software, is_hardware=True)
    monkeypatch.setitem(VIDEO_ENCODINGS, ".mp4", (Encoding("no_such_encoder", is_hardware=True), device, device, software))
    said: list[str] = []
    with VideoSink(parse_output("device.mp4"), rate_hz=25.0, announce=said.append) as sink:
        for number in range(5):
            sink.write(fused_frame(number, 40 * number))
    assert trials == [software.codec] * 2
    assert [text for text in said if "hardware" in text and software.codec in text] == said[:1]
    assert frames_of("device.mp4") == 5


@pytest.mark.parametrize("suffix", VIDEO_ENCODINGS)
@pytest.mark.parametrize(("width", "height"), [(64, 48), (65, 49)])
def test_colors_and_odd_sizes(suffix: str, width: int, height: int) -> None:
    draw = np.random.default_rng(0)
    blocks = draw.integers(30, 220, (3, 4, 3)).astype(np.uint8)
    image = np.ascontiguousarray(np.kron(blocks, np.ones((17, 17, 1), np.uint8))[:height, :width])
    with VideoSink(parse_output(f"v{suffix}"), rate_hz=25) as sink:
        for number in range(3):
            sink.write(FusedFrame(image, None, None, number, number * 40 * MS, 0, "fused"))
    with open_source(parse_source(f"v{suffix}"), "vis") as source:
        grab = source.read()
    assert grab is not None
    shown = grab.image[:height, :width].astype(int)
    if suffix == ".mkv":
        assert np.array_equal(grab.image, image)
    else:
        # In the middle of the blocks, as color has half the resolution.
        middles = (slice(8, None, 17), slice(8, None, 17))
        assert np.abs(shown[middles] - image[middles]).max() <= 8
        assert np.abs(shown[middles] - image[middles]).mean() <= 3


def test_times_that_stand_still_or_go_back_do_not_stop_the_video() -> None:
    with VideoSink(parse_output("v.mp4"), rate_hz=25) as sink:
        for number, time_ms in enumerate((0, 40, 40, 80, 10, 50, 90)):
            sink.write(fused_frame(number, time_ms))
    assert frames_of("v.mp4") == 7


def test_a_long_gap_stays_a_gap() -> None:
    with VideoSink(parse_output("v.mkv"), rate_hz=25) as sink:
        for number, time_ms in enumerate((0, 40, 60_000)):
            sink.write(fused_frame(number, time_ms))
    with av.open("v.mkv") as file:
        assert [float(frame.pts * frame.time_base) for frame in file.decode(video=0)] == pytest.approx([0, 0.04, 60])
