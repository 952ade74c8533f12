"""Parameters of the network ``fast`` that no training made. What they make of a pair says ``refusion_edge.network.fast``."""

from __future__ import annotations

import numpy as np

from refusion_edge.arrays import State
from refusion_edge.network.fast import FastLayout


def random_state(layout: FastLayout) -> State:
    """Draw parameters with which all features are of about one size, and s and r spread."""
    draw = np.random.default_rng(3)
    state = {}
    for name, shape in layout.shapes.items():
        fan_in = np.prod(shape[1:]) if len(shape) > 1 else 16
        state[name] = (draw.standard_normal(shape) * np.sqrt(1.6 / fan_in)).astype(np.float32)
    for part in ("weight", "bias"):
        state[f"layers.{layout.convolutions - 1}.{part}"] *= np.float32(0.3)
    return state
