"""``fuse`` with files as cameras and people leave them: encodings, missing pixels, odd names, and failures that end nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.cli import main
from refusion_edge.errors import BackendError, UsageError
from refusion_edge.fuser import Fuser
from refusion_edge.images.io import read_image, write_image
from refusion_edge.images.luma import Planes
from tests.conftest import one_sentence

Picture = Callable[..., Array]


def levels_of(picture: Picture) -> Array:
    levels = picture(40, 56).astype(np.float64)
    return np.rint((levels - levels.min()) / np.ptp(levels) * 255).astype(np.uint8)


def fuse(*arguments: str) -> int:
    return main(["fuse", *arguments, "--backend", "onnxruntime", "--threads", "1"])


@pytest.mark.parametrize("output_range", ["stretch", "fixed"])
def test_the_same_scene_gives_the_same_image_in_every_encoding(picture: Picture, output_range: str) -> None:
    import tifffile

    levels = levels_of(picture)
    tifffile.imwrite("levels.tiff", levels)
    tifffile.imwrite("counts.tiff", (51_241 + levels.astype(np.uint16) * 4).astype(np.uint16))
    tifffile.imwrite("centikelvin.tiff", (28_500 + levels.astype(np.uint16) * 5).astype(np.uint16))
    tifffile.imwrite("kelvin.tiff", (285 + levels * 0.05).astype(np.float32))
    write_image("vis.png", picture(40, 56, 3))
    results = {}
    for name in ("levels", "counts", "centikelvin", "kelvin"):
        assert fuse(f"{name}.tiff", "vis.png", "-o", f"{name}.png", "--range", output_range) == 0
        results[name] = read_image(f"{name}.png").astype(int)
    for name, image in results.items():
        assert np.abs(image - results["levels"]).max() <= 2, name


def test_pixels_without_a_value_show_the_other_source_and_are_counted(
    picture: Picture, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = (51_241 + levels_of(picture).astype(np.uint16) * 4).astype(np.uint16)
    counts[:8] = 0
    visible = picture(40, 56)
    write_image("ir.png", counts)
    write_image("vis.png", visible)
    assert fuse("ir.png", "vis.png", "-o", "out.png", "--json", "out.json") == 0
    assert np.abs(read_image("out.png")[:8].astype(int) - visible[:8]).max() <= 1
    document = json.loads(Path("out.json").read_text())
    (written,) = document["written"]
    assert [source["invalid_pixels"] for source in written["sources"]] == [8 * 56, 0]
    assert (written["sources"][0]["low"], written["sources"][0]["high"]) == (counts[8:].min(), counts[8:].max())
    assert any(remark["pixels"] == 8 * 56 for remark in document["remarks"])
    assert str(8 * 56) in capsys.readouterr().err


def test_noise_alone_is_not_stretched_without_limit(rng: np.random.Generator, capsys: pytest.CaptureFixture[str]) -> None:
    for name, level in (("ir.png", 90), ("vis.png", 110)):
        write_image(name, (level + rng.normal(0, 2, (40, 56))).round().astype(np.uint8))
    shown, said, remarks = {}, {}, {}
    for output_range in ("stretch", "fixed"):
        assert (
            fuse("ir.png", "vis.png", "-o", f"{output_range}.png", "--range", output_range, "--json", f"{output_range}.json")
            == 0
        )
        shown[output_range] = read_image(f"{output_range}.png").astype(float)
        remarks[output_range] = json.loads(Path(f"{output_range}.json").read_text())["remarks"]
        said[output_range] = capsys.readouterr().err
    assert shown["stretch"].std() == pytest.approx(4 * shown["fixed"].std(), rel=0.1)
    (limited,) = [remark for remark in remarks["stretch"] if remark not in remarks["fixed"]]
    assert len(limited["images"]) == 1
    assert limited["text"] in said["stretch"]
    assert limited["text"] not in said["fixed"]


def test_a_fire_beyond_the_range_of_the_sensor_stays_hot(picture: Picture) -> None:
    levels, vis = levels_of(picture), np.full((40, 56), 60, np.uint8)
    vis[::2] = 80
    counts = (levels.astype(np.uint16) * 8) + 21_000
    counts[10:20, 20:34] = 65_535
    write_image("ir.png", counts)
    write_image("vis.png", vis)
    assert fuse("ir.png", "vis.png", "-o", "out.png", "--task", "ir_vis", "--json", "out.json") == 0
    fused = read_image("out.png")
    assert fused[12:18, 23:31].mean() > 200
    assert not [remark for remark in json.loads(Path("out.json").read_text())["remarks"] if "without a value" in remark["text"]]


def test_a_guessed_depth_is_said_once_and_can_be_overridden(picture: Picture, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(3):
        write_image(f"ir/{index}.png", picture(24, 32))
        write_image(f"vis/{index}.png", (picture(24, 32, 1, np.uint16) >> 4).astype(np.uint16))
    assert fuse("ir", "vis", "-o", "out") == 0
    assert capsys.readouterr().err.count("12 significant bits") == 1
    assert fuse("ir/0.png", "vis/0.png", "-o", "guessed.png") == 0
    assert fuse("ir/0.png", "vis/0.png", "-o", "given.png", "--b-range", "0:4095") == 0
    assert np.array_equal(read_image("guessed.png"), read_image("given.png"))
    assert fuse("ir/0.png", "vis/0.png", "-o", "full.png", "--b-range", "full") == 0
    assert not np.array_equal(read_image("guessed.png"), read_image("full.png"))
    assert fuse("ir/0.png", "vis/0.png", "-o", "x.png", "--b-range", "9:3") == 2


def test_one_failure_does_not_end_a_folder(picture: Picture, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["a", "b", "c", "long" + "x" * 242]
    for name in names:
        for folder in ("ir", "vis"):
            write_image(f"{folder}/{name}.png", picture(24, 32))
    Path("ir/b.png").unlink()
    Path("ir/b.png").symlink_to("b.png")  # a link to itself
    Path("out/c.png").mkdir(parents=True)
    Path("ir/._a.png").write_bytes(b"resource fork")
    Path("vis/Thumbs.db").write_bytes(b"thumbnails")
    assert fuse("ir", "vis", "-o", "out", "--json", "out.json") == 4
    document = json.loads(Path("out.json").read_text())
    assert [written["name"] for written in document["written"]] == ["a", names[3]]
    assert [failed["name"] for failed in document["failed"]] == ["b", "c"]
    assert document["left_out"] == ["vis/Thumbs.db"]
    assert read_image(f"out/{names[3]}.png").shape == (24, 32)
    assert "Traceback" not in capsys.readouterr().err


def test_a_pair_for_which_memory_runs_out_does_not_end_a_folder(
    picture: Picture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("ir", "vis"):
        for name, width in (("a", 32), ("b", 40), ("c", 32)):
            write_image(f"{folder}/{name}.png", picture(24, width))
    infer = Fuser.infer

    def run_out(fuser: Fuser, planes: Planes, **options: bool) -> object:
        if planes.a.shape[3] == 40:
            raise BackendError("there is not enough memory", "fuse smaller images")
        return infer(fuser, planes, **options)

    monkeypatch.setattr(Fuser, "infer", run_out)
    assert fuse("ir", "vis", "-o", "out", "--json", "out.json") == 3
    document = json.loads(Path("out.json").read_text())
    assert [written["name"] for written in document["written"]] == ["a", "c"]
    assert [failed["name"] for failed in document["failed"]] == ["b"]


def test_memory_that_runs_out_outside_the_network_is_one_sentence(
    picture: Picture, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image("a.png", picture(24, 32))

    def run_out(*_: object, **__: object) -> object:
        raise MemoryError

    monkeypatch.setattr(Fuser, "to_planes", run_out)
    assert fuse("a.png", "a.png", "-o", "out.png") == 3
    assert one_sentence(capsys.readouterr().err)
    assert not Path("out.png").exists()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_names_that_no_terminal_can_show_are_escaped(picture: Picture, encoding: str) -> None:
    write_image("ir/x.png", picture(24, 32))
    write_image("vis/x.png", picture(24, 32))
    odd = os.fsencode("ir/x.png").replace(b"x", b"\xff\xe4\xf6")
    Path("ir/x.png").rename(os.fsdecode(odd))
    Path("vis/x.png").rename(os.fsdecode(odd.replace(b"ir", b"vis")))
    done = subprocess.run(
        [sys.executable, "-m", "refusion_edge", "fuse", "ir", "vis", "-o", os.fsdecode(b"out\xff"), "--backend", "onnxruntime"],
        env=os.environ | {"PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr
    assert Path(os.fsdecode(b"out\xff/\xff\xe4\xf6.png")).is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_behind_standard_output_is_one_sentence(picture: Picture) -> None:
    write_image("ir.png", picture(24, 32))
    write_image("vis.png", picture(24, 32))
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "refusion_edge", "fuse", "ir.png", "vis.png", "-o", "out.png", "--backend", "onnxruntime"],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 4
    assert b"Traceback" not in done.stderr
    assert Path("out.png").is_file()


def test_a_data_set_of_a_known_layout_is_named_once(picture: Picture) -> None:
    for folder in ("Ir", "Vis"):
        write_image(f"data/{folder}/1.png", picture(24, 32))
    assert fuse("data", "data", "-o", "out") == 0
    assert fuse("data", "data", "-o", "again", "--layout", "m3fd") == 0
    assert fuse("data", "data", "-o", "out", "--layout", "msrs") == 4
    # Which of the two would be left out?
    Path("other").mkdir()
    assert fuse("data", "other", "-o", "two", "--layout", "m3fd") == UsageError.exit_code
    assert not Path("two").exists()
    assert fuse("data", "data/", "-o", "two", "--layout", "m3fd") == 0
    assert np.array_equal(read_image("out/1.png"), read_image("again/1.png"))
