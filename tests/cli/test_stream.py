"""The verb ``stream``: what a user types, sees, and gets back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from refusion_edge.images.io import read_image, write_image
from refusion_edge.rig.file import write_rig
from refusion_edge.rig.model import Rig, RigAlignment, RigSource, to_rows
from refusion_edge.stream.frames import SECOND
from refusion_edge.stream.sources.synthetic import Painter, Scene
from tests.conftest import ROOT, one_sentence
from tests.stream.conftest import camera, explained, frames_of, write_video

RunCli = Callable[..., tuple[int, str, str]]
FILES = ("--ir", camera("ir", live=0, frames=6), "--vis", camera("vis", live=0, frames=6))


def test_two_files_into_a_video_with_a_report(run_cli: RunCli) -> None:
    code, out, err = run_cli("stream", *FILES, "-o", "out.mkv", "--json", "report.json", "--threads", 1, "--hash")
    assert (code, err) == (0, "")
    assert "6 fused frames" in out
    assert "6 fused" in out
    assert frames_of("out.mkv") == 6
    report = json.loads(Path("report.json").read_text())
    assert report["schema"] == "refusion-edge/stream/1"
    assert report["pairs"]["shown"] == 6
    assert len(report["output_sha256"]) == 64
    assert report["stages"]["infer"]["count"] == 6


def test_the_network_is_chosen_and_said_with_its_reason(run_cli: RunCli) -> None:
    words = ("stream", *FILES, "-o", "null://", "--threads", 1, "--backend", "onnxruntime")
    code, out, err = run_cli(*words, "--network", "auto", "--json", "auto.json")
    assert (code, one_sentence(err)) == (0, True)
    network = json.loads(Path("auto.json").read_text())["network"]
    (decision,) = network["decisions"]
    assert (network["name"], network["backend"], network["statistics"]) == ("refusion", "onnxruntime", None)
    assert decision["reason"] in err
    assert "network: refusion on onnxruntime" in out
    code, out, err = run_cli(*words, "--network", "fast", "--json", "fast.json")
    assert (code, err) == (0, "")
    network = json.loads(Path("fast.json").read_text())["network"]
    assert (network["name"], network["statistics"], network["decisions"]) == ("fast", "of each frame", [])
    assert "flicker" in out


def test_former_names_of_options_work_with_a_warning(run_cli: RunCli) -> None:
    code, _, err = run_cli("stream", *FILES, "--pictures", 3, "--grey", "-o", "out/%04i.png", "--threads", 1)
    assert code == 0
    assert all(name in err for name in ("--pictures", "--frames", "--grey", "--gray"))
    assert [read_image(path).shape for path in sorted(Path("out").iterdir())] == [(48, 64)] * 3


def test_a_rig_file_aligns_and_decides(run_cli: RunCli) -> None:
    shift = np.array([[1.0, 0.0, 5.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    rig = Rig(RigSource((64, 48)), RigSource((64, 48)), (RigAlignment(None, to_rows(shift)),), time_offset_ms=4.0, gain="clahe")
    write_rig("rig.yaml", rig)
    code, out, err = run_cli("stream", *FILES, "-o", "null://", "--rig", "rig.yaml", "--json", "-", "--threads", 1)
    assert (code, err) == (0, "")
    assert json.loads(out)["pairs"]["shown"] == 6
    small = ("--ir", camera("ir", live=0, frames=3).replace("width=64", "width=60"), *FILES[2:])
    code, _, err = run_cli("stream", *small, "-o", "null://", "--rig", "rig.yaml", "--threads", 1)
    assert code == 4
    assert "48x60" in err


@pytest.mark.parametrize(
    ("words", "code", "hint"),
    [
        ((), 2, "--ir and --vis"),
        (("--ir", "tset://ir", "--vis", camera("vis")), 2, "'test://'"),
        (("--ir", camera("ir"), "--vis", "nothing.mp4"), 4, "nothing.mp4"),
        (("--ir", camera("ir"), "--vis", "/dev/video97", "-o", "null://"), 5, "/dev/video97"),
        ((*FILES, "-o", "out.docx"), 2, ".mp4"),
        ((*FILES, "-o", "null://", "--rig", "rig.yaml"), 4, "rig.yaml"),
        ((*FILES, "-o", "null://", "--distance", "5m"), 2, "--rig"),
        ((*FILES, "--policy", "nearset"), 2, "'nearest'"),
        (("--replay", "nowhere"), 4, "nowhere"),
        ((*FILES, "-o", "display://0", "--headless"), 2, "--headless"),
        (("--ir", "here.png", "--vis", camera("vis", live=0), "-o", "here.png"), 2, "here.png"),
        ((*FILES, "-o", "a.mkv", "-o", "./a.mkv"), 2, "a.mkv"),
        ((*FILES, "-o", "null://?delay_ms=soon"), 2, "delay_ms"),
        ((*FILES, "-o", "view://127.0.0.1:99999"), 2, "port"),
        ((*FILES, "--smooth-s", "nan"), 2, "nan"),
        (("--ir", "rtsp://u:geheim@127.0.0.1:9/x", "--vis", camera("vis"), "-o", "null://"), 5, "rtsp://***@127.0.0.1:9/x"),
    ],
)
def test_what_cannot_be_is_one_sentence_with_its_code(run_cli: RunCli, words: tuple[str, ...], code: int, hint: str) -> None:
    write_image("here.png", np.zeros((48, 64), np.uint16))
    got, _, err = run_cli("stream", *words)
    assert "geheim" not in err
    assert (got, hint in err) == (code, True), err
    assert one_sentence(err) or code == 2
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(number, marks=pytest.mark.slow) for number in (signal.SIGINT, signal.SIGHUP))]
)
def test_a_signal_ends_cleanly_and_the_video_plays(number: int) -> None:
    words = [
        "stream",
        "--ir",
        camera("ir"),
        "--vis",
        camera("vis"),
        "-o",
        "live.mp4",
        "--json",
        "report.json",
        "--threads",
        "1",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "refusion_edge", *words]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline_s = time.monotonic() + 60
        while time.monotonic() < deadline_s and not (Path("live.mp4").is_file() and Path("live.mp4").stat().st_size):
            time.sleep(0.1)
        time.sleep(1.0)
        process.send_signal(number)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "fused frames in" in out
    assert frames_of("live.mp4") >= 1
    assert json.loads(Path("report.json").read_text())["pairs"]["shown"] >= 1


def test_a_configuration_holds_what_options_say_and_options_take_precedence(run_cli: RunCli) -> None:
    words = (*FILES, "-o", "null://", "--threads", 1, "--network", "fast", "--gray", "--max-skew-ms", 500, "--no-marks")
    code, out, err = run_cli("stream", *words, "--save-config", "site.yaml")
    assert (code, err) == (0, "")
    assert "site.yaml" in out
    code, _, err = run_cli("stream", *words, "--save-config", "site.yaml")
    assert (code, one_sentence(err), "--overwrite" in err) == (4, True, True)
    assert run_cli("stream", *words, "--save-config", "site.yaml", "--overwrite")[0] == 0
    code, out, err = run_cli("stream", "--config", "site.yaml", "--frames", 2, "--max-skew-ms", 400, "--json", "-")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert (report["pairs"]["shown"], report["network"]["name"]) == (2, "fast")
    settings = report["settings"]
    assert (settings["max_skew_ms"], settings["gray"], settings["marks"], settings["threads"]) == (400, True, False, 1)
    code, _, err = run_cli("stream", "--config", "site.yaml", "--frames", 0)
    assert code == 2
    Path("bad.yaml").write_text("netwrok: fast\n")
    code, _, err = run_cli("stream", "--config", "bad.yaml")
    assert (code, one_sentence(err), "'network'" in err, "bad.yaml" in err) == (4, True, True, True)


def test_nothing_heavy_is_loaded_for_help() -> None:
    code = "from refusion_edge.cli import main; main(['stream', '--help']); import sys; assert 'cv2' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "rtsp://" in done.stdout


def test_thermal_and_visible_videos_at_different_rates(run_cli: RunCli) -> None:
    scene = Scene(width=64, height=48, walker=40)
    for side, rate, count in (("ir", 9, 18), ("vis", 30, 60)):
        painter = Painter(scene, "ir" if side == "ir" else "vis")
        write_video(Path(f"{side}.mkv"), [painter.paint(round(number * SECOND / rate)) for number in range(count)], rate)
    words = ("stream", "--ir", "ir.mkv", "--vis", "file://vis.mkv", "--threads", 1, "--json", "report.json")
    code, out, err = run_cli(*words, "-o", "fused.mp4", "-o", "frames/f_%03i.png")
    assert (code, err) == (0, "")
    report = json.loads(Path("report.json").read_text())
    assert 17 <= report["pairs"]["shown"] == frames_of("fused.mp4") == len(list(Path("frames").iterdir())) <= 18
    assert report["skew"]["absolute"]["max_ms"] <= 0.6 * 1000 / 30 + 1
    assert report["cameras"]["ir"]["dtype"] == "uint16"
    assert report["cameras"]["ir"]["clock"] == "time stamps of the container"
    assert explained(report)
    assert "time stamps of the container" in out
