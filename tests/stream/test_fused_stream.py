"""A stream in a Python program: frames by ``for`` and ``async for``, and nothing left running when the loop is left."""

from __future__ import annotations

import asyncio
import gc
import logging
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import refusion_edge
from refusion_edge.errors import GateError, InputError, OutputError, SourceLostError, UsageError
from refusion_edge.fuser import Fuser
from refusion_edge.images.io import read_image
from refusion_edge.stream.frames import FusedFrame
from refusion_edge.stream.fused_stream import FusedStream, fuse_video, open_stream
from refusion_edge.stream.run.tap import NAME, Tap
from refusion_edge.stream.sources.synthetic import SyntheticSource
from refusion_edge.stream.statistics import Statistics
from refusion_edge.tasks import find_task
from tests.conftest import ROOT
from tests.raising import raises
from tests.stream.conftest import ListSink, MeanBackend, camera, frames_of

FILES = {side: camera(side, live=0, frames=12) for side in ("ir", "vis")}
CAMERAS = {side: camera(side) for side in ("ir", "vis")}


class Counting(MeanBackend):
    """Knows whether it was closed, and can fail."""

    closed = 0

    def __init__(self, *, fails_after: int = 1 << 30, delay_s: float = 0.0) -> None:
        super().__init__(delay_s)
        self.calls, self._fails_after = 0, fails_after

    def fuse(self, a, b):  # type: ignore[no-untyped-def]
        self.calls += 1
        if self.calls > self._fails_after:
            raise GateError("the engine broke down")
        return super().fuse(a, b)

    def __exit__(self, *exc: object) -> None:
        self.closed += 1


def mean(backend: MeanBackend | None = None) -> Fuser:
    return Fuser(backend or MeanBackend(), find_task("ir_vis"))


def threads() -> set[str]:
    """Threads of a stream that still run."""
    own = ("stream", "reader", "pairing", "engine", "output", "networks", "recorder")
    return {thread.name for thread in threading.enumerate() if thread.name.startswith(own)}


def test_files_give_every_frame_in_order_with_what_it_was_made_from() -> None:
    frames = list(refusion_edge.stream(**FILES, fuser=mean()))
    assert [frame.number for frame in frames] == list(range(12))
    assert [frame.time_ns for frame in frames] == sorted({frame.time_ns for frame in frames})
    for frame in frames:
        assert isinstance(frame, refusion_edge.FusedFrame)
        assert frame.image.shape == (48, 64, 3)
        assert frame.image.flags.writeable
        assert frame.ir is not None
        assert frame.vis is not None
        assert (frame.ir.shape, frame.vis.shape) == ((48, 64), (48, 64, 3))
        assert not frame.ir.flags.writeable
        assert not frame.vis.flags.writeable
        assert (frame.mode, frame.marks, frame.skew_ms, frame.no_ir, frame.no_vis) == ("fused", (), 0.0, None, None)
        assert np.array_equal(frame.rgb, frame.image[..., ::-1])
        assert frame.time_s == frame.time_ns / 1e9
    assert not threads()


def test_asynchronous_iteration_gives_the_same_frames() -> None:
    async def collected() -> list[FusedFrame]:
        return [frame async for frame in refusion_edge.stream(**FILES, fuser=mean())]

    found, expected = asyncio.run(collected()), list(refusion_edge.stream(**FILES, fuser=mean()))
    assert len(found) == len(expected) == 12
    assert all(np.array_equal(one.image, other.image) for one, other in zip(found, expected, strict=True))


def test_the_event_loop_runs_on_while_it_waits() -> None:
    async def both() -> int:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        task = asyncio.create_task(tick())
        async for _ in open_stream(**CAMERAS, frames=5, fuser=mean(Counting(delay_s=0.05))):
            pass
        task.cancel()
        return ticks

    assert asyncio.run(both()) >= 5


