"""The last step of fusing inside an engine: the fused plane as 8-bit levels, so that a quarter of the bytes leave the device.

For grey results only: a coloured one is made from the plane itself, which 8 bits would round twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from refusion_edge.images.color import OutputRange
from refusion_edge.network.graph import INPUT_A, INPUT_B, MEAN, OUTPUT, UINT8_INPUTS, UINT8_OUTPUTS

_WHITE = 255.0
# The first whose reductions take their axes as an input.
_OPSET = 18


def add_uint8_output(model: onnx.ModelProto, levels: OutputRange) -> onnx.ModelProto:
    """Add two outputs to a model: the levels, and the mean of the plane, which is finite where the plane is.

    Args:
        model: A filled model; it is not changed.
        levels: ``stretch``: least value to 0, largest to 255, a constant plane to 0. ``fixed``: [0, 1] to [0, 255].

    Returns:
        The model with the outputs ``levels_stretch`` or ``levels_fixed``, (1, 1, H, W) uint8, rounded with halves down as
        ``refusion_edge.images.color.merge`` does it, and ``fused_mean``, (1, 1, 1, 1) float32.
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
    node("Cast", [node("Max", [rounded, zero], "levels.whole")], UINT8_OUTPUTS[levels], to=TensorProto.UINT8)
    (plane,) = (output for output in graph.output if output.name == OUTPUT)
    shape = [side.dim_param or side.dim_value for side in plane.type.tensor_type.shape.dim]
    graph.output.append(helper.make_tensor_value_info(UINT8_OUTPUTS[levels], TensorProto.UINT8, shape))
    graph.output.append(helper.make_tensor_value_info(MEAN, TensorProto.FLOAT, [1, 1, 1, 1]))
    for opset in extended.opset_import:
        if opset.domain == "":
            opset.version = max(opset.version, _OPSET)
    return extended


_WHITE = 255.0


def add_uint8_input(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let a model take 8-bit sources, too.

    Args:
        model: A filled model; it is not changed.

    Returns:
        The model with the inputs ``a_pixels`` and ``b_pixels`` besides, uint8 of the shape of ``a`` and ``b``. What is fused
        is ``a + a_pixels / 255``, in float32 as ``refusion_edge.images.color.split`` divides, and the same of ``b``.
    """
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    graph = extended.graph
    graph.initializer.append(numpy_helper.from_array(np.array(_WHITE, np.float32), "pixels.white"))
    first = []
    for source in (INPUT_A, INPUT_B):
        pixels, values, unit, plane = UINT8_INPUTS[source], f"{source}.values", f"{source}.unit", f"{source}.plane"
        for node in graph.node:
            node.input[:] = [plane if name == source else name for name in node.input]
        first += [
            helper.make_node("Cast", [pixels], [values], name=values, to=TensorProto.FLOAT),
            helper.make_node("Div", [values, "pixels.white"], [unit], name=unit),
            helper.make_node("Add", [source, unit], [plane], name=plane),
        ]
        (given,) = (value for value in graph.input if value.name == source)
        shape = [side.dim_param or side.dim_value for side in given.type.tensor_type.shape.dim]
        graph.input.append(helper.make_tensor_value_info(pixels, TensorProto.UINT8, shape))
    nodes = [*first, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return extended
