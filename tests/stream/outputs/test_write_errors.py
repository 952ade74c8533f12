"""Files that cannot be written completely: the error is one line, and what was written before stays usable."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from refusion_edge.errors import OutputError
from refusion_edge.stream.frames import MS, FusedFrame
from refusion_edge.stream.outputs.recording import Recorder, read_recording
from refusion_edge.stream.outputs.video import VideoSink
from refusion_edge.stream.sources.damage import is_cut_off
from refusion_edge.stream.uri import parse_output
from tests.conftest import ROOT
from tests.stream.conftest import frames_of

CHILD = """
import resource, sys
from refusion_edge.fuser import Fuser
from refusion_edge.tasks import find_task
from refusion_edge.stream.outputs import disk
import refusion_edge.fuser, refusion_edge.cli as cli
from tests.stream.conftest import MeanBackend
refusion_edge.fuser.load = lambda *a, **b: Fuser(MeanBackend(), find_task("ir_vis"))
import refusion_edge.stream.run.session as session
session.load = refusion_edge.fuser.load
limit, ahead = int(sys.argv[1]), sys.argv[2] == "ahead"
if not ahead:
    disk.DiskWatch.check = lambda self: None
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.exit(cli.main(sys.argv[3:]))
"""
NOISY = "width=320&height=240&live=0&frames=150&noise=60"


def run_limited(limit: int, check: str, *outputs: str) -> subprocess.CompletedProcess[str]:
    """Run a stream in a process with a file size limit in bytes, with or without the check ahead of the limit."""
    words = ["stream", "--ir", f"test://ir?{NOISY}", "--vis", f"test://vis?{NOISY}", *outputs]
    return subprocess.run(
        [sys.executable, "-c", CHILD, str(limit), check, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def assert_said(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 4, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert all(part in done.stderr for part in parts)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_a_video_cut_by_a_limit_is_noticed_at_its_end(suffix: str) -> None:
    assert_said(run_limited(600_000, "at the end", "-o", f"out{suffix}"), f"out{suffix}")
    assert Path(f"out{suffix}").stat().st_size <= 600_000


def test_a_video_ends_whole_where_it_nears_a_limit() -> None:
    assert_said(run_limited((16 << 20) + 4_000_000, "ahead", "-o", "out.mkv"), "out.mkv")
    assert not is_cut_off(Path("out.mkv"))
    assert frames_of("out.mkv") > 10


def test_an_image_folder_notices_a_limit_and_leaves_no_half() -> None:
    assert_said(run_limited(20_000, "ahead", "-o", "out/f_%04i.png"), "f_0000")
    assert list(Path("out").iterdir()) == []


def test_a_recording_notices_a_limit_and_leaves_no_half() -> None:
    assert_said(run_limited(20_000, "ahead", "--record", "recording", "-o", "null://"), "recording")
    assert list(Path("recording").glob("*/*.png")) == []


def test_a_recording_stays_readable_when_its_table_reaches_a_limit() -> None:
    words = ("--record", "recording", "-o", "null://")
    small = NOISY.replace("width=320&height=240", "width=16&height=16")
    child = CHILD.replace("cli.main(sys.argv[3:])", f"cli.main([word.replace({NOISY!r}, {small!r}) for word in sys.argv[3:]])")
    done = subprocess.run(
        [sys.executable, "-c", child, "4000", "ahead", "stream", "--ir", f"test://ir?{NOISY}", "--vis", f"test://vis?{NOISY}",
         *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert_said(done, "recording")
    recording = read_recording(Path("recording"))
    assert len(recording.rows) > 20
    assert recording.read(len(recording.rows) - 1).image.shape[:2] == (16, 16)


def write_noise(path: str, count: int) -> None:
    draw = np.random.default_rng(0)
    with VideoSink(parse_output(path), rate_hz=25) as sink:
        for number in range(count):
            image = draw.integers(0, 256, (48, 64, 3)).astype(np.uint8)
            sink.write(FusedFrame(image, None, None, number, number * 40 * MS, 0, "fused"))


@pytest.mark.parametrize("suffix", [".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm"])
def test_a_killed_process_leaves_a_video_that_plays(suffix: str) -> None:
    code = (
        "import os, sys, signal\n"
        "from tests.stream.outputs.test_write_errors import *\n"
        "VideoSink.__exit__ = lambda self, *exc: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"write_noise('cut{suffix}', 700 if '{suffix}' == '.mkv' else 400)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    assert frames_of(f"cut{suffix}") >= 300  # the last seconds were still in memory


def test_two_streams_do_not_write_one_file() -> None:
    with VideoSink(parse_output("one.mkv"), rate_hz=25) as first:
        first.write(FusedFrame(np.zeros((48, 64, 3), np.uint8), None, None, 0, 0, 0, "fused"))
        with pytest.raises(OutputError) as caught, VideoSink(parse_output("one.mkv"), rate_hz=25):
            pass
    assert caught.value.exit_code == 4
    assert frames_of("one.mkv") == 1
    write_noise("one.mkv", 3)
    assert frames_of("one.mkv") == 3


def test_two_streams_do_not_record_into_one_folder() -> None:
    with Recorder(Path("recording"), {}), pytest.raises(OutputError), Recorder(Path("recording"), {}):
        pass
