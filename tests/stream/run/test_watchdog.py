"""Messages to systemd, read from the other end of the socket."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from refusion_edge.stream.run.watchdog import Watchdog


@pytest.fixture(params=["path", "abstract"])
def listening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """The socket of systemd, and its name in ``NOTIFY_SOCKET``."""
    name = str(tmp_path / "n") if request.param == "path" else f"@refusion-edge-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name.replace("@", "\0", 1))
        receiver.setblocking(False)
        yield receiver, name


def heard(receiver: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(receiver.recv(4096).decode().partition("\n")[0])
        except BlockingIOError:
            return found


def test_it_is_ready_with_the_first_frame_and_beats_while_frames_are_fused(listening: tuple[socket.socket, str]) -> None:
    receiver, name = listening
    watchdog = Watchdog({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "2000"})
    watchdog.watch(0, waiting=True)
    assert heard(receiver) == []
    watchdog.watch(1, waiting=True)
    assert heard(receiver) == ["READY=1", "WATCHDOG=1"]
    time.sleep(0.002)
    watchdog.watch(1, waiting=True)
    assert heard(receiver) == []  # it hangs
    watchdog.watch(1, waiting=False)
    assert heard(receiver) == ["WATCHDOG=1"]  # it only waits for a camera
    time.sleep(0.002)
    watchdog.watch(2, waiting=True)
    watchdog.stop()
    assert heard(receiver) == ["WATCHDOG=1", "STOPPING=1"]


@pytest.mark.parametrize("watched", [{}, {"WATCHDOG_USEC": "many"}, {"WATCHDOG_USEC": "2000", "WATCHDOG_PID": "1"}])
def test_it_beats_only_if_this_process_is_watched(listening: tuple[socket.socket, str], watched: dict[str, str]) -> None:
    receiver, name = listening
    watchdog = Watchdog({"NOTIFY_SOCKET": name, **watched})
    for count in range(3):
        watchdog.watch(count, waiting=False)
    assert heard(receiver) == ["READY=1"]


@pytest.mark.parametrize("name", ["", "/nowhere/notify", "@nobody-listens"])
def test_nobody_has_to_listen(name: str) -> None:
    watchdog = Watchdog({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1"})
    watchdog.watch(1, waiting=False)
    watchdog.stop()


def test_a_stream_reports_itself(
    listening: tuple[socket.socket, str], stream: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver, name = listening
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    monkeypatch.setenv("WATCHDOG_USEC", "600000")
    stream(ir="test://ir?rate=25", vis="test://vis?rate=25", duration_s=1.5)
    messages = heard(receiver)
    assert messages.count("READY=1") == 1  # not always the first: a slow start is signaled, too
    assert messages[-1] == "STOPPING=1"
    assert messages.count("WATCHDOG=1") >= 3
