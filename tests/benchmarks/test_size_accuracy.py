"""The float64 run in strips is the official one, and the table says what was measured."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the official operators need torch")

from benchmarks.official_layout import official_fuse, official_fuse_in_strips
from benchmarks.size_accuracy import SIZES, Row, engines, exact, open_fuse, tables, tiles_of
from refusion_edge.arrays import State
from refusion_edge.network.checkpoint import read_checkpoint
from refusion_edge.network.fast import reference
from refusion_edge.network.weights import weights_path


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_strips_change_only_the_order_of_sums(random_state: State, rows: int) -> None:
    parameters = {name: torch.from_numpy(array.astype(np.float64)) for name, array in random_state.items()}
    a, b = torch.rand(2, 1, 1, 13, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole, in_strips = official_fuse(parameters, a, b), official_fuse_in_strips(parameters, a, b, rows)
    assert (in_strips - whole).abs().max() < 1e-13


@pytest.mark.parametrize("tiles", [(1, 2), (3, 1), (5, 4)])
def test_repeated_tiles_are_computed_once(random_state: State, rng: np.random.Generator, tiles: tuple[int, int]) -> None:
    tile = rng.random((2, 16, 14), np.float32)
    planes = np.tile(tile, (1, *tiles))
    parameters = {name: torch.from_numpy(array.astype(np.float64)) for name, array in random_state.items()}
    with torch.inference_mode():
        whole = official_fuse(parameters, *torch.from_numpy(planes.astype(np.float64))[:, None, None])[0, 0].numpy()
    assert np.abs(exact("refusion", random_state, tile, tiles) - whole).max() < 1e-13
    fast_state = read_checkpoint(weights_path("ir_vis", "fast")).state
    assert np.abs(exact("fast", fast_state, tile, tiles) - reference(fast_state, *planes)).max() < 1e-13


def test_engines_are_near_float64(random_state: State, rng: np.random.Generator) -> None:
    tile = rng.random((2, 24, 32), np.float32)
    expected = exact("refusion", random_state, tile, (1, 1))
    for engine in engines("refusion"):
        assert np.abs(open_fuse(engine, random_state)(*tile[:, None, None])[0, 0] - expected).max() < 2e-5, engine


def test_sizes_are_whole_tiles() -> None:
    assert [tiles_of(size) for size in SIZES] == [(2, 2), (3, 4), (5, 5), (6, 8), (9, 12)]
    assert tiles_of("480x641") is None


def test_a_table_has_a_row_for_each_engine_and_leaves_gaps() -> None:
    rows = [
        Row("refusion", "8x8", "one", 1.2e-6, 1e-7),
        Row("refusion", "9x9", "one", 3e-6, 1e-7),
        Row("refusion", "8x8", "two", 1e-6, 1e-7),
        Row("refusion", "9x9", "two", None, None, "too little memory"),
        Row("fast", "8x8", "one", 2e-6, 1e-7),
    ]
    first, second = tables(rows)
    assert first.splitlines()[0] == "| refusion | 8x8 | 9x9 |"
    assert first.splitlines()[2:] == ["| one | 1.2e-06 | 3.0e-06 |", "| two | 1.0e-06 |  |"]
    assert second.splitlines()[2:] == ["| one | 2.0e-06 |"]
