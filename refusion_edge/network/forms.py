"""Forms of the fusion graph: the same network in the layout that suits each target best.

A form is a set of rewrites, all exact in real arithmetic. Some of them change the parameters of the graph (a 1x1 and a
depthwise convolution become one kernel, the scale of a layer norm moves into the convolution after it); ``rewrite``
computes the new parameters from the official 86. Templates are traced by ``refusion_edge.export.graph.trace``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from refusion_edge.errors import UsageError
from refusion_edge.network.parameters import NUM_BLOCKS, PARAMETERS, Shape
from refusion_edge.text import printable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from refusion_edge.arrays import State

Precision = Literal["fp32", "fp16", "bf16", "int8"]
"""Precision of an engine."""
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
GraphPrecision = Literal["fp32", "fp16"]
"""Precision of a graph; bf16 engines are built from fp32 graphs, int8 engines from fp16 graphs."""


@dataclass(frozen=True, slots=True)
class GraphForm:
    """How the operators of the network are laid out. The defaults are the layout of the official release.

    Attributes:
        split: Whether q, k and v, and gate and update, have a pair of convolutions each, instead of one pair for all
            whose result is sliced. With blocked layouts, a slice is a copy.
        dense: Whether each 1x1 and the depthwise 3x3 after it are one dense 3x3. Exact including the border: neither has
            a bias, so padding the 1x1's output with zeros equals padding its input.
        folded_norm: Whether the affine part of a layer norm and the subtraction of its mean are folded into the 1x1
            after it, with the variance computed as E[x^2] - m^2 by two 1x1 convolutions, clamped at 0. Excludes
            ``dense``: the folded shift is a bias of the 1x1, which must not leak into the zero padding between the two.
        convolved_mixing: Whether attention and output projection are one 1x1 convolution with computed weights, instead
            of two consecutive products.
        means: Whether, in half precision, the products of attention are means over the image, of q and k divided by
            sqrt(HW), and stay in half precision; otherwise they are sums in fp32. Norms are fp32 either way.
        precisions: Precisions for which there are templates.
    """

    split: bool = False
    dense: bool = False
    folded_norm: bool = False
    convolved_mixing: bool = False
    means: bool = False
    precisions: tuple[GraphPrecision, ...] = ("fp32", "fp16")

    def __post_init__(self) -> None:
        if self.dense and self.folded_norm:
            raise ValueError(
                "folded_norm and dense exclude each other: the folded shift would leak into the border; choose one"
            )


FORMS: dict[str, GraphForm] = {
    "cpu": GraphForm(split=True, folded_norm=True, convolved_mixing=True, precisions=("fp32",)),
    "tensorrt-folded": GraphForm(dense=True, means=True),
    "tensorrt-literal": GraphForm(),
}
"""All forms by name."""

# Names that release 0.1 used for the single CPU layout.
_FORMER_NAMES = {"onnxruntime": "cpu", "openvino": "cpu"}

REFERENCE = "tensorrt-literal"
"""The form with the official layout, which the others are compared with."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A 1x1 convolution and the depthwise 3x3 after it.

    Attributes:
        point: Name of the 1x1, without ``.weight``.
        depth: Name of the depthwise convolution.
        parts: Number of tensors of equal width that the result is split into.
        norm: Name of the layer norm before it, or None.
    """

    point: str
    depth: str
    parts: int
    norm: str | None = None

    def part_names(self, form: GraphForm) -> list[tuple[str, str]]:
        """List the 1x1 (or dense) and depthwise kernels of this pair in a form, by name without ``.weight``."""
        if not form.split or self.parts == 1:
            return [(self.point, self.depth)]
        return [(f"{self.point}.{part}", f"{self.depth}.{part}") for part in range(self.parts)]


def attention_pair(block: str) -> Pair:
    """The pair that computes q, k and v in a transformer block."""
    return Pair(f"{block}.attn.qkv", f"{block}.attn.qkv_dwconv", 3, f"{block}.norm1.body")


def feed_forward_pair(block: str) -> Pair:
    """The pair that computes gate and update in a transformer block."""
    return Pair(f"{block}.ffn.project_in", f"{block}.ffn.dwconv", 2, f"{block}.norm2.body")


def fusion_qkv_pair(source: int) -> Pair:
    """The pair that computes q, k and v of source 1 or 2 in the fusion module."""
    return Pair(f"FM.qkv{source}", f"FM.qkv{source}_dwconv", 3)


def fusion_gate_pair() -> Pair:
    """The pair that computes both gates in the fusion module."""
    return Pair("FM.project_E", "FM.project_E_d", 2)


def fusion_update_pair(source: int) -> Pair:
    """The pair that computes the update of source 1 or 2, which its gate multiplies, in the fusion module."""
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
    """Resolve the name of a form, including names used by release 0.1.

    Raises:
        UsageError: There is no such form.
    """
    name = _FORMER_NAMES.get(name, name)
    if name not in FORMS:
        raise UsageError(
            f"unknown graph form '{printable(name, 40)}'", f"choose one of {', '.join(FORMS)}", expected=tuple(FORMS), got=name
        )
    return name


def find_form(name: str) -> GraphForm:
    """Look a form up by its name.

    Raises:
        UsageError: There is no such form.
    """
    return FORMS[form_named(name)]


def fold_pair(point: NDArray[np.float64], depth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Fold a 1x1 convolution and the depthwise 3x3 after it into one dense 3x3.

    Exact including the border: neither has a bias, so padding the result of the 1x1 with zeros equals padding its input.

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
        Parameters by name, float64. Those that the form leaves unchanged keep their names and come first, in the
        official order. A dense 3x3 has the name of its 1x1, a part of a split pair has its number appended, and a
        folded shift ends in ``.bias``.
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
            # With row sums of zero, the mean of the pixel has no effect, so it need not be subtracted.
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
