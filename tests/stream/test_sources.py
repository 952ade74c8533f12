"""Sources: names, credentials, 16 bit, time stamps, and what cannot be read."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from refusion_edge.errors import InputError, RefusionError, ShapeError, SourceLostError, UsageError
from refusion_edge.images.io import write_image
from refusion_edge.stream.frames import MS, SECOND
from refusion_edge.stream.pairing.freeze import FreezeWatch
from refusion_edge.stream.run.motion import MotionMeter
from refusion_edge.stream.sources.captures import unpack
from refusion_edge.stream.sources.clock import ClockAnchor
from refusion_edge.stream.sources.registry import open_source
from refusion_edge.stream.sources.source import (
    CLOCK_CONTAINER,
    CLOCK_COUNT,
    CLOCK_RECORDED,
    CLOCK_SYNTHETIC,
    CorruptFrameError,
    Grab,
    Source,
)
from refusion_edge.stream.sources.synthetic import Painter, Scene
from refusion_edge.stream.uri import frame_pattern, host_and_port, parse_output, parse_source, redact
from tests.conftest import one_sentence
from tests.stream.conftest import camera, write_video


def opened(text: str, side: str = "ir") -> Source:
    return open_source(parse_source(text), "ir" if side == "ir" else "vis")


def read_all(text: str, side: str = "ir") -> list[Grab]:
    with opened(text, side) as source:
        return list(itertools.takewhile(lambda grab: grab is not None, iter(source.read, None)))


# Names


@pytest.mark.parametrize(
    ("text", "scheme", "target"),
    [
        ("csi://0", "csi", "0"),
        ("v4l2:///dev/video2?format=y16", "v4l2", "/dev/video2"),
        ("/dev/video0", "v4l2", "/dev/video0"),
        ("file://a%20b.mkv", "file", "a b.mkv"),
        ("frames/f_%04i.png", "file", "frames/f_%04i.png"),
        ("gst:v4l2src ! videoconvert", "gst", "v4l2src ! videoconvert"),
        ("test://ir?rate=9", "test", "ir"),
    ],
)
def test_sources_by_name(text: str, scheme: str, target: str) -> None:
    uri = parse_source(text)
    assert (uri.scheme, uri.target) == (scheme, target)


@pytest.mark.parametrize(("text", "hint"), [("rstp://host/x", "rtsp://"), ("v4l://0", "v4l2://"), ("tset://ir", "test://")])
def test_the_nearest_scheme_is_suggested(text: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_source(text)
    assert f"did you mean '{hint}'" in str(caught.value)
    assert one_sentence(str(caught.value))


def test_options_are_checked() -> None:
    for text in ("test://ir?ratee=9", "test://ir?rate=fast", "test://ir?rate=0", "test://vis", "file://x.mkv?format=y17"):
        with pytest.raises((UsageError, InputError), match="expected"):
            opened(text)
    with pytest.raises(UsageError, match="'rate'"):
        opened("test://ir?ratee=9")


@pytest.mark.parametrize(
    "text",
    [
        "rtsp://admin:geheim@10.0.0.7:554/live",
        "rtsp://admin:ge%40heim@10.0.0.7/live?token=geheim",
        "gst:rtspsrc location=rtsp://10.0.0.7/ user-id=admin user-pw=geheim ! decodebin",
        "RTSP://admin:geheim@host/x",
        "http://host/video?user=admin&password=geheim",
    ],
)
def test_credentials_are_never_shown(text: str) -> None:
    shown = redact(text)
    assert "heim" not in shown
    assert "admin" not in shown
    assert ("10.0.0.7" in shown) == ("10.0.0.7" in text)
    assert "heim" not in str(parse_source(text))
    assert "heim" not in repr(parse_source(text))


def test_a_refused_connection_hides_the_password_too() -> None:
    with pytest.raises(SourceLostError) as caught, opened("rtsp://admin:geheim@127.0.0.1:9/live"):
        pass
    assert "heim" not in str(caught.value)
    assert "refused" in str(caught.value)
    assert one_sentence(str(caught.value))


def test_patterns_and_ports() -> None:
    assert frame_pattern("a/f_%04i.png") == "a/f_%04d.png"
    assert frame_pattern("a/%d.png") == "a/%d.png"
    assert frame_pattern("a/f.png") is None
    assert host_and_port(parse_output("view://"), "127.0.0.1", 8080) == ("127.0.0.1", 8080)
    assert host_and_port(parse_output("view://0.0.0.0:90"), "127.0.0.1", 8080) == ("0.0.0.0", 90)
    assert host_and_port(parse_output("rtsp://@:8554/x"), "127.0.0.1", 1) == ("127.0.0.1", 8554)
    with pytest.raises(UsageError, match="port"):
        host_and_port(parse_output("view://x:99999"), "127.0.0.1", 1)


# 16 bit


def test_sixteen_bit_video_keeps_every_bit(tmp_path: Path, rng: np.random.Generator) -> None:
    frames = [rng.integers(0, 65536, (48, 64)).astype(np.uint16) for _ in range(4)]
    write_video(tmp_path / "thermal.mkv", frames)
    grabs = read_all(str(tmp_path / "thermal.mkv"))
    assert len(grabs) == 4
    assert all(np.array_equal(grab.image, frame) for grab, frame in zip(grabs, frames, strict=True))


def test_sixteen_bit_png_folder_keeps_every_bit(tmp_path: Path, rng: np.random.Generator) -> None:
    frame = rng.integers(0, 65536, (48, 64)).astype(np.uint16)
    write_image(tmp_path / "0.png", frame)
    assert np.array_equal(read_all(str(tmp_path))[0].image, frame)


def test_y16_and_split_frame_cameras(rng: np.random.Generator) -> None:
    counts = rng.integers(0, 65536, (192, 256)).astype("<u2")
    raw = counts.view(np.uint8).reshape(192, 256, 2)
    assert np.array_equal(unpack(raw, "y16"), counts)
    assert np.array_equal(unpack(counts, "y16"), counts)
    coloured = rng.integers(0, 256, (192, 256, 2)).astype(np.uint8)
    assert np.array_equal(unpack(np.concatenate((coloured, raw)), "split16"), counts)
    assert unpack(np.zeros((4, 5, 4), np.uint8), "auto").shape == (4, 5, 3)
    for picture, pixel_format in (
        (np.zeros((8, 8, 3), np.uint8), "y16"), (np.zeros((7, 8), np.uint16), "split16"), (raw, "auto"),
    ):  # fmt: skip
        with pytest.raises(ShapeError, match="expected"):
            unpack(picture, pixel_format)


# Time stamps


def test_video_times_come_from_the_container(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mkv", [np.full((48, 64, 3), level, np.uint8) for level in (10, 60, 110)], rate=9)
    grabs = read_all(f"file://{tmp_path}/v.mkv", "vis")
    assert [round(grab.time_ns / MS) for grab in grabs] == [0, 111, 222]
    with opened(str(tmp_path / "v.mkv"), "vis") as source:
        assert source.clock == CLOCK_CONTAINER
        assert source.rate_hz == pytest.approx(9, abs=0.1)
        assert not source.live


def test_numbered_files_keep_the_times_of_missing_ones(tmp_path: Path) -> None:
    for number in (3, 4, 6):
        write_image(tmp_path / f"f_{number:04d}.png", np.full((8, 8), number, np.uint8))
    grabs = read_all(f"file://{tmp_path}/f_%04i.png?rate=10")
    assert [grab.time_ns // MS for grab in grabs] == [0, 100, 300]
    assert opened(f"{tmp_path}/f_%04i.png").clock == CLOCK_COUNT


def test_recorded_times_of_a_folder(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_image(tmp_path / f"{name}.png", np.zeros((8, 8), np.uint8))
    (tmp_path / "frames.csv").write_text("file,time_ns\na.png,1000\nb.png,34000000\n")
    assert [grab.time_ns for grab in read_all(str(tmp_path))] == [1000, 34_000_000]
    assert opened(str(tmp_path)).clock == CLOCK_RECORDED
    (tmp_path / "frames.csv").write_text("file,time_ns\na.png,soon\n")
    with pytest.raises(InputError, match="whole numbers"):
        opened(str(tmp_path))


def test_the_least_delay_places_a_stream_on_the_clock_here() -> None:
    anchor, draw = ClockAnchor(), np.random.default_rng(3)
    placed, taken = [], []
    for number in range(300):
        taken_ns = number * 33 * MS
        delay_ns = round((20 + draw.exponential(15)) * MS)
        placed.append(anchor.place(taken_ns + 7 * SECOND, taken_ns + delay_ns))
        taken.append(taken_ns)
    errors_ms = (np.array(placed) - np.array(taken))[50:] / MS
    assert abs(errors_ms - 20).max() < 2  # all but the least delay, which nobody can know
    restarted = anchor.place(0, 300 * 33 * MS)
    assert restarted == 300 * 33 * MS


# Synthetic cameras


def test_the_synthetic_pair_is_shifted_and_skewed_as_asked() -> None:
    base, moved = Scene(width=120, height=80, noise=0), Scene(width=120, height=80, noise=0, dx=7, dy=-5)
    one, two = Painter(base, "ir").paint(0), Painter(moved, "ir").paint(0)
    assert one.dtype == np.uint16
    assert np.array_equal(one[10:60, 10:100], two[5:55, 17:107])
    panning = Painter(Scene(width=120, height=80, noise=0, pan=100, walker=0), "vis")
    assert np.array_equal(panning.paint(0)[:, 50:], panning.paint(SECOND // 2)[:, :-50])


def test_synthetic_faults_come_as_asked() -> None:
    frozen = read_all(camera("ir", live=0, frames=90, freeze_every_ms=1000, freeze_ms=300))
    watch = FreezeWatch()
    repeats = [watch.add(grab.image, grab.time_ns) != grab.time_ns for grab in frozen]
    assert (watch.freezes, sum(repeats)) == (2, 2 * 8)
    gaps = read_all(camera("ir", live=0, frames=90, drop_every_ms=1000, drop_ms=200))
    assert len(gaps) == 90 - 2 * 6
    assert {grab.image.shape for grab in read_all(camera("vis", live=0, frames=8, resize_every=3), "vis")} == {
        (48, 64, 3), (24, 32, 3),
    }  # fmt: skip
    with opened(camera("ir", live=0, frames=5, corrupt_every=2)) as source:
        source.read()
        with pytest.raises(CorruptFrameError):
            source.read()
        assert source.clock == CLOCK_SYNTHETIC
    assert {grab.time_ns for grab in read_all(camera("ir", live=0, frames=4, zero_times=1))} == {0}


def test_motion_is_measured_in_pixels_per_second() -> None:
    painter = Painter(Scene(width=320, height=240, noise=1, pan=90, walker=0), "vis")
    meter = MotionMeter()
    assert meter.add(painter.paint(0), 0) is None
    assert meter.add(painter.paint(40 * MS), 40 * MS) == pytest.approx(90, abs=15)


# What cannot be read


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("nothing.mkv", InputError),
        ("nothing/f_%04i.png", InputError),
        ("empty.mkv", InputError),
        ("text.mkv", InputError),
        ("/dev/video97", SourceLostError),
        ("rtsp://no-such-host.invalid/x", SourceLostError),
        ("rtsp://127.0.0.1:99999/x", UsageError),
    ],
)
def test_what_cannot_be_opened_is_one_sentence(text: str, error: type[RefusionError]) -> None:
    Path("empty.mkv").touch()
    Path("text.mkv").write_text("no video")
    with pytest.raises(error) as caught, opened(text):
        pass
    assert one_sentence(str(caught.value)), str(caught.value)
    assert caught.value.exit_code == {InputError: 4, SourceLostError: 5, UsageError: 2}[error]
