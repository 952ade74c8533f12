"""The contact sheets of the sample pairs: which detail they show, how large they are, and that every task has one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from examples.contact_sheets import find_detail, main, write_below
from refusion_edge.errors import OutputError
from refusion_edge.images.io import read_image
from refusion_edge.images.samples import sample_paths
from refusion_edge.tasks import TASKS
from tests.raising import raises


@pytest.mark.parametrize("task", TASKS)
def test_a_sheet_shows_sources_result_and_a_detail(task: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-o", "sheets", "--task", task]) == 0
    path = Path(f"sheets/contact_{task}.jpg")
    assert str(path) in capsys.readouterr().out
    assert path.stat().st_size < 250_000
    sheet = read_image(path)
    # Three images of 320 pixels and four gaps of 8; under each sample its details, which are square.
    assert sheet.shape[1] == 3 * 320 + 4 * 8
    assert sheet.shape[0] > len(sample_paths(task)) * (320 + 180)
    third = sheet[-(320 + 8) : -8, -(320 + 8) : -8]
    assert third.std() > 5  # a detail of the fused picture, not a blank tile


def test_the_detail_is_where_the_texture_is(rng: np.random.Generator) -> None:
    a, b = np.full((90, 120), 100, np.uint8), np.full((90, 120, 3), 50, np.uint8)
    b[20:50, 70:100] = rng.integers(0, 256, (30, 30, 3))
    y, x, side = find_detail(a, b, 30)
    assert side == 30
    assert abs(y - 20) <= 2
    assert abs(x - 70) <= 2
    assert find_detail(a, b, 1000)[2] == 90


def test_a_sheet_that_cannot_be_small_enough_is_not_left_behind(rng: np.random.Generator) -> None:
    with raises(OutputError, "sheet.jpg", "100 bytes"):
        write_below(Path("sheet.jpg"), rng.integers(0, 256, (64, 64, 3)).astype(np.uint8), 100)
    assert not Path("sheet.jpg").exists()


def test_weights_are_for_one_task() -> None:
    with pytest.raises(SystemExit):
        main(["--weights", "x.safetensors"])
