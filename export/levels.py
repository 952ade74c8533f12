"""The last step of fusing inside an engine: the fused plane as 8-bit levels, so that a quarter of the bytes leave the device.

For grey results only: a coloured one is made from the plane itself, which 8 bits would round twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from refusion_edge.graph import LEVELS, MEAN, OUTPUT
from refusion_edge.tensorrt.settings import LevelsRange

_WHITE = 255.0
# The first whose reductions take their axes as an input.
_OPSET = 18


def add_levels(model: onnx.ModelProto, levels: LevelsRange) -> onnx.ModelProto:
    """Add two outputs to a model: the levels, and the mean of the plane, which is finite where the plane is.

    Args:
        model: A filled model; it is not changed.
        levels: ``stretch``: least value to 0, largest to 255, a constant plane to 0. ``fixed``: [0, 1] to [0, 255].

    Returns:
        The model with the outputs ``levels_stretch`` or ``levels_fixed``, (1, 1, H, W) uint8, rounded with halves down as
        ``refusion_edge.luminance.merge`` does it, and ``fused_mean``, (1, 1, 1, 1) float32.
    """
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    graph = extended.graph

    def constant(name: str, values: float | list[int]) -> str:
        array = np.array(values, np.int64) if isinstance(values, list) else np.array(values, np.float32)
        graph.initializer.append(numpy_helper.from_array(array, f"levels.{name}"))
        return f"levels.{name}"

    def node(operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        graph.node.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    axes, zero = constant("axes", [2, 3]), constant("zero", 0.0)
    node("ReduceMean", [OUTPUT, axes], MEAN)
    if levels == "fixed":
        unit = node("Clip", [OUTPUT, zero, constant("one", 1.0)], "levels.unit")
    else:
        least, largest = (node(f"Reduce{which}", [OUTPUT, axes], f"levels.{which.lower()}") for which in ("Min", "Max"))
        span = node("Sub", [largest, least], "levels.span")
        # A constant plane has no span, and nothing above its least value either.
        divisor = node("Max", [span, constant("tiny", float(np.finfo(np.float32).tiny))], "levels.divisor")
        unit = node("Div", [node("Sub", [OUTPUT, least], "levels.above"), divisor], "levels.unit")
    scaled = node("Mul", [unit, constant("white", _WHITE)], "levels.scaled")
    rounded = node("Ceil", [node("Sub", [scaled, constant("half", 0.5)], "levels.below")], "levels.rounded")
    # What rounds up to minus zero is nothing for unsigned numbers.
    node("Cast", [node("Max", [rounded, zero], "levels.whole")], LEVELS[levels], to=TensorProto.UINT8)
    (plane,) = (output for output in graph.output if output.name == OUTPUT)
    shape = [side.dim_param or side.dim_value for side in plane.type.tensor_type.shape.dim]
    graph.output.append(helper.make_tensor_value_info(LEVELS[levels], TensorProto.UINT8, shape))
    graph.output.append(helper.make_tensor_value_info(MEAN, TensorProto.FLOAT, [1, 1, 1, 1]))
    for opset in extended.opset_import:
        if opset.domain == "":
            opset.version = max(opset.version, _OPSET)
    return extended
