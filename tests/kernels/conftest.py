"""Folded weights, and the tile that the interpreter gets."""

from __future__ import annotations

import pytest

from refusion_edge.arrays import State
from refusion_edge.cuda.program import Tile
from refusion_edge.kernels.gpu.folding import FoldedWeights, fold
from refusion_edge.kernels.gpu.schedule import make_schedule

TILES = dict.fromkeys(make_schedule().kernels, Tile(16, 4, 1))


@pytest.fixture(scope="session")
def folded(random_state: State) -> FoldedWeights:
    return fold(random_state)
