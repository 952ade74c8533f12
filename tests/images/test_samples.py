"""The sample pairs: complete, registered, small, and made by the script in the repository."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from refusion_edge.images.io import read_image
from refusion_edge.images.pairs import read_pair
from refusion_edge.images.samples import FOLDER, sample_paths
from refusion_edge.tasks import TASKS
from tests.conftest import ROOT

PAIRS = {"ir_vis": 2, "medical": 1, "multi_focus": 1, "multi_exposure": 1}


@pytest.mark.parametrize("task", TASKS)
def test_pairs_are_registered_and_small(task: str) -> None:
    paths = sample_paths(task)
    assert len(paths) == PAIRS[task]
    for path in paths:
        pair = read_pair(path)
        assert pair.a.shape[:2] == pair.b.shape[:2]
        assert path.a.stat().st_size + path.b.stat().st_size < 300_000


def test_medical_background_is_exactly_black() -> None:
    (paths,) = sample_paths("medical")
    pair = read_pair(paths)
    for image in (pair.a, pair.b):
        corners = np.concatenate([image[:12, :12].ravel(), image[-12:, -12:].ravel()])
        assert not corners.any()


@pytest.mark.slow
def test_script_renders_the_shipped_files(tmp_path: Path) -> None:
    render = [sys.executable, str(ROOT / "examples" / "render_samples.py"), "--output", str(tmp_path)]
    done = subprocess.run(render, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    shipped, rendered = (
        {path.relative_to(folder) for path in folder.rglob("*.*") if path.suffix in (".png", ".jpg")}
        for folder in (FOLDER, tmp_path)
    )
    assert rendered == shipped
    for name in sorted(shipped):
        stored, image = (read_image(folder / name).astype(int) for folder in (FOLDER, tmp_path))
        assert stored.shape == image.shape, name
        # OpenCV versions may round differently.
        assert np.abs(stored - image).max() <= 2, name
