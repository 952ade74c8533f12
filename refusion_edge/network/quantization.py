"""INT8 quantization: the layers that can be quantized, and the calibrated ranges of their inputs.

A layer is a convolution, named after its parameter without ``.weight``. Only the dense 3x3 convolutions that fold a 1x1 and a
depthwise one are quantized: they do nearly all the arithmetic, and depthwise ones gain nothing on tensor cores. The first and
last convolutions, and everything between the folded ones, stay in half precision.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from refusion_edge.documents import parse_json, shown, typed
from refusion_edge.errors import InputError
from refusion_edge.network.layouts import pairs

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


def read_table(text: str | bytes, source: str) -> CalibrationTable:
    """Parse a calibration table.

    Args:
        text: JSON as written by ``CalibrationTable.to_json``.
        source: Name of the table in messages.

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
    if set(table.ranges) != set(quantizable_layers()) or not all(value > 0 for value in table.ranges.values()):
        raise InputError(f"{source} lacks ranges above 0 for exactly the {len(quantizable_layers())} layers", "calibrate again")
    return table


def quantizable_layers() -> tuple[str, ...]:
    """Names of the quantizable layers, in network order."""
    return tuple(pair.point for pair in pairs())


def layer_nodes(model: onnx.ModelProto) -> dict[str, Any]:
    """Find the quantizable convolutions of a model.

    Args:
        model: A model in the form ``tensorrt-folded``.

    Returns:
        The ``Conv`` node of each layer, by name.
    """
    by_weight = {node.input[1]: node for node in model.graph.node if node.op_type == "Conv"}
    return {layer: by_weight[f"{layer}.weight"] for layer in quantizable_layers()}
