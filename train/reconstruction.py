"""The reconstruction network R: from the fused plane alone back to both sources, by two branches that share nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from refusion_edge.network.parameters import DIM, NUM_BLOCKS, Shape
from refusion_edge.train.layers import Parameters, block, block_shapes, dense, initialise, to_features

_BRANCHES = ("a", "b")


def reconstruction_shapes() -> dict[str, Shape]:
    """Names and shapes of rho; 17,296 numbers, as in the public derivative."""
    return {name: shape for branch in _BRANCHES for name, shape in _branch_shapes(branch)}


def initial_reconstruction(generator: torch.Generator) -> Parameters:
    """Draw rho for a run from scratch."""
    return initialise(reconstruction_shapes(), generator)


def reconstruct(rho: Mapping[str, Tensor], fused: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruct both sources from the fused plane: ``A', B' = R_rho(F)``.

    Args:
        rho: Parameters of R.
        fused: (B, 1, H, W).

    Returns:
        Source a and source b by modality, whatever the order in which F saw them; each (B, 1, H, W), (0, 1).
    """
    first, second = (_branch(rho, branch, fused) for branch in _BRANCHES)
    return first, second


def _branch(rho: Mapping[str, Tensor], branch: str, fused: Tensor) -> Tensor:
    features = to_features(fused, rho[f"{branch}.project_in.weight"])
    for index in range(NUM_BLOCKS):
        features = block(rho, f"{branch}.body.{index}", features)
    features = F.leaky_relu(dense(features, rho[f"{branch}.project_out_0.weight"]), negative_slope=0.01)
    logits = dense(features, rho[f"{branch}.project_out_1.weight"]).permute(0, 3, 1, 2).to(fused.dtype)
    return torch.sigmoid(logits)


def _branch_shapes(branch: str) -> Iterator[tuple[str, Shape]]:
    yield f"{branch}.project_in.weight", (DIM, 1, 3, 3)
    for index in range(NUM_BLOCKS):
        yield from block_shapes(f"{branch}.body.{index}", DIM)
    yield f"{branch}.project_out_0.weight", (DIM // 2, DIM, 3, 3)
    yield f"{branch}.project_out_1.weight", (1, DIM // 2, 3, 3)
