"""The ONNX graph of the network ``fast``, built node by node from its parameters. Needs onnx, but no torch.

In half precision, only the features between the convolutions, and the planes in front of the first one, are float16. The
statistics and what follows from them stay float32, because their error would shift the whole image, and so does the composition
of the result, which would otherwise be rounded to steps of up to 1 / 2048.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from refusion_edge.arrays import Array, State
from refusion_edge.network.fast import FORM, SLOPE, STATISTICS, STRIDE, FastLayout, layout_of
from refusion_edge.network.forms import GraphPrecision
from refusion_edge.network.graph import FORM_KEY, INPUT_A, INPUT_B, OPSET, OUTPUT, rounded
from refusion_edge.sizes import check_size

if TYPE_CHECKING:
    import onnx

_END = np.iinfo(np.int64).max


def make_fast_graph(
    state: State, size_hw: tuple[int, int] | None = None, precision: GraphPrecision = "fp32"
) -> onnx.ModelProto:
    """Build the graph of ``refusion_edge.network.fast`` with these parameters.

    Args:
        state: All parameters.
        size_hw: Fixed height and width of the graph, or None to keep both dynamic.
        precision: ``fp32``, or ``fp16`` for a strongly typed graph with features in half precision.

    Returns:
        A model with the inputs ``a`` and ``b`` and the output ``fused``, (1, 1, H, W) float32 in both precisions.

    Raises:
        UsageError: The size is out of range.
        CheckpointError: A parameter is too large for the precision.
    """
    import onnx
    from onnx import helper

    if size_hw is not None:
        check_size(size_hw)
    graph = _Graph(np.dtype(np.float16 if precision == "fp16" else np.float32))
    graph.build(state, size_hw)
    shape = (1, 1, "height", "width") if size_hw is None else (1, 1, *size_hw)
    inputs, outputs = (
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in names]
        for names in ((INPUT_A, INPUT_B), (OUTPUT,))
    )
    made = helper.make_graph(graph.nodes, f"refusion-fast-{precision}", inputs, outputs, graph.constants)
    model = helper.make_model(made, producer_name="refusion-edge", opset_imports=[helper.make_opsetid("", OPSET)])
    # The version of the other network's templates; the newest one is refused by older runtimes.
    model.ir_version = 10
    model.doc_string = "Fusion network fast."
    model.metadata_props.add(key=FORM_KEY, value=FORM)
    return model


class _Graph:
    """Collects nodes and constants.

    Args:
        features: Dtype of the features: float32 or float16.
    """

    def __init__(self, features: np.dtype[np.floating]) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._features = features

    def build(self, state: State, size_hw: tuple[int, int] | None) -> None:
        a, b, fused = INPUT_A, INPUT_B, OUTPUT
        layout = layout_of({name: array.shape for name, array in state.items()})
        gain, offset = self.adaptation(state, layout, a, b)
        padded = size_hw is None or any(side % layout.factor for side in size_hw)
        inner = (self.padded(a, layout, size_hw), self.padded(b, layout, size_hw)) if padded else (a, b)
        features = self.wide(self.first(state, layout, self.narrow(self.op("Concat", inner, axis=1))))
        features = self.narrow(self.op("Add", (self.op("Mul", (features, gain)), offset)))
        for index in range(1, layout.convolutions):
            active = self.op("LeakyRelu", (features,), alpha=SLOPE)
            kernel = [self.weights(f"layers.{index}.{part}", state[f"layers.{index}.{part}"]) for part in ("weight", "bias")]
            features = self.op("Conv", (active, *kernel), pads=[1, 1, 1, 1])
        halves = self.halves(features)
        s, r = (self.wide(self.op("DepthToSpace", (half,), blocksize=layout.factor)) for half in halves)
        difference = self.op("Abs", (self.op("Sub", inner),))
        composed = self.op("Add", (self.op("Sub", (self.op("Max", inner), self.op("Mul", (s, difference)))), r))
        bounds = self.constant("zero", np.float32(0)), self.constant("one", np.float32(1))
        result = self.op("Clip", (composed, *bounds), name=None if padded else fused)
        if padded:
            begin, axes = self.constant("corner", _integers([0, 0])), self.constant("sides", _integers([2, 3]))
            self.op("Slice", (result, begin, self.sides(a, size_hw), axes), name=fused)

    def adaptation(self, state: State, layout: FastLayout, a: str, b: str) -> tuple[str, str]:
        """Gain of the first convolution's channels, with 1 added, and their offset, (1, C, 1, 1) each."""
        corner, end = self.constant("first pixel", _integers([0, 0])), self.constant("any pixel", _integers([_END, _END]))
        axes, steps = self.constant("both sides", _integers([2, 3])), self.constant("stride", _integers([STRIDE, STRIDE]))
        some = [self.op("Slice", (plane, corner, end, axes, steps)) for plane in (a, b)]
        difference = self.op("Abs", (self.op("Sub", some),))
        planes = self.op("Concat", (*some, self.op("Max", some), difference), axis=1)
        mean = self.mean(planes)
        centered = self.op("Sub", (planes, mean))
        deviation = self.op("Sqrt", (self.mean(self.op("Mul", (centered, centered))),))
        figures = self.op("Concat", (mean, deviation), axis=3)
        figures = self.op("Reshape", (figures, self.constant("row of figures", _integers([1, STATISTICS]))))
        hidden = self.op("LeakyRelu", (self.dense(state, "statistics.0", figures),), alpha=SLOPE)
        both = self.halves(self.dense(state, "statistics.1", hidden))
        shape = self.constant("per channel", _integers([1, layout.channels, 1, 1]))
        gain, offset = (self.op("Reshape", (half, shape)) for half in both)
        # The bias of the convolution is scaled as well, so that gain and offset apply to its result.
        return self.op("Add", (gain, self.constant("unit", np.float32(1)))), offset

    def mean(self, planes: str) -> str:
        """Mean over the image, (1, 4, 1, 1)."""
        # Row by row: engines that add up one by one lose two digits in a sum over a hundred thousand pixels. The means of the
        # rows are laid out as one row, because OpenVINO merges consecutive means.
        axis = self.constant("along a row", _integers([3]))
        rows = self.op("Reshape", (self.op("ReduceMean", (planes, axis)), self.constant("one row", _integers([0, 0, 1, -1]))))
        return self.op("ReduceMean", (rows, axis))

    def first(self, state: State, layout: FastLayout, planes: str) -> str:
        """Pixel-unshuffle and the first convolution as one convolution of the planes with a stride of k."""
        factor, channels = layout.factor, layout.channels
        cells = state["layers.0.weight"].reshape(channels, 2, factor, factor, 3, 3)
        weight = cells.transpose(0, 1, 4, 2, 5, 3).reshape(channels, 2, 3 * factor, 3 * factor)
        kernel = self.weights("layers.0.weight", weight), self.weights("layers.0.bias", state["layers.0.bias"])
        return self.op("Conv", (planes, *kernel), pads=[factor] * 4, strides=[factor] * 2)

    def dense(self, state: State, name: str, values: str) -> str:
        weight, bias = (self.constant(f"{name}.{part}", state[f"{name}.{part}"]) for part in ("weight", "bias"))
        return self.op("Gemm", (values, weight, bias), transB=1)

    def narrow(self, value: str) -> str:
        """Convert a float32 value to the dtype of the features."""
        return value if self._features == np.float32 else self._cast(value, self._features)

    def wide(self, value: str) -> str:
        """Convert features to float32."""
        return value if self._features == np.float32 else self._cast(value, np.dtype(np.float32))

    def _cast(self, value: str, dtype: np.dtype[np.floating]) -> str:
        from onnx import helper

        return self.op("Cast", (value,), to=helper.np_dtype_to_tensor_dtype(dtype))

    def padded(self, plane: str, layout: FastLayout, size_hw: tuple[int, int] | None) -> str:
        """Extend a plane at the bottom and at the right to multiples of k by repeating its edge."""
        factor = layout.factor
        if size_hw is not None:
            missing = self.constant("missing", _integers([-side % factor for side in size_hw]))
        else:
            # Only what every release of TensorRT computes with sizes: sums, products and quotients.
            divisor, short = (
                self.constant("factor", _integers([factor])),
                self.constant("factor less one", _integers([factor - 1])),
            )
            sides = self.sides(plane, None)
            cells = self.op("Div", (self.op("Add", (sides, short)), divisor))
            missing = self.op("Sub", (self.op("Mul", (cells, divisor)), sides))
        before = self.constant("nothing before", _integers([0, 0]))
        axes = self.constant("padded sides", _integers([2, 3]))
        pads = self.op("Concat", (before, missing), axis=0)
        return self.op("Pad", (plane, pads, "", axes), mode="edge")

    def sides(self, plane: str, size_hw: tuple[int, int] | None) -> str:
        """Height and width, (2,) int64."""
        if size_hw is not None:
            return self.constant("size", _integers(size_hw))
        return self.op("Shape", (plane,), start=2)

    def weights(self, name: str, value: Array) -> str:
        """Add parameters in the dtype of the features."""
        return self.constant(name, rounded(name, value, self._features))

    def constant(self, name: str, value: Array | np.generic) -> str:
        from onnx import numpy_helper

        if all(constant.name != name for constant in self.constants):
            self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value).reshape(np.shape(value)), name))
        return name

    def op(self, kind: str, inputs: Sequence[str], *, name: str | None = None, **attributes: Any) -> str:
        """Append a node with one output; returns its name."""
        return self._append(kind, inputs, [name or f"{kind.lower()}.{len(self.nodes)}"], attributes)[0]

    def halves(self, value: str) -> list[str]:
        """Split the second axis of a value in two."""
        return self._append(
            "Split", [value], [f"half.{len(self.nodes)}.{half}" for half in range(2)], {"axis": 1, "num_outputs": 2}
        )

    def _append(self, kind: str, inputs: Sequence[str], outputs: list[str], attributes: dict[str, Any]) -> list[str]:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, list(inputs), outputs, name=f"{kind}.{len(self.nodes)}", **attributes))
        return outputs


def _integers(values: Sequence[int]) -> NDArray[np.int64]:
    return np.array(values, np.int64)
