"""The network in any graph form, as a function of the parameters of that form: what is traced. Needs torch."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from refusion_edge.forms import (
    GraphForm,
    Pair,
    attention_pair,
    feed_forward_pair,
    fusion_gate_pair,
    fusion_qkv_pair,
    fusion_update_pair,
)
from refusion_edge.kernels.channel_attention import channel_attention, mixing_weights
from refusion_edge.kernels.layer_norm import EPSILON, layer_norm
from refusion_edge.parameters import NUM_BLOCKS


def fuse(form: GraphForm, parameters: Mapping[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
    """Fuse two luma planes as ``refusion_edge.model.FusionNetwork`` does, operators laid out as the form says.

    Args:
        form: The form.
        parameters: Its parameters, see ``refusion_edge.folding.rewrite``; any floating dtype.
        a: Source a, (1, 1, H, W), dtype of the parameters, [0, 1].
        b: Source b, same shape and dtype.

    Returns:
        (1, 1, H, W), same dtype.
    """
    return _Layout(form, parameters).network(a, b)


class _Layout:
    """The parts of the network, sharing a form and its parameters."""

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
            x = self.normalise(pair.norm, x)
        results = []
        for point, depth in pair.part_names(self.form):
            y = self.convolve(point, x)
            results.append(y if self.form.dense else self.convolve(depth, y))
        return tuple(results) if len(results) == pair.parts else results[0].chunk(pair.parts, dim=1)

    def normalise(self, name: str, x: Tensor) -> Tensor:
        if not self.form.folded_norm:
            return layer_norm(x, self.parameters[f"{name}.weight"], self.parameters[f"{name}.bias"])
        # Means as convolutions: a reduction over channels makes blocked layouts flip back.
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        average = wide.new_full((1, x.shape[1], 1, 1), 1 / x.shape[1])
        mean, mean_square = F.conv2d(wide, average), F.conv2d(wide * wide, average)
        # Clamped: rounding can leave a small negative number where a pixel's channels are nearly equal.
        variance = F.relu(mean_square - mean * mean)
        return x * (1 / torch.sqrt(variance + EPSILON)).to(x.dtype)

    def convolve(self, name: str, x: Tensor) -> Tensor:
        weight, bias = self.parameters[f"{name}.weight"], self.parameters.get(f"{name}.bias")
        inputs, size = weight.shape[1:3]
        return F.conv2d(x, weight, bias, padding=size // 2, groups=x.shape[1] // inputs)
