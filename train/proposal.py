"""The loss proposal network P: from the two sources to the weights of the fusion loss.

Two networks of one shape that share nothing: the first sees the intensities and proposes w, the second sees the
gradient magnitudes and proposes v. Their parameters are named ``intensity.*`` and ``gradient.*``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from refusion_edge.errors import UsageError
from refusion_edge.network.parameters import Shape
from refusion_edge.train.layers import Parameters, block, block_shapes, dense, initialise, to_features
from refusion_edge.train.losses import LossWeights
from refusion_edge.train.priors import PRIORS
from refusion_edge.train.sobel import gradient_magnitude

NETS = ("intensity", "gradient")
_DIMS = (2, 4, 8, 16, 32, 64)
_PRELU_START = 0.25


@dataclass(frozen=True, slots=True)
class ProposalSettings:
    """Shape and starting point of P.

    Attributes:
        dim: Channels of each encoder, a power of two from 2 to 64; the trunk has twice as many. The paper's derivative has 16.
        blocks: Transformer blocks of each encoder and of the trunk. The paper's derivative has 2.
        symmetric: Whether the logits of the swapped order are subtracted, so that P cannot prefer a slot.
        zero: Whether the last convolution starts at zero, so that learning starts at the prior exactly.
        prior: Name out of ``refusion_edge.train.priors.PRIORS``.
        gradient_sharpness: Logits per unit of gradient magnitude in the prior. Sobel magnitudes of fine texture are a
            few hundredths, those of edges up to 8: a small factor leaves texture undecided.
        clip: Largest size of what P adds to the prior's logits; 0 for no limit.
    """

    dim: int = 8
    blocks: int = 1
    symmetric: bool = True
    zero: bool = True
    prior: str = "none"
    gradient_sharpness: float = 4.0
    clip: float = 4.0

    def __post_init__(self) -> None:
        if self.dim not in _DIMS or self.blocks < 1:
            raise UsageError(
                f"expected proposal.dim out of {', '.join(map(str, _DIMS))} and at least one block, "
                f"got {self.dim} and {self.blocks}."
            )
        if self.prior not in PRIORS:
            raise UsageError(f"expected proposal.prior out of {', '.join(PRIORS)}, got '{self.prior}'.")


def proposal_shapes(settings: ProposalSettings) -> dict[str, Shape]:
    """Names and shapes of phi; 89,058 numbers at dim 16 with 2 blocks, as in the public derivative."""
    return {name: shape for net in NETS for name, shape in _net_shapes(settings, net)}


def initial_proposal(settings: ProposalSettings, generator: torch.Generator) -> Parameters:
    """Draw phi for a run from scratch."""
    phi = initialise(proposal_shapes(settings), generator)
    for net in NETS:
        phi[f"{net}.slope"].fill_(_PRELU_START)
        if settings.zero:
            phi[f"{net}.project_out_1.weight"].zero_()
    return phi


def propose(settings: ProposalSettings, phi: Mapping[str, Tensor], a: Tensor, b: Tensor) -> LossWeights:
    """Propose the weights of a batch of pairs in both orders: ``w, v = P_phi(A, B)``.

    Args:
        settings: Shape of P.
        phi: Its parameters.
        a: Source a, (B, 1, H, W), [0, 1].
        b: Source b, same shape.

    Returns:
        Weights of the first input for the batch [(A, B), (B, A)], each (2B, 1, H, W).
    """
    first, second = torch.cat((a, b)), torch.cat((b, a))
    prior = PRIORS[settings.prior](first, second, settings.gradient_sharpness)
    inputs = ((first, second), (gradient_magnitude(first), gradient_magnitude(second)))
    learned = (_logits(settings, phi, net, *planes) for net, planes in zip(NETS, inputs, strict=True))
    intensity, gradient = (known + added for known, added in zip(prior, learned, strict=True))
    return LossWeights.from_logits((intensity, gradient))


def _logits(settings: ProposalSettings, phi: Mapping[str, Tensor], net: str, first: Tensor, second: Tensor) -> Tensor:
    """Logits of the first input, (2B, 1, H, W), of a batch whose halves are each other's swapped order."""
    maps = _maps(settings, phi, net, first, second)
    logits = maps[:, :1] - maps[:, 1:]
    if settings.symmetric:
        # Both orders are in the batch already, so the symmetry costs nothing.
        ordered, swapped = logits.chunk(2)
        logits = torch.cat((ordered - swapped, swapped - ordered))
    return logits.clamp(-settings.clip, settings.clip) if settings.clip else logits


def _maps(settings: ProposalSettings, phi: Mapping[str, Tensor], net: str, first: Tensor, second: Tensor) -> Tensor:
    encoded = []
    for slot, plane in enumerate((first, second)):
        features = to_features(plane, phi[f"{net}.project_in_{slot}.weight"])
        for index in range(settings.blocks):
            features = block(phi, f"{net}.encoder_{slot}.{index}", features)
        encoded.append(features)
    features = torch.cat(encoded, dim=-1)
    for index in range(settings.blocks):
        features = block(phi, f"{net}.trunk.{index}", features)
    features = F.prelu(dense(features, phi[f"{net}.project_out_0.weight"]), phi[f"{net}.slope"])
    # Weights, and the loss behind them, stay in the precision of the sources.
    return dense(features, phi[f"{net}.project_out_1.weight"]).permute(0, 3, 1, 2).to(first.dtype)


def _net_shapes(settings: ProposalSettings, net: str) -> Iterator[tuple[str, Shape]]:
    dim = settings.dim
    for slot in (0, 1):
        yield f"{net}.project_in_{slot}.weight", (dim, 1, 3, 3)
        for index in range(settings.blocks):
            yield from block_shapes(f"{net}.encoder_{slot}.{index}", dim)
    for index in range(settings.blocks):
        yield from block_shapes(f"{net}.trunk.{index}", 2 * dim)
    yield f"{net}.project_out_0.weight", (dim, 2 * dim, 3, 3)
    yield f"{net}.slope", (1,)
    yield f"{net}.project_out_1.weight", (2, dim, 3, 3)
