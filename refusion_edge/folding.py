"""The parameters of a graph form, computed from the official ones. NumPy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from refusion_edge.arrays import State
from refusion_edge.forms import GraphForm, pairs
from refusion_edge.parameters import PARAMETERS, Shape


def fold_pair(point: NDArray[np.float64], depth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fold a 1x1 convolution and the depthwise 3x3 behind it into one dense 3x3.

    Exact, including the border: neither has a bias, so the zeros around the result of the 1x1 are the 1x1 of zeros.

    Args:
        point: (N, C, 1, 1), applied first.
        depth: (N, 1, 3, 3).

    Returns:
        (N, C, 3, 3).
    """
    return point * depth


def rewrite(form: GraphForm, state: State) -> dict[str, NDArray[np.float64]]:
    """Compute the parameters of a form from the official ones, in float64.

    Args:
        form: The form.
        state: The 86 parameters.

    Returns:
        Parameters by name, float64. Those that a form leaves alone keep their names and come first, in the order of
        the official ones; a dense 3x3 has the name of its 1x1, the part of a split pair the number of the part behind
        the name, and a folded shift ends in ``.bias``.
    """
    rewritten = {name: state[name].astype(np.float64) for name in PARAMETERS}
    for pair in pairs():
        point = rewritten.pop(f"{pair.point}.weight")
        depth = rewritten.pop(f"{pair.depth}.weight")
        bias = None
        if form.folded_norm and pair.norm is not None:
            scale, shift = rewritten.pop(f"{pair.norm}.weight"), rewritten.pop(f"{pair.norm}.bias")
            bias = point[:, :, 0, 0] @ shift
            point = point * scale[:, None, None]
            # The row sums see the mean of the pixel; without them it does not matter whether it was subtracted.
            point = point - point.mean(axis=1, keepdims=True)
        names = pair.part_names(form)
        for index, (point_name, depth_name) in enumerate(names):
            rows = slice(index * len(point) // len(names), (index + 1) * len(point) // len(names))
            if form.dense:
                rewritten[f"{point_name}.weight"] = fold_pair(point[rows], depth[rows])
                continue
            rewritten[f"{point_name}.weight"] = point[rows]
            if bias is not None:
                rewritten[f"{point_name}.bias"] = bias[rows]
            rewritten[f"{depth_name}.weight"] = depth[rows]
    return rewritten


def parameter_shapes(form: GraphForm) -> dict[str, Shape]:
    """Names and shapes of the parameters of a form, in the order of ``rewrite``."""
    zeros = {name: np.zeros(shape, np.float32) for name, shape in PARAMETERS.items()}
    return {name: array.shape for name, array in rewrite(form, zeros).items()}
