"""Cameras, engines and outputs with the behavior, or the failure, that a test needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from typing_extensions import Self

from benchmarks.mean_engine import MeanEngine
from refusion_edge.arrays import Array, Float32Array
from refusion_edge.fuser import Fuser
from refusion_edge.stream.frames import MS, Frame, FusedFrame, Side
from refusion_edge.stream.run.session import StreamSession
from refusion_edge.stream.run.settings import StreamSettings
from refusion_edge.tasks import find_task

SIZE = "width=64&height=48"


class MeanBackend(MeanEngine):
    """Fuses by the mean, with an optional delay; the real network would take longer than everything else in a test."""

    def __init__(self, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s

    def fuse(self, a: Float32Array, b: Float32Array) -> Float32Array:
        time.sleep(self.delay_s)
        return super().fuse(a, b)


class ListSink:
    """Keeps its frames; optionally fails at one of them, or is slow."""

    capacity, lossless = 4, True

    def __init__(self, *, fails_at: int | None = None, delay_s: float = 0.0) -> None:
        self.name = "list"
        self.frames: list[FusedFrame] = []
        self.closed = False
        self._fails_at, self._delay_s = fails_at, delay_s

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.closed = True

    def write(self, frame: FusedFrame) -> None:
        if len(self.frames) == self._fails_at:
            raise OSError("the disk caught fire")
        time.sleep(self._delay_s)
        self.frames.append(frame)


@pytest.fixture
def make_frame() -> Callable[..., Frame]:
    """Make a frame: ``make_frame("ir", 33.3)`` is captured and arrives after 33.3 ms."""
    images = {"ir": np.zeros((8, 8), np.uint16), "vis": np.zeros((8, 8, 3), np.uint8)}

    def make(side: Side, time_ms: float, index: int = 0, *, arrived_ms: float | None = None, stale_ms: float = 0.0) -> Frame:
        time_ns = round(time_ms * MS)
        arrived_ns = time_ns if arrived_ms is None else round(arrived_ms * MS)
        return Frame(side, images[side], index, time_ns, arrived_ns, time_ns - round(stale_ms * MS))

    return make


@pytest.fixture
def stream() -> Callable[..., tuple[dict[str, Any], StreamSession]]:
    """Run a stream that fuses two sources by the mean: ``report, session = stream(ir=..., vis=...)``."""

    def run(*, delay_s: float = 0.0, **settings: Any) -> tuple[dict[str, Any], StreamSession]:
        settings.setdefault("outputs", ("null://",))
        fuser = Fuser(MeanBackend(delay_s), find_task("ir_vis"))
        session = StreamSession(StreamSettings(**settings), fuser=fuser)
        session.run()
        report = session.report()
        assert report is not None
        return report, session

    return run


def camera(side: Side, **options: object) -> str:
    """URI of a small synthetic camera."""
    words = "&".join(f"{name}={value}" for name, value in options.items())
    return f"test://{side}?{SIZE}&{words}".rstrip("&")


def explained(report: dict[str, Any]) -> bool:
    """Whether every frame of both cameras was used, or dropped for a cause that the report names."""
    return all(camera["unexplained"] == 0 for camera in report["cameras"].values())


def frames_of(path: str | Path) -> int:
    """Count the frames of a video."""
    capture, count = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG), 0
    while capture.read()[0]:
        count += 1
    capture.release()
    return count


def write_video(path: Path, frames: list[Array], rate: float = 25.0) -> None:
    """Write a lossless video; 16-bit gray stays 16-bit."""
    gray16 = frames[0].dtype == np.uint16
    options = [cv2.VIDEOWRITER_PROP_DEPTH, cv2.CV_16U, cv2.VIDEOWRITER_PROP_IS_COLOR, 0] if gray16 else []
    size = (frames[0].shape[1], frames[0].shape[0])
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter.fourcc(*"FFV1"), rate, size, options)
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame)
    writer.release()
