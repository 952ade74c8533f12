"""The ReFusion fusion network in PyTorch: the reference that every back end is held against.

Parameter names are those of the official release, so that its checkpoints load strictly. Needs torch; nothing that
builds or runs an engine imports this file.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refusion_edge.kernels.channel_attention import channel_attention
from refusion_edge.kernels.layer_norm import layer_norm
from refusion_edge.parameters import DIM, EXPANSION, NUM_BLOCKS, NUM_HEADS


def _pointwise(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=1, bias=False)


def _depthwise(channels: int) -> nn.Conv2d:
    return nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels, bias=False)


def _dense(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)


class _AffineNorm(nn.Module):
    """The two vectors of a layer norm, under the name ``body`` of the official layout."""

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
        """Normalise ``x``, (B, C, H, W)."""
        normalised: Tensor = self.body(x)
        return normalised


class Attention(nn.Module):
    """Self-attention between channels, (B, C, H, W) to the same shape."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.temperature = nn.Parameter(torch.ones(num_heads, 1, 1))
        self.qkv = _pointwise(dim, 3 * dim)
        self.qkv_dwconv = _depthwise(3 * dim)
        self.project_out = _pointwise(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the channels of ``x``, (B, C, H, W)."""
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
    """Crossed attention between the two sources and gates on their sum of evidence: 2 x (B, C, H, W) to (B, 2C, H, W)."""

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

    59,856 parameters, no convolution has a bias, every 3x3 is zero-padded by 1, nothing is downsampled: any size runs.

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
