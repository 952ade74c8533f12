"""``snap``, and ``align auto`` from cameras."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from refusion_edge.images.io import read_image
from refusion_edge.rig.file import read_rig
from refusion_edge.stream.sources.synthetic import Painter, Scene
from tests.stream.conftest import camera

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


def test_align_auto_takes_cameras(run_cli: RunCli) -> None:
    scene = "width=320&height=240&noise=1&walker=0"
    uris = f"test://ir?{scene}&dx=6", f"test://vis?{scene}"
    code, _, err = run_cli("align", "auto", "--ir", uris[0], "--vis", uris[1], "-o", "rig.yaml")
    # The synthetic scene may not give the evidence that an alignment needs; the frames were taken in any case.
    assert code in (0, 1), err
    if code == 0:
        rig = read_rig("rig.yaml")
        assert (rig.ir.uri, rig.vis.uri) == uris
        assert rig.ir.size_wh == (320, 240)
    code, _, err = run_cli("align", "points", "p.csv", "--ir", uris[0], "--vis", uris[1])
    assert code == 2
