"""Tracing the network to ONNX: the templates that ship with the package, and weights in one file. Needs torch and onnxsim.

python -m refusion_edge.export.graph.trace --output refusion_edge/network/graphs
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from refusion_edge.accuracy.gate import resized
from refusion_edge.backends.eager import EagerBackend
from refusion_edge.backends.onnxruntime import OrtBackend
from refusion_edge.errors import GateError, UsageError
from refusion_edge.files import write_atomically
from refusion_edge.images.luma import to_planes
from refusion_edge.images.pairs import read_pair
from refusion_edge.images.samples import sample_paths
from refusion_edge.machine import require
from refusion_edge.network.checkpoint import Checkpoint
from refusion_edge.network.family import DEFAULT_NETWORK, network_of
from refusion_edge.network.forms import FORMS, REFERENCE, GraphForm, GraphPrecision, find_form, parameter_shapes
from refusion_edge.network.graph import FORM_KEY, INPUT_A, INPUT_B, OPSET, OUTPUT, fill, template_name
from refusion_edge.sizes import MAX_SIDE, MIN_SIDE
from refusion_edge.tasks import TASKS, find_task

if TYPE_CHECKING:
    import onnx

# Any size will do, because the axes become dynamic; two different primes reveal swapped axes.
_TRACED_HW = (37, 53)
# Largest difference in the output, [0, 1]. fp32: different orders of summation; fp16: a few ulps of half precision at 1.
_LIMITS: dict[GraphPrecision, float] = {"fp32": 1e-4, "fp16": 1.6e-2}


def trace(form: str, precision: GraphPrecision) -> onnx.ModelProto:
    """Trace the network with torch.onnx, simplify it with onnxsim and check it.

    The parameters are traced as inputs, so that each keeps its name and its values.

    Args:
        form: Name of a graph form.
        precision: ``fp32``, or ``fp16`` for the strongly typed half-precision graph.

    Returns:
        A template as described in ``refusion_edge.network.graph``.

    Raises:
        MissingDependencyError: torch, onnxscript or onnxsim is not installed.
        GateError: onnxsim's own comparison of the graph before and after simplification failed.
        UsageError: There is no such form.
    """
    layout = find_form(form)
    onnxsim = require("onnxsim", "export", "tracing")
    import onnx

    simplified: onnx.ModelProto
    simplified, agrees = onnxsim.simplify(_traced(layout, precision))
    if not agrees:
        raise GateError("the output of the graph changed when onnxsim simplified it", "try another version of onnxsim")
    _strip(simplified, form, precision)
    onnx.checker.check_model(simplified, full_check=True)
    return simplified


def _traced(form: GraphForm, precision: GraphPrecision) -> onnx.ModelProto:
    torch = require("torch", "export", "tracing")
    require("onnxscript", "export", "tracing")
    from refusion_edge.network.model import fuse

    class WithParametersAsInputs(torch.nn.Module):  # type: ignore[misc, name-defined]
        """The network as a function of the planes and of its parameters, float32 at both ends."""

        def forward(self, a, b, parameters):  # type: ignore[no-untyped-def]
            return fuse(form, dict(zip(shapes, parameters, strict=True)), a.to(dtype), b.to(dtype)).float()

    dtype = torch.float16 if precision == "fp16" else torch.float32
    shapes = parameter_shapes(form)
    planes = tuple(torch.rand(1, 1, *_TRACED_HW) for _ in range(2))
    parameters = [torch.rand(shape, dtype=dtype) for shape in shapes.values()]
    axes = {
        2: torch.export.Dim("height", min=MIN_SIDE, max=MAX_SIDE),
        3: torch.export.Dim("width", min=MIN_SIDE, max=MAX_SIDE),
    }
    with silence():
        program = torch.onnx.export(
            WithParametersAsInputs(), (*planes, parameters), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=[INPUT_A, INPUT_B, *shapes], output_names=[OUTPUT],
            dynamic_shapes=(axes, axes, [{} for _ in parameters]),
        )  # fmt: skip
    model: onnx.ModelProto = program.model_proto
    return model


def _strip(model: onnx.ModelProto, form: str, precision: GraphPrecision) -> None:
    """Remove the traces of this run: source lines, inferred shapes, tool names. Record the form."""
    graph = model.graph
    graph.name = f"refusion-{form}-{precision}"
    graph.doc_string = ""
    del graph.value_info[:]
    del graph.metadata_props[:]
    del model.metadata_props[:]
    model.metadata_props.add(key=FORM_KEY, value=form)
    del model.functions[:]
    for element in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        element.doc_string = ""
        del element.metadata_props[:]
    model.producer_name, model.producer_version = "refusion-edge", ""
    model.doc_string = "ReFusion fusion network; parameters are inputs, to be filled in by name."


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Suppress torch's warnings about packages we do not use, such as torchvision."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


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
    elif (form or network.forms[0]) not in network.forms:
        raise UsageError(
            f"the graph of the network {network.name} exists in one form only",
            "leave --form out",
            expected=network.forms[0],
            got=form,
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
                planes = to_planes(pair.a, pair.b, find_task(task))
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


def main(argv: list[str] | None = None) -> int:
    """Write the templates of all forms and precisions."""
    parser = argparse.ArgumentParser(description="Trace the ONNX templates that ship with the package.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    options = parser.parse_args(argv)
    for name, form in FORMS.items():
        for precision in form.precisions:
            path = options.output / template_name(name, precision)
            data = trace(name, precision).SerializeToString(deterministic=True)
            write_atomically(path, data)
            print(f"wrote {path} ({len(data) / 1e3:.0f} kB)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
