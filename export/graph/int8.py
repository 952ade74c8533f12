"""INT8 in an ONNX model, and the choice of the layers that get it: all but those that have to stay in fp16 to pass the gate.

INT8 is written as pairs of QuantizeLinear and DequantizeLinear. Activations have one scale per tensor and weights one per
output channel, both symmetric, so the zero point is 0. The weights are stored as int8. TensorRT runs a convolution between
such pairs in INT8; ONNX Runtime computes the same numbers in floating point, which makes it the CPU proxy of an INT8 engine.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from refusion_edge.accuracy.gate import Fidelity, Limits, compare, worst
from refusion_edge.arrays import Array, State
from refusion_edge.backends.onnxruntime import OrtBackend, open_reference
from refusion_edge.errors import GateError
from refusion_edge.images.luma import Planes, to_planes
from refusion_edge.images.pairs import ImagePair
from refusion_edge.network.quantization import LARGEST, CalibrationTable, layer_nodes
from refusion_edge.tasks import Task

# The few gate pairs are not the hardest that will come: the pairs of one camera were 8 dB below the worst of them.
SPARE_DB = 6.0
# The first opset that quantizes half precision.
_OPSET = 19


def quantize(model: onnx.ModelProto, table: CalibrationTable, keep: Container[str] = ()) -> onnx.ModelProto:
    """Quantize the quantizable convolutions of a model, see ``refusion_edge.network.quantization``.

    Args:
        model: A filled model of the folded form or of the network ``fast``, fp32 or fp16; it is not changed.
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


@dataclass(frozen=True, slots=True)
class Selection:
    """The INT8 layers of a model.

    Attributes:
        model: The model with these layers in INT8.
        int8: Layers in INT8, in the order of the network.
        kept: Layers that stay in half precision, the most sensitive first.
        scan: Fidelity with one layer alone in INT8, by layer; empty if no scan was needed.
    """

    model: onnx.ModelProto
    int8: tuple[str, ...]
    kept: tuple[str, ...]
    scan: Mapping[str, Fidelity]


class Evaluator:
    """Evaluates many models on the same pairs, whose fp32 results are computed once.

    Attributes:
        scanned: Number of pairs for the layer scan, which only ranks layers; the gate uses all pairs.

    Args:
        state: All parameters.
        pairs: The pairs.
        task: Their task.
        threads: Threads of the fp32 reference; 0 for one per physical core.
    """

    scanned = 2

    def __init__(self, state: State, pairs: Sequence[ImagePair], task: Task, *, threads: int = 0) -> None:
        self._planes: list[Planes] = [to_planes(pair.a, pair.b, task, encodings=pair.encodings) for pair in pairs]
        with open_reference(state, threads) as reference:
            self._expected = [reference.fuse(planes.a, planes.b)[0, 0].copy() for planes in self._planes]

    def evaluate(self, model: onnx.ModelProto, pairs: int | None = None) -> Fidelity:
        """Run a model on the first ``pairs`` pairs, or on all, and return its worst fidelity."""
        with OrtBackend(model.SerializeToString()) as engine:
            return worst(
                compare(engine.fuse(planes.a, planes.b)[0, 0], expected)
                for planes, expected in list(zip(self._planes, self._expected, strict=True))[:pairs]
            )


def scan_layers(
    model: onnx.ModelProto, table: CalibrationTable, evaluator: Evaluator, on_layer: Callable[[], None] = lambda: None
) -> dict[str, Fidelity]:
    """Quantize one layer at a time.

    Args:
        model: A filled model, see ``quantize``.
        table: Ranges.
        evaluator: Evaluates the models.
        on_layer: Called after each layer.

    Returns:
        Fidelity with one layer alone in INT8, by layer, the most sensitive layer first.
    """
    layers = tuple(layer_nodes(model))
    found = {}
    for layer in layers:
        found[layer] = evaluator.evaluate(quantize(model, table, keep=_others(layers, layer)), evaluator.scanned)
        on_layer()
    return dict(sorted(found.items(), key=lambda item: item[1].psnr_db))


def select_layers(
    model: onnx.ModelProto,
    table: CalibrationTable,
    evaluator: Evaluator,
    limits: Limits,
    on_layer: Callable[[], None] = lambda: None,
) -> Selection:
    """Quantize as many layers as the limits allow, with ``SPARE_DB`` to spare if possible.

    If all layers in INT8 pass, quantize them all. Otherwise a scan ranks the layers, and a bisection finds the smallest number
    of the most sensitive layers that have to stay in half precision.

    Args:
        model: A filled fp16 model, see ``quantize``.
        table: Ranges.
        evaluator: Evaluates the models.
        limits: Limits of the accuracy gate.
        on_layer: Called after each layer of the scan.

    Raises:
        GateError: Even a single layer in INT8 exceeds the limits.
    """
    layers = tuple(layer_nodes(model))
    spared = replace(limits, psnr_db=limits.psnr_db + SPARE_DB)
    everything = quantize(model, table)
    found = {0: evaluator.evaluate(everything)}
    if spared.hold(found[0]):
        return Selection(everything, layers, (), {})
    scan = scan_layers(model, table, evaluator, on_layer)
    ranked = tuple(scan)

    def fewest_kept(wanted: Limits) -> int:
        fails, passes = -1, len(layers)
        while passes - fails > 1:
            middle = (fails + passes) // 2
            if middle not in found:
                found[middle] = evaluator.evaluate(quantize(model, table, keep=ranked[:middle]))
            fails, passes = (fails, middle) if wanted.hold(found[middle]) else (middle, passes)
        return passes

    count = fewest_kept(spared)
    if count == len(layers):
        count = fewest_kept(limits)
    if count == len(layers):
        raise GateError(
            "the int8 engine was not installed, as it differs too much from the fp32 reference even with a single layer in "
            f"INT8: {found[len(layers) - 1]}, and the limits are {limits}",
            "build with --precision fp16",
            expected=limits,
            got=found[len(layers) - 1],
        )
    kept = ranked[:count]
    return Selection(quantize(model, table, keep=kept), tuple(layer for layer in layers if layer not in kept), kept, scan)


def _others(layers: Sequence[str], excepted: str) -> Container[str]:
    return {layer for layer in layers if layer != excepted}


def _scale(largest: NDArray[np.floating], dtype: np.dtype[np.floating]) -> Array:
    """Scale of a range in the precision of the model, rounded up so that no value of the range is clipped."""
    wanted = np.maximum(largest.astype(np.float64), np.finfo(np.float32).tiny) / LARGEST
    scale = wanted.astype(dtype)
    return np.where(scale.astype(np.float64) < wanted, np.nextafter(scale, np.array(np.inf, dtype)), scale).astype(dtype)
