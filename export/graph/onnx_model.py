"""Exporting weights as an ONNX model, traced with torch and compared with the network there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refusion_edge.accuracy.gate import resized
from refusion_edge.backends.eager import EagerBackend
from refusion_edge.backends.onnxruntime import OrtBackend
from refusion_edge.errors import GateError, UsageError
from refusion_edge.export.graph.trace import trace
from refusion_edge.files import write_atomically
from refusion_edge.images.color import to_planes
from refusion_edge.images.pairs import read_pair
from refusion_edge.images.samples import sample_paths
from refusion_edge.network.checkpoint import Checkpoint
from refusion_edge.network.family import DEFAULT_NETWORK, network_of
from refusion_edge.network.graph import fill
from refusion_edge.network.layouts import REFERENCE, GraphPrecision
from refusion_edge.tasks import TASKS, find_task

# Largest difference in the output, [0, 1]. fp32: different orders of summation; fp16: a few ulps of half precision at 1.
_LIMITS: dict[GraphPrecision, float] = {"fp32": 1e-4, "fp16": 1.6e-2}


@dataclass(frozen=True, slots=True)
class Parity:
    """Difference between an exported graph and the network in torch, on one pair.

    Attributes:
        name: Name of the pair.
        size_hw: Its height and width.
        max_difference: Largest absolute difference of the output, [0, 1].
        mean_difference: Mean absolute difference.
    """

    name: str
    size_hw: tuple[int, int]
    max_difference: float
    mean_difference: float


def export_onnx(
    checkpoint: Checkpoint, output: Path, form: str | None, precision: GraphPrecision, size_hw: tuple[int, int] | None
) -> list[Parity]:
    """Make the graph (trace, simplify and fill that of the paper's network), compare it with torch, and only then write it.

    Args:
        checkpoint: Weights; compared on the sample pairs of their task, or of all tasks if none is stated.
        output: ONNX file to write.
        form: Name of the graph form, or None for the only one, or that in the official layout.
        precision: Precision of the graph.
        size_hw: Fixed height and width, or None for any size.

    Returns:
        Parity per sample pair.

    Raises:
        GateError: The graph differs too much; nothing is written.
        MissingDependencyError: torch, onnxscript or onnxsim is not installed.
        OutputError: The file cannot be written.
        UsageError: The network has no such form, or not in this precision.
    """
    network = network_of(checkpoint.state)
    if network.name == DEFAULT_NETWORK:
        graph = fill(trace(form or REFERENCE, precision), checkpoint.state, size_hw)
    elif (form or network.forms[0]) not in network.forms or precision != "fp32":
        raise UsageError(
            f"the graph of the network {network.name} exists only in fp32 and in one form",
            "leave --form and --precision out",
            expected=("fp32", network.forms[0]),
            got=(precision, form),
        )
    else:
        graph = network.graph(checkpoint.state, network.forms[0], precision, size_hw)
    model = graph.SerializeToString(deterministic=True)
    tasks = [checkpoint.task] if checkpoint.task else list(TASKS)
    results = []
    with OrtBackend(model) as exported, EagerBackend(checkpoint.state) as eager:
        for task in tasks:
            for paths in sample_paths(task):
                pair = read_pair(paths)
                pair = pair if size_hw is None else resized(pair, size_hw)
                planes = to_planes(pair.a, pair.b, sensor_a=find_task(task).ranged_a)
                difference = np.abs(exported.fuse(planes.a, planes.b) - eager.fuse(planes.a, planes.b))
                height, width = planes.a.shape[2:]
                results.append(Parity(pair.name, (height, width), float(difference.max()), float(difference.mean())))
    # Written so that NaN fails.
    if not all(result.max_difference <= _LIMITS[precision] for result in results):
        largest = max(result.max_difference for result in results)
        raise GateError(
            f"the {precision} graph was not written, as it differs from the network in torch by {largest:.2e}, and the limit "
            f"is {_LIMITS[precision]:g}",
            "report this with the versions of torch, onnxsim and onnxruntime",
            expected=_LIMITS[precision],
            got=largest,
        )
    write_atomically(output, model)
    return results
