"""The networks: ``refusion``, that of the paper, and ``fast``, ours for real time on processors.

Each is defined once: its parameters, its PyTorch function, its ONNX graph and its cost. Parameters know their network by their
names, so nothing else has to be passed along with them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from refusion_edge.arrays import State
from refusion_edge.errors import UsageError
from refusion_edge.network.cost import Work, fast_work, refusion_work
from refusion_edge.network.fast import FORM as FAST_FORM
from refusion_edge.network.fast import layout_of
from refusion_edge.network.forms import FORMS, GraphPrecision, Precision
from refusion_edge.network.graph import graph_precision
from refusion_edge.network.parameters import PARAMETERS, Shape

if TYPE_CHECKING:
    import onnx
    from torch import Tensor

    TorchFunction: TypeAlias = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Network:
    """One network of the family.

    Attributes:
        name: Name on the command line and in files.
        summary: What it is for, in a few words.
        shapes: The parameters that a state of these shapes has to consist of, name to shape, in order. Raises
            ``UsageError`` if no layout of the network has such shapes.
        work: Cost per pixel, given the shapes of the parameters and the precision of the features in memory.
        torch: The network in PyTorch, given its parameters: two planes, (B, 1, H, W) float32 in [0, 1], to the fused plane of
            the same shape and range. Imports torch when called.
        forms: Names of its graphs, see ``refusion_edge.network.forms``.
        graph: The ONNX model with these parameters, given the form, the precision of the graph and a fixed size or None.
    """

    name: str
    summary: str
    shapes: Callable[[Mapping[str, Shape]], Mapping[str, Shape]]
    work: Callable[[Mapping[str, Shape], str], Work]
    torch: Callable[[State], TorchFunction]
    forms: tuple[str, ...]
    graph: Callable[[State, str, GraphPrecision, tuple[int, int] | None], onnx.ModelProto]


def _refusion_in_torch(state: State) -> TorchFunction:
    import torch

    from refusion_edge.network.model import FusionNetwork

    network = FusionNetwork().eval()
    network.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in state.items()})
    return network


def _fast_in_torch(state: State) -> TorchFunction:
    import torch

    from refusion_edge.network.fast_module import fuse

    parameters = {name: torch.from_numpy(array.copy()) for name, array in state.items()}
    return lambda a, b: fuse(parameters, a, b).clamp(0, 1)


def _refusion_graph(state: State, form: str, precision: GraphPrecision, size_hw: tuple[int, int] | None) -> onnx.ModelProto:
    from refusion_edge.network.graph import fill, read_template

    return fill(read_template(form, precision), state, size_hw)


def _fast_graph(state: State, _form: str, precision: GraphPrecision, size_hw: tuple[int, int] | None) -> onnx.ModelProto:
    from refusion_edge.network.fast_graph import make_fast_graph

    return make_fast_graph(state, size_hw, precision)


NETWORKS: dict[str, Network] = {
    "refusion": Network(
        "refusion",
        "the network of the paper, for GPUs and for single images",
        lambda _: PARAMETERS,
        lambda _, precision: refusion_work(precision),
        _refusion_in_torch,
        tuple(FORMS),
        _refusion_graph,
    ),
    "fast": Network(
        "fast",
        "a tenth of the arithmetic, for real time on processors",
        lambda shapes: layout_of(shapes).shapes,
        lambda shapes, precision: fast_work(layout_of(shapes), precision),
        _fast_in_torch,
        (FAST_FORM,),
        _fast_graph,
    ),
}
"""All networks by name."""

DEFAULT_NETWORK = "refusion"


def shapes_of(state: State) -> dict[str, Shape]:
    """Shapes of parameters by name."""
    return {name: array.shape for name, array in state.items()}


def make_model(form: str, precision: Precision, state: State, size_hw: tuple[int, int] | None = None) -> onnx.ModelProto:
    """Make the ONNX model of an engine.

    Args:
        form: Graph form of the paper's network; that of ``fast`` has only one.
        precision: Precision of the engine.
        state: Parameters of either network.
        size_hw: Fixed height and width of the graph, or None to keep both dynamic.

    Raises:
        UsageError: The size is out of range, or the form does not exist in this precision.
        CheckpointError: A parameter is too large for the precision.
    """
    return network_of(state).graph(state, form, graph_precision(precision), size_hw)


# A name that no other network has.
_MARKS = {"layers.0.weight": "fast"}


def find_network(name: str) -> Network:
    """Look a network up by its name.

    Raises:
        UsageError: There is no such network; the message suggests the nearest one.
    """
    network = NETWORKS.get(name)
    if network is None:
        nearest = difflib.get_close_matches(name, NETWORKS, n=1, cutoff=0.4)
        hint = f" (did you mean '{nearest[0]}'?)" if nearest else ""
        raise UsageError(
            f"unknown network '{name}'{hint}", f"choose one of {', '.join(NETWORKS)}", expected=tuple(NETWORKS), got=name
        )
    return network


def network_of(names: Iterable[str]) -> Network:
    """Tell which network parameters belong to, by their names; unknown ones count as the paper's."""
    return NETWORKS[next((_MARKS[name] for name in names if name in _MARKS), DEFAULT_NETWORK)]
