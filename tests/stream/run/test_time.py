"""Time in a running stream: offsets, repeated content, clocks that are set back, rates, and what the report says of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refusion_edge.images.io import write_image
from refusion_edge.stream.frames import MS, SECOND, SIDES, Side
from refusion_edge.stream.outputs.recording import read_recording
from refusion_edge.stream.run.reader import REPEATED
from tests.stream.conftest import camera, explained

Stream = Callable[..., tuple[dict[str, Any], Any]]
# What every image shows besides its number; one that shows nothing is refused.
TEXTURE = np.arange(12 * 16).reshape(12, 16) % 7


def write_folder(folder: Path, times_ns: list[int], numbers: list[int] | None = None) -> str:
    """Write images whose content is a number, with recorded times; the same number gives the same image."""
    folder.mkdir()
    with (folder / "frames.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("file", "time_ns"))
        for at, (time_ns, number) in enumerate(zip(times_ns, numbers or range(len(times_ns)), strict=True)):
            write_image(folder / f"{at:04d}.png", (40_000 + number * 50 + TEXTURE).astype(np.uint16))
            table.writerow((f"{at:04d}.png", time_ns))
    return str(folder)


def every(rate_hz: float, seconds: float, start_s: float = 0.0) -> list[int]:
    return [round((start_s + number / rate_hz) * SECOND) for number in range(round(seconds * rate_hz))]


@pytest.mark.parametrize("offset_s", [3.0, -3.0, 0.04])
def test_recordings_that_began_seconds_apart_pair_by_their_offset(stream: Stream, tmp_path: Path, offset_s: float) -> None:
    # The infrared recording began three seconds later and counts from its own zero: its zero is at 3 s of the other.
    ir = write_folder(tmp_path / "ir", every(15, 6))
    vis = write_folder(tmp_path / "vis", every(15, 6, 0.002))
    report, _ = stream(ir=ir, vis=vis, offset_ms=offset_s * 1000, record=str(tmp_path / "recording"))
    common = round((6 - abs(offset_s)) * 15)
    assert common - 2 <= report["pairs"]["paired"] <= common
    # Every figure is after the offset: what is left are the two milliseconds, or 40 less than half a period.
    assert report["skew"]["absolute"]["max_ms"] <= (2.1 if abs(offset_s) == 3 else 40)
    assert explained(report)
    # The recording holds the times as they were, so that another offset can be tried; a replay applies it again.
    recording = read_recording(tmp_path / "recording")
    assert sorted(row[3] for row in recording.rows if row[0] == "ir") == every(15, 6)
    again, _ = stream(replay=str(tmp_path / "recording"))
    assert again["pairs"]["paired"] == report["pairs"]["paired"]
    assert again["output_sha256"] == report["output_sha256"]


@pytest.mark.slow
def test_a_slow_sensor_behind_a_fast_interface_is_paired_by_its_content(stream: Stream, tmp_path: Path) -> None:
    ir = write_folder(tmp_path / "ir", every(30, 6), [int(number * 9 / 30) for number in range(180)])
    vis = write_folder(tmp_path / "vis", every(30, 6))
    report, _ = stream(ir=ir, vis=vis, policy="hold")
    found = report["cameras"]["ir"]
    assert found["freezes"] == 0
    assert found["timing"]["measured_hz"] == pytest.approx(30, rel=0.01)
    assert found["timing"]["content_hz"] == pytest.approx(9, rel=0.1)
    # 54 new pictures; the repetitions of the first few, before the rate is known, are passed on.
    assert found["used"] <= 54 + 12
    assert found["drops"][REPEATED] >= 180 - 54 - 12
    # The age of the content shows, of up to a ninth of a second, rather than nothing.
    assert report["skew"]["absolute"]["max_ms"] > 60
    assert explained(report)
    vis_timing = report["cameras"]["vis"]["timing"]
    assert vis_timing["content_hz"] == pytest.approx(30, rel=0.01)


@pytest.mark.parametrize(
    "sides", [("ir",), *(pytest.param(sides, marks=pytest.mark.slow) for sides in (("vis",), ("ir", "vis")))]
)
def test_a_clock_that_is_set_back_begins_an_epoch(stream: Stream, tmp_path: Path, sides: tuple[Side, ...]) -> None:
    times = {"ir": every(9, 10), "vis": every(30, 10)}
    for side in sides:
        times[side] = [time_ns - (5 * SECOND if time_ns >= 4 * SECOND else 0) + 5 * SECOND for time_ns in times[side]]
    for side in set(SIDES) - set(sides):
        times[side] = [time_ns + 5 * SECOND for time_ns in times[side]]
    uris = {side: write_folder(tmp_path / side, times[side]) for side in SIDES}
    report, _ = stream(**uris, policy="hold", record=str(tmp_path / "recording"))
    assert report["pairs"]["paired"] >= 290  # of 300
    for side in SIDES:
        assert report["cameras"][side]["timing"]["epochs"] == (2 if side in sides else 1)
        assert report["cameras"][side]["timing"]["steps"] == (1 if side in sides else 0)
        # What is said of the pixels is among the remarks of the camera.
        said = report["cameras"][side]["remarks"]
        events = [event["what"] for event in report["events"] if event["where"] == side and event["what"] not in said]
        assert bool(events) == (side in sides)
    again, _ = stream(replay=str(tmp_path / "recording"))
    assert again["output_sha256"] == report["output_sha256"]


def test_a_recording_with_a_step_back_replays_to_its_end(stream: Stream, tmp_path: Path) -> None:
    stream(ir=camera("ir", live=0, frames=60), vis=camera("vis", live=0, frames=60), record=str(tmp_path / "recording"))
    table = tmp_path / "recording" / "frames.csv"
    rows = list(csv.reader(table.read_text().splitlines()))
    for row in rows[1:]:
        if int(row[3]) >= SECOND:
            row[3], row[5] = str(int(row[3]) - 600 * SECOND), str(int(row[5]) - 600 * SECOND)
    table.write_text("".join(",".join(row) + "\n" for row in rows))
    report, _ = stream(replay=str(tmp_path / "recording"))
    assert report["pairs"]["paired"] >= 59
    assert {report["cameras"][side]["timing"]["epochs"] for side in SIDES} == {2}


@pytest.mark.slow
def test_a_camera_that_speeds_up_leads(stream: Stream, tmp_path: Path) -> None:
    ir = write_folder(tmp_path / "ir", every(9, 12))
    vis = write_folder(tmp_path / "vis", [*every(5, 1.6), *every(30, 10, 1.6)])
    report, _ = stream(ir=ir, vis=vis, policy="hold")
    assert report["pairs"]["paired"] >= 270  # 30 per second; 9 if infrared went on leading


def test_the_report_says_how_the_times_come_about(stream: Stream) -> None:
    report, _ = stream(ir=camera("ir", delay_ms=20), vis=camera("vis", zero_times=1), duration_s=1.5)
    ir, vis = (report["cameras"][side]["timing"] for side in SIDES)
    assert ir["declared_hz"] == vis["declared_hz"] == 30
    assert ir["measured_hz"] == pytest.approx(30, rel=0.15)
    assert ir["delay_ms"] >= 19
    assert ir["error_ms"] == 0
    assert "arrival" in vis["clock"]
    assert vis["delay_ms"] is None
    assert [event["where"] for event in report["events"] if "do not advance" in event["what"]] == ["vis"]
    json.dumps(report, allow_nan=False)
    assert abs(ir["delay_ms"]) < 1e3 * MS
