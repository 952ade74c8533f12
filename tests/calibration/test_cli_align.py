"""``align`` on the command line: every way, what it writes, and every user error in one sentence."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.calibration.rig.motion import apart_px
from refusion_edge.images.io import read_image, write_image
from refusion_edge.images.pairs import ImagePair
from refusion_edge.rig.file import read_rig
from refusion_edge.rig.warp import warp_points
from tests.calibration.conftest import MOVE
from tests.calibration.rig.test_board import board_picture
from tests.calibration.rig.test_stereo import write as write_calibration
from tests.conftest import files_below, one_sentence

Run = Callable[..., tuple[int, str, str]]
Move = Callable[..., Array]


@pytest.fixture
def pair(street: ImagePair, moved: Move) -> ImagePair:
    """The moved street, in files."""
    write_image("ir.png", moved(street.a))
    write_image("vis.png", street.b)
    return street


PICTURES = ("--ir", "ir.png", "--vis", "vis.png")


def test_auto_writes_a_rig_that_check_confirms(run_cli: Run, pair: ImagePair, moved: Move) -> None:
    words = ("--distance", "10m", "--baseline", "30mm", "--fov", "50", "--polarity", "black", "--gain", "clahe")
    uris = ("--ir-uri", "v4l2:///dev/video1", "--time-offset-ms", "-12.5")
    code, out, err = run_cli("align", "auto", *PICTURES, *words, *uris, "-o", "new/rig.yaml", "--overlay", "over.png")
    assert (code, err) == (0, "")
    assert re.search(r"^Alignment +error \d\.\d\d px \(10 m\)$", out, re.MULTILINE)
    assert "parallax error (px), aligned for 10 m" in out
    assert re.search(r"standard error \d\.\d\d px", out)
    rig = read_rig("new/rig.yaml")
    assert (rig.polarity, rig.gain, rig.time_offset_ms, rig.base, rig.ir.uri) == (
        "black",
        "clahe",
        -12.5,
        "vis",
        "v4l2:///dev/video1",
    )
    assert rig.parallax is not None
    assert rig.parallax.focal_px == pytest.approx(192 / math.tan(math.radians(25)))
    size = pair.b.shape[1], pair.b.shape[0]
    assert apart_px(MOVE, rig.homography(10.0), size) < 0.4
    picture = read_image("over.png")
    assert picture.ndim == 3
    assert picture.std() > 20

    code, out, err = run_cli("align", "check", "new/rig.yaml", *PICTURES)
    assert (code, err) == (0, "")
    assert "PASSED" in out
    write_image("ir.png", moved(pair.a, MOVE @ np.array([[1, 0, 6.0], [0, 1, 0], [0, 0, 1]])))
    code, out, _ = run_cli("align", "check", "new/rig.yaml", *PICTURES, "--json", "check.json", "--overlay", "check.png")
    assert code == 1
    assert "FAILED" in out
    report = json.loads(Path("check.json").read_text())
    assert report["passed"] is False
    assert report["offset_px"] == pytest.approx(6, abs=0.5)
    assert Path("check.png").is_file()


@pytest.mark.slow
def test_a_second_distance_joins_the_rig(run_cli: Run, pair: ImagePair) -> None:
    assert run_cli("align", "auto", *PICTURES, "--distance", "far", "--ir-crop", "0,0,384,280")[0] == 0
    code, out, err = run_cli("align", "auto", *PICTURES, "--distance", "2m")
    assert (code, out) == (4, "")
    assert "--rig rig.yaml" in err
    code, _, err = run_cli("align", "auto", *PICTURES, "--distance", "2m", "--rig", "rig.yaml", "--onto", "ir")
    assert code == 2
    assert "--onto" in err
    more = ("--ir-uri", "csi://0", "--json", "-")
    code, out, _ = run_cli("align", "auto", *PICTURES, "--distance", "2m", "--rig", "rig.yaml", *more)
    assert code == 0
    document = json.loads(out)
    assert (document["distance_m"], document["parallax"]) == (2.0, None)
    rig = read_rig("rig.yaml")
    assert [alignment.distance_m for alignment in rig.alignments] == [2.0, math.inf]
    assert (rig.ir.crop_xywh, rig.ir.uri) == ((0, 0, 384, 280), "csi://0")
    assert rig.alignments[0].error_px == document["error_px"]
    assert run_cli("align", "auto", *PICTURES, "--onto", "ir", "--overwrite", "--model", "affine")[0] == 0
    rig = read_rig("rig.yaml")
    assert (rig.base, rig.alignments[0].distance_m) == ("ir", None)
    assert apart_px(np.linalg.inv(MOVE), rig.homography(), (384, 288)) < 1


@pytest.mark.slow
def test_auto_fails_loudly_and_writes_nothing(run_cli: Run, pair: ImagePair, noise_scene: Callable[[int], Array]) -> None:
    write_image("ir.png", noise_scene(1))
    write_image("vis.png", noise_scene(2))
    code, out, err = run_cli("align", "auto", *PICTURES, "--overlay", "over.png")
    assert (code, out) == (1, "")
    assert one_sentence(err)
    assert one_sentence(err)
    assert files_below(Path()) == ["ir.png", "vis.png"]


def test_points(run_cli: Run, pair: ImagePair, rng: np.random.Generator) -> None:
    vis = rng.uniform((20, 20), (360, 260), (9, 2))
    ir = warp_points(MOVE, vis) + rng.normal(0, 0.3, vis.shape)
    rows = "\n".join(",".join(map(str, row)) for row in np.column_stack((ir, vis)))
    Path("p.csv").write_text(f"ir_x,ir_y,vis_x,vis_y\n{rows}\n")
    code, out, err = run_cli("align", "points", "p.csv", *PICTURES, "--model", "similarity", "--overlay", "over.png")
    assert (code, err) == (0, "")
    assert "from 9 points over" in out
    rig = read_rig("rig.yaml")
    assert apart_px(MOVE, rig.homography(), (384, 288)) < 1
    assert rig.alignments[0].error_px is not None
    assert "parallax" in out


def test_checkerboard(run_cli: Run) -> None:
    move = np.array([[0.8, 0.02, 40], [-0.02, 0.8, 30], [0, 0, 1.0]])
    for index, base in enumerate(([[1.0, 0, 10], [0, 1, 20], [0, 0, 1]], [[1.0, 0, 180], [0, 1, 80], [0, 0, 1]])):
        write_image(f"ir/{index}.png", board_picture(move @ np.array(base), inverted=True))
        write_image(f"vis/{index}.png", board_picture(np.array(base)))
    code, out, err = run_cli("align", "checkerboard", "--ir", "ir", "--vis", "vis", "--board", "7x5", "--distance", "3m")
    assert code == 0
    assert "--turn 180" in err
    assert "from 70 corners" in out
    assert "assumed" in read_rig("rig.yaml").alignments[0].error_method
    assert apart_px(move, read_rig("rig.yaml").homography(3.0), (640, 480)) < 1


def test_an_upside_down_camera_is_told(run_cli: Run) -> None:
    base = np.array([[1.0, 0, 60], [0, 1, 80], [0, 0, 1]])
    write_image("vis.png", board_picture(base))
    write_image("ir.png", np.ascontiguousarray(board_picture(base)[::-1, ::-1]))
    code, _, err = run_cli("align", "checkerboard", *PICTURES, "--board", "7x5", "--turn", "180")
    assert (code, err) == (0, "")
    assert apart_px(np.array([[-1.0, 0, 639], [0, -1, 479], [0, 0, 1]]), read_rig("rig.yaml").homography(), (640, 480)) < 1


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ("10,10,300,10\n370,12,20,14\n15,270,310,275\n360,265,15,400\n", "vis"),
        ("700,10,300,10\n370,12,20,14\n15,270,310,275\n360,265,15,270\n", "ir"),
    ],
)
def test_points_outside_a_picture(run_cli: Run, pair: ImagePair, rows: str, named: str) -> None:
    Path("p.csv").write_text("ir_x,ir_y,vis_x,vis_y\n" + rows)
    code, out, err = run_cli("align", "points", "p.csv", *PICTURES)
    assert (code, out) == (4, "")
    assert f"1 of 4 points lie outside the {named} picture" in err
    assert not Path("rig.yaml").exists()


@pytest.fixture
def narrow(street: ImagePair) -> Array:
    """The street in files, its infrared image cut to two thirds of the width; returns the true homography."""
    height, width = street.b.shape[:2]
    left, top = width // 8, height // 8
    write_image("ir.png", np.ascontiguousarray(street.a[top : top + 2 * height // 3, left : left + 2 * width // 3]))
    write_image("vis.png", street.b)
    return np.array([[1.0, 0, -left], [0, 1, -top], [0, 0, 1]])


# The visible camera sees 74 degrees; two thirds of its width are as much as atan(2/3 tan(37 degrees)) to each side.
IR_FOV = str(2 * math.degrees(math.atan(2 / 3 * math.tan(math.radians(37)))))


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("--scale-range", "0.6,0.75"), ("--ir-fov", IR_FOV, "--vis-fov", "74")])
@pytest.mark.parametrize("onto", ["vis", "ir"])
def test_fields_of_view_differ(run_cli: Run, narrow: Array, words: tuple[str, ...], onto: str) -> None:
    code, out, err = run_cli("align", "auto", *PICTURES, *words, "--onto", onto)
    assert (code, err) == (0, "")
    assert "infrared 0.67 times as wide" in out
    found = read_rig("rig.yaml").homography()
    assert apart_px(narrow, found if onto == "vis" else np.linalg.inv(found), (384, 288)) < 1.5


@pytest.mark.slow
@pytest.mark.parametrize("words", [("--scale-range", "1.3,1.7"), ("--ir-fov", "74", "--vis-fov", IR_FOV)])
def test_a_wrong_field_of_view_is_named(run_cli: Run, narrow: Array, words: tuple[str, ...]) -> None:
    code, out, err = run_cli("align", "auto", *PICTURES, *words)
    assert (code, out) == (1, "")
    assert "0.67 times" in err


def test_calibration(run_cli: Run) -> None:
    write_calibration("stereo.yml")
    sizes = ("--ir-size", "512x640", "--vis-size", "480x640")
    code, out, err = run_cli("align", "calibration", "stereo.yml", *sizes, "--unit", "mm", "--distance", "2m,far")
    assert (code, err) == (0, "")
    assert "error 0.31 px" in out
    assert "50 m" in out
    rig = read_rig("rig.yaml")
    assert [alignment.distance_m for alignment in rig.alignments] == [2.0, math.inf]
    assert rig.vis.lens is not None


@pytest.mark.parametrize(
    ("words", "expected", "hint"),
    [
        (("auto", *PICTURES, "--distance", "5"), 2, "--distance"),
        (("auto", *PICTURES, "--distance", "0m"), 2, "'0m'"),
        (("auto", *PICTURES, "--scale-range", "2,1"), 2, "'2,1'"),
        (("auto", *PICTURES, "--max-shift", "0.9"), 2, "'0.9'"),
        (("auto", *PICTURES, "--ir-fov", "50"), 2, "--vis-fov"),
        (("auto", *PICTURES, "--ir-fov", "50", "--vis-fov", "74", "--scale-range", "0.5,0.9"), 2, "--scale-range"),
        (("checkerboard", *PICTURES, "--board", "9x6", "--turn", "45"), 2, "45"),
        (("auto", *PICTURES, "--ir-crop", "1,2,3"), 2, "'1,2,3'"),
        (("auto", *PICTURES, "--ir-crop", "0,0,9999,9"), 4, "9999"),
        (("auto", *PICTURES, "--baseline", "3cm"), 2, "--fov"),
        (("auto", *PICTURES, "--fov", "200"), 2, "'200'"),
        (("auto", *PICTURES, "--time-offset-ms", "nan"), 2, "'nan'"),
        (("auto", *PICTURES, "--overlay", "x.gif"), 2, "x.gif"),
        (("auto", *PICTURES, "--overlya", "x.png"), 2, "'--overlay'"),
        (("auto", "--ir", "none.png", "--vis", "vis.png"), 4, "none.png"),
        (("auto", *PICTURES, "--rig", "none.yaml"), 4, "none.yaml"),
        (("auto", *PICTURES, "--rig", "small.yaml", "-o", "y.yaml"), 4, "48x64"),
        (("auto", *PICTURES, "-o", "ir.png/rig.yaml"), 4, "ir.png"),
        (("points", "none.csv", *PICTURES), 4, "none.csv"),
        (("checkerboard", *PICTURES, "--board", "2x2"), 2, "'2x2'"),
        (("checkerboard", *PICTURES, "--board", "9x6"), 1, "9x6"),
        (("calibration", "none.yml"), 2, "--ir-size"),
        (("calibration", "none.yml", *PICTURES), 4, "none.yml"),
        (("calibration", "none.yml", *PICTURES, "--unit", "inch"), 2, "unit"),
        (("check", "none.yaml", *PICTURES), 4, "none.yaml"),
        (("check", "small.yaml", *PICTURES), 4, "48x64"),
        (("check", "whole.yaml", *PICTURES, "--distance", "3m"), 4, "3 m"),
        (("atuo", *PICTURES), 2, "'auto'"),
        ((), 2, "required"),
    ],
)  # fmt: skip
def test_user_errors(run_cli: Run, pair: ImagePair, words: tuple[str, ...], expected: int, hint: str) -> None:
    rig = "schema: refusion-edge/rig/1\nir: {{size_wh: {0}}}\nvis: {{size_wh: {0}}}\nalignments:\n- homography: {1}\n"
    identity = "[[1, 0, 0], [0, 1, 0], [0, 0, 1]]"
    Path("small.yaml").write_text(rig.format("[64, 48]", identity))
    Path("whole.yaml").write_text(rig.format("[384, 288]", identity))
    before = files_below(Path())
    code, out, err = run_cli("align", *words)
    assert (code, out) == (expected, "")
    assert hint in err
    assert len(err.strip().splitlines()) == 1
    if expected != 2:
        assert one_sentence(err)
    assert files_below(Path()) == before


def test_every_way_has_help(run_cli: Run) -> None:
    for way in ("auto", "points", "checkerboard", "calibration", "check"):
        code, out, _ = run_cli("align", way, "--help")
        assert code == 0
        assert out.startswith(f"usage: refusion-edge align {way}")


def test_sixteen_bit_frames_and_another_size(run_cli: Run, pair: ImagePair, moved: Move) -> None:
    thermal = 7000 + 9 * moved(pair.a).astype(np.uint16)
    write_image("ir.png", cv2.resize(thermal, (256, 192), interpolation=cv2.INTER_AREA))
    assert run_cli("align", "auto", *PICTURES, "--overlay", "over.png")[0] == 0
    third = 2 / 3
    scale = np.array([[third, 0, (third - 1) / 2], [0, third, (third - 1) / 2], [0, 0, 1]])
    assert apart_px(scale @ MOVE, read_rig("rig.yaml").homography(), (384, 288)) < 1
