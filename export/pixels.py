"""The first step of fusing inside an engine: 8-bit sources become planes there, so that a quarter of the bytes go to it.

Beside each source in float32 the model takes one in 8 bits, and fuses their sum: whoever gives the one leaves the other zero.
``x + 0`` is ``x``, so that neither way costs the other a digit, and one engine serves sensors of both kinds.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from refusion_edge.graph import INPUT_A, INPUT_B, PIXELS

_WHITE = 255.0


def add_pixels(model: onnx.ModelProto) -> onnx.ModelProto:
    """Let a model take 8-bit sources, too.

    Args:
        model: A filled model; it is not changed.

    Returns:
        The model with the inputs ``a_pixels`` and ``b_pixels`` besides, uint8 of the shape of ``a`` and ``b``. What is fused
        is ``a + a_pixels / 255``, in float32 as ``refusion_edge.luminance.split`` divides, and the same of ``b``.
    """
    extended = onnx.ModelProto()
    extended.CopyFrom(model)
    graph = extended.graph
    graph.initializer.append(numpy_helper.from_array(np.array(_WHITE, np.float32), "pixels.white"))
    first = []
    for source in (INPUT_A, INPUT_B):
        pixels, values, unit, plane = PIXELS[source], f"{source}.values", f"{source}.unit", f"{source}.plane"
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
