"""Files and folders through a whole stream: what is damaged, empty or apart is said, and decides the exit code."""

from __future__ import annotations

import _thread
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.errors import InputError, RefusionError
from refusion_edge.fuser import Fuser
from refusion_edge.images.io import read_image, write_image
from refusion_edge.stream.outputs.recording import read_recording
from refusion_edge.stream.run.session import StreamSession
from refusion_edge.stream.run.settings import StreamSettings
from refusion_edge.tasks import find_task
from tests.stream.conftest import MeanBackend, camera, frames_of, write_video
from tests.stream.sources.test_video import blank, panning, spoil

Stream = Callable[..., tuple[dict[str, Any], Any]]
Picture = Callable[..., Array]


def gray(frames: list[Array]) -> list[Array]:
    return [np.ascontiguousarray(frame[..., 1]) for frame in frames]


@pytest.fixture
def two_files(picture: Picture) -> tuple[list[Array], list[Array]]:
    """Two lossless videos of 30 frames, ``ir.mkv`` and ``vis.mkv``, and their frames."""
    vis = panning(picture, 30)
    write_video("ir.mkv", gray(vis))
    write_video("vis.mkv", vis)
    return gray(vis), vis


@pytest.mark.usefixtures("two_files")
def test_a_file_with_damage_shows_its_good_frames_and_ends_with_an_error(stream: Stream) -> None:
    spoil("vis.mkv", "bad.mkv", range(10, 15), lambda data: data[: len(data) // 2] + bytes(50) + data[len(data) // 2 + 50 :])
    report, _ = stream(ir="ir.mkv", vis="bad.mkv", outputs=("out.mkv",), fails=InputError)
    damaged = report["cameras"]["vis"]["drops"]["damaged frame"]
    assert 5 <= damaged <= 14
    assert report["cameras"]["vis"]["in"] == 30
    assert report["pairs"]["shown"] == 30 - damaged
    assert frames_of("out.mkv") == 30 - damaged


@pytest.mark.usefixtures("two_files")
def test_a_file_that_breaks_off_shows_its_good_frames_and_ends_with_an_error(stream: Stream) -> None:
    data = Path("vis.mkv").read_bytes()
    Path("cut.mkv").write_bytes(data[: len(data) * 55 // 100])
    report, _ = stream(ir="ir.mkv", vis="cut.mkv", outputs=("out.mkv",), fails=InputError)
    assert 14 <= report["pairs"]["shown"] <= 17
    assert frames_of("out.mkv") == report["pairs"]["shown"]
    assert "of 30 frames" in report["end_reason"]
    assert any("of 30 frames" in event["what"] for event in report["events"])


@pytest.mark.usefixtures("two_files")
def test_an_input_of_which_nothing_can_be_shown_is_an_error(stream: Stream, picture: Picture) -> None:
    vis = panning(picture, 5)
    write_video("late.mkv", vis, times=[1_000_000 + 40 * number for number in range(5)])
    write_video("j.avi", vis, codec="mjpeg", pixels="yuvj420p")
    spoil("j.avi", "bad.avi", range(5), blank)
    Path("stack").mkdir()
    cv2.imwritemulti("stack/0.tiff", [np.zeros((48, 64), np.uint16) for _ in range(3)])
    for source in ("late.mkv", "bad.avi", "stack"):
        with pytest.raises(RefusionError) as caught:
            stream(ir=source, vis="vis.mkv")
        assert caught.value.exit_code == 4, source
    report, _ = stream(ir="late.mkv", vis="vis.mkv", fails=InputError)
    assert report["pairs"]["shown"] == 0


def test_a_still_scene_over_an_inter_coded_video_is_not_frozen(stream: Stream, picture: Picture) -> None:
    vis = panning(picture, 60)
    write_video("vis.mkv", vis)
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    write_video("still.mp4", [picture(48, 64)] * 60, codec=codec, pixels="yuv420p")
    report, _ = stream(ir="still.mp4", vis="vis.mkv")
    assert report["cameras"]["ir"]["freezes"] == 0
    assert report["pairs"]["modes"]["fused"] == 60
    # Where every frame is coded by itself, equal frames are repeated ones.
    write_video("frozen.mkv", [*gray(vis[:30]), *[gray(vis)[29]] * 30])
    report, _ = stream(ir="frozen.mkv", vis="vis.mkv")
    assert report["cameras"]["ir"]["freezes"] == 1


@pytest.mark.parametrize("limit", [{"frames": 7}, {"duration_s": 1.0}])
def test_a_run_that_was_ended_is_replayed_to_the_same_frames(stream: Stream, limit: dict[str, Any]) -> None:
    first, _ = stream(
        ir=camera("ir", rate=25), vis=camera("vis", rate=30), record="recording", delay_s=0.05, hash=True, **limit
    )
    again, _ = stream(replay="recording", hash=True)
    assert first["pairs"]["shown"] > 3
    assert again["pairs"]["shown"] == first["pairs"]["shown"]
    assert again["output_sha256"] == first["output_sha256"]


def test_an_interrupted_run_has_the_hash_of_its_replay(stream: Stream) -> None:
    session = StreamSession(
        StreamSettings(ir=camera("ir", rate=25), vis=camera("vis"), outputs=("null://",), record="recording"),
        fuser=Fuser(MeanBackend(), find_task("ir_vis")),
    )
    timer = threading.Timer(1.5, _thread.interrupt_main)
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            session.run()
    finally:
        timer.cancel()
    report = session.report()
    assert report is not None
    assert report["pairs"]["shown"] > 3
    again, _ = stream(replay="recording")
    assert report["output_sha256"] is not None
    assert again["output_sha256"] == report["output_sha256"]


def test_a_run_of_files_that_was_ended_is_replayed_to_the_same_frames(stream: Stream) -> None:
    files = {"ir": camera("ir", live=0, frames=200), "vis": camera("vis", live=0, frames=200)}
    first, _ = stream(**files, record="recording", hash=True, frames=20)
    again, _ = stream(replay="recording", hash=True)
    assert again["output_sha256"] == first["output_sha256"]
    assert json.loads(Path("recording/recording.json").read_text())["end"] == 20


@pytest.mark.parametrize(
    ("name", "tolerance_ms"), [("out.mp4", 1), ("out.mkv", 1), ("out.mov", 1), ("out.webm", 1), ("out.avi", 34)]
)
def test_a_video_plays_at_the_speed_of_the_scene(stream: Stream, name: str, tolerance_ms: float) -> None:
    """9 and 30 frames per second: every pair is shown at the time of its newer frame, counted from the first one."""
    stream(
        ir=camera("ir", live=0, frames=18, rate=9), vis=camera("vis", live=0, frames=60, rate=30),
        record="recording", outputs=(name, "null://"),
    )  # fmt: skip
    stream(replay="recording", outputs=(f"again-{name}",))
    for path in (name, f"again-{name}"):
        with av.open(path) as file:
            times = [float(frame.pts * frame.time_base) for frame in file.decode(video=0)]
        assert times[-1] - times[0] == pytest.approx(17 / 9, abs=tolerance_ms / 1000 + 0.12)
        assert len(times) == pytest.approx(18 if "avi" not in name else 57, abs=5)


def test_folders_are_fused_by_number(stream: Stream, picture: Picture) -> None:
    vis = panning(picture, 24)
    for side, frames in (("ir", gray(vis)), ("vis", vis)):
        Path(side).mkdir()
        for number, frame in enumerate(frames):
            if (side, number) != ("ir", 5):
                write_image(Path(side) / f"frame_{number}.png", frame)
    report, _ = stream(ir="ir", vis="vis", outputs=("out",), output_range="fixed", gray=True, policy="drop")
    assert report["pairs"]["shown"] == 23
    assert report["cameras"]["ir"]["missing_at_source"] == 1
    # The infrared frames are the green ones of their visible counterparts, so that a pair of one number is nearly that frame.
    kept = [number for number in range(24) if number != 5]
    for position, number in enumerate(kept):
        image = read_image(f"out/{position:06d}.png").astype(float)
        errors = [np.abs(image - cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY)).mean() for frame in vis]
        assert int(np.argmin(errors)) == number


def smooth_levels(picture: Picture) -> Array:
    """A smooth thermal scene that fills 0 to 255."""
    smooth = cv2.GaussianBlur(picture(48, 64), (0, 0), 2).astype(np.float64)
    return np.rint((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)


def write_sources(levels: Array, vis: Array) -> dict[str, tuple[str, str]]:
    """Files that hold the same pair, three frames each."""
    kelvin, part = 285 + levels.astype(np.float64) * 0.05, vis.astype(np.float64) / 255
    infrared = {
        "8": levels, "counts": (51_241 + levels.astype(np.uint16) * 4).astype(np.uint16),
        "centikelvin": np.rint(kelvin * 100).astype(np.uint16), "kelvin": kelvin.astype(np.float32), "celsius": kelvin - 273.15,
        "signed": (levels.astype(np.int16) * 9 - 1000).astype(np.int16),
    }  # fmt: skip
    visible = {
        f"{bits}": np.rint(part * (2**bits - 1)).astype(np.uint8 if bits == 8 else np.uint16) for bits in (8, 10, 12, 16)
    }
    for side, images in (("ir", infrared), ("vis", visible)):
        for name, image in images.items():
            for number in range(3):
                suffix = "png" if image.dtype in (np.uint8, np.uint16) else "tiff"
                write_image(f"{side}{name}/{number}.{suffix}", image)
    write_video("counts.mkv", [infrared["counts"]] * 3, 30)
    write_video("eight.mkv", [vis[..., ::-1]] * 3, 30)
    write_video("twelve.mkv", [visible["12"][..., 1]] * 3, 30, pixels="gray12le")
    for number in range(3):
        Path("pnm").mkdir(exist_ok=True)
        stored = visible["12"].astype(">u2").tobytes()
        Path(f"pnm/{number}.ppm").write_bytes(b"P6 64 48 4095\n" + stored)
    found = {f"ir{name}": (f"ir{name}", "vis8") for name in infrared} | {
        f"vis{name}": ("ir8", f"vis{name}") for name in visible
    }
    return found | {"video": ("counts.mkv", "eight.mkv"), "pnm": ("ir8", "pnm"), "deep gray": ("counts.mkv", "twelve.mkv")}


@pytest.mark.parametrize(("output_range", "smooth_s"), [("stretch", 0.0), ("fixed", 1.0), ("smooth", 1.0)])
def test_a_pair_is_fused_alike_whatever_its_encoding(
    stream: Stream, picture: Picture, output_range: str, smooth_s: float
) -> None:
    levels, vis = smooth_levels(picture), picture(48, 64, 3)
    vis[0, 0] = 255
    fuser = Fuser(MeanBackend(), find_task("ir_vis"), "stretch" if output_range == "stretch" else "fixed")
    found: dict[str, Array] = {}
    for name, (ir, visible) in write_sources(levels, vis).items():
        shown = vis[..., 1] if name == "deep gray" else vis
        stream(ir=ir, vis=visible, outputs=(f"out {name}",), output_range=output_range, smooth_s=smooth_s, gray=True)
        found[name] = read_image(f"out {name}/000002.png").astype(int)
        expected = fuser.fuse(levels, shown, color=False).astype(int)
        if output_range == "smooth":  # which leaves out the darkest and the brightest 0.1 %, on purpose
            expected = found["ir8"] if name != "deep gray" else found[name]
        assert np.abs(found[name] - expected).max() <= 2, name


def test_the_depth_of_a_visible_camera_is_said_once_and_its_changes_are_events(
    stream: Stream, picture: Picture, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(6):
        write_image(f"ir/{number}.png", picture(48, 64))
        write_image(f"vis/{number}.png", np.minimum(picture(48, 64).astype(np.uint16) * 4, 1000 if number < 4 else 3000) * (
            np.uint16(1 if number < 4 else 3)))  # fmt: skip
    report, _ = stream(ir="ir", vis="vis")
    said = report["cameras"]["vis"]["remarks"]
    assert [text.split()[0] for text in said] == ["10", "12"]
    assert [event["what"] for event in report["events"] if event["where"] == "vis"] == said


@pytest.mark.parametrize("side", ["ir", "vis"])
def test_files_of_one_value_are_an_error(stream: Stream, picture: Picture, side: str) -> None:
    for number in range(3):
        write_image(f"flat/{number}.png", np.full((48, 64), 20_000, np.uint16))
        write_image(f"good/{number}.png", picture(48, 64))
    report, _ = stream(**{"ir": "good", "vis": "good", side: "flat"}, fails=InputError)
    assert report["pairs"]["shown"] == 3
    write_image("flat/1.png", picture(48, 64).astype(np.uint16) * np.uint16(99))
    report, _ = stream(**{"ir": "good", "vis": "good", side: "flat"})
    assert any("same value" in text for text in report["cameras"][side]["remarks"])


def test_a_stack_of_any_numbers_is_shown(stream: Stream, picture: Picture) -> None:
    """B13: int16, float64 and a border of NaN."""
    for number in range(3):
        degrees = picture(48, 64).astype(np.float64) / 10 - 20
        write_image(f"int16/{number}.tiff", (degrees * 100).astype(np.int16))
        degrees[:5] = degrees[:, -3:] = np.nan
        write_image(f"float64/{number}.tiff", degrees)
        write_image(f"vis/{number}.png", picture(48, 64, 3))
    for ir in ("int16", "float64"):
        report, _ = stream(ir=ir, vis="vis", outputs=(f"out-{ir}",), gray=True, output_range="fixed")
        assert report["pairs"]["shown"] == 3
    shown, vis = read_image("out-float64/000002.png"), read_image("vis/2.png")
    gray = cv2.cvtColor(vis, cv2.COLOR_RGB2GRAY).astype(int)
    assert np.abs(shown.astype(int) - gray)[:5].max() <= 1
    assert np.abs(shown.astype(int) - gray)[:, -3:].max() <= 1


def test_frozen_frames_with_missing_values_are_found(stream: Stream, picture: Picture) -> None:
    still = picture(48, 64).astype(np.float32)
    for number in range(30):
        image = picture(48, 64).astype(np.float32)
        image[3] = np.nan
        write_image(f"ir/{number}.tiff", image if number < 12 else still)
        still = image if number < 12 else still
        write_image(f"vis/{number}.png", picture(48, 64))
    report, _ = stream(ir="ir", vis="vis")
    assert report["cameras"]["ir"]["freezes"] == 1


@pytest.mark.parametrize("white", [4095.0, None])
def test_a_replay_knows_the_full_scale(stream: Stream, picture: Picture, white: float | None) -> None:
    for number in range(4):
        dark = (picture(48, 64) // 3).astype(np.uint16)
        Path("vis").mkdir(exist_ok=True)
        if white is None:
            write_image(f"vis/{number}.png", dark)
        else:
            Path(f"vis/{number}.pgm").write_bytes(b"P5 64 48 4095\n" + dark.astype(">u2").tobytes())
        write_image(f"ir/{number}.png", picture(48, 64))
    first, _ = stream(ir="ir", vis="vis", record="recording")
    again, _ = stream(replay="recording")
    assert again["output_sha256"] == first["output_sha256"]
    assert {frame.white for frame in map(read_recording(Path("recording")).read, range(8)) if frame.side == "vis"} == {white}
