"""Forms of the fusion graph: one network, laid out as each target runs it best.

A form is a set of rewrites, all exact in real arithmetic. Some of them change the parameters that the graph takes (a
1x1 and a depthwise convolution become one kernel, the scale of a layer norm moves into the convolution behind it);
``rewrite`` computes those from the official 86. Templates are traced by ``refusion_edge.export.graph.trace``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from refusion_edge.errors import UsageError
from refusion_edge.network.parameters import NUM_BLOCKS, PARAMETERS, Shape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from refusion_edge.arrays import State

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
    "cpu": GraphForm(split=True, folded_norm=True, convolved_mixing=True, precisions=("fp32",)),
    "tensorrt-folded": GraphForm(dense=True, means=True),
    "tensorrt-literal": GraphForm(),
}
"""Named forms."""

# Names that release 0.1 gave to the one layout for CPUs.
_FORMER_NAMES = {"onnxruntime": "cpu", "openvino": "cpu"}

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


def form_named(name: str) -> str:
    """The name of a form, which may be given as release 0.1 called it.

    Raises:
        UsageError: There is no such form.
    """
    name = _FORMER_NAMES.get(name, name)
    if name not in FORMS:
        raise UsageError(f"unknown graph form '{name[:40]}'; choose one of {', '.join(FORMS)}")
    return name


def find_form(name: str) -> GraphForm:
    """Look a form up by its name.

    Raises:
        UsageError: There is no such form.
    """
    return FORMS[form_named(name)]


def fold_pair(point: NDArray[np.float64], depth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fold a 1x1 convolution and the depthwise 3x3 behind it into one dense 3x3.

    Exact, including the border: neither has a bias, so the zeros around the result of the 1x1 are the 1x1 of zeros.

    Args:
        point: (N, C, 1, 1), applied first.
        depth: (N, 1, 3, 3).

    Returns:
        (N, C, 3, 3).
    """
    return point * depth


def rewrite(form: GraphForm, state: State) -> dict[str, NDArray[np.float64]]:
    """Compute the parameters of a form from the official ones, in float64.

    Args:
        form: The form.
        state: The 86 parameters.

    Returns:
        Parameters by name, float64. Those that a form leaves alone keep their names and come first, in the order of
        the official ones; a dense 3x3 has the name of its 1x1, the part of a split pair the number of the part behind
        the name, and a folded shift ends in ``.bias``.
    """
    import numpy as np

    rewritten = {name: state[name].astype(np.float64) for name in PARAMETERS}
    for pair in pairs():
        point = rewritten.pop(f"{pair.point}.weight")
        depth = rewritten.pop(f"{pair.depth}.weight")
        bias = None
        if form.folded_norm and pair.norm is not None:
            scale, shift = rewritten.pop(f"{pair.norm}.weight"), rewritten.pop(f"{pair.norm}.bias")
            bias = point[:, :, 0, 0] @ shift
            point = point * scale[:, None, None]
            # The row sums see the mean of the pixel; without them it does not matter whether it was subtracted.
            point = point - point.mean(axis=1, keepdims=True)
        names = pair.part_names(form)
        for index, (point_name, depth_name) in enumerate(names):
            rows = slice(index * len(point) // len(names), (index + 1) * len(point) // len(names))
            if form.dense:
                rewritten[f"{point_name}.weight"] = fold_pair(point[rows], depth[rows])
                continue
            rewritten[f"{point_name}.weight"] = point[rows]
            if bias is not None:
                rewritten[f"{point_name}.bias"] = bias[rows]
            rewritten[f"{depth_name}.weight"] = depth[rows]
    return rewritten


def parameter_shapes(form: GraphForm) -> dict[str, Shape]:
    """Names and shapes of the parameters of a form, in the order of ``rewrite``."""
    import numpy as np

    zeros = {name: np.zeros(shape, np.float32) for name, shape in PARAMETERS.items()}
    return {name: array.shape for name, array in rewrite(form, zeros).items()}
