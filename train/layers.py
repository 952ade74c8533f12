"""Layers of the three networks as functions of tensors, with the channels innermost.

Features are (B, H, W, C): a 1x1 convolution is then a plain matrix product, and a depthwise convolution on a CPU is
several times faster than in the planar layout. Being functions of their parameters, the layers serve reverse mode,
forward mode and the look-ahead parameters of meta-learning alike, without exchanging tensors inside modules.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from refusion_edge.kernels.cpu.batch_products import channel_products, multiply
from refusion_edge.kernels.cpu.expansion import expand, gated_feed_forward
from refusion_edge.network.layers import NORM_FLOOR
from refusion_edge.network.parameters import EXPANSION, NUM_HEADS, Shape

Parameters: TypeAlias = dict[str, Tensor]
"""Parameters of one network, name to tensor, in the layout of ``refusion_edge.network.model``."""


def to_features(plane: Tensor, weight: Tensor) -> Tensor:
    """Lift luma planes to features by a 3x3 convolution.

    Args:
        plane: (B, 1, H, W).
        weight: (C, 1, 3, 3).

    Returns:
        (B, H, W, C).
    """
    # A single input plane has the same layout in both memory formats; declaring it makes the output channels-last.
    return F.conv2d(plane.contiguous(memory_format=torch.channels_last), weight, padding=1).permute(0, 2, 3, 1).contiguous()


def dense(x: Tensor, weight: Tensor) -> Tensor:
    """3x3 convolution of features, zero-padded, (B, H, W, C) to (B, H, W, C')."""
    return F.conv2d(x.permute(0, 3, 1, 2), weight, padding=1).permute(0, 2, 3, 1)


def projected_attention(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, projection: Tensor, residual: Tensor) -> Tensor:
    """Attention between channels and the 1x1 projection after it, as one matrix per image, and their residual.

    The same as ``refusion_edge.network.layers`` followed by a 1x1 convolution P: ``P (A v) = (P A) v``, and
    P A is a C x C matrix, so the H*W long features are multiplied once instead of twice.

    Args:
        q: Queries, (B, H, W, C). Channels of one head are consecutive.
        k: Keys, same shape.
        v: Values, same shape.
        temperature: One factor per head, (N, 1, 1).
        projection: (C, C, 1, 1).
        residual: (B, H, W, C); what the values come from.

    Returns:
        (B, H, W, C).
    """
    channels = v.shape[-1]
    num_heads = temperature.shape[0]
    # Sums of squares over an image need fp32 at least, even where autocast would choose bf16.
    with torch.autocast(v.device.type, enabled=False):
        wide = torch.promote_types(v.dtype, torch.float32)
        queries, keys = q.flatten(1, 2).to(wide), k.flatten(1, 2).to(wide)
        gram, query_squares, key_squares = channel_products(queries, keys)
        # Clamped below the root: the root of 0, for a channel of a black image, would have no gradient but NaN.
        query_norms = query_squares.clamp(min=NORM_FLOOR**2).sqrt()
        key_norms = key_squares.clamp(min=NORM_FLOOR**2).sqrt()
        row_temperature = temperature.to(wide).expand(num_heads, channels // num_heads, 1).reshape(channels, 1)
        scores = gram / (query_norms[:, :, None] * key_norms[:, None, :]) * row_temperature
        head = torch.arange(channels, device=v.device) // (channels // num_heads)
        attention = scores.masked_fill(head[:, None] != head[None, :], float("-inf")).softmax(dim=-1)
        mixing = projection.flatten(1).to(wide) @ attention
    return multiply(v.flatten(1, 2), mixing.to(v.dtype), residual.flatten(1, 2)).view(v.shape)


def block(parameters: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Transformer block: attention and gated feed-forward, each behind a layer norm and a residual.

    Args:
        parameters: Parameters of the network.
        name: Prefix of the block.
        x: Features, (B, H, W, C).

    Returns:
        (B, H, W, C).

    Source:
        Restormer (Zamir et al., CVPR 2022); ``refusion_edge.network.model.TransformerBlock`` in the other memory layout.
    """
    attention, gate = f"{name}.attn", f"{name}.ffn"
    qkv, spread = parameters[f"{attention}.qkv.weight"], parameters[f"{attention}.qkv_dwconv.weight"]
    q, k, v = expand(x, _norm(parameters, f"{name}.norm1"), qkv, spread, 3)
    temperature, projection = parameters[f"{attention}.temperature"], parameters[f"{attention}.project_out.weight"]
    x = projected_attention(q, k, v, temperature, projection, x)
    project_in, spread = parameters[f"{gate}.project_in.weight"], parameters[f"{gate}.dwconv.weight"]
    return gated_feed_forward(
        x, _norm(parameters, f"{name}.norm2"), project_in, spread, parameters[f"{gate}.project_out.weight"]
    )


def block_shapes(name: str, dim: int) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of the parameters of one block.

    Args:
        name: Prefix of the block.
        dim: Channels C, even. Heads have two channels at least: attention among one would be the constant 1.
    """
    hidden = dim * EXPANSION
    num_heads = min(NUM_HEADS, dim // 2)
    yield f"{name}.norm1.body.weight", (dim,)
    yield f"{name}.norm1.body.bias", (dim,)
    yield f"{name}.attn.temperature", (num_heads, 1, 1)
    yield f"{name}.attn.qkv.weight", (3 * dim, dim, 1, 1)
    yield f"{name}.attn.qkv_dwconv.weight", (3 * dim, 1, 3, 3)
    yield f"{name}.attn.project_out.weight", (dim, dim, 1, 1)
    yield f"{name}.norm2.body.weight", (dim,)
    yield f"{name}.norm2.body.bias", (dim,)
    yield f"{name}.ffn.project_in.weight", (2 * hidden, dim, 1, 1)
    yield f"{name}.ffn.dwconv.weight", (2 * hidden, 1, 3, 3)
    yield f"{name}.ffn.project_out.weight", (dim, hidden, 1, 1)


def initialize(shapes: Mapping[str, Shape], generator: torch.Generator) -> Parameters:
    """Draw parameters as PyTorch's own layers do: convolutions uniform in 1 / sqrt(fan-in), norms at 1 and 0."""
    parameters = {}
    for name, shape in shapes.items():
        if len(shape) == 4:
            bound = 1 / math.sqrt(math.prod(shape[1:]))
            parameters[name] = (torch.rand(shape, generator=generator) * 2 - 1) * bound
        else:
            parameters[name] = torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
    return parameters


def _norm(parameters: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return parameters[f"{name}.body.weight"], parameters[f"{name}.body.bias"]
