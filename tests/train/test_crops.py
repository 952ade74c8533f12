"""Crops: by counter, and alike for both sources."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from refusion_edge.train.crops import crop_batch
from tests.train.conftest import PlanePairs


def test_crops_are_drawn_by_counter_and_alike_for_both_sources(rng: np.random.Generator) -> None:
    plane = rng.integers(0, 256, (50, 60)).astype(np.uint8)
    pairs = PlanePairs(((plane, np.clip(plane.astype(int) + 3, 0, 255).astype(np.uint8)),))
    a, b = crop_batch(pairs, 5, batch=4, crop_px=16, seed=1)
    assert a.shape == (4, 1, 16, 16)
    assert ((b - a) * 255).round().max() == 3
    again, _ = crop_batch(pairs, 5, batch=4, crop_px=16, seed=1)
    assert torch.equal(a, again)
    other, _ = crop_batch(pairs, 6, batch=4, crop_px=16, seed=1)
    assert not torch.equal(a, other)
