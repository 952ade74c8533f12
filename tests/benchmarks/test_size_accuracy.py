"""The float64 run in strips is the official one, and the table says what was measured."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the official operators need torch")

from benchmarks import size_accuracy
from benchmarks.official_layout import official_fuse, official_fuse_in_strips
from benchmarks.size_accuracy import Row, open_fuse, planes, tables
from refusion_edge.arrays import State


@pytest.mark.parametrize("rows", [1, 5, 64])
def test_strips_change_only_the_order_of_sums(random_state: State, rows: int) -> None:
    parameters = {name: torch.from_numpy(array.astype(np.float64)) for name, array in random_state.items()}
    a, b = torch.rand(2, 1, 1, 13, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole, in_strips = official_fuse(parameters, a, b), official_fuse_in_strips(parameters, a, b, rows)
    assert (in_strips - whole).abs().max() < 1e-13


@pytest.mark.parametrize("size", ["480x640", "500x1301", "48x64"])
def test_a_pair_is_continued_to_any_size_by_mirroring(size: str) -> None:
    height, width = map(int, size.split("x"))
    both, first = planes("mirrored", size), planes("mirrored", "48x64")
    assert both.shape == (2, height, width)
    assert np.array_equal(both[:, :48, :64], first)
    assert planes("enlarged", size).shape == both.shape


def test_engines_are_near_float64(random_state: State) -> None:
    a, b = planes("enlarged", "24x32")
    expected = size_accuracy.exact("refusion", random_state, a, b)
    for engine in size_accuracy.engines("refusion"):
        assert np.abs(open_fuse(engine, random_state)(a[None, None], b[None, None])[0, 0] - expected).max() < 2e-5, engine


def test_a_table_has_a_row_for_each_engine_and_leaves_gaps() -> None:
    rows = [
        Row("refusion", "mirrored", "8x8", "one", 1.2e-6, 1e-7),
        Row("refusion", "mirrored", "9x9", "one", 3e-6, 1e-7),
        Row("refusion", "mirrored", "8x8", "two", 1e-6, 1e-7),
        Row("refusion", "mirrored", "9x9", "two", None, None, "too little memory"),
        Row("fast", "enlarged", "8x8", "one", 2e-6, 1e-7),
    ]
    first, second = tables(rows)
    assert first.splitlines()[0] == "| refusion, mirrored | 8x8 | 9x9 |"
    assert first.splitlines()[2:] == ["| one | 1.2e-06 | 3.0e-06 |", "| two | 1.0e-06 |  |"]
    assert second.splitlines()[2:] == ["| one | 2.0e-06 |"]
