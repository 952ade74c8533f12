"""Recordings of limited size: they stay below the limit, every part plays, and a full disk only pauses them."""

from __future__ import annotations

import functools
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refusion_edge.errors import DiskFullError, InputError, OutputError, UsageError
from refusion_edge.stream.frames import MS, Frame
from refusion_edge.stream.outputs.recording import PairFate, parts_of, read_recording
from refusion_edge.stream.outputs.ring import RingRecorder
from tests.conftest import ROOT
from tests.raising import raises
from tests.stream.conftest import camera

Stream = Callable[..., tuple[dict[str, Any], Any]]
LIMIT = 4_000_000


def noise(number: int, side: Any = "ir") -> Frame:
    return Frame(side, _image(number), number, number * 33 * MS, number * 33 * MS, number * 33 * MS)


@functools.lru_cache
def _image(number: int) -> Any:
    return np.random.default_rng(number).integers(0, 1 << 16, (120, 160), np.uint16)


def room(folder: Path) -> int:
    """Room that a folder takes on the disk, in bytes, with what the folders themselves take."""
    return sum(path.lstat().st_blocks * 512 for path in (folder, *folder.rglob("*")))


def write(recorder: RingRecorder, frames: range) -> None:
    for number in frames:
        recorder.write(noise(number))
        recorder.write(PairFate(number))


def write_pairs(count: int) -> None:
    with RingRecorder(Path("ring"), {"pairing": {}}, LIMIT) as recorder:
        for number in range(count):
            recorder.write(noise(number))
            recorder.write(noise(number, "vis"))


def test_a_recording_stays_below_its_limit_and_keeps_the_newest_frames() -> None:
    most = 0
    with RingRecorder(Path("ring"), {"pairing": {}}, LIMIT) as recorder:
        for number in range(130):
            write(recorder, range(number, number + 1))
            if number % 10 == 0:
                most = max(most, room(Path("ring")))
        recorder.finish(130, [(0, "fast"), (7, "refusion")])
    assert most <= LIMIT
    recording = read_recording(Path("ring"))
    kept = [recording.read(number).index for number in range(len(recording.rows))]
    assert kept == list(range(130 - len(kept), 130))
    # All but the room of the part that is to be written, and of the one that has just been removed.
    assert len(kept) * noise(0).image.nbytes > LIMIT * 5 / 8
    assert np.array_equal(recording.read(0).image, noise(kept[0]).image)
    assert recording.late
    assert (recording.networks, recording.not_shown, recording.end) == (((0, "refusion"),), frozenset(), None)


def test_each_part_is_a_recording_and_its_sides_are_sources(stream: Stream) -> None:
    write_pairs(60)
    parts = parts_of(Path("ring"))
    assert len(parts) > 4
    for part in parts[:-1]:
        recording = read_recording(part)
        assert recording.late
        assert len(recording.rows) >= 10
    report, _ = stream(replay=str(parts[0]))
    assert report["pairs"]["shown"] >= 5
    report, _ = stream(ir=f"{parts[0]}/ir", vis=f"{parts[0]}/vis")
    assert report["pairs"]["shown"] >= 5


@pytest.mark.slow
def test_a_ring_that_lost_nothing_is_replayed_to_the_last_bit(stream: Stream) -> None:
    live, _ = stream(
        ir=camera("ir", rate=9), vis=camera("vis"), policy="hold", record="ring", record_limit=3_000_000, duration_s=2.0,
        delay_s=0.06, marks=False,
    )  # fmt: skip
    assert live["pairs"]["drops"]["engine busy"] > 3
    assert len(parts_of(Path("ring"))) > 1
    replay, _ = stream(replay="ring", marks=False)
    assert replay["pairs"]["paired"] == live["pairs"]["paired"]
    if not live["pairs"]["drops"].get("stopped"):
        assert replay["output_sha256"] == live["output_sha256"]


def test_a_replay_says_that_the_beginning_is_missing(stream: Stream) -> None:
    write_pairs(60)
    report, _ = stream(replay="ring")
    assert [event["where"] for event in report["events"] if event["where"] == "recording"] == ["recording"]


def test_frames_too_large_for_the_limit_are_refused_before_anything_is_written_of_them() -> None:
    least = 8 * (38400 + 600 + 8192)
    with (
        RingRecorder(Path("ring"), {}, 300_000) as recorder,
        raises(OutputError, "ring", remedy="--record-limit", expected=least, got=300_000),
    ):
        recorder.write(noise(0))
    with raises(InputError, "ring"):
        read_recording(Path("ring"))


