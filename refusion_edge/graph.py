"""ONNX graphs of the fusion network: templates without weights, and how they are filled.

A template is the traced and simplified graph with its 86 parameters as graph inputs beside ``a`` and ``b``. Filling
turns those inputs into constants by name. It needs onnx and numpy only, so that a device can build its engine without
torch. Templates are made by ``refusion_edge.export.trace``.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Literal

import numpy as np

from refusion_edge.arrays import State
from refusion_edge.errors import CheckpointError, UsageError
from refusion_edge.luminance import MIN_SIDE
from refusion_edge.parameters import PARAMETERS

if TYPE_CHECKING:
    import onnx

Precision = Literal["fp32", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")

INPUT_A, INPUT_B, OUTPUT = "a", "b", "fused"
OPSET = 18

# One axis of a picture; beyond this the attention's sums were never tested.
MAX_SIDE = 16384
_LONGEST_SIZE = len("16384x16384")


def read_template(precision: Precision) -> onnx.ModelProto:
    """Load the template that ships with the package.

    Args:
        precision: ``fp32``, or ``fp16`` for a strongly typed half-precision graph whose layer norm statistics,
            L2 norms, Gram products and softmax stay in fp32. Inputs and output are float32 in both.

    Returns:
        A graph with the inputs ``a`` and ``b``, (1, 1, H, W) float32 with dynamic H and W, one input per
        parameter, and the output ``fused``, (1, 1, H, W) float32.
    """
    import onnx

    if precision not in PRECISIONS:
        raise UsageError(f"expected a precision out of {', '.join(PRECISIONS)}, got '{precision}'.")
    data = resources.files("refusion_edge").joinpath("graphs", f"fusion-{precision}.onnx").read_bytes()
    return onnx.load_model_from_string(data)


def fill(template: onnx.ModelProto, state: State, size_hw: tuple[int, int] | None = None) -> onnx.ModelProto:
    """Turn the parameter inputs of a template into constants.

    Args:
        template: What ``read_template`` or ``trace`` returns; it is not changed.
        state: The 86 parameters, float32; rounded to the dtype that the template asks for.
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
    declared = {value.name: value.type.tensor_type.elem_type for value in graph.input}
    # Dropped while the graph still knows its inputs by name, so that the constants keep the order of the parameters.
    pictures = [value for value in graph.input if value.name not in PARAMETERS]
    del graph.input[:]
    graph.input.extend(pictures)
    for name in PARAMETERS:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(declared[name])
        with np.errstate(over="ignore"):
            rounded = np.ascontiguousarray(state[name].astype(dtype))
        if not np.isfinite(rounded).all():
            raise CheckpointError(
                f"expected parameters within the range of {dtype}, got {np.abs(state[name]).max():g} in {name}; build with "
                "--precision fp32, or use other weights."
            )
        graph.initializer.append(numpy_helper.from_array(rounded, name))
    if size_hw is not None:
        _fix_size(graph, size_hw)
    return model


def parse_size(text: str) -> tuple[int, int] | None:
    """Read ``480x640`` (height x width), or ``dynamic`` as None.

    Raises:
        UsageError: The text is neither, or a side is out of range.
    """
    if text == "dynamic":
        return None
    height, _, width = text.lower().partition("x")
    # Bounded before it is read as a number: Python refuses to read thousands of digits.
    if not (text.isascii() and height.isdecimal() and width.isdecimal() and len(text) <= _LONGEST_SIZE):
        raise UsageError(f"expected a size as HEIGHTxWIDTH (480x640) or 'dynamic', got '{text}'.")
    size_hw = int(height), int(width)
    _check_size(size_hw)
    return size_hw


def _check_size(size_hw: tuple[int, int]) -> None:
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in size_hw):
        raise UsageError(
            f"expected sides from {MIN_SIDE} to {MAX_SIDE} pixels, got {size_hw[0]}x{size_hw[1]}; choose another size."
        )


def _fix_size(graph: onnx.GraphProto, size_hw: tuple[int, int]) -> None:
    _check_size(size_hw)
    for value in (*graph.input, *graph.output):
        for dimension, side in zip(value.type.tensor_type.shape.dim[2:], size_hw, strict=True):
            dimension.ClearField("dim_param")
            dimension.dim_value = side
    # Shapes of intermediate values were inferred for a dynamic size.
    del graph.value_info[:]
