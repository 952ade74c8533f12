"""Recordings, and replays that are identical to the last bit."""

from __future__ import annotations

import csv
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from refusion_edge.errors import DiskFullError, InputError, OutputError, UsageError
from refusion_edge.images.io import write_image
from refusion_edge.stream.frames import SECOND, Frame
from refusion_edge.stream.outputs.recording import Recorder, read_recording
from tests.conftest import one_sentence
from tests.raising import raises
from tests.stream.conftest import camera, explained

Stream = Callable[..., tuple[dict[str, Any], Any]]


def file_pair(frames: int = 12) -> dict[str, str]:
    return {"ir": camera("ir", live=0, frames=frames), "vis": camera("vis", live=0, frames=frames)}


def test_a_disk_that_fills_up_keeps_what_was_written(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([10 << 30] * 2 + [1 << 20] * 1000)
    monkeypatch.setattr("refusion_edge.stream.outputs.disk.shutil.disk_usage", lambda _path: SimpleNamespace(free=next(free)))
    monkeypatch.setattr("refusion_edge.stream.outputs.disk._CHECK_S", 0.0)
    with raises(DiskFullError, "recording", expected=64 << 20, got=1 << 20):
        stream(**file_pair(30), outputs=("null://",), record="recording")
    recording = read_recording(Path("recording"))
    assert len(recording.rows) == 2
    assert recording.read(1).image.shape[:2] == (48, 64)


@pytest.mark.slow
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
    # A live run may end before its last pairs are shown; the replay shows them.
    if not live["pairs"]["drops"].get("stopped"):
        assert replays[0]["output_sha256"] == live["output_sha256"]


def test_a_recording_of_files_is_replayed_to_the_same_frames(stream: Stream) -> None:
    first, _ = stream(**file_pair(20), record="recording")
    second, _ = stream(replay="recording")
    assert first["output_sha256"] == second["output_sha256"]
    assert first["pairs"]["shown"] == second["pairs"]["shown"] == 20
    other, _ = stream(replay="recording", policy="drop", max_skew_ms=0.0, gain="clahe")
    assert other["output_sha256"] != first["output_sha256"]


@pytest.mark.parametrize(
    ("dtype", "channels"),
    [("float32", 1), ("float64", 1), ("int16", 1), ("int32", 1), ("uint32", 1), ("float32", 3), ("uint16", 3)],
)
def test_frames_of_every_type_are_recorded_without_loss(dtype: str, channels: int, rng: np.random.Generator) -> None:
    shape = (24, 31) if channels == 1 else (24, 31, channels)
    image = (rng.random(shape) * 30_000).astype(dtype)
    if image.dtype.kind == "f":
        image[3] = np.nan
    recorder = Recorder(Path("recording"), {})
    with recorder:
        recorder.write(Frame("vis", image, 0, 5, 6, 7, white=4095.0))
        recorder.finish(1)
    frame = read_recording(Path("recording")).read(0)
    assert frame.image.dtype == image.dtype
    assert np.array_equal(frame.image, image, equal_nan=image.dtype.kind == "f")
    assert (frame.index, frame.time_ns, frame.arrived_ns, frame.unchanged_since_ns, frame.white) == (0, 5, 6, 7, 4095.0)


def test_a_recording_of_float_frames_is_replayed_to_the_same_frames(stream: Stream, rng: np.random.Generator) -> None:
    for number in range(6):
        kelvin = (rng.random((48, 64)) * 20 + 290).astype(np.float32)
        kelvin[:3] = np.nan
        write_image(f"k/{number}.tif", kelvin)
        write_image(f"v/{number}.png", rng.integers(0, 256, (48, 64, 3)).astype(np.uint8))
    first, _ = stream(ir="k", vis="v", record="recording")
    assert first["cameras"]["ir"]["dtype"] == "float32"
    second, _ = stream(replay="recording")
    assert first["output_sha256"] == second["output_sha256"]
    assert first["pairs"]["shown"] == second["pairs"]["shown"] == 6


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


def test_recordings_are_not_overwritten(stream: Stream) -> None:
    stream(**file_pair(2), record="recording")
    with raises(OutputError, "recording", remedy="another name"):
        stream(**file_pair(2), record="recording")
    assert len(read_recording(Path("recording")).rows) == 4


def test_a_folder_without_a_recording_is_refused() -> None:
    with raises(InputError, "recording.json"):
        read_recording(Path("elsewhere"))


def test_a_recording_of_another_schema_is_refused(stream: Stream) -> None:
    stream(**file_pair(2), record="recording")
    document = json.loads(Path("recording/recording.json").read_text())
    Path("recording/recording.json").write_text(json.dumps(document | {"schema": "other/1"}))
    with raises(InputError, "recording.json", expected="refusion-edge/recording/1", got="other/1"):
        read_recording(Path("recording"))


def test_a_replay_has_no_other_sources(stream: Stream) -> None:
    with raises(UsageError, "--replay"):
        stream(**file_pair(), replay="recording")


def test_recorded_rows_carry_exact_times(stream: Stream) -> None:
    stream(**file_pair(4), record="recording")
    with Path("recording/frames.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["time_ns"]) for row in rows if row["side"] == "ir"] == [round(number * SECOND / 30) for number in range(4)]
    assert threading.active_count() < 20


def small_recording() -> Path:
    """Make a recording that has its tables and no images."""
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
    with raises(InputError, "recording"):
        read_recording(folder)


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
def test_invalid_rows_of_recordings_are_one_error(row: str) -> None:
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
    with raises(InputError, name):
        read_recording(path.parent)


@pytest.mark.slow
def test_what_a_disk_was_too_slow_for_is_said(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Recorder.write

    def slow(self: Recorder, item: Any) -> None:
        time.sleep(0.1)
        write(self, item)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "write", slow)
        patch.setattr("refusion_edge.stream.run.writer.RECORDED", 2)
        # What is left of both cameras must still form pairs.
        live, _ = stream(ir=camera("ir"), vis=camera("vis"), record="recording", duration_s=2.0, max_skew_ms=1000.0)
    lost = sum(live["recording"]["drops"].values())
    assert lost > 5
    assert read_recording(Path("recording")).lost == lost
    replay, _ = stream(replay="recording")
    assert any(str(lost) in event["what"] for event in replay["events"] if event["where"] == "recording")
