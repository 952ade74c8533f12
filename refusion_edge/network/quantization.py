"""INT8 quantization: the layers that can be quantized, and the calibrated ranges of their inputs.

A layer is a convolution, named after its parameter without ``.weight``.

In the paper's network, only the dense 3x3 convolutions that fold a 1x1 and a depthwise one are quantized: they do nearly all
the arithmetic, and depthwise ones gain nothing on tensor cores. The first and last convolutions, and everything between the
folded ones, stay in half precision.

In the network ``fast``, every convolution but the first is quantized. The input of the first are the images themselves, whose
256 levels do not fit 127 steps, and its weights change with the image.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from refusion_edge.documents import parse_json, shown, typed
from refusion_edge.errors import InputError
from refusion_edge.network.family import DEFAULT_NETWORK, network_of
from refusion_edge.network.forms import pairs

if TYPE_CHECKING:
    import onnx

Method = Literal["entropy", "percentile", "min-max"]
METHODS: tuple[Method, ...] = ("entropy", "percentile", "min-max")
SCHEMA = "refusion-edge/calibration/1"

# Symmetric: -128 is unused, so that a value and its negative are rounded alike.
LARGEST = 127


@dataclass(frozen=True, slots=True)
class CalibrationTable:
    """Calibrated ranges of the inputs of the quantizable layers.

    Attributes:
        method: How the ranges were chosen.
        ranges: Largest absolute value that INT8 has to represent, by layer.
        pairs: Number of image pairs used for calibration.
        data_sha256: Hash over their pixels.
        random: Whether they were random numbers instead of images.
    """

    method: Method
    ranges: Mapping[str, float]
    pairs: int
    data_sha256: str
    random: bool = False

    def to_json(self) -> str:
        """Serialize; equal tables give equal text."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2, sort_keys=True, allow_nan=False) + "\n"


def read_table(text: str | bytes, source: str, layers: tuple[str, ...]) -> CalibrationTable:
    """Parse a calibration table.

    Args:
        text: JSON as written by ``CalibrationTable.to_json``.
        source: Name of the table in messages.
        layers: The layers that it has to be for, see ``quantizable_layers``.

    Raises:
        InputError: It is not a calibration table, or is one for other layers.
    """
    document = typed(dict[str, Any], parse_json(text, source), source)
    if document.get("schema") != SCHEMA:
        raise InputError(
            f"{source} has the schema {shown(document.get('schema'))} instead of {SCHEMA}",
            "calibrate again",
            expected=SCHEMA,
            got=document.get("schema"),
        )
    table = typed(CalibrationTable, {key: value for key, value in document.items() if key != "schema"}, source)
    if set(table.ranges) != set(layers):
        raise InputError(
            f"{source} has ranges for {len(table.ranges)} layers ({shown(', '.join(sorted(table.ranges)))}) that are not the "
            f"{len(layers)} of these weights ({layers[0]}, ...)",
            "calibrate with the weights that the engine is built from",
            expected=layers,
            got=tuple(table.ranges),
        )
    if not all(value > 0 for value in table.ranges.values()):
        raise InputError(f"{source} has a range that is not above 0", "calibrate again")
    return table


def quantizable_layers(names: Iterable[str]) -> tuple[str, ...]:
    """Names of the quantizable layers, in network order.

    Args:
        names: Names of parameters of a network, or of the constants of a graph of it.
    """
    known = set(names)
    if network_of(known).name == DEFAULT_NETWORK:
        return tuple(pair.point for pair in pairs())
    count = sum(name.startswith("layers.") and name.endswith(".weight") for name in known)
    return tuple(f"layers.{index}" for index in range(1, count))


def layer_nodes(model: onnx.ModelProto) -> dict[str, Any]:
    """Find the quantizable convolutions of a model.

    Args:
        model: A model of the network ``fast``, or of the other one in the form ``tensorrt-folded``.

    Returns:
        The ``Conv`` node of each layer, by name.
    """
    by_weight = {node.input[1]: node for node in model.graph.node if node.op_type == "Conv"}
    layers = quantizable_layers(tensor.name for tensor in model.graph.initializer)
    return {layer: by_weight[f"{layer}.weight"] for layer in layers}
