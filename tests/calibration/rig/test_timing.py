"""The time offset of two cameras: right within what it states, or refused with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.mean_engine import MeanEngine
from refusion_edge.calibration.rig.timing import MotionTrack, measure_offset
from refusion_edge.errors import AlignmentError
from refusion_edge.fuser import Fuser
from refusion_edge.rig.file import read_rig, write_rig
from refusion_edge.rig.model import Rig, RigAlignment, RigSource, to_rows
from refusion_edge.stream.frames import MS, Side
from refusion_edge.stream.run.session import StreamSession
from refusion_edge.stream.run.settings import StreamSettings
from refusion_edge.stream.sources.registry import open_source
from refusion_edge.stream.uri import parse_source
from refusion_edge.tasks import find_task
from tests.conftest import one_sentence
from tests.raising import raises

Run = Callable[..., tuple[int, str, str]]
SCENE = "width=160&height=120&scene=texture&seed=3"


def uri(side: Side, words: str = "", *, rate: int = 30, seconds: int = 12, live: int = 0) -> str:
    return f"test://{side}?{SCENE}&live={live}&rate={rate}&frames={rate * seconds}&{words}".rstrip("&")


def track(side: Side, address: str) -> MotionTrack:
    made = MotionTrack()
    with open_source(parse_source(address), side) as source:
        while (grab := source.read()) is not None:
            made.add(grab.image, grab.time_ns)
    return made


@pytest.mark.parametrize(
    ("ir", "vis", "rates", "offset_ms"),
    [
        ("clock_ms=-37.5", "skew_ms=4", (30, 30), 37.5),
        ("clock_ms=120&skew_ms=-3", "", (9, 30), -120.0),
        ("", "clock_ms=15.25&skew_ms=11", (25, 30), 15.25),
        ("freeze_every_ms=3000&freeze_ms=400", "drop_every_ms=2500&drop_ms=150&clock_ms=-8", (30, 30), -8.0),
    ],
)
def test_a_known_offset_is_found_within_its_stated_error(ir: str, vis: str, rates: tuple[int, int], offset_ms: float) -> None:
    found = measure_offset(track("ir", uri("ir", ir, rate=rates[0])), track("vis", uri("vis", vis, rate=rates[1])))
    assert abs(found.offset_ms - offset_ms) <= min(3 * found.error_ms, 6.0)
    assert found.error_ms < 6
    assert found.correlation > 0.5


def test_pixels_without_a_value_do_not_hide_the_motion() -> None:
    tracks = {side: MotionTrack() for side in ("ir", "vis")}
    for side, made in tracks.items():
        with open_source(parse_source(uri(side, "clock_ms=-37.5" if side == "ir" else "")), side) as source:
            while (grab := source.read()) is not None:
                image = grab.image.astype(np.float64)
                image[-40:] = image[:, 7] = np.nan
                made.add(image, grab.time_ns)
    assert measure_offset(tracks["ir"], tracks["vis"]).offset_ms == pytest.approx(37.5, abs=6)


@pytest.mark.parametrize(
    ("words", "seconds", "named"),
    [
        ("walker=0", 12, "correlates"),
        ("walker=0&noise=0", 12, "ir has only 1 "),
        ("walker=0&pan=40", 12, "offsets"),
        ("", 2, "at least 3 s"),
        ("clock_ms=700", 12, "504 ms"),
    ],
)
def test_what_tells_no_offset_is_refused_with_the_reason(words: str, seconds: int, named: str) -> None:
    vis = words.replace("clock_ms=700", "")
    with raises(AlignmentError, named):
        measure_offset(track("ir", uri("ir", words, seconds=seconds)), track("vis", uri("vis", vis, seconds=seconds)))


def test_constant_images_have_no_motion() -> None:
    rng = np.random.default_rng(1)
    tracks = MotionTrack(), MotionTrack()
    for number in range(200):
        for each in tracks:
            # Every frame changes by as much as the one before: new noise of one kind.
            each.add(rng.integers(0, 255, (48, 64)).astype(np.uint8), number * 33 * MS)
    with raises(AlignmentError, "motion"):
        measure_offset(*tracks)


@pytest.fixture
def rig() -> Path:
    """A rig of two synthetic cameras, in a file."""
    size = RigSource((160, 120))
    write_rig("rig.yaml", Rig(size, size, (RigAlignment(None, to_rows(np.eye(3))),)))
    return Path("rig.yaml")


@pytest.mark.slow
def test_files_give_the_rig_its_offset_and_pairing_uses_it(run_cli: Run, rig: Path) -> None:
    files = ("--ir", uri("ir", "clock_ms=200"), "--vis", uri("vis"))
    code, out, err = run_cli("align", "time", rig, *files, "--json", "offset.json")
    assert (code, err) == (0, "")
    assert "is added to infrared time stamps (standard error" in out
    measured = json.loads(Path("offset.json").read_text())
    made = read_rig(rig)
    assert made.time_offset_ms == pytest.approx(-200, abs=5)
    assert (made.time_offset_ms, made.time_error_ms) == (measured["offset_ms"], measured["error_ms"])
    unpaired = []
    for words in ({}, {"offset_ms": 0.0}):
        settings = StreamSettings(ir=files[1], vis=files[3], rig=str(rig), outputs=("null://",), policy="drop", **words)
        report = run_stream(settings)
        unpaired.append(report["cameras"]["vis"]["drops"].get("no counterpart within the skew", 0))
    # Six frames of 30/s are 200 ms: without the offset so many have no counterpart at the start.
    assert unpaired[0] <= 1
    assert unpaired[1] >= 5


def run_stream(settings: StreamSettings) -> dict[str, Any]:
    session = StreamSession(settings, fuser=Fuser(MeanEngine(), find_task("ir_vis")))
    session.run()
    report = session.report()
    assert report is not None
    return report


@pytest.mark.slow
def test_live_cameras_and_a_recording_of_them_agree(run_cli: Run, rig: Path) -> None:
    cameras = ("--ir", uri("ir", "clock_ms=50", rate=15, live=1), "--vis", uri("vis", rate=15, live=1))
    code, _, err = run_cli("align", "time", rig, *cameras, "--duration-s", 8, "-o", "live.yaml")
    assert (code, err) == (0, "")
    live = read_rig("live.yaml")
    assert live.time_offset_ms == pytest.approx(-50, abs=8)
    ir, vis = (cameras[place].replace("live=1", "live=0") for place in (1, 3))
    run_stream(StreamSettings(ir=ir, vis=vis, record="rec", outputs=("null://",)))
    code, _, err = run_cli("align", "time", rig, "--recording", "rec", "-o", "replayed.yaml")
    assert (code, err) == (0, "")
    assert read_rig("replayed.yaml").time_offset_ms == pytest.approx(-50, abs=8)
    assert read_rig(rig).time_offset_ms is None  # -o left it alone


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        ((), 2, "--recording"),
        (("--ir", uri("ir"), "--vis", uri("vis", live=1)), 2, "clocks"),
        (("--recording", "nowhere"), 4, "nowhere"),
        (("--recording", "nowhere", "--ir", uri("ir")), 2, "--ir and --vis"),
        (("--ir", uri("ir", "walker=0"), "--vis", uri("vis", "walker=0")), 1, "motion"),
        (("--ir", uri("ir").replace("width=160", "width=80"), "--vis", uri("vis")), 4, "120x80"),
        (("--ir", "/dev/video97", "--vis", "/dev/video98"), 5, "/dev/video97"),
        (("--ir", uri("ir"), "--vis", uri("vis"), "--duration-s", "1"), 2, "from 3 to 600"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_the_rig_stays(
    run_cli: Run, rig: Path, words: tuple[str, ...], code: int, hint: str
) -> None:
    before = rig.read_bytes()
    got, out, err = run_cli("align", "time", rig, *words)
    assert (got, out, hint in err) == (code, "", True), err
    assert one_sentence(err)
    assert rig.read_bytes() == before
