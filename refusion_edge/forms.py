"""Forms of the fusion graph: one network, laid out as each target runs it best.

A form is a set of rewrites, all exact in real arithmetic. Some of them change the parameters that the graph takes (a
1x1 and a depthwise convolution become one kernel, the scale of a layer norm moves into the convolution behind it);
``refusion_edge.folding`` computes those from the official 86. Templates are traced by ``refusion_edge.export.trace``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from refusion_edge.errors import UsageError
from refusion_edge.parameters import NUM_BLOCKS

Precision = Literal["fp32", "fp16", "bf16", "int8"]
"""Of an engine."""
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
GraphPrecision = Literal["fp32", "fp16"]
"""Of a graph; an engine in bf16 is made from one in fp32, one in int8 from one in fp16."""


@dataclass(frozen=True, slots=True)
class GraphForm:
    """How the operators of the network are laid out. The defaults are the layout of the official release.

    Attributes:
        split: One pair of convolutions for each of q, k and v, and for gate and update, instead of one pair for all
            of them whose result is sliced. A slice is a copy where the runtime has blocked layouts.
        dense: Each 1x1 and the depthwise 3x3 behind it as one dense 3x3. Exact including the border: neither has a
            bias, so the zeros around the 1x1's output are the 1x1 of zeros around its input.
        folded_norm: The affine part of a layer norm and the subtraction of its mean live in the 1x1 behind it, and
            the variance is E[x^2] - m^2 by two 1x1 convolutions, clamped at 0. Not with ``dense``: the folded shift
            is a bias of the 1x1, and the zeros of the depthwise convolution's border must not see it.
        convolved_mixing: Attention and output projection as one 1x1 convolution with computed weights, instead of
            two products one after the other.
        means: In half precision, the products of attention are means over the picture, of q and k divided by
            sqrt(HW), and stay in half precision; otherwise they are sums in fp32. Norms are fp32 in both.
        precisions: The precisions that there are templates for.
    """

    split: bool = False
    dense: bool = False
    folded_norm: bool = False
    convolved_mixing: bool = False
    means: bool = False
    precisions: tuple[GraphPrecision, ...] = ("fp32", "fp16")

    def __post_init__(self) -> None:
        if self.dense and self.folded_norm:
            raise ValueError("expected folded_norm without dense, got both; the folded shift would leak over the border.")


FORMS: dict[str, GraphForm] = {
    "onnxruntime": GraphForm(split=True, folded_norm=True, convolved_mixing=True, precisions=("fp32",)),
    "openvino": GraphForm(split=True, folded_norm=True, convolved_mixing=True, precisions=("fp32",)),
    "tensorrt-folded": GraphForm(dense=True, means=True),
    "tensorrt-literal": GraphForm(),
}
"""Named forms."""

REFERENCE = "tensorrt-literal"
"""The form nearest to the official layout, which judges the others."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A 1x1 convolution and the depthwise 3x3 behind it.

    Attributes:
        point: Name of the 1x1, without ``.weight``.
        depth: Name of the depthwise convolution.
        parts: Into how many tensors of equal width the result is cut.
        norm: Name of the layer norm before it, or None.
    """

    point: str
    depth: str
    parts: int
    norm: str | None = None

    def part_names(self, form: GraphForm) -> list[tuple[str, str]]:
        """Names of the 1x1 (or dense) and depthwise kernels that the form has for this pair, without ``.weight``."""
        if not form.split or self.parts == 1:
            return [(self.point, self.depth)]
        return [(f"{self.point}.{part}", f"{self.depth}.{part}") for part in range(self.parts)]


def attention_pair(block: str) -> Pair:
    """The pair that makes q, k and v in a transformer block."""
    return Pair(f"{block}.attn.qkv", f"{block}.attn.qkv_dwconv", 3, f"{block}.norm1.body")


def feed_forward_pair(block: str) -> Pair:
    """The pair that makes gate and update in a transformer block."""
    return Pair(f"{block}.ffn.project_in", f"{block}.ffn.dwconv", 2, f"{block}.norm2.body")


def fusion_qkv_pair(source: int) -> Pair:
    """The pair that makes q, k and v of source 1 or 2 in the fusion module."""
    return Pair(f"FM.qkv{source}", f"FM.qkv{source}_dwconv", 3)


def fusion_gate_pair() -> Pair:
    """The pair that makes both gates in the fusion module."""
    return Pair("FM.project_E", "FM.project_E_d", 2)


def fusion_update_pair(source: int) -> Pair:
    """The pair that makes what the gate of source 1 or 2 is multiplied with in the fusion module."""
    return Pair(f"FM.project_E{source}", f"FM.project_E{source}_d", 1)


def pairs() -> Iterator[Pair]:
    """Yield all 17 pairs of the network."""
    for block in (f"{stack}.{index}" for stack in ("encoder1", "encoder2", "decoder") for index in range(NUM_BLOCKS)):
        yield attention_pair(block)
        yield feed_forward_pair(block)
    yield fusion_gate_pair()
    for source in (1, 2):
        yield fusion_qkv_pair(source)
        yield fusion_update_pair(source)


def find_form(name: str) -> GraphForm:
    """Look a form up by its name.

    Raises:
        UsageError: There is no such form.
    """
    if name not in FORMS:
        raise UsageError(f"expected a graph form out of {', '.join(FORMS)}, got '{name}'.")
    return FORMS[name]