@pytest.mark.parametrize("sources", [FILES, CAMERAS], ids=["files", "cameras"])
def test_leaving_the_loop_closes_everything(sources: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    backend, sink = Counting(), ListSink()
    opened: list[SyntheticSource] = []
    left: list[SyntheticSource] = []
    enter = SyntheticSource.__enter__
    monkeypatch.setattr(SyntheticSource, "__enter__", lambda self: opened.append(self) or enter(self))
    monkeypatch.setattr(SyntheticSource, "__exit__", lambda self, *_exc: left.append(self))
    for frame in refusion_edge.stream(**sources, outputs=[sink, "out/%03i.png"], fuser=mean(backend)):
        if frame.number >= 2:
            break
    assert (threads(), backend.closed, sink.closed) == (set(), 1, True)
    assert len(opened) == 2
    assert all(source in left for source in opened)
    assert len(list(Path("out").iterdir())) >= 1


def test_an_exception_in_the_loop_closes_everything() -> None:
    backend = Counting()

    def fail() -> None:
        for frame in refusion_edge.stream(**CAMERAS, fuser=mean(backend)):
            raise ArithmeticError(frame.number)

    with pytest.raises(ArithmeticError):
        fail()
    assert (threads(), backend.closed) == (set(), 1)


def test_an_iterator_that_is_dropped_closes_everything() -> None:
    backend = Counting()
    frames = iter(refusion_edge.stream(**CAMERAS, fuser=mean(backend)))
    next(frames)
    assert threads()
    del frames
    gc.collect()
    assert (threads(), backend.closed) == (set(), 1)


def test_leaving_an_asynchronous_loop_closes_everything() -> None:
    backend = Counting()

    async def leave() -> None:
        async with refusion_edge.stream(**CAMERAS, fuser=mean(backend)) as stream:
            async for _ in stream:
                break
        assert (threads(), backend.closed) == (set(), 1)

    asyncio.run(leave())


def test_a_cancelled_task_closes_everything() -> None:
    backend = Counting()

    async def endless() -> None:
        async for _ in refusion_edge.stream(**CAMERAS, fuser=mean(backend)):
            pass

    async def cancel() -> None:
        task = asyncio.create_task(endless())
        while not backend.calls:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert (threads(), backend.closed) == (set(), 1)


def test_closing_from_another_thread_ends_the_loop() -> None:
    stream = open_stream(**CAMERAS, fuser=mean())
    threading.Timer(0.5, stream.close).start()
    count = sum(1 for _ in stream)
    assert count
    assert not threads()
    stream.close()


def test_what_fails_in_a_thread_is_raised_where_the_program_iterates() -> None:
    seen = []
    with raises(GateError, "broke"):
        for frame in refusion_edge.stream(**FILES, fuser=mean(Counting(fails_after=3))):
            seen.append(frame.number)
    assert seen == [0, 1, 2]
    with pytest.raises(OSError, match="caught fire"):
        list(refusion_edge.stream(**FILES, outputs=[ListSink(fails_at=4)], fuser=mean()))
    with raises(SourceLostError, "/dev/video97"):
        list(refusion_edge.stream(97, camera("vis"), fuser=mean()))
    with raises(InputError, "nothing.mkv"):
        asyncio.run(_first(open_stream("nothing.mkv", "nothing.mkv")))
    assert not threads()


async def _first(stream: FusedStream) -> None:
    async for _ in stream:
        return


def test_a_failure_that_no_one_saw_is_raised_by_close_and_else_logged(caplog: pytest.LogCaptureFixture) -> None:
    class Late(ListSink):
        def __exit__(self, *exc: object) -> None:
            if not self.closed:
                self.closed = True
                raise OutputError("the file is damaged")

    with raises(OutputError, "damaged"), refusion_edge.stream(**FILES, outputs=[Late()], fuser=mean()) as stream:
        for _ in stream:
            break
    with caplog.at_level(logging.ERROR, "refusion_edge"):
        for _ in refusion_edge.stream(**FILES, outputs=[Late()], fuser=mean()):
            break
        gc.collect()
    assert "damaged" in caplog.text


def test_a_slow_program_gets_the_newest_frame_of_cameras_and_every_frame_of_files() -> None:
    stream = open_stream(**CAMERAS, fuser=mean(), frames=40)
    late = []
    for frame in stream:
        late.append(time.monotonic_ns() - frame.arrived_ns)
        time.sleep(0.1)
    report = stream.report()
    assert report is not None
    output = report["outputs"][NAME]
    assert output["frames"] == len(late) < 40
    assert output["drops"]["output busy"] == 40 - len(late)
    assert sum(1 for _ in iter_slowly(open_stream(**FILES, fuser=mean()))) == 12


def iter_slowly(stream: FusedStream):  # type: ignore[no-untyped-def]
    for frame in stream:
        time.sleep(0.01)
        yield frame


def test_outputs_and_the_program_do_not_disturb_each_other() -> None:
    sink = ListSink()
    mine = []
    for frame in refusion_edge.stream(**FILES, outputs=sink, fuser=mean()):
        mine.append(frame.image.copy())
        frame.image[:] = 0
        with pytest.raises(ValueError, match="read-only"):
            frame.vis[:] = 0  # type: ignore[index]
    assert all(np.array_equal(one, other.image) for one, other in zip(mine, sink.frames, strict=True))


def test_a_single_camera_is_not_changed_by_drawing_into_the_fused_image() -> None:
    only = np.zeros((48, 64, 3), np.uint8)
    tap = Tap()
    tap.attach(Statistics(), live=True, shared=False)
    tap.put(FusedFrame(only, None, only, 0, 0, 0, "visible only"))
    taken = tap.get()
    assert taken is not None
    taken.image[:] = 1
    assert not only.any()


@pytest.mark.parametrize(("shared", "copies"), [(False, 0), (True, 1)])
def test_a_frame_is_copied_only_if_others_use_it_and_then_once(shared: bool, copies: int) -> None:
    image, view = np.zeros((480, 640, 3), np.uint8), np.zeros((480, 640), np.float32)
    frame = FusedFrame(image, view, np.ones_like(image), 0, 0, 0, "fused", no_ir=view > 0, no_vis=view > 0)
    tap = Tap()
    tap.attach(Statistics(), live=False, shared=shared)
    tap.put(frame)
    tracemalloc.start()
    taken = tap.get()
    allocated = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken is not None
    assert allocated // image.nbytes == copies
    assert allocated - copies * image.nbytes < 20_000
    assert np.shares_memory(taken.image, image) != shared
    for name in ("ir", "vis", "no_ir", "no_vis"):
        assert np.shares_memory(getattr(taken, name), getattr(frame, name))


def test_a_stream_runs_once_and_says_how_it_stands() -> None:
    stream = open_stream("test://ir?width=64&height=48", "rtsp://u:geheim@host/x", network="fast")
    assert "not started" in repr(stream)
    assert "geheim" not in repr(stream)
    stream = open_stream(**FILES, fuser=mean())
    frames = iter(stream)
    next(frames)
    assert "running" in repr(stream)
    assert len(list(frames)) == 11
    assert "ended, 12 fused frames" in repr(stream)
    with raises(UsageError):
        next(iter(stream))
    with raises(UsageError):
        stream.run()
    assert open_stream(**FILES).report() is None


def test_options_are_checked_before_anything_is_opened() -> None:
    with raises(UsageError, "netwrk", remedy="'network'"):
        refusion_edge.stream(**FILES, netwrk="fast")
    with raises(UsageError, "max_skew_ms", expected=(0, 1e6)):
        refusion_edge.stream(**FILES, max_skew_ms=-1)
    with raises(UsageError, "int", got="int"):
        refusion_edge.stream(**FILES, outputs=[3])  # type: ignore[list-item]
    stream = refusion_edge.stream(**FILES, outputs={Path("a.mkv"), "a.mkv"})
    assert stream.settings.outputs == ("a.mkv", "a.mkv")


def test_a_configuration_file_can_be_overridden() -> None:
    Path("site.yaml").write_text(f"ir: {FILES['ir']}\nvis: {FILES['vis']}\nframes: 3\n")
    assert len(list(refusion_edge.stream(config="site.yaml", fuser=mean()))) == 3
    assert len(list(refusion_edge.stream(config=Path("site.yaml"), frames=2, fuser=mean()))) == 2


def test_a_video_of_two_videos() -> None:
    report = fuse_video(FILES["ir"], FILES["vis"], Path("fused.mkv"), fuser=mean())
    assert report["pairs"]["shown"] == frames_of("fused.mkv") == 12
    assert report["outputs"]["fused.mkv"]["frames"] == 12


def test_sinks_are_for_programs_too() -> None:
    with refusion_edge.open_sink("boxes/%02i.png") as folder, refusion_edge.open_sink("boxes.mkv", rate_hz=30) as video:
        for frame in refusion_edge.stream(**FILES, fuser=mean()):
            frame.image[:10, :10] = (0, 0, 255)
            folder.write(frame)
            video.write(frame.with_image(frame.image[:40]))
    assert len(list(Path("boxes").iterdir())) == frames_of("boxes.mkv") == 12
    assert (read_image("boxes/00.png")[:10, :10] == (255, 0, 0)).all()


def test_a_program_that_ends_in_the_middle_leaves_whole_files() -> None:
    """The stream is still open at the end of the interpreter: threads end, and the video plays."""
    code = (
        "import refusion_edge as rf\n"
        f"frames = iter(rf.stream({CAMERAS['ir']!r}, {CAMERAS['vis']!r}, outputs='out.mp4', network='fast', threads=1))\n"
        "for _ in range(8): next(frames)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert frames_of("out.mp4") >= 4
