"""Selecting the INT8 layers of an engine: all but the most sensitive ones, which have to stay in fp16 to pass the gate."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx

from refusion_edge.accuracy.fidelity import Fidelity, Limits, compare, worst
from refusion_edge.backends.onnxruntime import OrtBackend
from refusion_edge.backends.registry import Backend
from refusion_edge.errors import GateError
from refusion_edge.export.graph.quantize import quantize
from refusion_edge.images.color import Planes, to_planes
from refusion_edge.images.pairs import ImagePair
from refusion_edge.network.quantization import CalibrationTable, quantizable_layers
from refusion_edge.tasks import Task

# The few gate pairs are not the hardest that will come: the pairs of one camera were 8 dB below the worst of them.
SPARE_DB = 6.0


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
        reference: Runs the network in fp32; used only during construction.
        pairs: The pairs.
        task: Their task.
    """

    scanned = 2

    def __init__(self, reference: Backend, pairs: Sequence[ImagePair], task: Task) -> None:
        self._planes: list[Planes] = [to_planes(pair.a, pair.b, sensor_a=task.ranged_a) for pair in pairs]
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
        model: A filled model of the folded form.
        table: Ranges.
        evaluator: Evaluates the models.
        on_layer: Called after each layer.

    Returns:
        Fidelity with one layer alone in INT8, by layer, the most sensitive layer first.
    """
    layers = quantizable_layers()
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
        model: A filled fp16 model of the folded form.
        table: Ranges.
        evaluator: Evaluates the models.
        limits: Limits of the accuracy gate.
        on_layer: Called after each layer of the scan.

    Raises:
        GateError: Even a single layer in INT8 exceeds the limits.
    """
    layers = quantizable_layers()
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
