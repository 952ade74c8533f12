"""The experiment on the learned loss: its error bars, its tables, and that it continues where it stopped."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from torch import Tensor

from benchmarks import learned_loss
from benchmarks.meta_agreement import jackknife_error
from benchmarks.reconstruction_maps import losses_of


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    samples = list(torch.tensor([1.0, 2.0, 4.0, 7.0]).unbind())

    def mean(values: list[Tensor]) -> float:
        return torch.stack(list(values)).mean().item()

    expected = torch.stack(samples).std().item() / math.sqrt(len(samples))
    assert jackknife_error(samples, mean) == pytest.approx(expected, rel=1e-6)


def test_tables_have_differences_by_seed_and_their_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned_loss, "ARMS", (learned_loss.Arm("arm", "soft", ("x",), "arm-fixed"),))
    runs = {f"arm-fixed-{seed}": {"held": {"Qabf": 0.5 + seed}} for seed in learned_loss.SEEDS}
    runs |= {f"arm-{seed}": {"held": {"Qabf": 0.6 + seed}} for seed in learned_loss.SEEDS}
    lines = learned_loss.tables({"compare": runs}).splitlines()
    assert "less arm-fixed" in lines[0]
    assert lines[2] == "| Qabf | +0.100 ± 0.000 |"


def test_a_clipped_area_without_the_other_source_counts_as_lost() -> None:
    a = torch.zeros(1, 1, 64, 64)
    a[..., ::4] = 0.5
    white = torch.ones_like(a)
    (lost,) = [loss for loss in losses_of(white, a, white) if loss.name == "glare"]
    assert lost.area.float().mean() > 0.4
    assert lost.left[lost.area].mean() < 0.1 * lost.amount[lost.area].mean()
    assert not [loss for loss in losses_of(a, a, white) if loss.name == "glare"]


def test_a_faint_target_counts_as_lost_and_can_be_restored() -> None:
    a = torch.full((1, 1, 64, 64), 0.2)
    a[..., 28:36, 28:36] = 0.9
    flat = torch.full_like(a, 0.5)
    (lost,) = losses_of(flat, a, flat)
    assert lost.name == "targets"
    assert lost.left[lost.area].mean() < 0.1 * lost.amount[lost.area].mean()
