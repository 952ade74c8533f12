"""A training folder in one file, and back."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch")

from benchmarks.gpu_pack import MOST_MB, main, packed
from refusion_edge.errors import InputError
from refusion_edge.tasks import find_task
from refusion_edge.train.collection import read_planes, survey
from tests.conftest import ROOT


def write_pairs(folder: Path, task: str) -> None:
    draw = np.random.default_rng(0)
    for name in (find_task(task).folder_a, find_task(task).folder_b):
        (folder / name).mkdir(parents=True)
        for index, shape in enumerate([(40, 60), (33, 17, 3)]):
            cv2.imwrite(str(folder / name / f"pair{index}.png"), draw.integers(0, 256, shape, np.uint8))


@pytest.mark.parametrize("task", ["ir_vis", "multi_focus"])
def test_what_is_unpacked_trains_on_the_same_pixels(task: str) -> None:
    write_pairs(Path("data"), task)
    if task == "multi_focus":
        Path("data/sharp").mkdir()
        cv2.imwrite("data/sharp/pair0.png", np.random.default_rng(1).integers(0, 256, (50, 50, 3), np.uint8))
    data, side_px, pairs = packed(find_task(task), Path("data"), 1 << 20, (32, 16))
    assert (side_px, pairs) == (32, 3 if task == "multi_focus" else 2)
    zipfile.ZipFile(io.BytesIO(data)).extractall("unpacked")
    before, after = (survey(Path(folder), find_task(task), 16).entries for folder in ("data", "unpacked"))
    assert [(one.name, one.b is None) for one in after] == [(one.name, one.b is None) for one in before]
    for one, other in zip(before, after, strict=True):
        for whole, crop in zip(read_planes(one), read_planes(other), strict=True):
            top, left = (max(side - 32, 0) // 2 for side in whole.shape)
            assert np.array_equal(crop, whole[top : top + 32, left : left + 32])
    assert packed(find_task(task), Path("data"), 1 << 20, (32, 16))[0] == data


def test_the_largest_crops_that_fit_are_taken() -> None:
    write_pairs(Path("data"), "ir_vis")
    task = find_task("ir_vis")
    whole = len(packed(task, Path("data"), 1 << 20, (64, 32, 16))[0])
    assert packed(task, Path("data"), whole, (64, 32, 16))[1] == 64
    data, side_px, _ = packed(task, Path("data"), whole - 1, (64, 32, 16))
    assert (side_px, len(data) < whole) == (32, True)
    with pytest.raises(InputError):
        packed(task, Path("data"), 100, (64, 32, 16))


def test_the_command_writes_the_file_or_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    draw = np.random.default_rng(0)
    for name in ("ir", "vis"):
        Path("data", name).mkdir(parents=True)
        cv2.imwrite(f"data/{name}/pair.png", draw.integers(0, 256, (130, 140), np.uint8))
    assert main(["--data", "data", "-o", "pairs.zip"]) == 0
    assert zipfile.ZipFile("pairs.zip").namelist() == ["ir/pair.png", "vis/pair.png"]
    capsys.readouterr()
    assert main(["--data", "absent", "-o", "pairs.zip"]) == 4
    assert main(["--data", "data", "-o", "pairs.zip", "--mb", "0.001"]) == 4
    assert capsys.readouterr().err.count("\n") == 2


@pytest.mark.slow
@pytest.mark.parametrize("task", ["ir_vis"])
def test_the_training_pairs_fit(task: str) -> None:
    folder = ROOT.parent / "shared/data" / task / "train"
    if not folder.is_dir():
        pytest.skip(f"{folder} does not exist")
    data, side_px, pairs = packed(find_task(task), folder, round(MOST_MB * 1e6))
    assert (len(data) <= 55e6, side_px >= 256, pairs > 200) == (True, True, True)
