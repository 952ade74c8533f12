"""uint8 inputs and outputs inside an engine, so that only a quarter of the bytes move to and from the device.

The outputs are for grayscale results only: a color result is computed from the float plane, because rounding to 8 bits
first would round twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from refusion_edge.backends.tensorrt.settings import PlanSettings
from refusion_edge.images.color import MAX_GAIN, OutputRange
from refusion_edge.network.graph import INPUT_A, INPUT_B, MEAN, OUTPUT, UINT8_INPUTS, UINT8_OUTPUTS

_WHITE = 255.0
# The first opset whose reductions take their axes as an input.
_OPSET = 18


def add_uint8(model: onnx.ModelProto, settings: PlanSettings) -> onnx.ModelProto:
    """Add the uint8 inputs and outputs that the settings of an engine ask for."""
    if settings.uint8_input:
        model = add_uint8_input(model)
    return model if settings.uint8_output is None else add_uint8_output(model, settings.uint8_output)


def add_uint8_output(model: onnx.ModelProto, levels: OutputRange) -> onnx.ModelProto:
    """Add two outputs to a model: the uint8 plane, and the mean of the float plane, which is finite only if the plane is.

    Args:
        model: A filled model; it is not changed.
        levels: ``stretch`` maps the smallest value to 0 and the largest to 255, ``fixed`` [0, 1] to [0, 255], as
            ``refusion_edge.images.color.to_output_range`` does.

    Returns:
        A copy of the model with the output ``levels_stretch`` or ``levels_fixed``, (1, 1, H, W) uint8, halves rounded down as
        in ``refusion_edge.images.color.merge``, and the output ``fused_mean``, (1, 1, 1, 1) float32.
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

    axes, zero, one = constant("axes", [2, 3]), constant("zero", 0.0), constant("one", 1.0)
    half = constant("half", 0.5)
    node("ReduceMean", [OUTPUT, axes], MEAN)
    if levels == "fixed":
        unit = node("Clip", [OUTPUT, zero, one], "levels.unit")
    else:
        least, largest = (node(f"Reduce{which}", [OUTPUT, axes], f"levels.{which.lower()}") for which in ("Min", "Max"))
        # As ``refusion_edge.images.color.widened``, but in float32: what is not widened begins at exactly the least value.
        span = node("Sub", [largest, least], "levels.span")
        width = node("Max", [span, constant("narrowest", 1 / MAX_GAIN)], "levels.width")
        lacking = node("Sub", [width, span], "levels.lacking")
        room_below = node("Max", [least, zero], "levels.room_below")
        room_above = node("Max", [node("Sub", [one, largest], "levels.to_one"), zero], "levels.room_above")
        at_most = node("Min", [node("Mul", [lacking, half], "levels.middle"), room_below], "levels.at_most")
        at_least = node("Sub", [lacking, room_above], "levels.at_least")
        black = node("Sub", [least, node("Max", [at_most, at_least], "levels.margin")], "levels.black")
        unit = node("Div", [node("Sub", [OUTPUT, black], "levels.above"), width], "levels.unit")
    scaled = node("Mul", [unit, constant("white", _WHITE)], "levels.scaled")
    rounded = node("Ceil", [node("Sub", [scaled, half], "levels.below")], "levels.rounded")
    # Casting minus zero to an unsigned type is undefined.
    node("Cast", [node("Max", [rounded, zero], "levels.whole")], UINT8_OUTPUTS[levels], to=TensorProto.UINT8)
    (plane,) = (output for output in graph.output if output.name == OUTPUT)
    shape = [side.dim_param or side.dim_value for side in plane.type.tensor_type.shape.dim]
    graph.output.append(helper.make_tensor_value_info(UINT8_OUTPUTS[levels], TensorProto.UINT8, shape))
    graph.output.append(helper.make_tensor_value_info(MEAN, TensorProto.FLOAT, [1, 1, 1, 1]))
    for opset in extended.opset_import:
        if opset.domain == "":
            opset.version = max(opset.version, _OPSET)
    return extended


def add_uint8_input(model: onnx.ModelProto) -> onnx.ModelProto:
    """Add uint8 inputs to a model.

    Args:
        model: A filled model; it is not changed.

    Returns:
        A copy of the model with the additional inputs ``a_pixels`` and ``b_pixels``, uint8, of the shapes of ``a`` and ``b``.
        It fuses ``a + a_pixels / 255``, divided in float32 as in ``refusion_edge.images.color.split``, and likewise for ``b``.
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
        (plane_input,) = (value for value in graph.input if value.name == source)
        shape = [side.dim_param or side.dim_value for side in plane_input.type.tensor_type.shape.dim]
        graph.input.append(helper.make_tensor_value_info(pixels, TensorProto.UINT8, shape))
    nodes = [*first, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return extended
