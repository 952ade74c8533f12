"""Which layers of an engine can be INT8: all that can, but those without which the accuracy gate does not pass."""

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

# The handful of pairs that judge are not the worst that will come: those of one camera came out 8 dB below the worst of them.
SPARE_DB = 6.0


@dataclass(frozen=True, slots=True)
class Selection:
    """What was found.

    Attributes:
        model: The model with its INT8 layers.
        int8: Layers in INT8, in the order of the network.
        kept: Layers that stay in half precision, the most sensitive first.
        scan: Layer to the fidelity with that layer alone in INT8; empty if no scan was needed.
    """

    model: onnx.ModelProto
    int8: tuple[str, ...]
    kept: tuple[str, ...]
    scan: Mapping[str, Fidelity]


class Evaluator:
    """Pairs whose fp32 results are computed once, to judge many models by.

    Attributes:
        scanned: Number of pairs that the scan of layers looks at; it only ranks them, the gate judges on all.

    Args:
        reference: Runs the network in fp32; not needed any more afterwards.
        pairs: The pairs.
        task: Their task.
    """

    scanned = 2

    def __init__(self, reference: Backend, pairs: Sequence[ImagePair], task: Task) -> None:
        self._planes: list[Planes] = [to_planes(pair.a, pair.b, sensor_a=task.ranged_a) for pair in pairs]
        self._expected = [reference.fuse(planes.a, planes.b)[0, 0].copy() for planes in self._planes]

    def evaluate(self, model: onnx.ModelProto, pairs: int | None = None) -> Fidelity:
        """Run a model on the first pairs, or on all, and give its worst figures."""
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
        evaluator: Judges.
        on_layer: Called after each layer.

    Returns:
        Layer to the fidelity with that layer alone in INT8, the most sensitive layer first.
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
    """Quantize as many layers as the limits allow, with ``SPARE_DB`` to spare if that can be had.

    All of them, if that passes. Otherwise a scan ranks the layers, and the fewest of the most sensitive ones stay in half
    precision, found by halving.

    Args:
        model: A filled fp16 model of the folded form.
        table: Ranges.
        evaluator: Judges.
        limits: What has to be kept.
        on_layer: Called after each layer of the scan.

    Raises:
        GateError: Not even one layer in INT8 keeps the limits.
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
            f"expected an int8 engine close to the fp32 reference ({limits}), got {found[len(layers) - 1]} with one layer in "
            "INT8; nothing was installed, build with --precision fp16."
        )
    kept = ranked[:count]
    return Selection(quantize(model, table, keep=kept), tuple(layer for layer in layers if layer not in kept), kept, scan)


def _others(layers: Sequence[str], one: str) -> Container[str]:
    return {layer for layer in layers if layer != one}
