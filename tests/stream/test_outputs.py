"""Outputs, recordings and replays: what is written can be read, and a replay is the same to the last bit."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import shared_memory
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refusion_edge.errors import BackendError, InputError, OutputError, UsageError
from refusion_edge.images.io import read_image
from refusion_edge.stream.frames import MS, SECOND, FusedFrame
from refusion_edge.stream.outputs.recording import read_recording
from refusion_edge.stream.outputs.sinks import VIDEO_CODECS, SharedMemorySink, VideoSink, open_file_sink, read_shared
from refusion_edge.stream.uri import parse_output
from tests.conftest import ROOT, one_sentence
from tests.stream.conftest import camera, explained, frames_of

Stream = Callable[..., tuple[dict[str, Any], Any]]


def picture(number: int, time_ms: float = 0.0) -> FusedFrame:
    image = np.full((48, 64, 3), (number * 7) % 256, np.uint8)
    return FusedFrame(image, None, None, number, round(time_ms * MS), 0, "fused")


def file_pair(frames: int = 12) -> dict[str, str]:
    return {"ir": camera("ir", live=0, frames=frames), "vis": camera("vis", live=0, frames=frames)}


@pytest.mark.parametrize("suffix", VIDEO_CODECS)
def test_videos_of_files_hold_every_picture(stream: Stream, suffix: str) -> None:
    stream(**file_pair(), outputs=(f"out{suffix}",))
    assert frames_of(f"out{suffix}") == 12


def test_image_folders_and_patterns(stream: Stream) -> None:
    stream(**file_pair(), outputs=("pictures", "numbered/f_%04i.jpg"))
    assert [path.name for path in sorted(Path("pictures").iterdir())] == [f"{number:06d}.png" for number in range(12)]
    assert read_image("numbered/f_0011.jpg").shape == (48, 64, 3)


def test_live_video_runs_at_the_speed_of_the_scene() -> None:
    with VideoSink(parse_output("live.avi"), rate_hz=10, live=True) as sink:
        for number, time_ms in enumerate((0, 100, 110, 700, 790, 100_000)):  # two early ones, a gap of six, a long loss
            sink.write(picture(number, time_ms))
    assert frames_of("live.avi") == 10


def test_a_matroska_video_survives_a_power_cut() -> None:
    draw = np.random.default_rng(0)
    with VideoSink(parse_output("cut.mkv"), rate_hz=25, live=False) as sink:
        for number in range(200):
            image = draw.integers(0, 256, (48, 64, 3)).astype(np.uint8)
            sink.write(FusedFrame(image, None, None, number, number, 0, "fused"))
        Path("copy.mkv").write_bytes(Path("cut.mkv").read_bytes())  # what it leaves
    assert frames_of("copy.mkv") >= 100
    assert frames_of("cut.mkv") == 200


def test_a_disk_that_fills_up_keeps_what_was_written(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([10 << 30] * 2 + [1 << 20] * 1000)
    monkeypatch.setattr("refusion_edge.stream.outputs.sinks.shutil.disk_usage", lambda _path: SimpleNamespace(free=next(free)))
    monkeypatch.setattr("refusion_edge.stream.outputs.sinks._FREE_CHECK_S", 0.0)
    with pytest.raises(OutputError, match="1 MiB left") as caught:
        stream(**file_pair(30), outputs=("null://",), record="recording")
    assert one_sentence(str(caught.value))
    recording = read_recording(Path("recording"))
    assert len(recording.rows) == 2
    assert recording.read(1).image.shape[:2] == (48, 64)


def test_shared_memory_is_read_by_another_program() -> None:
    name = f"refusion-test-{time.monotonic_ns()}"
    with SharedMemorySink(parse_output(f"shm://{name}")) as sink:
        sink.write(picture(5, 33))
        attached = shared_memory.SharedMemory(name)
        shown = read_shared(attached)
        attached.close()
        assert shown is not None
        assert np.array_equal(shown[0], picture(5).image)
        assert shown[1] == 33 * MS
        with pytest.raises(OutputError, match="to be free"), SharedMemorySink(parse_output(f"shm://{name}")) as second:
            second.write(picture(0))
    with pytest.raises(FileNotFoundError):
        shared_memory.SharedMemory(name)


def test_outputs_that_cannot_be_are_refused(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("out.xyz", "f_%04i.gif"):
        with pytest.raises(UsageError, match="expected"):
            open_file_sink(parse_output(text), rate_hz=None, live=False)
    with pytest.raises(UsageError, match="did you mean 'view://'"):
        parse_output("veiw://0")
    for display in ("", ":97", "nonsense", "127.0.0.1:9"):
        monkeypatch.setenv("DISPLAY", display)
        with pytest.raises(BackendError, match="expected a display"):
            stream(**file_pair(), outputs=("display://0",))


XVFB = shutil.which("Xvfb")
SHOW = (
    "from tests.stream.conftest import *\n"
    "settings = StreamSettings(ir=camera('ir'), vis=camera('vis'), pictures=5)\n"  # the window is the default
    "session = StreamSession(settings, fuser=Fuser(MeanBackend(), find_task('ir_vis')))\n"
    "session.run()\n"
    "print(list(session.report()['outputs']))\n"
)


@pytest.mark.skipif(XVFB is None, reason="needs Xvfb, a display without a screen")
def test_a_window_shows_the_stream_and_is_the_default_where_there_is_a_display() -> None:
    read_end, write_end = os.pipe()
    command = [str(XVFB), "-displayfd", str(write_end), "-screen", "0", "320x240x24"]
    server = subprocess.Popen(command, pass_fds=(write_end,), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(write_end)
    try:
        with os.fdopen(read_end) as answer:
            environment = {**os.environ, "DISPLAY": f":{answer.readline().strip()}", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", SHOW], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False
        )
        assert (done.returncode, done.stdout.strip()) == (0, "['display://0']"), done.stderr
    finally:
        server.terminate()
        server.wait(10)


# Recording and replay


def test_a_live_run_with_drops_is_replayed_to_the_last_bit(stream: Stream) -> None:
    live, _ = stream(
        ir=camera("ir", rate=9, freeze_every_ms=900, freeze_ms=300), vis=camera("vis", drop_every_ms=800),
        policy="hold", record="recording", duration_s=3.0, delay_s=0.06, marks=False,
    )  # fmt: skip
    assert live["pairs"]["drops"]["engine busy"] > 5
    replays = [stream(replay="recording", marks=False)[0] for _ in range(2)]
    for replay in replays:
        assert explained(replay)
        assert replay["pairs"]["paired"] == live["pairs"]["paired"]
        assert replay["skew"]["histogram_ms"] == live["skew"]["histogram_ms"]
    assert replays[0]["output_sha256"] == replays[1]["output_sha256"]
    # At the end of a live run, pairs that were made may not be shown any more; the replay shows them.
    if not live["pairs"]["drops"].get("stopped"):
        assert replays[0]["output_sha256"] == live["output_sha256"]


def test_a_recording_of_files_is_replayed_to_the_same_pictures(stream: Stream) -> None:
    first, _ = stream(**file_pair(20), record="recording")
    second, _ = stream(replay="recording")
    assert first["output_sha256"] == second["output_sha256"]
    assert first["pairs"]["shown"] == second["pairs"]["shown"] == 20
    other, _ = stream(replay="recording", policy="drop", max_skew_ms=0.0, gain="linear")
    assert other["output_sha256"] != first["output_sha256"]


def test_each_side_of_a_recording_is_a_source(stream: Stream) -> None:
    stream(**file_pair(), record="recording")
    report, _ = stream(ir="recording/ir", vis="recording/vis")
    assert report["pairs"]["shown"] == 12
    assert report["cameras"]["ir"]["clock"] == "recorded time stamps"
    assert report["cameras"]["ir"]["dtype"] == "uint16"


def test_a_recording_that_breaks_off_is_replayed_up_to_there(stream: Stream) -> None:
    stream(**file_pair(), record="recording")
    path = Path("recording/frames.csv")
    path.write_text(path.read_text()[:-9])
    assert len(read_recording(Path("recording")).rows) == 23
    assert stream(replay="recording")[0]["pairs"]["shown"] >= 11


def test_recordings_are_not_overwritten_and_checked(stream: Stream) -> None:
    stream(**file_pair(), record="recording")
    with pytest.raises(OutputError, match="new or empty folder"):
        stream(**file_pair(), record="recording")
    with pytest.raises(InputError, match="no recording"):
        read_recording(Path("elsewhere"))
    document = json.loads(Path("recording/recording.json").read_text())
    Path("recording/recording.json").write_text(json.dumps(document | {"schema": "other/1"}))
    with pytest.raises(InputError, match="schema"):
        read_recording(Path("recording"))
    with pytest.raises(UsageError, match="--replay alone"):
        stream(**file_pair(), replay="recording")


def test_recorded_rows_carry_exact_times(stream: Stream) -> None:
    stream(**file_pair(4), record="recording")
    with Path("recording/frames.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["time_ns"]) for row in rows if row["side"] == "ir"] == [round(number * SECOND / 30) for number in range(4)]
    assert threading.active_count() < 20


def small_recording() -> Path:
    """The tables of a recording without its pictures."""
    folder = Path("recording")
    folder.mkdir()
    (folder / "recording.json").write_text(json.dumps({"schema": "refusion-edge/recording/1", "pairing": {"policy": "hold"}}))
    (folder / "frames.csv").write_text(
        "side,file,index,time_ns,arrived_ns,unchanged_since_ns\nir,000000.png,0,0,0,0\nvis,000000.png,0,0,0,0\n"
    )
    (folder / "pairs.csv").write_text("not_shown\n3\n")
    return folder


@pytest.mark.parametrize(
    "document",
    [
        [1],
        "text",
        None,
        {},
        {"schema": 7},
        {"schema": ["refusion-edge/recording/1"]},
        {"pairing": []},
        {"pairing": {"policy": 3}},
        {"pairing": {"max_age_ms": "long"}},
        {"pairing": {"max_age_ms": float("nan")}},
        {"pairing": {"max_age_ms": 1e308}},
        {"pairing": {"offset_ms": 10**400}},
        {"pairing": {"offset_ms": True}},
        {"pairing": {"max_skew_ms": [1]}},
        {"sources": "\ud800"},
    ],
)
def test_descriptions_of_recordings_with_wrong_types_are_one_error(document: object) -> None:
    folder = small_recording()
    if isinstance(document, dict) and document and "schema" not in document:
        document = {"schema": "refusion-edge/recording/1", **document}
    (folder / "recording.json").write_text(json.dumps(document))
    with pytest.raises(InputError) as caught:
        read_recording(folder)
    assert one_sentence(str(caught.value))


@pytest.mark.parametrize(
    "row",
    [
        "ir,000000.png,0,0,0," + "9" * 5000,
        "ir,000000.png,0,0,0,1e3",
        "ir,../x.png,0,0,0,0",
        "ir,a\0b.png,0,0,0,0",
        "uv,0.png,0,0,0,0",
        "ir,000000.png,0,0,0,\u0663",
        "ir,000000.png,0",
        'ir,"000000.png,0,0,0,0',
        "ir," + "x" * 200_000 + ",0,0,0,0",
        "\ud800",
    ],
)
def test_rows_of_recordings_that_cannot_be_are_one_error(row: str) -> None:
    folder = small_recording()
    assert len(read_recording(folder).rows) == 2
    with (folder / "frames.csv").open("ab") as file:
        file.write(row.encode(errors="surrogatepass") + b"\nir,000001.png,1,1,1,1\n")
    with pytest.raises(InputError) as caught:
        read_recording(folder)
    assert one_sentence(str(caught.value).replace("\0", ""))


@pytest.mark.parametrize("name", ["recording.json", "frames.csv", "pairs.csv"])
@pytest.mark.parametrize("kind", ["pipe", "folder", "sparse", "missing"])
def test_tables_of_recordings_are_regular_files(name: str, kind: str) -> None:
    path = small_recording() / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(16 << 30)
    with pytest.raises(InputError) as caught:
        read_recording(path.parent)
    assert one_sentence(str(caught.value))
