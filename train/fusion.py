"""The fusion network F for training: the function of ``refusion_edge.network.model`` in the channels-last layout."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from refusion_edge.kernels.cpu.expansion import expand, gated_sum
from refusion_edge.network.parameters import NUM_BLOCKS, PARAMETERS
from refusion_edge.train.layers import Parameters, block, dense, initialise, projected_attention, to_features


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
    # Under autocast the features may be bf16; losses want the precision of the sources.
    logits = dense(features, parameters["project_out_1.weight"]).permute(0, 3, 1, 2).to(a.dtype)
    return torch.sigmoid(logits)


def initial_fusion(generator: torch.Generator) -> Parameters:
    """Draw theta for a run from scratch."""
    return initialise(PARAMETERS, generator)


def _fusion_module(parameters: Mapping[str, Tensor], x1: Tensor, x2: Tensor) -> Tensor:
    def weight(name: str) -> Tensor:
        return parameters[f"FM.{name}.weight"]

    q1, k1, v1 = expand(x1, None, weight("qkv1"), weight("qkv1_dwconv"), 3)
    q2, k2, v2 = expand(x2, None, weight("qkv2"), weight("qkv2_dwconv"), 3)
    # Crossed: the queries of one source ask the keys of the other.
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
