"""The network operator by operator as the official release computes it: the baseline of our layouts.

Written independently from its parameter layout. Needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor
from torch.nn import functional as F

from refusion_edge.network.parameters import NUM_BLOCKS

Attend = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Queries, keys and values, (B, C, H, W) each, and the temperatures of the heads to the mixed values."""

# A 3x3 convolution sees one row beyond its own; the longest chain between two sums over the image has two of them.
_HALO = 2
_LEAST_NORM = 1e-12


def official_fuse(parameters: Mapping[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
    """F as the official release computes it: planes apart, norms in single operations, attention head by head."""
    layout = _Layout(parameters)
    x1, x2 = layout.lift(1, a), layout.lift(2, b)
    for index in range(NUM_BLOCKS):
        x1 = layout.block(f"encoder1.{index}", x1, _attend)
        x2 = layout.block(f"encoder2.{index}", x2, _attend)
    x = layout.fusion(x1, x2, _attend, _attend)
    for index in range(NUM_BLOCKS):
        x = layout.block(f"decoder.{index}", x, _attend)
    return layout.project(x)


def official_fuse_in_strips(
    parameters: Mapping[str, Tensor], a: Tensor, b: Tensor, rows: int = 32, counts: Tensor | None = None
) -> Tensor:
    """The same, with the memory of a few strips of ``rows`` rows beside the features between the blocks.

    Exact but for the order of sums: each block takes two passes over the strips, one that sums the products of queries and
    keys over the whole image, and one that applies the attention.

    Args:
        parameters: All parameters, of one floating dtype.
        a: Source a, (1, 1, H, W), same dtype, [0, 1].
        b: Source b, same shape.
        rows: Rows of a strip.
        counts: How often each pixel counts in the sums, (1, 1, H, W), same dtype: for an image that repeats parts of this one.
            None for once.

    Returns:
        (1, 1, H, W), same dtype.
    """
    counts = torch.ones_like(a) if counts is None else counts
    layout = _Layout(parameters)

    def in_strips(function: Callable[..., Tensor], *features: Tensor) -> Tensor:
        return torch.cat([function(*part)[:, :, inner] for part, inner in _strips(rows, *features)], dim=2)

    def block(name: str, x: Tensor) -> Tensor:
        attend = _attention_over(
            (*layout.tokens(name, part)[:2], times, inner) for (part, times), inner in _strips(rows, x, counts)
        )
        return in_strips(lambda part: layout.block(name, part, attend), x)

    x1 = in_strips(lambda part: layout.lift(1, part), a)
    x2 = in_strips(lambda part: layout.lift(2, part), b)
    for index in range(NUM_BLOCKS):
        x1, x2 = block(f"encoder1.{index}", x1), block(f"encoder2.{index}", x2)
    crossed = [
        _attention_over(
            (layout.fusion_tokens(asking, of_asking)[0], layout.fusion_tokens(asked, of_asked)[1], times, inner)
            for (of_asking, of_asked, times), inner in _strips(rows, *sources, counts)
        )
        for asking, asked, sources in ((2, 1, (x2, x1)), (1, 2, (x1, x2)))
    ]
    x = in_strips(lambda part1, part2: layout.fusion(part1, part2, *crossed), x1, x2)
    for index in range(NUM_BLOCKS):
        x = block(f"decoder.{index}", x)
    return in_strips(layout.project, x)


@dataclass(frozen=True, slots=True)
class _Layout:
    """The parts of the network between two sums over the image."""

    parameters: Mapping[str, Tensor]

    def lift(self, source: int, plane: Tensor) -> Tensor:
        return self._conv(f"project_in_{source}", plane, padding=1)

    def tokens(self, name: str, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values of a block."""
        return self._qkv(f"{name}.attn.qkv", f"{name}.attn.qkv_dwconv", self._norm(f"{name}.norm1", x))

    def block(self, name: str, x: Tensor, attend: Attend) -> Tensor:
        mixed = attend(*self.tokens(name, x), self.parameters[f"{name}.attn.temperature"])
        x = x + self._conv(f"{name}.attn.project_out", mixed)
        hidden = self._conv(f"{name}.ffn.project_in", self._norm(f"{name}.norm2", x))
        gate, update = self._spread(f"{name}.ffn.dwconv", hidden).chunk(2, dim=1)
        return x + self._conv(f"{name}.ffn.project_out", F.gelu(gate) * update)

    def fusion_tokens(self, source: int, x: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values of one source in the fusion module."""
        return self._qkv(f"FM.qkv{source}", f"FM.qkv{source}_dwconv", x)

    def fusion(self, x1: Tensor, x2: Tensor, attend1: Attend, attend2: Attend) -> Tensor:
        (q1, k1, v1), (q2, k2, v2) = self.fusion_tokens(1, x1), self.fusion_tokens(2, x2)
        x1 = x1 + self._conv("FM.project_mid1", attend1(q2, k1, v1, self.parameters["FM.temperature1"]))
        x2 = x2 + self._conv("FM.project_mid2", attend2(q1, k2, v2, self.parameters["FM.temperature2"]))
        both = torch.cat((x1, x2), dim=1)
        gate1, gate2 = self._spread("FM.project_E_d", self._conv("FM.project_E", both)).chunk(2, dim=1)
        gated1 = F.gelu(gate1) * self._spread("FM.project_E1_d", self._conv("FM.project_E1", x1))
        gated2 = F.gelu(gate2) * self._spread("FM.project_E2_d", self._conv("FM.project_E2", x2))
        return both + self._conv("FM.project_out1", gated1) + self._conv("FM.project_out2", gated2)

    def project(self, x: Tensor) -> Tensor:
        hidden = F.leaky_relu(self._conv("project_out_0", x, padding=1), 0.01)
        return torch.sigmoid(self._conv("project_out_1", hidden, padding=1))

    def _conv(self, name: str, x: Tensor, **options: int) -> Tensor:
        return F.conv2d(x, self.parameters[f"{name}.weight"], **options)

    def _spread(self, name: str, x: Tensor) -> Tensor:
        return self._conv(name, x, padding=1, groups=x.shape[1])

    def _qkv(self, point: str, depth: str, x: Tensor) -> tuple[Tensor, ...]:
        return self._spread(depth, self._conv(point, x)).chunk(3, dim=1)

    def _norm(self, name: str, x: Tensor) -> Tensor:
        pixels = x.flatten(2).transpose(1, 2)
        mean, variance = pixels.mean(-1, keepdim=True), pixels.var(-1, keepdim=True, unbiased=False)
        gain, offset = self.parameters[f"{name}.body.weight"], self.parameters[f"{name}.body.bias"]
        scaled = (pixels - mean) / torch.sqrt(variance + 1e-5) * gain + offset
        return scaled.transpose(1, 2).reshape(x.shape)


def _attend(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
    queries, keys, values = (_by_head(x, temperature) for x in (q, k, v))
    queries, keys = F.normalize(queries, dim=-1), F.normalize(keys, dim=-1)
    scores = (queries @ keys.transpose(-2, -1)) * temperature
    return (scores.softmax(dim=-1) @ values).reshape(v.shape)


def _attention_over(strips: Iterable[tuple[Tensor, Tensor, Tensor, slice]]) -> Attend:
    """Attention of an image in strips: queries, keys and counts of parts, and the rows of these that lie in the strip."""
    sums = zip(*(_products(*(x[:, :, inner] for x in parts)) for *parts, inner in strips), strict=True)
    products, of_queries, of_keys = (reduce(torch.add, parts) for parts in sums)

    def attend(_q: Tensor, _k: Tensor, v: Tensor, temperature: Tensor) -> Tensor:
        queries, keys = (squares.sqrt().clamp(min=_LEAST_NORM) for squares in (of_queries, of_keys))
        cosines = products / (queries[:, :, None] * keys[:, None, :])
        heads, channels = len(temperature), v.shape[1] // len(temperature)
        of_heads = cosines.reshape(-1, heads, channels, heads, channels).diagonal(dim1=1, dim2=3).movedim(-1, 1)
        return ((of_heads * temperature).softmax(dim=-1) @ _by_head(v, temperature)).reshape(v.shape)

    return attend


def _products(q: Tensor, k: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Products of all queries with all keys, and squared norms of both."""
    q, k, counts = q.flatten(2), k.flatten(2), counts.flatten(2)
    return (counts * q) @ k.transpose(-2, -1), (counts * q.square()).sum(-1), (counts * k.square()).sum(-1)


def _by_head(x: Tensor, temperature: Tensor) -> Tensor:
    return x.reshape(x.shape[0], len(temperature), -1, x.shape[2] * x.shape[3])


def _strips(rows: int, *features: Tensor) -> Iterator[tuple[tuple[Tensor, ...], slice]]:
    """Strips of features, (B, C, H, W), with the rows around them that a block sees, and where each strip lies in its part.

    Where a part ends inside the image, convolutions pad it with zeros; what is wrong for it stays in the rows around the strip.
    """
    height = features[0].shape[2]
    for first in range(0, height, rows):
        last = min(height, first + rows)
        start, end = max(0, first - _HALO), min(height, last + _HALO)
        yield tuple(x[:, :, start:end] for x in features), slice(first - start, last - start)
