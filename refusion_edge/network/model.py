"""The ReFusion fusion network in PyTorch: the reference for every back end.

Parameter names are those of the official release, so that its checkpoints load strictly. Needs torch; code that builds or
runs engines never imports this module.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refusion_edge.network.forms import (
    GraphForm,
    Pair,
    attention_pair,
    feed_forward_pair,
    fusion_gate_pair,
    fusion_qkv_pair,
    fusion_update_pair,
)
from refusion_edge.network.layers import EPSILON, channel_attention, layer_norm, mixing_weights
from refusion_edge.network.parameters import DIM, EXPANSION, NUM_BLOCKS, NUM_HEADS


def _pointwise(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=1, bias=False)


def _depthwise(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels, bias=False)


def _dense(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)


class _AffineNorm(nn.Module):
    """Scale and shift of a layer norm, called ``body`` in the official layout."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias)


class LayerNorm(nn.Module):
    """Layer norm over the channels of each pixel, (B, C, H, W) to the same shape."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.body = _AffineNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize ``x``, (B, C, H, W)."""
        normalized: Tensor = self.body(x)
        return normalized


class Attention(nn.Module):
    """Self-attention between channels, (B, C, H, W) to the same shape."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv = _pointwise(dim, 3 * dim)
        self.qkv_dwconv = _depthwise(3 * dim)
        self.project_out = _pointwise(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attend between the channels of ``x``, (B, C, H, W)."""
        q, k, v = self.qkv_dwconv(self.qkv(x)).chunk(3, dim=1)
        mixed: Tensor = self.project_out(channel_attention(q, k, v, self.temperature))
        return mixed


