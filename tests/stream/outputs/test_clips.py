"""Clips: when they begin and end, and what is said if they fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from refusion_edge.errors import OutputError
from refusion_edge.stream.frames import MS, FusedFrame
from refusion_edge.stream.outputs import clips as clips_module
from refusion_edge.stream.outputs.clips import Clips
from refusion_edge.stream.outputs.video import VideoSink
from tests.raising import raises
from tests.stream.conftest import frames_of


def fused_frame(number: int) -> FusedFrame:
    plane = np.zeros((48, 64), np.float32)
    image = np.zeros((48, 64, 3), np.uint8)
    return FusedFrame(image, plane, image, number, number * 33 * MS, 0, "fused", no_ir=plane > 0, no_vis=plane > 0)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10
    while not holds() and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert holds()


def test_no_clip_is_started_once_the_stream_has_ended() -> None:
    clips = Clips(Path("clips"))
    clips.close()
    with raises(OutputError, "ended"):
        clips.start()
    assert not Path("clips").exists()


def test_a_clip_that_is_being_started_when_the_stream_ends_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, released, enter = threading.Event(), threading.Event(), VideoSink.__enter__

    def slow(sink: VideoSink) -> VideoSink:
        entered.set()
        released.wait(10)
        return enter(sink)

    monkeypatch.setattr(VideoSink, "__enter__", slow)
    clips, errors = Clips(Path("clips")), list[BaseException]()

    def start() -> None:
        try:
            clips.start()
        except OutputError as error:
            errors.append(error)

    thread = threading.Thread(target=start)
    thread.start()
    assert entered.wait(10)
    clips.offer(fused_frame(0))  # none of these waits for the disk
    assert clips.state.file is None
    clips.close()
    released.set()
    thread.join(10)
    assert [type(error) for error in errors] == [OutputError]
    assert list(Path("clips").iterdir()) == []


def test_frames_that_a_slow_encoder_could_not_take_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    writing, released, write = threading.Event(), threading.Event(), VideoSink.write

    def slow(sink: VideoSink, frame: FusedFrame) -> None:
        writing.set()
        released.wait(10)
        write(sink, frame)

    monkeypatch.setattr(VideoSink, "write", slow)
    notes = list[str]()
    clips = Clips(Path("clips"), note=notes.append)
    clips.start()
    clips.offer(fused_frame(0))
    assert writing.wait(10)
    for number in range(1, clips_module._WAITING + 4):  # three more than wait
        clips.offer(fused_frame(number))
    threading.Timer(0.2, released.set).start()
    clips.stop()
    assert " 3 frames" in notes[-1]


def test_frames_wait_without_their_views(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, write = list[FusedFrame](), VideoSink.write
    monkeypatch.setattr(VideoSink, "write", lambda sink, frame: seen.append(frame) or write(sink, frame))
    clips = Clips(Path("clips"))
    clips.start()
    clips.offer(fused_frame(0))
    clips.stop()
    (clip,) = Path("clips").iterdir()
    assert frames_of(clip) == len(seen) == 1
    assert (seen[0].ir, seen[0].vis, seen[0].no_ir, seen[0].no_vis) == (None, None, None, None)


def test_any_failure_ends_the_clip_and_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_sink: VideoSink, _frame: FusedFrame) -> None:
        raise ValueError("no such pixel format")

    monkeypatch.setattr(VideoSink, "write", fail)
    clips = Clips(Path("clips"))
    clips.start()
    clips.offer(fused_frame(0))
    wait_until(lambda: clips.state.file is None)
    assert "no such pixel format" in clips.state.problem


def test_a_clip_that_was_ending_already_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    write = VideoSink.write

    def slow(sink: VideoSink, frame: FusedFrame) -> None:
        time.sleep(0.3)
        write(sink, frame)

    monkeypatch.setattr(VideoSink, "write", slow)
    clips = Clips(Path("clips"))
    clips.start()
    clips.offer(fused_frame(0))
    monkeypatch.setattr(clips_module, "MOST_SECONDS", 0.0)
    time.sleep(0.05)
    clips.offer(fused_frame(1))
    assert clips.state.file is None
    clips.stop()
    (clip,) = Path("clips").iterdir()
    assert frames_of(clip) == 1


def test_a_clip_that_does_not_end_in_time_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(VideoSink, "write", lambda _sink, _frame: released.wait(10))
    monkeypatch.setattr(clips_module, "_END_S", 0.05)
    clips = Clips(Path("clips"))
    clips.start()
    clips.offer(fused_frame(0))
    clips.stop()
    assert clips.state.problem
    released.set()
