"""The control runs of ``fast``: each differs from the baseline in what its name says, and only in that."""

from __future__ import annotations

import shutil
from argparse import Namespace
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="training needs torch")

from benchmarks.controls import CONTROLS, TASK, _remembering, _trained, settings_of
from refusion_edge.network.weights import weights_path

EXPECTED = {
    "baseline": set(),
    "seed 1": {"run.seed"},
    "seed 2": {"run.seed"},
    "loss alone": set(),
    "teacher alone": {"teacher.loss"},
    "no statistics": {"optimizer.frozen"},
    "32 channels": {"fast.channels"},
    "16 channels": {"fast.channels"},
}


def test_each_run_differs_in_one_thing() -> None:
    baseline = settings_of(CONTROLS["baseline"], 100)
    found = {name: settings_of(control, 100).differences(baseline) for name, control in CONTROLS.items()}
    assert {name: {text.partition(" = ")[0] for text in texts} for name, texts in found.items()} == EXPECTED
    assert [name for name, control in CONTROLS.items() if not control.has_teacher] == ["loss alone"]


def test_weights_of_a_shorter_or_longer_run_are_no_result(tmp_path: Path) -> None:
    weights = Path(shutil.copy(weights_path(TASK, "fast"), tmp_path / f"{TASK}.safetensors"))
    teacher = _remembering(weights, lambda a, b: a, tmp_path / "taught")
    with pytest.raises(SystemExit, match="7"):
        _trained(CONTROLS["baseline"], Namespace(steps=7), tmp_path, teacher)
