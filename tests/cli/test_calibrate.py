"""Which pairs calibrate, and which are set aside for the gate."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch", reason="calibration needs torch")

from refusion_edge.cli.calibrate import _split
from refusion_edge.errors import InputError
from refusion_edge.images.pairs import PairPaths
from tests.raising import raises


def _pairs(count: int) -> tuple[PairPaths, ...]:
    return tuple(PairPaths(f"{index:03}", Path(f"a/{index}.png"), Path(f"b/{index}.png")) for index in range(count))


@pytest.mark.parametrize(
    ("count", "calibrating", "apart"), [(16, 16, 0), (17, 16, 1), (18, 16, 2), (19, 16, 3), (20, 16, 4), (40, 32, 4)]
)
def test_calibration_comes_before_the_gate(count: int, calibrating: int, apart: int) -> None:
    pairs = _pairs(count)
    chosen, held_out = _split(pairs)
    assert (len(chosen), len(held_out)) == (calibrating, apart)
    assert not set(chosen) & set(held_out)
    assert set(chosen) | set(held_out) <= set(pairs)


@pytest.mark.parametrize("count", [0, 1, 15])
def test_too_few_pairs_are_refused_with_their_number(count: int) -> None:
    with raises(InputError, expected=16, got=count):
        _split(_pairs(count))
