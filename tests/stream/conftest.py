"""Cameras, engines and outputs with the behavior, or the failure, that a test needs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from typing_extensions import Self

from benchmarks.mean_engine import MeanEngine
from refusion_edge.arrays import Array, Float32Array
from refusion_edge.errors import RefusionError
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
    """Run a stream that fuses two sources by the mean: ``report, session = stream(ir=..., vis=...)``.

    With ``fails``, the run has to end with an error of this type.
    """

    def run(
        *, delay_s: float = 0.0, fails: type[RefusionError] | None = None, **settings: Any
    ) -> tuple[dict[str, Any], StreamSession]:
        settings.setdefault("outputs", ("null://",))
        fuser = Fuser(MeanBackend(delay_s), find_task("ir_vis"))
        session = StreamSession(StreamSettings(**settings), fuser=fuser)
        with contextlib.nullcontext() if fails is None else pytest.raises(fails):
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
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def write_video(
    path: Path | str,
    frames: Sequence[Array],
    rate: float = 25.0,
    *,
    codec: str = "ffv1",
    pixels: str | None = None,
    times: Sequence[int] | None = None,
    options: Mapping[str, str] | None = None,
    **container: Any,
) -> None:
    """Write a video by FFmpeg: by default lossless, 16-bit gray stays 16-bit.

    ``frames`` are (H, W, 3) BGR uint8, (H, W) uint8 or uint16. ``pixels`` is the pixel format of the encoder; 16-bit frames of
    10 or 12 bits are stored as they are. ``times`` are in milliseconds.
    """
    kind = "bgr24" if frames[0].ndim == 3 else "gray" if frames[0].dtype == np.uint8 else "gray16le"
    pixels = pixels or {"bgr24": "bgr0"}.get(kind, kind)
    with av.open(str(path), "w", **container) as file:
        stream = file.add_stream(codec, rate=Fraction(rate).limit_denominator(1001), options=dict(options or {}))
        stream.width, stream.height, stream.pix_fmt = frames[0].shape[1], frames[0].shape[0], pixels
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, image in enumerate(frames):
            stored = pixels if kind == "gray16le" and pixels.startswith("gray") else kind
            frame = av.VideoFrame.from_ndarray(image, format=stored)
            frame.pts = number if times is None else times[number]
            frame.time_base = stream.codec_context.time_base if times is not None else 1 / stream.average_rate
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
