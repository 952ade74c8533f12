"""The mean of several weights: parameter by parameter, and of one task only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from examples.mean_weights import mean_weights
from refusion_edge.arrays import State
from refusion_edge.errors import UsageError
from refusion_edge.network.checkpoint import Checkpoint, read_checkpoint, write_safetensors
from tests.raising import raises


def test_every_parameter_is_the_mean(random_state: State) -> None:
    one = Checkpoint("medical", random_state)
    other = replace(one, state={name: 3 * array for name, array in random_state.items()})
    write_safetensors("one.safetensors", one)
    write_safetensors("other.safetensors", other)
    write_safetensors("mean.safetensors", mean_weights([Path("one.safetensors"), Path("other.safetensors")]))
    found = read_checkpoint("mean.safetensors")
    assert found.task == "medical"
    assert found.notes["mean of"] == "one.safetensors, other.safetensors"
    for name, array in random_state.items():
        assert found.state[name].dtype == np.float32
        np.testing.assert_allclose(found.state[name], 2 * array, rtol=1e-6)


def test_tasks_are_not_mixed(random_state: State) -> None:
    write_safetensors("one.safetensors", Checkpoint("medical", random_state))
    write_safetensors("other.safetensors", Checkpoint("ir_vis", random_state))
    with raises(UsageError, "ir_vis, medical"):
        mean_weights([Path("one.safetensors"), Path("other.safetensors")])
