"""The running stream: failures end it in bounded time, every frame is accounted for, and it survives losses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typing_extensions import Self

from refusion_edge.arrays import Float32Array
from refusion_edge.errors import GateError, InputError, OutputError, ShapeError, SourceLostError
from refusion_edge.images.io import read_image
from refusion_edge.rig.file import write_rig
from refusion_edge.rig.model import Rig, RigAlignment, RigSource, to_rows
from refusion_edge.rig.warp import make_warp
from refusion_edge.stream.frames import SECOND, SIDES, Side
from refusion_edge.stream.outputs.sinks import NullSink, Sink
from refusion_edge.stream.pairing.failover import OTHER_SIZE, Failover, Limits
from refusion_edge.stream.pairing.pairer import TIME_WENT_BACK, Pairer
from refusion_edge.stream.processing.processor import Geometry, Processor
from refusion_edge.stream.run.channel import Inbox
from refusion_edge.stream.run.pipeline import Pipeline, RunLimits
from refusion_edge.stream.run.reader import STORED, Reader
from refusion_edge.stream.sources.clock import CLOCK_ARRIVAL, SourceClock
from refusion_edge.stream.sources.registry import open_source
from refusion_edge.stream.sources.source import CorruptFrameError, Grab, Source
from refusion_edge.stream.statistics import Statistics
from refusion_edge.stream.uri import parse_source
from tests.raising import raises
from tests.stream.conftest import ListSink, MeanBackend, camera, explained

Stream = Callable[..., tuple[dict[str, Any], Any]]


BOUND_S = 8.0


def make_run(
    sink: Sink, *, backend: MeanBackend | None = None, sources: tuple[Source, Source] | None = None, **options: Any
) -> tuple[Pipeline, Statistics]:
    ir, vis = camera("ir", live=0, frames=40), camera("vis", live=0, frames=40)
    given = sources or (open_source(parse_source(ir), "ir"), open_source(parse_source(vis), "vis"))
    statistics = Statistics()
    failover = Failover(Pairer(), Limits() if any(source.live for source in given) else None)
    processor = Processor(backend or MeanBackend(), took=statistics.took)
    return Pipeline(given, failover, processor, [sink], statistics, **options), statistics


def names_of_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_every_frame_of_files_counts(stream: Stream) -> None:
    report, _ = stream(ir=camera("ir", live=0, frames=40), vis=camera("vis", live=0, frames=40), delay_s=0.005)
    assert report["pairs"]["shown"] == 40
    assert [report["cameras"][side]["used"] for side in ("ir", "vis")] == [40, 40]
    assert explained(report)


def test_frames_come_in_order_and_whole(stream: Stream) -> None:
    sink = ListSink()
    run, statistics = make_run(sink)
    run.run()
    assert [frame.number for frame in sink.frames] == list(range(40))
    assert all(frame.image.shape == (48, 64, 3) and frame.mode == "fused" for frame in sink.frames)
    assert sink.closed
    assert statistics.snapshot()["stages"]["infer"]["count"] == 40


def test_a_limit_of_frames_ends_the_run(stream: Stream) -> None:
    report, _ = stream(ir=camera("ir"), vis=camera("vis"), frames=7)
    assert report["pairs"]["shown"] == 7
    assert report["outputs"]["null://"]["frames"] == 7


def test_faults_of_files_are_counted_by_cause(stream: Stream) -> None:
    report, _ = stream(
        ir=camera("ir", live=0, frames=60, corrupt_every=10, freeze_every_ms=700, freeze_ms=400),
        vis=camera("vis", live=0, frames=60, drop_every_ms=1000, drop_ms=100, resize_every=25),
        outputs=("null://",),
        fails=InputError,
    )
    ir, vis = report["cameras"]["ir"], report["cameras"]["vis"]
    assert ir["drops"]["damaged frame"] == 6
    assert ir["freezes"] >= 1
    assert vis["missing_at_source"] == 3
    assert explained(report)
    assert any("size changed" in event["what"] for event in report["events"])
    assert report["pairs"]["shown"] >= 48


@pytest.mark.parametrize(
    ("live", "changing", "mode"), [(0, "vis", "infrared only"), (0, "ir", "visible only"), (1, "vis", "infrared only")]
)
def test_a_camera_that_changes_its_size_is_passed_over_until_it_has_it_again(
    stream: Stream, tmp_path: Path, live: int, changing: Side, mode: str
) -> None:
    size = RigSource((64, 48))
    write_rig(tmp_path / "rig.yaml", Rig(size, size, (RigAlignment(None, to_rows(np.eye(3))),)))
    uris = {side: camera(side, live=live, frames=40, resize_every=10 if side == changing else 0) for side in SIDES}
    report, _ = stream(**uris, rig=str(tmp_path / "rig.yaml"), outputs=(str(tmp_path / "out"),), lost_after_ms=60_000)
    faulty = report["cameras"][changing]
    assert (faulty["faults"], faulty["drops"][OTHER_SIZE], faulty["state"]) == (2, 20, "ended")
    assert explained(report)
    modes = report["pairs"]["modes"]
    # On a busy machine, pairs of live cameras are skipped.
    skipped = sum(report["pairs"]["drops"].values())
    assert sum(modes.values()) + skipped >= (30 if live else 40)
    # When the size returns, the other frame of that time may already have continued alone.
    assert modes[mode] >= (1 if live else 20)
    assert modes["fused"] >= (1 if live else 19)
    events = [event["what"] for event in report["events"] if event["where"] == changing]
    assert sum("24x32 instead of 48x64" in event for event in events) == 2
    assert sum("back" in event and "48x64" in event for event in events) == 1
    images = [read_image(path) for path in sorted((tmp_path / "out").glob("*.png"))]
    assert {image.shape for image in images} == {(48, 64, 3)}
    assert len(images) == sum(modes.values())


def test_times_that_are_all_zero_are_refused_by_name(stream: Stream) -> None:
    report, _ = stream(ir=camera("ir", live=0, frames=20, zero_times=1), vis=camera("vis", live=0, frames=20))
    assert report["cameras"]["ir"]["drops"]["time stamp went back or stood still"] == 19
    assert explained(report)


def test_a_camera_without_time_stamps_is_paired_by_arrival(stream: Stream) -> None:
    report, _ = stream(ir=camera("ir", zero_times=1), vis=camera("vis"), duration_s=2.0)
    ir = report["cameras"]["ir"]
    assert ir["clock"].startswith(CLOCK_ARRIVAL)
    assert TIME_WENT_BACK not in ir["drops"]
    assert report["pairs"]["shown"] >= 5
    assert explained(report)


def test_two_cameras_and_a_fast_engine_lose_nothing(stream: Stream) -> None:
    report, _ = stream(ir=camera("ir"), vis=camera("vis", skew_ms=3), duration_s=2.0)
    assert report["pairs"]["shown"] >= 15
    assert explained(report)
    for side in ("ir", "vis"):
        assert set(report["cameras"][side]["drops"]) <= {"stopped", "no counterpart within the skew"}
    assert report["skew"]["absolute"]["p50_ms"] == pytest.approx(3, rel=0.05)


def test_a_slow_engine_shows_the_newest_pair_and_keeps_latency_bounded(stream: Stream) -> None:
    report, _ = stream(ir=camera("ir"), vis=camera("vis"), duration_s=2.5, delay_s=0.2)
    pairs = report["pairs"]
    assert 1 <= pairs["shown"] <= 14
    assert pairs["drops"]["engine busy"] >= 10
    assert pairs["shown"] + sum(pairs["drops"].values()) == pairs["paired"]  # nothing queues up
    assert explained(report)


@pytest.mark.slow
def test_one_lost_camera_is_passed_over_and_comes_back(stream: Stream) -> None:
    report, _ = stream(ir=camera("ir", lose_every_ms=2500, lose_ms=1200), vis=camera("vis"), duration_s=6.5, lost_after_ms=300)
    ir = report["cameras"]["ir"]
    assert ir["losses"] >= 1
    assert ir["reconnects"] >= 1
    assert report["pairs"]["modes"]["visible only"] >= 3
    assert report["pairs"]["modes"]["fused"] >= 5
    assert explained(report)


class SilentSource:
    """Delivers nothing and never fails, like a driver that hangs."""

    live, absolute, clock, rate_hz, keeps_noise = True, True, "host clock at arrival", 30.0, True
    timing: SourceClock | None = None

    def __init__(self, side: str) -> None:
        self.remarks: list[str] = []
        self.side, self.uri, self._over = side, parse_source("test://"), threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()

    def read(self) -> None:
        self._over.wait(2.0)


class OtherWhenItIsBack(SilentSource):
    """Delivers some frames, is lost, is something else when it is opened again, and then itself."""

    def __init__(self, side: str) -> None:
        super().__init__(side)
        self.opened = self.delivered = 0

    def __enter__(self) -> Self:
        self.opened += 1
        if self.opened == 2:
            raise InputError("it has no video yet", "wait")
        return self

    def read(self) -> Grab:
        self.delivered += 1
        if self.delivered == 5:
            raise SourceLostError("it is gone", "plug it in")
        time.sleep(0.03)
        image = np.tile(np.arange(64, dtype=np.uint8), (48, 1)) + np.uint8(self.delivered % 16)
        return Grab(image, self.delivered, time.monotonic_ns())


def test_a_camera_that_is_something_else_for_a_while_comes_back() -> None:
    sources = OtherWhenItIsBack("ir"), OtherWhenItIsBack("vis")
    run, statistics = make_run(ListSink(), sources=sources, limits=RunLimits(duration_s=2.5))
    run.run()
    figures = statistics.snapshot()
    assert [figures["cameras"][side]["reconnects"] for side in SIDES] == [1, 1]
    assert sum("it has no video yet" in event["what"] for event in figures["events"]) == 2


def test_cameras_that_hang_end_the_run_too() -> None:
    sources = SilentSource("ir"), SilentSource("vis")
    run, _ = make_run(ListSink(), sources=sources, limits=RunLimits(give_up_s=0.5))
    started_s = time.monotonic()
    with raises(SourceLostError, "0.5 s"):
        run.run()
    assert time.monotonic() - started_s < BOUND_S


def test_both_lost_ends_with_source_lost(stream: Stream) -> None:
    lost = {"lose_every_ms": 1, "lose_ms": 1}  # from the second frame onward
    started_s = time.monotonic()
    # Whichever camera notices it first.
    with raises(SourceLostError):
        stream(ir=camera("ir", **lost), vis=camera("vis", **lost), give_up_s=0.5)
    assert time.monotonic() - started_s < BOUND_S


class FailingBackend(MeanBackend):
    def fuse(self, a: Float32Array, b: Float32Array) -> Float32Array:
        raise ZeroDivisionError("a bug in the engine")


class BrokenNetwork(MeanBackend):
    def fuse(self, a: Float32Array, b: Float32Array) -> Float32Array:
        return (a + b) * np.float32(np.nan)


class FailingSource:
    """Fails after a few frames with an unforeseen error."""

    live, absolute, clock, rate_hz, keeps_noise = True, True, "host clock at arrival", 30.0, True
    timing: SourceClock | None = None

    def __init__(self, side: str) -> None:
        self.remarks: list[str] = []
        self.side, self.uri, self._count = side, parse_source("test://"), 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def read(self) -> Grab:
        self._count += 1
        if self._count > 5:
            raise MemoryError("no more")
        time.sleep(0.01)
        return Grab(np.full((48, 64), self._count, np.uint16), self._count, time.monotonic_ns())


class LateSource(FailingSource):
    """A camera that has been running for a while: one damaged frame, four good ones, and the end."""

    def read(self) -> Grab | None:
        if self._count == 0:
            self._count = 500
            raise CorruptFrameError("frame 500 is damaged on purpose")
        if self._count == 504:
            return None
        self._count += 1
        time.sleep(0.01)
        return Grab(np.full((48, 64), self._count, np.uint16), self._count, time.monotonic_ns())


def test_a_first_frame_that_is_damaged_makes_none_before_it_missing() -> None:
    run, statistics = make_run(ListSink(), sources=(LateSource("ir"), LateSource("vis")))
    run.run()
    for camera_state in statistics.cameras.values():
        assert (camera_state.frames_in, camera_state.missing) == (5, 0)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"backend": FailingBackend()}, ZeroDivisionError),
        ({"backend": BrokenNetwork()}, GateError),
        ({"sink": ListSink(fails_at=3)}, OSError),
        ({"sources": (FailingSource("ir"), FailingSource("vis"))}, MemoryError),
    ],
)
def test_a_worker_that_fails_ends_the_run_with_its_error(options: dict[str, Any], error: type[Exception]) -> None:
    before, started_s = names_of_threads(), time.monotonic()
    sink = options.pop("sink", None) or ListSink()
    run, _ = make_run(sink, **options)
    with pytest.raises(error):
        run.run()
    assert time.monotonic() - started_s < BOUND_S
    assert sink.closed
    assert names_of_threads() <= before


@pytest.mark.slow
def test_a_slow_output_never_slows_cameras_down(stream: Stream) -> None:
    report, _ = stream(ir=camera("ir"), vis=camera("vis"), duration_s=2.0, outputs=("null://?delay_ms=300", "null://"))
    assert report["outputs"]["null://"]["frames"] >= 15
    assert report["outputs"]["null://?delay_ms=300"]["drops"]["output busy"] >= 5


def test_stopping_from_another_thread_is_clean(stream: Stream) -> None:
    before = names_of_threads()
    run, statistics = make_run(ListSink(), sources=tuple(open_source(parse_source(camera(s)), s) for s in ("ir", "vis")))
    threading.Timer(0.7, run.stop.set).start()
    started_s = time.monotonic()
    run.run()
    assert time.monotonic() - started_s < BOUND_S
    assert statistics.snapshot()["pairs"]["shown"] > 3
    time.sleep(0.05)
    assert names_of_threads() <= before


@pytest.mark.parametrize(
    ("cameras", "settings", "reason"),
    [
        ({"live": 0, "frames": 5}, {}, "its sources have ended"),
        ({"live": 0, "frames": 5}, {"frames": 3}, "it was to end after 3 frames"),
        ({}, {"duration_s": 0.3}, "it was to end after 0.3 s"),
        (
            {"lose_every_ms": 400, "lose_ms": 100_000},
            {"give_up_s": 0.5, "fails": SourceLostError},
            "neither camera sent a frame",
        ),
    ],
)
def test_outputs_know_why_a_stream_ends(
    stream: Stream, monkeypatch: pytest.MonkeyPatch, cameras: dict[str, Any], settings: dict[str, Any], reason: str
) -> None:
    statistics, known = Statistics(), list[str | None]()
    monkeypatch.setattr("refusion_edge.stream.run.session.Statistics", lambda: statistics)
    monkeypatch.setattr(NullSink, "__exit__", lambda *_: known.append(statistics.end_reason))
    report, _ = stream(ir=camera("ir", **cameras), vis=camera("vis", **cameras), **settings)
    assert reason in str(known[0])
    assert report["end_reason"] == known[0]


def test_a_source_that_cannot_be_opened_leaves_nothing_running() -> None:
    before = names_of_threads()
    sources = open_source(parse_source(camera("ir")), "ir"), open_source(parse_source("/dev/video97"), "vis")
    sink = ListSink()
    run, _ = make_run(sink, sources=sources)
    with raises(SourceLostError, "video97"):
        run.run()
    assert not sink.frames
    assert names_of_threads() <= before


def test_sizes_that_differ_need_a_rig_or_leave_to_resize(stream: Stream) -> None:
    small = "test://ir?width=32&height=24&live=0&frames=5"
    with raises(ShapeError, "24x32", "48x64", remedy=("--rig", "--resize"), expected=(48, 64), got=(24, 32)):
        stream(ir=small, vis=camera("vis", live=0, frames=5))
    report, _ = stream(ir=small, vis=camera("vis", live=0, frames=5), resize=True)
    assert report["pairs"]["shown"] == 5


def test_an_output_that_cannot_be_written_is_one_error(stream: Stream) -> None:
    with raises(OutputError, "/proc/nothing"):
        stream(ir=camera("ir", live=0, frames=5), vis=camera("vis", live=0, frames=5), outputs=("/proc/nothing/x.mp4",))


class StoringSource(FailingSource):
    """A network camera that begins with the ten frames of the last third of a second at once, as is usual."""

    def __init__(self, side: str) -> None:
        super().__init__(side)
        self.timing = SourceClock()

    def read(self) -> Grab | None:
        if self._count == 20:
            return None
        self._count += 1
        stamp_ns = self._count * SECOND // 30
        time_ns = self.timing.place(stamp_ns, 1000 * SECOND + max(stamp_ns, SECOND // 3))
        return Grab(np.full((48, 64), self._count, np.uint16), self._count, time_ns)


def test_frames_that_a_camera_stored_before_the_start_are_left_out_and_counted() -> None:
    statistics, inbox = Statistics(), Inbox(live=True)
    inbox.end("ir")
    Reader(StoringSource("vis"), inbox, statistics, threading.Event()).run()
    found = statistics.snapshot()["cameras"]["vis"]
    assert found["in"] == 20
    assert found["drops"][STORED] == 10
    assert min(frame.index for frame in iter(inbox.get, None)) >= 11


class ClockedSource(FailingSource):
    """A camera whose picture stands still, or moves by 4 pixels a frame, below a clock of two rows that never stands still."""

    live = False

    def __init__(self, side: str, *, moves: bool) -> None:
        super().__init__(side)
        self._moves = moves
        self._scene = np.random.default_rng(2).integers(0, 255, (48, 64)).astype(np.uint8)

    def read(self) -> Grab | None:
        if self._count == 24:
            return None
        self._count += 1
        scene = np.roll(self._scene, 4 * self._count, axis=1) if self._moves else self._scene
        clock = np.random.default_rng(self._count).integers(0, 255, (2, 64)).astype(np.uint8)
        image = np.concatenate((clock, scene)) if self.side == "ir" else np.concatenate((np.tile(clock, (12, 1)), scene))
        return Grab(image if self.side == "ir" else np.dstack([image] * 3), self._count - 1, self._count * 40_000_000)


def test_freezes_and_motion_are_measured_on_what_the_crops_leave() -> None:
    sources = ClockedSource("ir", moves=False), ClockedSource("vis", moves=True)
    rig = Rig(
        RigSource((64, 50), crop_xywh=(0, 2, 64, 48)),
        RigSource((64, 72), crop_xywh=(0, 24, 64, 48)),
        (RigAlignment(None, to_rows(np.eye(3))),),
    )
    statistics = Statistics()
    processor = Processor(MeanBackend(), geometry=Geometry(make_warp(rig)))
    moved: list[float] = []
    statistics.moved = lambda speed_px_s, _skew_ns: moved.append(speed_px_s)  # type: ignore[method-assign]
    Pipeline(sources, Failover(Pairer(), None), processor, [ListSink()], statistics).run()
    assert statistics.cameras["ir"].freezes == 1
    assert statistics.cameras["vis"].freezes == 0
    # 4 pixels in 40 ms.
    assert moved == pytest.approx([100.0] * len(moved), abs=5)
    assert len(moved) >= 2
