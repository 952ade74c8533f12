"""Folded weights, and the tile that the interpreter gets."""

from __future__ import annotations

import pytest

from refusion_edge.arrays import State
from refusion_edge.kernels.folding import FoldedWeights, fold
from refusion_edge.kernels.plan import make_plan
from refusion_edge.program import Tile

TILES = dict.fromkeys(make_plan().kernels, Tile(16, 4, 1))


@pytest.fixture(scope="session")
def folded(random_state: State) -> FoldedWeights:
    return fold(random_state)
