"""The network operator by operator as the official release computes it: the baseline of our layouts.

Written independently from its parameter layout. Needs torch.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from refusion_edge.network.parameters import NUM_BLOCKS


def official_fuse(parameters: Mapping[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
    """F as the official release computes it: planes apart, norms in single operations, attention head by head."""

    def conv(name: str, x: Tensor, **options: int) -> Tensor:
        return F.conv2d(x, parameters[f"{name}.weight"], **options)

    def spread(name: str, x: Tensor) -> Tensor:
        return conv(name, x, padding=1, groups=x.shape[1])

    def norm(name: str, x: Tensor) -> Tensor:
        pixels = x.flatten(2).transpose(1, 2)
        mean, variance = pixels.mean(-1, keepdim=True), pixels.var(-1, keepdim=True, unbiased=False)
        scaled = (pixels - mean) / torch.sqrt(variance + 1e-5) * parameters[f"{name}.body.weight"] + parameters[
            f"{name}.body.bias"
        ]
        return scaled.transpose(1, 2).reshape(x.shape)

    def attend(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
        heads = temperature.shape[0]
        queries, keys, values = (x.reshape(x.shape[0], heads, -1, x.shape[2] * x.shape[3]) for x in (q, k, v))
        queries, keys = F.normalize(queries, dim=-1), F.normalize(keys, dim=-1)
        scores = (queries @ keys.transpose(-2, -1)) * temperature
        return (scores.softmax(dim=-1) @ values).reshape(v.shape)

    def block(name: str, x: Tensor) -> Tensor:
        q, k, v = spread(f"{name}.attn.qkv_dwconv", conv(f"{name}.attn.qkv", norm(f"{name}.norm1", x))).chunk(3, dim=1)
        x = x + conv(f"{name}.attn.project_out", attend(q, k, v, parameters[f"{name}.attn.temperature"]))
        gate, update = spread(f"{name}.ffn.dwconv", conv(f"{name}.ffn.project_in", norm(f"{name}.norm2", x))).chunk(2, dim=1)
        return x + conv(f"{name}.ffn.project_out", F.gelu(gate) * update)

    x1, x2 = conv("project_in_1", a, padding=1), conv("project_in_2", b, padding=1)
    for index in range(NUM_BLOCKS):
        x1, x2 = block(f"encoder1.{index}", x1), block(f"encoder2.{index}", x2)
    q1, k1, v1 = spread("FM.qkv1_dwconv", conv("FM.qkv1", x1)).chunk(3, dim=1)
    q2, k2, v2 = spread("FM.qkv2_dwconv", conv("FM.qkv2", x2)).chunk(3, dim=1)
    x1 = x1 + conv("FM.project_mid1", attend(q2, k1, v1, parameters["FM.temperature1"]))
    x2 = x2 + conv("FM.project_mid2", attend(q1, k2, v2, parameters["FM.temperature2"]))
    both = torch.cat((x1, x2), dim=1)
    gate1, gate2 = spread("FM.project_E_d", conv("FM.project_E", both)).chunk(2, dim=1)
    gated1 = F.gelu(gate1) * spread("FM.project_E1_d", conv("FM.project_E1", x1))
    gated2 = F.gelu(gate2) * spread("FM.project_E2_d", conv("FM.project_E2", x2))
    x = both + conv("FM.project_out1", gated1) + conv("FM.project_out2", gated2)
    for index in range(NUM_BLOCKS):
        x = block(f"decoder.{index}", x)
    return torch.sigmoid(conv("project_out_1", F.leaky_relu(conv("project_out_0", x, padding=1), 0.01), padding=1))
