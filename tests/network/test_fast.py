"""The network ``fast``: its definition in NumPy against the formula, and in PyTorch against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from refusion_edge.errors import UsageError
from refusion_edge.network.fast import FastLayout, folded, layout_of, reference, statistics
from refusion_edge.network.fast_module import fuse, initial
from refusion_edge.network.fast_module import statistics as torch_statistics

SMALL = FastLayout(channels=8, convolutions=3)
LAYOUTS = (SMALL, FastLayout(), FastLayout(channels=16, convolutions=4, factor=4))


def random_state(layout: FastLayout, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.15, shape).astype(np.float32) for name, shape in layout.shapes.items()}


def random_planes(height: int, width: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, height, width))
    return a, b


def tensors(state: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array.astype(np.float64)) for name, array in state.items()}


def shapes_of(state: dict[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in state.items()}


def test_statistics_take_even_rows_and_columns() -> None:
    a, b = random_planes(9, 11)
    chosen = [(y, x) for y in (0, 2, 4, 6, 8) for x in (0, 2, 4, 6, 8, 10)]
    expected = []
    for plane in (a, b, np.maximum(a, b), np.abs(a - b)):
        values = [plane[place] for place in chosen]
        mean = sum(values) / len(values)
        expected += [mean, (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5]
    assert np.allclose(statistics(a, b), expected, rtol=0, atol=1e-12)
    planes = [torch.from_numpy(plane[None, None]) for plane in (a, b)]
    assert np.allclose(torch_statistics(*planes)[0].numpy(), expected, rtol=0, atol=1e-12)


def test_zero_parameters_give_the_maximum() -> None:
    a, b = random_planes(12, 15)
    state = {name: np.zeros(shape, np.float32) for name, shape in FastLayout().shapes.items()}
    assert np.array_equal(reference(state, a, b), np.maximum(a, b))


@pytest.mark.parametrize(("s", "r"), [(1.0, 0.0), (0.5, 0.0), (0.0, 0.125), (0.25, -2.0)])
def test_the_last_biases_are_s_and_r_of_every_pixel(s: float, r: float) -> None:
    a, b = random_planes(9, 14)
    state = {name: np.zeros(shape, np.float32) for name, shape in SMALL.shapes.items()}
    state["layers.2.bias"][:4], state["layers.2.bias"][4:] = s, r
    expected = np.clip(np.maximum(a, b) - s * np.abs(a - b) + r, 0, 1)
    assert np.allclose(reference(state, a, b), expected, rtol=0, atol=1e-12)


def test_each_pixel_of_a_cell_has_its_own_channel() -> None:
    """A chain of centre taps that hands channel 2 y + x of source a to s: s becomes a itself, pixel for pixel."""
    a, b = random_planes(8, 10)
    state = {name: np.zeros(shape, np.float32) for name, shape in SMALL.shapes.items()}
    for index in range(SMALL.convolutions):
        for channel in range(8):
            state[f"layers.{index}.weight"][channel, channel, 1, 1] = float(channel < 4)
    expected = np.clip(np.maximum(a, b) - a * np.abs(a - b), 0, 1)
    assert np.allclose(reference(state, a, b), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size_hw", [(8, 8), (9, 11), (34, 27)])
def test_pytorch_agrees_with_numpy(layout: FastLayout, size_hw: tuple[int, int]) -> None:
    state = random_state(layout)
    a, b = random_planes(*size_hw)
    planes = [torch.from_numpy(plane[None, None]) for plane in (a, b)]
    fused = fuse(tensors(state), *planes).clamp(0, 1)[0, 0].numpy()
    assert np.abs(fused - reference(state, a, b)).max() < 1e-12
    assert fused.std() > 0.05


def test_folding_equals_scaling_and_shifting_the_features() -> None:
    state = random_state(SMALL)
    figures = statistics(*random_planes(8, 8))
    parameters = tensors(state)
    hidden = F.leaky_relu(parameters["statistics.0.weight"] @ torch.from_numpy(figures) + parameters["statistics.0.bias"], 0.1)
    both = parameters["statistics.1.weight"] @ hidden + parameters["statistics.1.bias"]
    x = torch.rand(1, 8, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    plain = F.conv2d(x, parameters["layers.0.weight"], parameters["layers.0.bias"], padding=1)
    expected = plain * (1 + both[:8, None, None]) + both[8:, None, None]
    weight, bias = (torch.from_numpy(array) for array in folded(state, figures))
    assert torch.allclose(F.conv2d(x, weight, bias, padding=1), expected, rtol=0, atol=1e-12)


def test_statistics_of_another_image_can_be_given() -> None:
    state = random_state(SMALL)
    a, b = random_planes(16, 16)
    other = statistics(*random_planes(16, 16, seed=9) * np.array(0.2))
    assert np.abs(reference(state, a, b, other) - reference(state, a, b)).max() > 1e-3
    planes = [torch.from_numpy(plane[None, None]) for plane in (a, b)]
    fused = fuse(tensors(state), *planes, torch.from_numpy(other)[None]).clamp(0, 1)[0, 0].numpy()
    assert np.abs(fused - reference(state, a, b, other)).max() < 1e-12


def test_padding_repeats_the_last_row_and_column() -> None:
    state = random_state(SMALL)
    a, b = random_planes(9, 11)
    padded = [np.pad(plane, ((0, 1), (0, 1)), mode="edge") for plane in (a, b)]
    expected = reference(state, *padded, statistics(a, b))[:9, :11]
    assert np.array_equal(reference(state, a, b), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_found_from_the_shapes(layout: FastLayout) -> None:
    assert layout_of(layout.shapes) == layout
    assert initial(layout, torch.Generator().manual_seed(0)).keys() == layout.shapes.keys()


def test_a_fresh_network_is_nearly_the_maximum() -> None:
    parameters = initial(FastLayout(), torch.Generator().manual_seed(0))
    state = {name: tensor.numpy() for name, tensor in parameters.items()}
    a, b = random_planes(32, 32)
    assert 0 < np.abs(reference(state, a, b) - np.maximum(a, b)).max() < 0.2
    assert layout_of(shapes_of(state)) == FastLayout()


def test_multiplications_are_those_of_the_convolutions() -> None:
    assert FastLayout().multiplications == 9 * (8 * 24 + 4 * 24 * 24 + 24 * 8) / 4 == 6048
    assert FastLayout(48, 6, 4).multiplications == 9 * (32 * 48 + 4 * 48 * 48 + 48 * 32) / 16


@pytest.mark.parametrize("wrong", [{"channels": 12}, {"convolutions": 1}, {"factor": 3}])
def test_a_layout_that_nobody_runs_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError) as caught:
        FastLayout(**wrong)
    assert caught.value.got == next(iter(wrong.values()))
