"""Folded weights are the same function."""

from __future__ import annotations

import numpy as np
import pytest

from refusion_edge.arrays import Array, State
from refusion_edge.kernels.gpu.attention_statistics import head_columns
from refusion_edge.kernels.gpu.folding import fold, folded_taps
from refusion_edge.kernels.gpu.schedule import make_schedule
from refusion_edge.kernels.gpu.strip import convolve_reference


def by_definition(x: Array, pointwise: Array, depthwise: Array) -> Array:
    """A 1x1 convolution, then a depthwise 3x3 convolution of its zero-padded result, pixel by pixel."""
    height, width, _ = x.shape
    mixed = np.zeros((height + 2, width + 2, pointwise.shape[0]))
    mixed[1:-1, 1:-1] = x @ pointwise[:, :, 0, 0].T
    result = np.zeros((height, width, pointwise.shape[0]))
    for row in range(height):
        for column in range(width):
            for dy in range(3):
                for dx in range(3):
                    result[row, column] += mixed[row + dy, column + dx] * depthwise[:, 0, dy, dx]
    return result


@pytest.mark.parametrize("size_hw", [(1, 1), (1, 5), (4, 3)])
def test_two_convolutions_fold_into_one(rng: np.random.Generator, size_hw: tuple[int, int]) -> None:
    x = rng.standard_normal((*size_hw, 3))
    pointwise, depthwise = rng.standard_normal((6, 3, 1, 1)), rng.standard_normal((6, 1, 3, 3))
    taps = folded_taps(pointwise, depthwise)
    assert taps.shape == (9, 3, 6)
    assert np.abs(convolve_reference(x, taps) - by_definition(x, pointwise, depthwise)).max() <= 1e-13


@pytest.mark.parametrize("channels", [16, 32])
def test_columns_of_a_head_lie_in_one_thread_of_the_accumulator(channels: int) -> None:
    columns = head_columns(channels)
    assert sorted(columns) == list(range(channels))
    owners = {}
    for column, channel in enumerate(columns):
        # The m16n8 accumulator: columns 2 t and 2 t + 1 of every group of eight belong to thread t of four.
        owners.setdefault(channel // (channels // 8), set()).add(column % 8 // 2)
    assert [len(threads) for threads in owners.values()] == [1] * 8


def test_every_folded_weight_is_used_and_every_used_one_exists(random_state: State) -> None:
    used = {argument.name for launch in make_schedule().launches for argument in launch.arguments if argument.kind == "weights"}
    assert used == set(fold(random_state).rounded(np.dtype(np.float16)))


def test_rounding_keeps_norms_and_what_is_folded_later_in_single_precision(random_state: State) -> None:
    weights = fold(random_state).rounded(np.dtype(np.float16))
    assert {name for name, array in weights.items() if array.dtype == np.float32} == {
        *(f"{block}.{name}" for block in ("encoder.0", "encoder.1", "decoder.0", "decoder.1") for name in (
            "norm1.gain", "norm1.bias", "norm2.gain", "norm2.bias", "value", "project", "temperature")),
        "fusion.value", "fusion.project", "fusion.temperature", "stem.weights", "head.plane",
    }  # fmt: skip
    assert all(array.flags.c_contiguous for array in weights.values())
    # 0.56 MB of taps in half precision: 278 k multiply-adds per pixel.
    assert sum(array.size for array in weights.values() if array.dtype == np.float16) == pytest.approx(258e3, rel=0.05)
