"""Writing INT8 into a strongly typed ONNX model, as pairs of QuantizeLinear and DequantizeLinear.

Activations have one scale per tensor and weights one per output channel, both symmetric, so the zero point is 0. The
weights are stored as int8. TensorRT runs a convolution between such pairs in INT8; ONNX Runtime computes the same numbers in
floating point, which makes it the CPU proxy of an INT8 engine.
"""

from __future__ import annotations

from collections.abc import Container

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from refusion_edge.arrays import Array
from refusion_edge.network.quantization import LARGEST, CalibrationTable, layer_nodes

# The first opset that quantizes half precision.
_OPSET = 19


def quantize(model: onnx.ModelProto, table: CalibrationTable, keep: Container[str] = ()) -> onnx.ModelProto:
    """Quantize the folded convolutions of a model.

    Args:
        model: A filled model of the folded form, fp32 or fp16; it is not changed.
        table: Ranges of their inputs.
        keep: Layers to leave unchanged.

    Returns:
        A copy of the model with weights and inputs of the other layers in INT8.
    """
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    graph = quantized.graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    before: dict[str, list[onnx.NodeProto]] = {}
    for layer, node in layer_nodes(quantized).items():
        if layer in keep:
            continue
        weight = weights[f"{layer}.weight"]
        values = numpy_helper.to_array(weight)
        scales = _scale(np.abs(values).reshape(len(values), -1).max(axis=1), values.dtype)
        stored = np.rint(values.astype(np.float64) / scales[:, None, None, None].astype(np.float64))
        weight.CopyFrom(numpy_helper.from_array(stored.clip(-LARGEST, LARGEST).astype(np.int8), weight.name))
        added = {
            f"{layer}.weight.scale": scales,
            f"{layer}.weight.zero": np.zeros(len(scales), np.int8),
            f"{layer}.input.scale": _scale(np.array(table.ranges[layer]), values.dtype),
            f"{layer}.input.zero": np.array(0, np.int8),
        }
        graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in added.items())
        before[node.name] = [
            helper.make_node(
                "QuantizeLinear", [node.input[0], f"{layer}.input.scale", f"{layer}.input.zero"], [f"{layer}.input.int8"],
                name=f"{layer}.input.quantize",
            ),
            helper.make_node(
                "DequantizeLinear", [f"{layer}.input.int8", f"{layer}.input.scale", f"{layer}.input.zero"],
                [f"{layer}.input.value"], name=f"{layer}.input.dequantize",
            ),
            helper.make_node(
                "DequantizeLinear", [weight.name, f"{layer}.weight.scale", f"{layer}.weight.zero"], [f"{layer}.weight.value"],
                name=f"{layer}.weight.dequantize", axis=0,
            ),
        ]  # fmt: skip
        node.input[0], node.input[1] = f"{layer}.input.value", f"{layer}.weight.value"
    nodes = [new for node in graph.node for new in (*before.get(node.name, ()), node)]
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    for opset in quantized.opset_import:
        if opset.domain == "":
            opset.version = max(opset.version, _OPSET)
    return quantized


def _scale(largest: NDArray[np.floating], dtype: np.dtype[np.floating]) -> Array:
    """Scale of a range in the precision of the model, rounded up so that no value of the range is clipped."""
    wanted = np.maximum(largest.astype(np.float64), np.finfo(np.float32).tiny) / LARGEST
    scale = wanted.astype(dtype)
    return np.where(scale.astype(np.float64) < wanted, np.nextafter(scale, np.array(np.inf, dtype)), scale).astype(dtype)
