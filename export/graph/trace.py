"""Tracing the network to the ONNX templates that ship with the package. Needs torch, onnxscript and onnxsim.

python -m refusion_edge.export.graph.trace --output refusion_edge/network/graphs
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from refusion_edge.errors import GateError
from refusion_edge.files import write_atomically
from refusion_edge.machine import require
from refusion_edge.network.graph import FORM_KEY, INPUT_A, INPUT_B, OPSET, OUTPUT, template_name
from refusion_edge.network.layouts import FORMS, GraphForm, GraphPrecision, find_form, parameter_shapes
from refusion_edge.sizes import MAX_SIDE, MIN_SIDE

if TYPE_CHECKING:
    import onnx

# Any size will do, because the axes become dynamic; two different primes reveal swapped axes.
_TRACED_HW = (37, 53)


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
