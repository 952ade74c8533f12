"""The models of reduced precision: the exact one is the definition, and the others depart from it by their rounding."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="the models need torch")

from benchmarks.fast_precisions import FORMS, convolve_in, fuse, int8_convolve
from refusion_edge.accuracy.gate import compare
from refusion_edge.network import fast
from tests.oracles.fast import random_state

LAYOUTS = [fast.FastLayout(), fast.FastLayout(channels=8, convolutions=3, factor=4)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["fp32", "fp16"])
def test_without_rounding_it_is_the_definition(layout: fast.FastLayout, name: str, rng: np.random.Generator) -> None:
    state = random_state(layout)
    a, b = rng.random((2, 37, 50), np.float32)
    error = np.abs(fuse(state, a, b, convolve_in(FORMS[name])) - fast.reference(state, a, b)).max()
    assert (error < 2e-5) == (name == "fp32")


def test_shorter_sums_and_wider_numbers_are_closer(rng: np.random.Generator) -> None:
    state = random_state(fast.FastLayout())
    a, b = rng.random((2, 40, 52), np.float32)
    expected = fast.reference(state, a, b).astype(np.float32)
    names = ("bf16", "fp16", "fp16-long", "fp32")
    found = [compare(fuse(state, a, b, convolve_in(FORMS[name])), expected).psnr_db for name in names]
    assert found == sorted(found)
    assert found[0] > 30


def test_int8_rounds_all_but_the_first_layer(rng: np.random.Generator) -> None:
    layout = fast.FastLayout(channels=8, convolutions=2)
    state = random_state(layout)
    a, b = rng.random((2, 32, 32), np.float32)
    coarse = fuse(state, a, b, int8_convolve(state, [(a, b)]))
    assert 30 < compare(coarse, fast.reference(state, a, b).astype(np.float32)).psnr_db < 80
    # Weights that are multiples of a step, and features too: nothing is left to round.
    state = {name: np.zeros_like(array) for name, array in state.items()}
    state["layers.0.weight"][:, 0, 1, 1] = 1
    state["layers.1.weight"][:, 0, 1, 1] = 1
    levels = np.rint(a * 255).astype(np.float32) / np.float32(255)
    levels[0, 0], levels[0, 2] = 0, 1
    exact = fuse(state, levels, levels, int8_convolve(state, [(levels, levels)]))
    assert np.abs(exact - fast.reference(state, levels, levels)).max() < 1e-6
