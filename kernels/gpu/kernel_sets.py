"""The kernels of each network: their schedule, their tiles, and the weights as they take them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from refusion_edge.arrays import State
from refusion_edge.cuda.program import Schedule, Tile
from refusion_edge.kernels.gpu.fast_schedule import check_layout, fast_tiles, fold_fast, make_fast_schedule
from refusion_edge.kernels.gpu.folding import FoldedWeights, fold
from refusion_edge.kernels.gpu.schedule import make_schedule, tiles
from refusion_edge.machine import ARCHITECTURES
from refusion_edge.network.family import DEFAULT_NETWORK, network_of, shapes_of
from refusion_edge.network.fast import FastLayout, layout_of


@dataclass(frozen=True, slots=True)
class KernelSet:
    """The kernels of a network.

    Attributes:
        schedule: The launches of one frame, given the dtype of the features.
        tiles: Tile of every kernel, given the architecture, 87 for sm_87.
        fold: Turns parameters into what the kernels take.
        self_test_hw: Height and width of the self-test: small, odd, and more than one strip of any architecture high and wide.
    """

    schedule: Callable[[str], Schedule]
    tiles: Callable[[int], dict[str, Tile]]
    fold: Callable[[State], FoldedWeights]
    self_test_hw: tuple[int, int]


def _beyond_a_strip(tiles: Callable[[int], dict[str, Tile]]) -> tuple[int, int]:
    cuts = [tile for architecture in ARCHITECTURES for tile in tiles(architecture).values()]
    height, width = (max(sides) for sides in zip(*((tile.rows, tile.columns) for tile in cuts), strict=True))
    return height + 1 | 1, width + 1 | 1


REFUSION = KernelSet(make_schedule, tiles, fold, _beyond_a_strip(tiles))
"""The kernels of the paper's network."""


def kernel_set(state: State) -> KernelSet:
    """Find the kernels for parameters of either network.

    Raises:
        UsageError: There are none for this layout.
    """
    if network_of(state).name == DEFAULT_NETWORK:
        return REFUSION
    layout = layout_of(shapes_of(state))
    check_layout(layout)
    return fast_kernels(layout)


def fast_kernels(layout: FastLayout) -> KernelSet:
    """The kernels of the network ``fast`` in a layout."""
    cut = functools.partial(fast_tiles, layout)
    return KernelSet(functools.partial(make_fast_schedule, layout), cut, fold_fast, _beyond_a_strip(cut))
