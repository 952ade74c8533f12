"""The table of networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from refusion_edge.errors import UsageError
from refusion_edge.network import NETWORK_NAMES
from refusion_edge.network.family import NETWORKS, find_network, network_of
from refusion_edge.network.fast import FastLayout, reference
from refusion_edge.network.parameters import PARAMETERS


def test_parameters_know_their_network() -> None:
    assert network_of(PARAMETERS).name == "refusion"
    assert network_of(FastLayout().shapes).name == "fast"
    assert network_of(["anything"]).name == "refusion"


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        find_network("fst")
    assert caught.value.expected == tuple(NETWORKS)
    assert "'fast'" in caught.value.problem


def test_shapes_follow_the_layout() -> None:
    layout = FastLayout(channels=16, convolutions=5)
    assert NETWORKS["fast"].shapes(layout.shapes) == layout.shapes
    assert NETWORKS["refusion"].shapes({}) == PARAMETERS


def test_cost_of_the_fast_network() -> None:
    fast = NETWORKS["fast"].work(FastLayout().shapes, "fp32")
    paper = NETWORKS["refusion"].work(PARAMETERS, "fp32")
    assert fast.flops == 2 * 6048
    assert 9 < paper.flops / fast.flops < 11
    assert fast.least_bytes == 12


def test_torch_runs_the_fast_network() -> None:
    rng = np.random.default_rng(0)
    state = {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in FastLayout(8, 3).shapes.items()}
    a, b = rng.random((2, 1, 1, 10, 13), dtype=np.float32)
    fused = NETWORKS["fast"].torch(state)(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    assert np.abs(fused[0, 0] - reference(state, a[0, 0], b[0, 0])).max() < 1e-5
    assert fused.min() >= 0
    assert fused.max() <= 1


def test_the_names_are_those_of_the_networks() -> None:
    assert tuple(NETWORKS) == NETWORK_NAMES
