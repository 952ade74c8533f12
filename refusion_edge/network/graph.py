"""ONNX graphs of the fusion network: templates without weights, and filling in the weights.

A template is the traced and simplified graph in one of the forms of ``refusion_edge.network.forms``, with the
parameters of that form as graph inputs next to ``a`` and ``b``. Filling computes them from the official 86 and turns
those inputs into constants. This needs only onnx and numpy, so that a device can build its engine without torch.
Templates are created by ``refusion_edge.export.graph.trace``.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np

from refusion_edge.arrays import Array, State
from refusion_edge.errors import CheckpointError, UsageError
from refusion_edge.network.forms import FORMS, GraphPrecision, Precision, find_form, form_named, rewrite
from refusion_edge.sizes import check_size

if TYPE_CHECKING:
    import onnx

FORM_KEY = "refusion-edge.form"
INPUT_A, INPUT_B, OUTPUT = "a", "b", "fused"

UINT8_INPUTS = {INPUT_A: "a_pixels", INPUT_B: "b_pixels"}
"""Additional uint8 inputs of a model, by the source that they belong to; see ``refusion_edge.export.graph.uint8``."""

UINT8_OUTPUTS = {"stretch": "levels_stretch", "fixed": "levels_fixed"}
"""Additional uint8 outputs that a model may have, by their output range; see ``refusion_edge.export.graph.uint8``."""
MEAN = "fused_mean"
"""Additional output next to those: the mean of the fused plane, which is finite if the whole plane is."""
OPSET = 18


def template_name(form: str, precision: GraphPrecision) -> str:
    """File name of a template."""
    return f"{form}-{precision}.onnx"


def read_template(form: str, precision: GraphPrecision) -> onnx.ModelProto:
    """Load a template that ships with the package.

    Args:
        form: Name of a graph form, see ``refusion_edge.network.forms``.
        precision: ``fp32``, or ``fp16`` for a strongly typed half-precision graph whose layer norm statistics,
            L2 norms and softmax stay in fp32. Inputs and output are float32 in both.

    Returns:
        A graph with the inputs ``a`` and ``b``, (1, 1, H, W) float32 with dynamic H and W, one input per
        parameter of the form, and the output ``fused``, (1, 1, H, W) float32.

    Raises:
        UsageError: There is no such form, or it has no template in this precision.
    """
    import onnx

    form = form_named(form)
    if precision not in FORMS[form].precisions:
        raise UsageError(
            f"the graph form {form} has no {precision} template",
            f"choose {' or '.join(FORMS[form].precisions)}, or another form",
            expected=FORMS[form].precisions,
            got=precision,
        )
    data = resources.files("refusion_edge.network").joinpath("graphs", template_name(form, precision)).read_bytes()
    return onnx.load_model_from_string(data)


def graph_precision(precision: Precision) -> GraphPrecision:
    """Precision of the graph that an engine of this precision is built from."""
    return "fp16" if precision in ("fp16", "int8") else "fp32"


def form_name(model: onnx.ModelProto) -> str:
    """Name of the form of a template, or of a model filled from one."""
    name: str = {entry.key: entry.value for entry in model.metadata_props}[FORM_KEY]
    return name


def fill(template: onnx.ModelProto, state: State, size_hw: tuple[int, int] | None = None) -> onnx.ModelProto:
    """Turn the parameter inputs of a template into constants.

    Args:
        template: What ``read_template`` or ``trace`` returns; it is not changed.
        state: The 86 parameters, float32; rewritten for the form and rounded to the dtype that the template declares.
        size_hw: Fixed height and width of the graph, or None to keep both dynamic.

    Returns:
        A complete model with the inputs ``a`` and ``b`` and the output ``fused``.

    Raises:
        UsageError: The size is out of range.
        CheckpointError: A parameter is too large for the precision.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.ModelProto()
    model.CopyFrom(template)
    graph = model.graph
    parameters = rewrite(find_form(form_name(template)), state)
    declared = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    # Removed before the constants are added, which then keep the order of the parameters.
    planes = [value for value in graph.input if value.name not in parameters]
    del graph.input[:]
    graph.input.extend(planes)
    for name, exact in parameters.items():
        dtype = onnx.helper.tensor_dtype_to_np_dtype(declared[name])
        graph.initializer.append(numpy_helper.from_array(rounded(name, exact, dtype), name))
    if size_hw is not None:
        _fix_size(graph, size_hw)
    return model


def rounded(name: str, exact: Array, dtype: np.dtype[Any]) -> Array:
    """Round a parameter to the dtype of a graph.

    Args:
        name: Its name in the message.
        exact: Its values; NaN and infinities among them are kept where the dtype is their own.
        dtype: The dtype.

    Raises:
        CheckpointError: A value is out of the range of the dtype.
    """
    if exact.dtype == dtype:
        return exact
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(exact.astype(dtype))
    if not np.isfinite(values).all():
        remedy = "build with --precision fp32, or use other weights" if dtype == np.float16 else "use other weights"
        raise CheckpointError(f"{name} reaches {np.abs(exact).max():g}, which is beyond the range of {dtype}", remedy)
    return values


def _fix_size(graph: onnx.GraphProto, size_hw: tuple[int, int]) -> None:
    check_size(size_hw)
    for value in (*graph.input, *graph.output):
        for dimension, side in zip(value.type.tensor_type.shape.dim[2:], size_hw, strict=True):
            dimension.ClearField("dim_param")
            dimension.dim_value = side
    # The shapes of intermediate values were inferred for a dynamic size.
    del graph.value_info[:]