@pytest.mark.slow
def test_a_full_disk_pauses_the_recording_and_the_stream_goes_on(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    began_s = time.monotonic()

    def usage(_path: object) -> SimpleNamespace:
        return SimpleNamespace(free=(1 << 20) if 0.5 < time.monotonic() - began_s < 1.5 else 10 << 30)

    monkeypatch.setattr("refusion_edge.stream.outputs.disk.shutil.disk_usage", usage)
    monkeypatch.setattr("refusion_edge.stream.outputs.disk._CHECK_S", 0.0)
    monkeypatch.setattr("refusion_edge.stream.run.writer._PAUSE_S", 0.2)
    began_s = time.monotonic()
    report, _ = stream(ir=camera("ir"), vis=camera("vis"), record="ring", record_limit=10_000_000, duration_s=3.0)
    assert report["recording"]["drops"]["disk full"] > 10
    assert [event["where"] for event in report["events"] if event["where"] == "recording"] == ["recording"] * 2
    recording = read_recording(Path("ring"))
    assert recording.lost == report["recording"]["drops"]["disk full"]
    frames = sum(report["cameras"][side]["in"] for side in ("ir", "vis"))
    # The end may leave a frame of each camera on its way.
    assert frames - 6 <= len(recording.rows) + recording.lost <= frames
    for number in range(len(recording.rows)):
        recording.read(number)
    assert report["pairs"]["shown"] > 60


def test_a_write_that_fails_for_lack_of_room_leaves_neither_half_a_row_nor_half_an_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with RingRecorder(Path("ring"), {"pairing": {}}, LIMIT) as recorder:
        write(recorder, range(3))
        wrote = io.FileIO.write
        recorder._leave()
        with monkeypatch.context() as full:
            full.setattr(
                "refusion_edge.stream.outputs.recording.io.FileIO",
                type("Full", (io.FileIO,), {"write": lambda file, data: wrote(file, data[:5])}),
            )
            with pytest.raises(DiskFullError):
                recorder.write(noise(3))
        write(recorder, range(4, 6))
    recording = read_recording(Path("ring"))
    assert [recording.read(number).index for number in range(len(recording.rows))] == [0, 1, 2, 4, 5]
    assert not recording.late


def test_a_part_that_a_full_disk_left_empty_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    with RingRecorder(Path("ring"), {}, 1_000_000) as recorder:
        write(recorder, range(3))
        monkeypatch.setattr("refusion_edge.stream.outputs.disk.shutil.disk_usage", lambda _path: SimpleNamespace(free=0))
        for number in range(3, 100):
            try:
                recorder.write(noise(number))
            except DiskFullError:
                break
        with raises(InputError):
            read_recording(parts_of(Path("ring"))[-1])
    assert all(read_recording(part).rows for part in parts_of(Path("ring")))


def test_a_limit_needs_a_recording(stream: Stream) -> None:
    with raises(UsageError, "--record-limit", remedy="--record"):
        stream(ir=camera("ir"), vis=camera("vis"), record_limit=LIMIT)


def test_a_folder_with_something_in_it_is_refused() -> None:
    Path("ring").mkdir()
    Path("ring/mine").touch()
    with raises(OutputError, "ring", remedy="another name"), RingRecorder(Path("ring"), {}, LIMIT):
        pass
    assert [path.name for path in Path("ring").iterdir()] == ["mine"]


@pytest.mark.slow
@pytest.mark.parametrize("limit", [[], ["--record-limit", "4MB"]])
def test_a_kill_loses_only_the_image_that_is_being_written(limit: list[str]) -> None:
    words = [
        sys.executable, "-m", "refusion_edge", "stream", "--ir", "test://ir?width=160&height=120", "--network", "fast",
        "--vis", "test://vis?width=160&height=120", "-o", "null://", "--record", "killed", *limit,
    ]  # fmt: skip
    with subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL) as process:
        deadline_s = time.monotonic() + 60
        while len(list(Path("killed").rglob("*.png"))) < 60 and time.monotonic() < deadline_s:
            time.sleep(0.05)
        time.sleep(1.0)
        process.send_signal(signal.SIGKILL)
    recording = read_recording(Path("killed"))
    for number in range(len(recording.rows)):
        recording.read(number)
    listed = {row[1] for row in recording.rows}
    lost = [path for path in Path("killed").rglob("*.png") if str(path.relative_to("killed")) not in listed]
    assert len(listed) > 30
    assert len(lost) <= 2  # one of each camera