class FeedForward(nn.Module):
    """Gated feed-forward with a depthwise 3x3, (B, C, H, W) to the same shape."""

    def __init__(self, dim: int, expansion: int) -> None:
        super().__init__()
        hidden = dim * expansion
        self.project_in = _pointwise(dim, 2 * hidden)
        self.dwconv = _depthwise(2 * hidden)
        self.project_out = _pointwise(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``x``, (B, C, H, W)."""
        gate, update = self.dwconv(self.project_in(x)).chunk(2, dim=1)
        transformed: Tensor = self.project_out(F.gelu(gate) * update)
        return transformed


class TransformerBlock(nn.Module):
    """Attention and feed-forward, each behind a layer norm and a residual, (B, C, H, W) to the same shape."""

    def __init__(self, dim: int, num_heads: int, expansion: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = LayerNorm(dim)
        self.ffn = FeedForward(dim, expansion)

    def forward(self, x: Tensor) -> Tensor:
        """Transform ``x``, (B, C, H, W)."""
        x = x + self.attn(self.norm1(x))
        transformed: Tensor = x + self.ffn(self.norm2(x))
        return transformed


class FusionModule(nn.Module):
    """Cross-attention between the two sources, then gated updates of both: 2 x (B, C, H, W) to (B, 2C, H, W)."""

    def __init__(self, dim: int, num_heads: int, expansion: int) -> None:
        super().__init__()
        hidden = 2 * dim * expansion
        self.temperature1 = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.temperature2 = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv1 = _pointwise(dim, 3 * dim)
        self.qkv1_dwconv = _depthwise(3 * dim)
        self.qkv2 = _pointwise(dim, 3 * dim)
        self.qkv2_dwconv = _depthwise(3 * dim)
        self.project_mid1 = _pointwise(dim, dim)
        self.project_mid2 = _pointwise(dim, dim)
        self.project_E = _pointwise(2 * dim, 2 * hidden)
        self.project_E_d = _depthwise(2 * hidden)
        self.project_E1 = _pointwise(dim, hidden)
        self.project_E1_d = _depthwise(hidden)
        self.project_E2 = _pointwise(dim, hidden)
        self.project_E2_d = _depthwise(hidden)
        self.project_out1 = _pointwise(hidden, 2 * dim)
        self.project_out2 = _pointwise(hidden, 2 * dim)

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Fuse the features of source a and source b, each (B, C, H, W)."""
        q1, k1, v1 = self.qkv1_dwconv(self.qkv1(x1)).chunk(3, dim=1)
        q2, k2, v2 = self.qkv2_dwconv(self.qkv2(x2)).chunk(3, dim=1)
        # Crossed: the queries of one source ask the keys of the other.
        x1 = x1 + self.project_mid1(channel_attention(q2, k1, v1, self.temperature1))
        x2 = x2 + self.project_mid2(channel_attention(q1, k2, v2, self.temperature2))
        both = torch.cat((x1, x2), dim=1)
        gate1, gate2 = self.project_E_d(self.project_E(both)).chunk(2, dim=1)
        gated1 = F.gelu(gate1) * self.project_E1_d(self.project_E1(x1))
        gated2 = F.gelu(gate2) * self.project_E2_d(self.project_E2(x2))
        fused: Tensor = both + self.project_out1(gated1) + self.project_out2(gated2)
        return fused


class FusionNetwork(nn.Module):
    """The fusion network F of ReFusion: two luma planes in, one fused luma plane out.

    59,856 parameters. Convolutions have no bias, every 3x3 is zero-padded by 1, and nothing is downsampled, so images of any
    size can be fused.

    Source:
        Bai et al., "ReFusion: Learning Image Fusion from Reconstruction with Learnable Loss via Meta-Learning",
        IJCV 2024, and the parameter layout of its inference release.
    """

    def __init__(self) -> None:
        super().__init__()

        def blocks(dim: int) -> nn.Sequential:
            return nn.Sequential(*(TransformerBlock(dim, NUM_HEADS, EXPANSION) for _ in range(NUM_BLOCKS)))

        self.project_in_1 = _dense(1, DIM)
        self.project_in_2 = _dense(1, DIM)
        self.encoder1 = blocks(DIM)
        self.encoder2 = blocks(DIM)
        self.FM = FusionModule(DIM, NUM_HEADS, EXPANSION)
        self.decoder = blocks(2 * DIM)
        self.project_out_0 = _dense(2 * DIM, DIM)
        self.project_out_1 = _dense(DIM, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Fuse two luma planes.

        Args:
            a: Source a (infrared, functional, near, under), (B, 1, H, W) floating, [0, 1].
            b: Source b (visible, MRI, far, over), same shape and dtype.

        Returns:
            Fused luma before any stretch, (B, 1, H, W), (0, 1), dtype of the inputs.
        """
        features_a = self.encoder1(self.project_in_1(a))
        features_b = self.encoder2(self.project_in_2(b))
        features = self.decoder(self.FM(features_a, features_b))
        features = F.leaky_relu(self.project_out_0(features), negative_slope=0.01)
        fused: Tensor = torch.sigmoid(self.project_out_1(features))
        return fused


def fuse(form: GraphForm, parameters: Mapping[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
    """Fuse two luma planes as ``FusionNetwork`` does, with the operators of a given graph form.

    Args:
        form: The form.
        parameters: Parameters of the form, see ``refusion_edge.network.forms.rewrite``; any floating dtype.
        a: Source a, (1, 1, H, W), dtype of the parameters, [0, 1].
        b: Source b, same shape and dtype.

    Returns:
        (1, 1, H, W), same dtype.
    """
    return _Layout(form, parameters).network(a, b)


class _Layout:
    """The parts of the network in one form, with its parameters."""

    def __init__(self, form: GraphForm, parameters: Mapping[str, Tensor]) -> None:
        self.form = form
        self.parameters = parameters

    def network(self, a: Tensor, b: Tensor) -> Tensor:
        x1, x2 = self.convolve("project_in_1", a), self.convolve("project_in_2", b)
        for index in range(NUM_BLOCKS):
            x1 = self.block(f"encoder1.{index}", x1)
        for index in range(NUM_BLOCKS):
            x2 = self.block(f"encoder2.{index}", x2)
        x = self.fusion_module(x1, x2)
        for index in range(NUM_BLOCKS):
            x = self.block(f"decoder.{index}", x)
        x = F.leaky_relu(self.convolve("project_out_0", x), negative_slope=0.01)
        return torch.sigmoid(self.convolve("project_out_1", x))

    def block(self, name: str, x: Tensor) -> Tensor:
        q, k, v = self.pair(attention_pair(name), x)
        x = x + self.attend(q, k, v, f"{name}.attn.temperature", f"{name}.attn.project_out")
        gate, update = self.pair(feed_forward_pair(name), x)
        return x + self.convolve(f"{name}.ffn.project_out", F.gelu(gate) * update)

    def fusion_module(self, x1: Tensor, x2: Tensor) -> Tensor:
        q1, k1, v1 = self.pair(fusion_qkv_pair(1), x1)
        q2, k2, v2 = self.pair(fusion_qkv_pair(2), x2)
        x1 = x1 + self.attend(q2, k1, v1, "FM.temperature1", "FM.project_mid1")
        x2 = x2 + self.attend(q1, k2, v2, "FM.temperature2", "FM.project_mid2")
        both = torch.cat((x1, x2), dim=1)
        gate1, gate2 = self.pair(fusion_gate_pair(), both)
        (update1,), (update2,) = self.pair(fusion_update_pair(1), x1), self.pair(fusion_update_pair(2), x2)
        return (
            both
            + self.convolve("FM.project_out1", F.gelu(gate1) * update1)
            + self.convolve("FM.project_out2", F.gelu(gate2) * update2)
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, temperature: str, projection: str) -> Tensor:
        factors = self.parameters[temperature]
        if not self.form.convolved_mixing:
            return self.convolve(projection, channel_attention(q, k, v, factors, means=self.form.means))
        attention = mixing_weights(q, k, factors, means=self.form.means)
        weight = self.parameters[f"{projection}.weight"]
        return F.conv2d(v, (weight.flatten(1).to(attention.dtype) @ attention).to(v.dtype).reshape(weight.shape))

    def pair(self, pair: Pair, x: Tensor) -> tuple[Tensor, ...]:
        if pair.norm is not None:
            x = self.normalize(pair.norm, x)
        results = []
        for point, depth in pair.part_names(self.form):
            y = self.convolve(point, x)
            results.append(y if self.form.dense else self.convolve(depth, y))
        return tuple(results) if len(results) == pair.parts else results[0].chunk(pair.parts, dim=1)

    def normalize(self, name: str, x: Tensor) -> Tensor:
        if not self.form.folded_norm:
            return layer_norm(x, self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"])
        # Means are computed by convolutions, because a reduction over channels makes runtimes leave their blocked layouts.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        average = wide.new_full((1, x.shape[1], 1, 1), 1 / x.shape[1])
        mean, mean_square = F.conv2d(wide, average), F.conv2d(wide * wide, average)
        # Clamped: rounding can give a small negative number where a pixel's channels are nearly equal.
        variance = F.relu(mean_square - mean * mean)
        return x * (1 / torch.sqrt(variance + EPSILON)).to(x.dtype)

    def convolve(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.parameters[f"{name}.weight"], self.parameters.get(f"{name}.bias")
        inputs, size = weight.shape[1:3]
        return F.conv2d(x, weight, bias, padding=size // 2, groups=x.shape[1] // inputs)
