"""Inputs from which nothing can be shown: every verb ends with one sentence and its code, and writes nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.images.io import write_image
from tests.conftest import one_sentence
from tests.stream.conftest import write_video
from tests.stream.sources.test_video import blank, panning, spoil

RunCli = Callable[..., tuple[int, str, str]]
Picture = Callable[..., Array]

FOLDERS = ("empty", "hidden", "damaged", "no value", "one value")
VIDEOS = ("0 bytes.mkv", "no stream.mp4", "noise.avi", "damaged.avi", "cut.mkv")


@pytest.fixture(autouse=True)
def inputs(picture: Picture) -> None:
    """Folders and videos of which nothing can be shown, and ``good`` and ``good.mkv``."""
    for folder in (*FOLDERS, "good"):
        Path(folder).mkdir()
    for number in range(2):
        write_image(f"good/{number}.png", picture(48, 64, 3))
        data = Path(f"good/{number}.png").read_bytes()
        Path(f"damaged/{number}.png").write_bytes(data[: len(data) // 2])
        Path(f"hidden/._{number}.png").write_bytes(data)
        write_image(f"no value/{number}.tiff", np.full((48, 64), np.nan, np.float32))
        write_image(f"one value/{number}.png", np.full((48, 64), 77, np.uint16))
    frames = panning(picture, 4)
    write_video("good.mkv", frames)
    write_video("whole.avi", frames, codec="mjpeg", pixels="yuvj420p")
    spoil("whole.avi", "damaged.avi", range(4), blank)
    Path("0 bytes.mkv").write_bytes(b"")
    Path("noise.avi").write_bytes(np.random.default_rng(1).bytes(5000))
    Path("cut.mkv").write_bytes(Path("good.mkv").read_bytes()[:300])
    with av.open("no stream.mp4", "w") as file:
        stream = file.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        file.start_encoding()


def refused(run_cli: RunCli, *words: object, sentences: int = 1) -> None:
    """Require exit code 4, one sentence that names what is wrong, and no output."""
    code, _, err = run_cli(*words)
    assert code == 4, (words, err)
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if "error: " in line]
    assert len(lines) == sentences, err
    assert all(one_sentence(line) for line in lines), err
    for name in ("out", "out.mkv", "shots", "rig.yaml", "runs"):
        assert not Path(name).exists(), name


@pytest.mark.parametrize("name", FOLDERS)
def test_fuse_and_eval(run_cli: RunCli, name: str) -> None:
    each = 2 if name in ("damaged", "no value", "one value") else 1  # one for each pair
    for sources in ((name, "good"), ("good", name)):
        refused(run_cli, "fuse", *sources, "-o", "out", "--network", "fast", "--threads", 1, sentences=each)
        refused(run_cli, "eval", "--ir", sources[0], "--vis", sources[1], "--fused", "good", "--jobs", 1)
    if name != "one value":  # which is a bad result, and scored as one
        refused(run_cli, "eval", "--ir", "good", "--vis", "good", "--fused", name, "--jobs", 1)


@pytest.mark.parametrize("name", [*FOLDERS, *VIDEOS])
def test_stream(run_cli: RunCli, name: str) -> None:
    good = "good.mkv" if name in VIDEOS else "good"
    for ir, vis in ((name, good), (good, name)):
        code, _, err = run_cli("stream", "--ir", ir, "--vis", vis, "-o", "null://", "--network", "fast", "--threads", 1)
        assert code == 4, err
        assert one_sentence(err), err


@pytest.mark.parametrize("name", [*FOLDERS, *VIDEOS])
def test_snap_and_align(run_cli: RunCli, name: str) -> None:
    good = "good.mkv" if name in VIDEOS else "good"
    if name != "one value":  # which is said, as the lens may be covered
        refused(run_cli, "snap", "--ir", name, "--vis", good, "-o", "shots", "--timeout-s", 5)
    if name in VIDEOS:
        refused(run_cli, "align", "auto", "--ir", name, "--vis", good, "-o", "rig.yaml")
    elif name not in ("empty", "hidden"):
        image = next(path for path in Path(name).iterdir())
        code, _, err = run_cli("align", "auto", "--ir", image, "--vis", "good/0.png", "-o", "rig.yaml", "--model", "similarity")
        assert code == (1 if name == "one value" else 4), err
        assert one_sentence(err)
        assert not Path("rig.yaml").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", FOLDERS)
def test_train(run_cli: RunCli, name: str) -> None:
    for side in ("ir", "vis"):
        shutil.copytree(name if side == "ir" else "good", f"data/{side}")
    refused(run_cli, "train", "--task", "ir_vis", "--data", "data", "-o", "runs")


@pytest.mark.parametrize("name", ["loop", "loop.png", "loop.mkv"])
def test_links_to_themselves(run_cli: RunCli, name: str) -> None:
    Path(name).symlink_to(name)
    good = {"loop": "good", "loop.png": "good/0.png", "loop.mkv": "good.mkv"}[name]
    for ir, vis in ((name, good), (good, name)):
        refused(run_cli, "fuse", ir, vis, "-o", "out.png", "--network", "fast")
        refused(run_cli, "stream", "--ir", ir, "--vis", vis, "-o", "null://", "--network", "fast", "--threads", 1)
        refused(run_cli, "snap", "--ir", ir, "--vis", vis, "-o", "shots")
        refused(run_cli, "align", "auto", "--ir", ir, "--vis", vis, "-o", "rig.yaml")


def test_names_that_are_no_text_end_up_in_no_file_as_they_are(run_cli: RunCli) -> None:
    odd = os.fsdecode(b"n\xff\xe9")
    for folder in (f"ir{odd}", "vis", "fused"):
        Path(folder).mkdir()
        shutil.copy("good/0.png", f"{folder}/{odd}.png")
    code, _, err = run_cli(
        "eval", "--ir", f"ir{odd}", "--vis", "vis", "--fused", "fused", "--jobs", 1,
        "--csv", "e.csv", "--html", "e.html", "--json", "e.json",
    )  # fmt: skip
    assert code == 0, err
    pair = "--ir", f"ir{odd}", "--vis", "vis"
    code, _, err = run_cli("stream", *pair, "-o", f"out{odd}", "--network", "fast", "--threads", 1, "--json", "s.json")
    assert code == 0, err
    code, _, err = run_cli("snap", *pair, "-o", f"shots{odd}", "--json", "n.json")
    assert code == 0, err
    for name in ("e.csv", "e.html", "e.json", "s.json", "n.json"):
        assert Path(name).read_bytes().decode("utf-8"), name
    assert Path(f"out{odd}/000000.png").is_file()
    assert Path(f"shots{odd}/ir.png").is_file()
