"""The three networks of a run, as functions of their parameters.

- F, fusion: the function of ``refusion_edge.network.model`` in the channels-last layout.
- R, reconstruction: from the fused plane alone back to both sources, by two branches that share no parameters.
- P, loss proposal: from the two sources to the weights of the fusion loss, by two networks of the same shape that share no
  parameters. ``intensity.*`` sees the intensities and proposes w; ``gradient.*`` sees the gradient magnitudes and proposes v.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from refusion_edge.errors import UsageError
from refusion_edge.kernels.cpu.expansion import expand, gated_sum
from refusion_edge.network.parameters import DIM, NUM_BLOCKS, PARAMETERS, Shape
from refusion_edge.train.layers import Parameters, block, block_shapes, dense, initialize, projected_attention, to_features
from refusion_edge.train.losses import Logits, LossWeights, gradient_magnitude
from refusion_edge.train.priors import PRIORS

_BRANCHES = ("a", "b")
NETS = ("intensity", "gradient")
_DIMS = (2, 4, 8, 16, 32, 64)
_PRELU_START = 0.25


def fuse(parameters: Mapping[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
    """Fuse two luma planes: ``F_theta(A, B)``.

    Args:
        parameters: theta, the 86 parameters of ``refusion_edge.network.parameters``.
        a: Source a, (B, 1, H, W) floating, [0, 1].
        b: Source b, same shape and dtype.

    Returns:
        Fused luma, (B, 1, H, W), (0, 1); equal to ``refusion_edge.network.model.FusionNetwork`` up to rounding.
    """
    features_a = to_features(a, parameters["project_in_1.weight"])
    features_b = to_features(b, parameters["project_in_2.weight"])
    for index in range(NUM_BLOCKS):
        features_a = block(parameters, f"encoder1.{index}", features_a)
        features_b = block(parameters, f"encoder2.{index}", features_b)
    features = _fusion_module(parameters, features_a, features_b)
    for index in range(NUM_BLOCKS):
        features = block(parameters, f"decoder.{index}", features)
    features = F.leaky_relu(dense(features, parameters["project_out_0.weight"]), negative_slope=0.01)
    # Under autocast the features may be bf16; the losses need the precision of the sources.
    logits = dense(features, parameters["project_out_1.weight"]).permute(0, 3, 1, 2).to(a.dtype)
    return torch.sigmoid(logits)


def initial_fusion(generator: torch.Generator) -> Parameters:
    """Draw theta for a run from scratch."""
    return initialize(PARAMETERS, generator)


def _fusion_module(parameters: Mapping[str, Tensor], x1: Tensor, x2: Tensor) -> Tensor:
    def weight(name: str) -> Tensor:
        return parameters[f"FM.{name}.weight"]

    q1, k1, v1 = expand(x1, None, weight("qkv1"), weight("qkv1_dwconv"), 3)
    q2, k2, v2 = expand(x2, None, weight("qkv2"), weight("qkv2_dwconv"), 3)
    # Cross-attention: the queries of one source meet the keys of the other.
    x1 = projected_attention(q2, k1, v1, parameters["FM.temperature1"], weight("project_mid1"), x1)
    x2 = projected_attention(q1, k2, v2, parameters["FM.temperature2"], weight("project_mid2"), x2)
    both = torch.cat((x1, x2), dim=-1)
    gates, gate_taps = weight("project_E").chunk(2), weight("project_E_d").chunk(2)
    features = both
    for index, update in enumerate((x1, x2)):
        source = index + 1
        weights, taps = (gates[index], weight(f"project_E{source}")), (gate_taps[index], weight(f"project_E{source}_d"))
        features = gated_sum((both, update), weights, taps, weight(f"project_out{source}"), features)
    return features


def reconstruction_shapes() -> dict[str, Shape]:
    """Names and shapes of rho; 17,296 numbers, as in the public derivative."""
    return {name: shape for branch in _BRANCHES for name, shape in _branch_shapes(branch)}


def initial_reconstruction(generator: torch.Generator) -> Parameters:
    """Draw rho for a run from scratch."""
    return initialize(reconstruction_shapes(), generator)


def reconstruct(rho: Mapping[str, Tensor], fused: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruct both sources from the fused plane: ``A', B' = R_rho(F)``.

    Args:
        rho: Parameters of R.
        fused: (B, 1, H, W).

    Returns:
        Source a and source b by modality, regardless of the order in which F saw them; each (B, 1, H, W), (0, 1).
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


@dataclass(frozen=True, slots=True)
class ProposalSettings:
    """Shape and starting point of P.

    Attributes:
        dim: Channels of each encoder, a power of two from 2 to 64; the trunk has twice as many. The paper's derivative has 16.
        blocks: Transformer blocks of each encoder and of the trunk. The paper's derivative has 2.
        symmetric: Whether to subtract the logits of the swapped order, so that P cannot prefer either input.
        zero: Whether the last convolution starts at zero, so that learning starts exactly at the prior.
        prior: Name from ``refusion_edge.train.priors.PRIORS``.
        gradient_sharpness: Logits per unit of gradient magnitude in the prior. Sobel magnitudes of fine texture are a
            few hundredths, those of edges up to 8: a small factor hardly affects texture.
        clip: Largest magnitude that P adds to the logits of the prior; 0 for no limit.
        temperature: Divisor of the logits of the prior. Above 1 the prior decides less, and P has more to say.
        stride: P sees means of squares of this side, and its logits are interpolated; 1 for every pixel.
    """

    dim: int = 8
    blocks: int = 1
    symmetric: bool = True
    zero: bool = True
    prior: str = "none"
    gradient_sharpness: float = 4.0
    clip: float = 4.0
    temperature: float = 1.0
    stride: int = 1

    def __post_init__(self) -> None:
        if self.dim not in _DIMS or self.blocks < 1:
            raise UsageError(
                f"proposal.dim = {self.dim} with proposal.blocks = {self.blocks} is impossible",
                f"choose dim from {', '.join(map(str, _DIMS))} and at least one block",
                expected=_DIMS,
                got=self.dim,
            )
        if self.prior not in PRIORS:
            raise UsageError(
                f"there is no prior '{self.prior}'",
                f"choose proposal.prior from {', '.join(PRIORS)}",
                expected=tuple(PRIORS),
                got=self.prior,
            )
        if self.temperature <= 0 or self.stride < 1:
            raise UsageError(
                f"proposal.temperature = {self.temperature} with proposal.stride = {self.stride} is impossible",
                "choose a temperature above 0 and a stride of at least 1",
                got=(self.temperature, self.stride),
            )


def proposal_shapes(settings: ProposalSettings) -> dict[str, Shape]:
    """Names and shapes of phi; 89,058 numbers at dim 16 with 2 blocks, as in the public derivative."""
    return {name: shape for net in NETS for name, shape in _net_shapes(settings, net)}


def initial_proposal(settings: ProposalSettings, generator: torch.Generator) -> Parameters:
    """Draw phi for a run from scratch."""
    phi = initialize(proposal_shapes(settings), generator)
    for net in NETS:
        phi[f"{net}.slope"].fill_(_PRELU_START)
        if settings.zero:
            phi[f"{net}.project_out_1.weight"].zero_()
    return phi


def prior_weights(settings: ProposalSettings, a: Tensor, b: Tensor) -> LossWeights:
    """Weights of source a by the prior alone: where P starts, and where a control run stays.

    Args:
        settings: The prior.
        a: Source a, (B, 1, H, W), [0, 1].
        b: Source b, same shape.
    """
    return LossWeights.from_logits(_prior_logits(settings, a, b))


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
    prior = _prior_logits(settings, first, second)
    inputs = ((first, second), (gradient_magnitude(first), gradient_magnitude(second)))
    learned = (_logits(settings, phi, net, *planes) for net, planes in zip(NETS, inputs, strict=True))
    intensity, gradient = (known + added for known, added in zip(prior, learned, strict=True))
    return LossWeights.from_logits((intensity, gradient))


def _prior_logits(settings: ProposalSettings, a: Tensor, b: Tensor) -> Logits:
    intensity, gradient = PRIORS[settings.prior](a, b, settings.gradient_sharpness)
    return intensity / settings.temperature, gradient / settings.temperature


def _logits(settings: ProposalSettings, phi: Mapping[str, Tensor], net: str, first: Tensor, second: Tensor) -> Tensor:
    """Logits of the first input, (2B, 1, H, W), for a batch whose second half is the first in swapped order."""
    seen = (_means(plane, settings.stride) for plane in (first, second))
    maps = _maps(settings, phi, net, *seen)
    logits = maps[:, :1] - maps[:, 1:]
    if settings.stride > 1:
        logits = F.interpolate(logits, size=first.shape[-2:], mode="bilinear")
    if settings.symmetric:
        # Both orders are already in the batch, so the symmetry is free.
        ordered, swapped = logits.chunk(2)
        logits = torch.cat((ordered - swapped, swapped - ordered))
    return logits.clamp(-settings.clip, settings.clip) if settings.clip else logits


def _means(plane: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(plane, side, ceil_mode=True) if side > 1 else plane


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
