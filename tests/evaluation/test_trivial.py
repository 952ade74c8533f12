"""The rows of max(a, b) and of the average."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from refusion_edge.errors import UsageError
from refusion_edge.evaluation.evaluate import evaluate
from refusion_edge.evaluation.trivial import trivial_fuser
from refusion_edge.images.io import write_image
from refusion_edge.metrics import find_metric
from refusion_edge.tasks import find_task


def ramps() -> tuple[np.ndarray, np.ndarray]:
    ramp = np.tile(np.linspace(0, 255, 32).round().astype(np.uint8), (24, 1))
    return ramp, ramp[:, ::-1].copy()


@pytest.mark.parametrize(("name", "rule"), [("max(a, b)", np.maximum), ("average", lambda a, b: (a + b) / 2)])
def test_a_rule_is_applied_and_stretched(name: str, rule: object) -> None:
    a, b = ramps()
    b = b // 2
    expected = rule(a / 255, b / 255)  # type: ignore[operator]
    expected = (expected - expected.min()) / (expected.max() - expected.min()) * 255
    with trivial_fuser(name, find_task("ir_vis")) as fuser:
        assert np.abs(fuser.fuse(a, b).astype(float) - expected).max() < 0.51


def write_pair(tmp_path: Path) -> None:
    a, b = ramps()
    for folder, image in (("ir", a), ("vis", b), ("mine", a)):
        write_image(tmp_path / folder / "1.png", image)


def test_the_rows_stand_beside_the_methods(tmp_path: Path) -> None:
    write_pair(tmp_path)
    ir, vis, mine = (str(tmp_path / name) for name in ("ir", "vis", "mine"))
    metric = find_metric("SD")
    report = evaluate(ir, vis, {"mine": mine}, (metric,), folder=tmp_path / "made", jobs=1, trivial=True)
    assert report.methods == ("mine", "max(a, b)", "average")
    expected = np.maximum(*ramps()).astype(float)
    expected = np.rint((expected - expected.min()) / (expected.max() - expected.min()) * 255).std()
    assert report.summary("max(a, b)", metric).mean == pytest.approx(expected, rel=1e-3)
    assert evaluate(ir, vis, {"mine": mine}, (metric,), jobs=1).methods == ("mine",)


def test_rows_alone_and_names_taken_twice_are_refused(tmp_path: Path) -> None:
    write_pair(tmp_path)
    ir, vis = str(tmp_path / "ir"), str(tmp_path / "vis")
    for results in ({}, {"average": ir}):
        with pytest.raises(UsageError):
            evaluate(ir, vis, results, (find_metric("SD"),), folder=tmp_path / "made", trivial=True)
