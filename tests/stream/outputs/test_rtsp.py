"""Real RTSP: our server in a second process, and our source as its client."""

from __future__ import annotations

import itertools
import socket
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refusion_edge.errors import OutputError, SourceLostError, UsageError
from refusion_edge.stream.frames import FusedFrame
from refusion_edge.stream.outputs import rtsp
from refusion_edge.stream.outputs.rtsp import RtspSink
from refusion_edge.stream.sources import video
from refusion_edge.stream.sources.clock import CLOCK_STREAM
from refusion_edge.stream.sources.registry import open_source
from refusion_edge.stream.uri import parse_output, parse_source
from tests.raising import raises
from tests.stream.conftest import camera

PROBE = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"


def has_server() -> bool:
    command = ["/usr/bin/python3", "-I", "-c", PROBE]
    try:
        return subprocess.run(command, capture_output=True, timeout=300, check=False).returncode == 0
    except OSError:
        return False


needs_server = pytest.mark.skipif(not has_server(), reason="needs GStreamer's RTSP server from the system's packages")


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtsp, "_START_S", 300.0)
    monkeypatch.setattr(video, "OPEN_S", 300.0)
    monkeypatch.setattr(video, "READ_S", 300.0)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@needs_server
def test_a_stream_is_served_and_read_over_rtsp() -> None:
    port = free_port()
    stop = threading.Event()
    said: list[str] = []
    ready = threading.Event()

    def feed() -> None:
        sink = RtspSink(
            parse_output(f"rtsp://viewer:geheim@127.0.0.1:{port}/fused"), rate_hz=20,
            announce=lambda text: (said.append(text), ready.set()),
        )  # fmt: skip
        with sink:
            number = 0
            while not stop.wait(0.05):
                sink.write(FusedFrame(np.full((64, 96, 3), (40, 90, 200), np.uint8), None, None, number, number, 0, "fused"))
                number += 1

    thread = threading.Thread(target=feed)
    thread.start()
    try:
        assert ready.wait(300)
        assert said == [f"RTSP stream: rtsp://127.0.0.1:{port}/fused"]
        with (
            raises(SourceLostError, f"rtsp://127.0.0.1:{port}/fused"),
            open_source(parse_source(f"rtsp://127.0.0.1:{port}/fused"), "vis"),
        ):
            pass
        with open_source(parse_source(f"rtsp://viewer:geheim@127.0.0.1:{port}/fused"), "vis") as source:
            grabs = [source.read() for _ in range(8)]
            assert source.clock == CLOCK_STREAM
            assert source.live
        times = [grab.time_ns for grab in grabs if grab is not None]
        assert len(times) == 8
        assert all(later > earlier for earlier, later in itertools.pairwise(times))
        assert np.abs(grabs[-1].image.reshape(-1, 3).mean(axis=0) - (40, 90, 200)).max() < 12
    finally:
        stop.set()
        thread.join(300)
    assert not thread.is_alive()


@pytest.mark.slow
@needs_server
def test_a_port_in_use_ends_the_stream_with_one_line(stream: Callable[..., Any]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with raises(OutputError, f"port {port}"):
            stream(
                ir=camera("ir", live=0, frames=5), vis=camera("vis", live=0, frames=5), outputs=(f"rtsp://127.0.0.1:{port}/x",)
            )


def test_a_user_without_a_password_is_refused() -> None:
    with raises(UsageError, "user", remedy="USER:PASSWORD"):
        RtspSink(parse_output("rtsp://user@127.0.0.1:8554/x"), rate_hz=30)


@pytest.mark.parametrize(
    ("uri", "asked"), [("rtsp://127.0.0.1:1/x", False), ("rtsp://0.0.0.0:1/x", True), ("rtsp://u:p@0.0.0.0:1/x", True)]
)
def test_viewers_of_other_machines_need_a_password(uri: str, asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, str] = {}
    said: list[str] = []
    monkeypatch.setattr("refusion_edge.stream.system_python.start", lambda _script, _words, variables: given.update(variables))
    monkeypatch.setattr("refusion_edge.stream.system_python.first_line", lambda *_words: "ready")
    monkeypatch.setattr("refusion_edge.stream.outputs.rtsp.send", lambda *_words: None)
    sink = RtspSink(parse_output(uri), rate_hz=20, announce=said.append)
    sink.write(FusedFrame(np.zeros((8, 8, 3), np.uint8), None, None, 0, 0, 0, "fused"))
    password = given.get("REFUSION_EDGE_RTSP_PASSWORD", "")
    assert bool(password) is asked
    assert (f":{password}@" in said[0]) == (asked and "u:p" not in uri)  # a chosen password is not announced
