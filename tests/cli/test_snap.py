"""``snap``, and ``align auto`` from cameras."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from refusion_edge.calibration.rig.motion import apart_px
from refusion_edge.images.io import read_image, write_image
from refusion_edge.rig.file import read_rig
from refusion_edge.stream.frames import Side
from refusion_edge.stream.sources import v4l2
from refusion_edge.stream.sources.synthetic import Painter, Scene
from refusion_edge.stream.sources.v4l2 import V4l2Source
from refusion_edge.stream.sources.v4l2_device import Mode
from refusion_edge.stream.uri import Uri
from tests.conftest import one_sentence
from tests.fakes.v4l2 import FakeCamera
from tests.stream.conftest import camera, write_video

RunCli = Callable[..., tuple[int, str, str]]


def test_a_pair_of_live_cameras_keeps_every_bit(run_cli: RunCli) -> None:
    uris = "--ir", camera("ir", pan=40), "--vis", camera("vis", pan=40, skew_ms=2)
    code, _, err = run_cli("snap", *uris, "-o", "shots", "--settle-s", "0.3", "--json", "snap.json")
    assert code == 0, err
    ir, vis = read_image(Path("shots/ir.png")), read_image(Path("shots/vis.png"))
    assert (ir.dtype, ir.shape) == (np.uint16, (48, 64))
    assert (vis.dtype, vis.shape) == (np.uint8, (48, 64, 3))
    found = json.loads(Path("snap.json").read_text())
    assert found["skew_ms"] == pytest.approx(2, abs=0.1)
    assert found["ir"]["dtype"] == "uint16"
    code, _, err = run_cli("snap", *uris, "-o", "shots")
    assert code == 4
    assert np.array_equal(read_image(Path("shots/ir.png")), ir)
    assert run_cli("snap", *uris, "-o", "shots", "--overwrite", "--settle-s", "0")[0] == 0


def test_a_pair_of_files_is_of_one_moment_with_its_colors(run_cli: RunCli) -> None:
    options = {"live": 0, "frames": 30, "pan": 40}
    code, _, err = run_cli(
        "snap", "--ir", camera("ir", **options), "--vis", camera("vis", **options), "-o", "shots", "--offset-ms", "0"
    )
    assert code == 0, err
    scene = Scene(width=64, height=48, pan=40)
    assert np.array_equal(read_image(Path("shots/ir.png")), Painter(scene, "ir").paint(0))
    assert np.array_equal(read_image(Path("shots/vis.png")), Painter(scene, "vis").paint(0)[..., ::-1])


def test_a_pair_replaces_all_of_the_earlier_one(run_cli: RunCli) -> None:
    write_image("shots/ir.tiff", np.zeros((24, 32), np.float32))
    uris = "--ir", camera("ir", live=0, frames=3), "--vis", camera("vis", live=0, frames=3)
    assert run_cli("snap", *uris, "-o", "shots")[0] == 4
    Path("shots/vis.tiff").mkdir()  # no image, so not of the pair
    assert run_cli("snap", *uris, "-o", "shots", "--overwrite")[0] == 0
    assert sorted(path.name for path in Path("shots").iterdir()) == ["ir.png", "vis.png", "vis.tiff"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--ir", "test://ir?live=1", "--vis", "test://vis?live=0"), 2),
        (("--ir", "absent.mkv", "--vis", "test://vis?live=0"), 4),
        (("--ir", "/dev/video93", "--vis", "test://vis"), 5),
        (("--ir", "test://ir?lose_every_ms=1&lose_ms=1000000", "--vis", "test://vis", "--timeout-s", "1"), 5),
    ],
)
def test_no_pair_leaves_nothing_behind(run_cli: RunCli, words: tuple[str, ...], code: int) -> None:
    got, _, err = run_cli("snap", *words, "-o", "shots")
    assert got == code, err
    assert "Traceback" not in err
    assert not Path("shots").exists()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cameras", "videos", "folders"])
def test_align_auto_takes_sources(run_cli: RunCli, kind: str, tmp_path: Path) -> None:
    scene = "width=320&height=240&noise=1&scene=texture&walker=0"
    ir, vis = f"test://ir?{scene}&dx=6", f"test://vis?{scene}"
    if kind != "cameras":
        size = {"width": 320, "height": 240, "noise": 1, "scene": "texture", "walker": 0}
        painters = Painter(Scene(**size, dx=6), "ir"), Painter(Scene(**size), "vis")
        for side, painter in zip(("ir", "vis"), painters, strict=True):
            image = painter.paint(0)
            write_video(f"{side}.mkv", [image] * 2)
            write_image(tmp_path / side / "7.png", image if image.ndim == 2 else np.ascontiguousarray(image[..., ::-1]))
        ir, vis = (f"{side}.mkv" if kind == "videos" else f"file://{tmp_path / side}" for side in ("ir", "vis"))
    code, _, err = run_cli("align", "auto", "--ir", ir, "--vis", vis, "-o", "rig.yaml")
    assert code == 0, err
    rig = read_rig("rig.yaml")
    assert (rig.ir.uri, rig.vis.uri) == (ir, vis)
    assert rig.ir.size_wh == (320, 240)
    shift = np.array([[1, 0, 6], [0, 1, 0], [0, 0, 1.0]])
    assert apart_px(shift, rig.alignments[0].matrix, (320, 240)) < 0.5
    code, _, err = run_cli("align", "points", "p.csv", "--ir", ir, "--vis", vis)
    assert code == 4, err


def test_numbered_folders_meet_by_number(run_cli: RunCli, tmp_path: Path) -> None:
    for side, numbers in (("ir", (3, 4, 6)), ("vis", (9, 6, 10))):
        for number in numbers:
            image = np.arange(80, dtype=np.uint16).reshape(8, 10) * np.uint16(number)
            write_image(tmp_path / side / f"{side}{number}.png", image)
    code, _, err = run_cli("snap", "--ir", tmp_path / "ir", "--vis", tmp_path / "vis", "-o", "shots")
    assert code == 0, err
    assert [int(read_image(f"shots/{side}.png").max()) // 79 for side in ("ir", "vis")] == [6, 6]


def test_a_folder_with_times_beside_one_without(run_cli: RunCli, tmp_path: Path) -> None:
    for side in ("ir", "vis"):
        write_image(tmp_path / side / "0.png", np.arange(80, dtype=np.uint8).reshape(8, 10))
    (tmp_path / "ir" / "frames.csv").write_text("file,time_ns\n0.png,1700000000000000000\n")
    code, _, err = run_cli("snap", "--ir", tmp_path / "ir", "--vis", tmp_path / "vis", "-o", "shots")
    assert code == 0, err


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.int32])
def test_values_that_png_cannot_hold_are_kept_too(run_cli: RunCli, tmp_path: Path, dtype: type) -> None:
    image = (np.random.default_rng(1).normal(-20, 9, (40, 50)) * 10).astype(dtype)
    write_image(tmp_path / "ir" / "0.tiff", image)
    write_image(tmp_path / "vis" / "0.png", np.arange(2000, dtype=np.uint16).reshape(40, 50))
    code, out, err = run_cli("snap", "--ir", tmp_path / "ir", "--vis", tmp_path / "vis", "-o", "shots")
    assert code == 0, err
    assert "ir.tiff" in out
    got = read_image("shots/ir.tiff")
    assert got.dtype == dtype
    assert np.array_equal(got, image)
    assert run_cli("snap", "--ir", tmp_path / "ir", "--vis", tmp_path / "vis", "-o", "shots")[0] == 4


@pytest.mark.parametrize("kind", ["damaged", "without a value"])
def test_files_of_which_no_pair_can_be_taken(run_cli: RunCli, tmp_path: Path, kind: str) -> None:
    for number in range(3):
        write_image(tmp_path / "vis" / f"{number}.png", np.arange(80, dtype=np.uint8).reshape(8, 10))
        write_image(tmp_path / "ir" / f"{number}.tiff", np.full((8, 10), np.nan, np.float32))
        if kind == "damaged":
            path = tmp_path / "ir" / f"{number}.tiff"
            path.write_bytes(path.read_bytes()[:150])
    code, _, err = run_cli("snap", "--ir", tmp_path / "ir", "--vis", tmp_path / "vis", "-o", "shots")
    assert code == 4, err
    assert one_sentence(err)
    assert not Path("shots").exists()


def test_a_covered_camera_is_said(run_cli: RunCli, tmp_path: Path) -> None:
    for side in ("ir", "vis"):
        write_image(tmp_path / side / "0.png", np.full((8, 10), 77, np.uint16))
    code, _, err = run_cli("snap", "--ir", tmp_path / "ir", "--vis", tmp_path / "vis", "-o", "shots")
    assert code == 0
    assert err.count("same value") == 2


def test_a_mode_that_is_not_granted_is_an_error_or_said(run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    def frame(number: int, mode: Mode) -> bytes:
        time.sleep(0.02)
        return np.random.default_rng(number).bytes(mode.width * mode.height * 2)

    def opened(uri: Uri, side: Side) -> V4l2Source:
        camera = FakeCamera((Mode("Y16 ", 64, 48, 30.0),), frame, clock_ns=lambda _number: time.monotonic_ns())
        return V4l2Source(uri, side, camera)

    monkeypatch.setattr(v4l2, "V4l2Source", opened)
    words = "snap", "--ir", "v4l2:///dev/video8?width=640", "--vis", "v4l2:///dev/video9", "-o", "shots", "--settle-s", "0.2"
    code, _, err = run_cli(*words)
    assert code == 4, err
    assert "--best-effort" in err
    assert not Path("shots").exists()
    code, _, err = run_cli(*words, "--best-effort", "--json", "snap.json")
    assert code == 0, err
    found = json.loads(Path("snap.json").read_text())
    assert found["ir"]["size_wh"] == [64, 48]
    assert any("48x64" in text for text in found["remarks"])
    assert "48x64" in err
