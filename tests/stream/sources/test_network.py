"""Network cameras and files: opened once, in bounded time, with passwords as they are written."""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.errors import SourceLostError
from refusion_edge.stream.sources import video
from refusion_edge.stream.sources.clock import CLOCK_ARRIVAL, CLOCK_STREAM
from refusion_edge.stream.sources.registry import open_source
from refusion_edge.stream.sources.source import CLOCK_CONTAINER
from refusion_edge.stream.uri import parse_source
from tests.conftest import one_sentence
from tests.fakes.network_cameras import RtspCamera, http_camera, http_file
from tests.stream.conftest import write_video

Picture = Callable[..., Array]

needs_h264 = pytest.mark.skipif("libx264" not in av.codecs_available, reason="this build of FFmpeg has no H.264 encoder")


@needs_h264
def test_an_rtsp_camera_is_opened_by_a_single_client(picture: Picture) -> None:
    frames = [np.roll(picture(48, 64, 3), 3 * number, axis=1) for number in range(40)]
    with RtspCamera(frames, silent=True) as camera:
        with open_source(parse_source(f"rtsp://127.0.0.1:{camera.port}/live"), "vis") as source:
            grabs = [source.read() for _ in range(20)]
            assert source.live
            assert source.clock == CLOCK_STREAM
            assert not source.keeps_noise
        assert camera.requests.count("DESCRIBE") == 1
    times = [grab.time_ns for grab in grabs if grab is not None]
    assert len(times) == 20
    intervals = np.diff(times[5:]) / 1e6
    assert np.all(intervals > 0)
    assert np.median(intervals) == pytest.approx(40, abs=15)


@needs_h264
def test_a_key_frame_that_comes_once_is_not_missed(picture: Picture) -> None:
    frames = [np.roll(picture(48, 64, 3), 3 * number, axis=1) for number in range(40)]
    with (
        RtspCamera(frames, silent=True, keyframe_interval=1000) as camera,
        open_source(parse_source(f"rtsp://127.0.0.1:{camera.port}/live"), "vis") as source,
    ):
        grab = source.read()
    assert grab is not None
    assert np.abs(grab.image.astype(int) - frames[0]).mean() < 12


@pytest.mark.slow
@needs_h264
def test_a_camera_that_falls_silent_is_lost_in_bounded_time(picture: Picture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "READ_S", 1.0)
    with (
        RtspCamera([picture(48, 64, 3)] * 30, silent=True) as camera,
        open_source(parse_source(f"rtsp://127.0.0.1:{camera.port}/live"), "vis") as source,
    ):
        started_s = time.monotonic()
        with pytest.raises(SourceLostError) as caught:
            list(iter(source.read, None))
        assert time.monotonic() - started_s < 10
    assert one_sentence(str(caught.value))


@pytest.mark.parametrize(("status", "code"), [("404 Not Found", 404), ("401 Unauthorized", 401), ("403 Forbidden", 403)])
def test_the_reason_of_a_refusal_is_said(status: str, code: int) -> None:
    with (
        RtspCamera([], status=status) as camera,
        pytest.raises(SourceLostError) as caught,
        open_source(parse_source(f"rtsp://127.0.0.1:{camera.port}/x"), "vis"),
    ):
        pass
    assert caught.value.got == code
    assert one_sentence(str(caught.value))


@pytest.mark.parametrize("password", ["plain", "a/b", "what?", "a#b c", "p@ss:w", "100%", "%41", "ü"])
def test_a_password_may_hold_any_character_and_is_never_shown(password: str) -> None:
    with RtspCamera([], status="401 Unauthorized") as camera:
        uri = parse_source(f"rtsp://admin:{password}@127.0.0.1:{camera.port}/live?x=1")
        with pytest.raises(SourceLostError) as caught, open_source(uri, "vis"):
            pass
        assert camera.paths[-1] == f"rtsp://127.0.0.1:{camera.port}/live?x=1"
    assert password not in str(caught.value).replace(f"127.0.0.1:{camera.port}", "")
    assert "admin" not in str(caught.value)


def test_a_refused_connection_hides_the_password_too() -> None:
    with pytest.raises(SourceLostError) as caught, open_source(parse_source("rtsp://admin:geheim@127.0.0.1:9/live"), "ir"):
        pass
    assert "heim" not in str(caught.value)
    assert "refused" in str(caught.value)
    assert one_sentence(str(caught.value))


def test_a_server_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "OPEN_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        started_s = time.monotonic()
        with (
            pytest.raises(SourceLostError),
            open_source(parse_source(f"rtsp://127.0.0.1:{server.getsockname()[1]}/x"), "ir"),
        ):
            pass
    assert time.monotonic() - started_s < 10


def test_motion_jpeg_over_http_is_a_camera_timed_at_arrival(picture: Picture) -> None:
    images = [cv2.imencode(".jpg", picture(48, 64, 3))[1].tobytes() for _ in range(5)]
    with http_camera(images) as address, open_source(parse_source(address), "vis") as source:
        grabs = [source.read() for _ in range(10)]
        assert source.live
        assert source.clock.startswith(CLOCK_ARRIVAL)
    times = [grab.time_ns for grab in grabs if grab is not None]
    assert all(later >= earlier for earlier, later in itertools.pairwise(times))
    assert abs(time.monotonic_ns() - times[-1]) < 5e9


@pytest.mark.parametrize("path", ["/clip.mp4", "/clip.mp4?token=abc", "/get?id=7"])
def test_a_video_over_http_is_a_file(path: str, picture: Picture) -> None:
    write_video("v.mp4", [picture(48, 64, 3) for _ in range(12)], codec="mpeg4", pixels="yuv420p")
    with (
        http_file(Path("v.mp4").read_bytes()) as address,
        open_source(parse_source(address + path), "vis") as source,
    ):
        assert not source.live
        assert source.clock == CLOCK_CONTAINER
        grabs = list(iter(source.read, None))
    assert [round(grab.time_ns / 1e6) for grab in grabs] == [40 * number for number in range(12)]


@pytest.mark.slow
def test_nominal_stamps_of_a_network_camera_give_way_to_the_arrival(picture: Picture) -> None:
    # RTP says 25 frames per second; the camera sends about ten.
    frames = [picture(48, 64, 3)] * 40
    camera = RtspCamera(frames, period_s=0.1)
    with camera, open_source(parse_source(f"rtsp://127.0.0.1:{camera.port}/x"), "vis") as source:
        lags_ns = []
        for _ in range(38):
            grab = source.read()
            assert grab is not None
            lags_ns.append(time.monotonic_ns() - grab.time_ns)
        assert source.timing is not None
        assert source.clock.startswith(CLOCK_ARRIVAL)
        assert any("nominal" in news for news in source.timing.take_news())
    assert max(lags_ns[-10:]) < 0.5e9  # by the stamps they would be 2.3 s old
