"""Our GPU kernels inside a TensorRT engine: quickly deployable plugins, compiled ahead of time (TensorRT 10.9 and newer).

The engine contains the compiled kernels, so that it loads without Python, Triton and this package. The plugins come from the
same table as the programs of the back end ``fused`` (``refusion_edge.kernels.gpu.schedule``) and take at most 48 KiB of shared
memory, which TensorRT can be relied on to launch.

Features are (streams, C, H, W) half precision in the format HWC8, which for 16 and 32 channels is the layout of the kernels;
everything else is linear. Partial sums, which our programs keep in scratch memory, are outputs of one plugin and inputs of the
next, because a plugin has no scratch memory.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import GenericAlias
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from refusion_edge.arrays import Array
from refusion_edge.cuda.program import Argument, Kernel, Launch, Parameter, Tile
from refusion_edge.errors import BackendError
from refusion_edge.export.targets.compiler import PtxKernel, compile_plugin, plugin_order
from refusion_edge.export.targets.cubins import require_assembler, run_compilers
from refusion_edge.kernels.gpu.attention_statistics import partial_size
from refusion_edge.kernels.gpu.schedule import FUSED, PLANES, make_schedule, tiles
from refusion_edge.network.graph import INPUT_A, INPUT_B, OUTPUT

NAMESPACE = "refusion_edge"
LARGEST_SHARED_BYTES = 48 * 1024
"""It is undocumented whether TensorRT requests more of the driver, as it would have to."""

_FEATURES = ("features_ptr", "base_ptr", "x_ptr", "y_ptr", "z_ptr")
_OPSET = 18
# Newest version of PTX that a driver for a version of CUDA takes.
_PTX_VERSIONS = {
    (12, 0): 80, (12, 1): 81, (12, 2): 82, (12, 3): 83, (12, 4): 84, (12, 5): 85, (12, 6): 85, (12, 7): 86, (12, 8): 87,
    (12, 9): 88, (13, 0): 90, (13, 1): 91, (13, 2): 92,
}  # fmt: skip

# TensorRT keeps the definition of a plugin for the life of the process; its compiled kernel is looked up here on demand.
_COMPILED: dict[str, PtxKernel] = {}


def plugin_kernels() -> dict[str, Kernel]:
    """The kernels that become plugins, by name: all but the stretch to 8 bits, which is not part of the network."""
    return {name: kernel for name, kernel in make_schedule().kernels.items() if name != "stretch"}


def plugin_tiles(architecture: int) -> dict[str, Tile]:
    """The tile of every plugin on an architecture, 10 times the compute capability."""
    chosen = tiles(architecture)
    return {name: chosen[name] for name in plugin_kernels()}


def ptx_version(driver: str) -> int:
    """Newest version of PTX that a driver takes, 85 for 8.5.

    Args:
        driver: CUDA version of the driver, such as ``12.6``.

    Raises:
        BackendError: The driver is older than CUDA 12.
    """
    major, _, minor = driver.partition(".")
    fitting = [version for cuda, version in _PTX_VERSIONS.items() if cuda <= (int(major), int(minor))]
    if not fitting:
        raise BackendError(
            f"plugins need a driver for CUDA 12.0 or newer, but this one is for {driver}",
            "omit --plugins",
            expected="12.0",
            got=driver,
        )
    return max(fitting)


def compile_plugins(architecture: int, version: int, *, jobs: int = 1) -> dict[str, PtxKernel]:
    """Compile every plugin for one architecture.

    Args:
        architecture: 10 times the compute capability.
        version: Of PTX, from ``ptx_version``.
        jobs: Number of compilers that run at a time.

    Raises:
        BackendError: Triton is not installed, its assembler does not support the architecture, or a kernel does not compile or
            needs too much shared memory.
    """
    require_assembler([architecture])
    chosen = plugin_tiles(architecture)
    work = {
        f"{name} for sm_{architecture}": (compile_plugin, (kernel, chosen[name], architecture, version))
        for name, kernel in plugin_kernels().items()
    }
    compiled = dict(zip(plugin_kernels(), run_compilers(work, jobs=jobs).values(), strict=True))
    for name, kernel in compiled.items():
        if kernel.shared_bytes > LARGEST_SHARED_BYTES:
            raise BackendError(
                f"the plugin {name} takes {kernel.shared_bytes} bytes of shared memory on sm_{architecture}, more than the "
                f"{LARGEST_SHARED_BYTES} that a plugin may take",
                "omit --plugins",
                expected=LARGEST_SHARED_BYTES,
                got=kernel.shared_bytes,
            )
    return compiled


def require_plugins(trt: Any) -> Any:
    """The module ``tensorrt.plugin``.

    Raises:
        BackendError: This TensorRT takes no plugins that are compiled ahead of time.
    """
    try:
        plugin: Any = importlib.import_module("tensorrt.plugin")
    except ImportError:
        plugin = None
    if plugin is None or not hasattr(plugin, "aot_impl"):
        raise BackendError(
            f"plugins that are compiled ahead of time need TensorRT 10.9 or newer, but this is {trt.__version__}",
            "omit --plugins",
            expected="10.9",
            got=trt.__version__,
        )
    return plugin


def register(trt: Any, compiled: Mapping[str, PtxKernel]) -> None:
    """Register the plugins with TensorRT, before it parses a model with them.

    Raises:
        BackendError: This TensorRT has no such plugins.
    """
    plugin = require_plugins(trt)
    _COMPILED.update(compiled)
    known = getattr(plugin.op, NAMESPACE, None)
    for name, kernel in plugin_kernels().items():
        if known is None or not hasattr(known, name):
            _define(trt, plugin, kernel)


def make_plugin_model(weights: Mapping[str, Array], size_hw: tuple[int, int] | None) -> onnx.ModelProto:
    """The network as an ONNX model of plugins.

    Args:
        weights: Folded weights, taps in half precision (``FoldedWeights.rounded``).
        size_hw: Fixed height and width, or None for any.
    """
    schedule, graph = make_schedule(), _Graph()
    graph.add("Concat", [INPUT_A, INPUT_B], PLANES, axis=0)
    for launch in schedule.launches:
        kernel = schedule.kernels[launch.kernel]
        if kernel.name in plugin_kernels():
            _plugin_node(graph, kernel, launch, weights)
    shape = [1, 1, *(size_hw or ("height", "width"))]
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names]
        for names in ((INPUT_A, INPUT_B), (OUTPUT,))
    )
    graph.add("Identity", [graph.tensor(FUSED)], OUTPUT)
    opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(NAMESPACE, 1)]
    body = helper.make_graph(graph.nodes, "refusion_plugins", inputs, outputs, list(graph.initializers.values()))
    return helper.make_model(body, opset_imports=opsets, ir_version=9)


def _define(trt: Any, plugin: Any, kernel: Kernel) -> None:
    identifier = f"{NAMESPACE}::{kernel.name}"
    pointers = _pointers(kernel)
    inputs = [parameter for parameter in pointers if not parameter.written]
    outputs = [parameter for parameter in pointers if parameter.written]
    dtypes = {"float16*": trt.float16, "float32*": trt.float32}

    def describe(*given: Any) -> Any:
        shapes = output_shapes(kernel, _COMPILED[kernel.name].tile, [one.shape_expr for one in given], plugin.cdiv)
        found = (
            plugin.from_shape_expr(shape, dtype=dtypes[parameter.type])
            for shape, parameter in zip(shapes, outputs, strict=True)
        )
        return tuple(found)

    def formats(*_: Any) -> Any:
        types = ", ".join({"float16*": "FP16", "float32*": "FP32"}[parameter.type] for parameter in pointers)
        layouts = ", ".join("HWC8" if _is_features(parameter) else "LINEAR" for parameter in pointers)
        return [plugin.AutoTuneCombination(types, layouts)]

    def launch(*given: Any) -> Any:
        compiled = _COMPILED[kernel.name]
        shapes = [one.shape_expr for one in given[: len(inputs)]]
        parameters = plugin.KernelLaunchParams()
        parameters.grid_x, parameters.grid_y, parameters.grid_z = grid(kernel, compiled.tile, shapes, plugin.cdiv)
        parameters.block_x = 32 * compiled.tile.warps
        parameters.shared_mem = compiled.shared_bytes
        extra = plugin.SymIntExprs.from_tuple([plugin.SymInt32(value) for value in integers(kernel, shapes)])
        return compiled.symbol, compiled.text, parameters, extra

    description = plugin.TensorDesc
    several = GenericAlias(tuple, (description,) * len(outputs))
    _sign(describe, inputs, description, {}, several)
    _sign(formats, inputs, description, {"outputs": several}, inspect.Signature.empty)
    answer = tuple[str, str, plugin.KernelLaunchParams, plugin.SymExprs]
    _sign(launch, inputs, description, {"outputs": several, "tactic": int}, answer)
    plugin.register(identifier)(describe)
    plugin.autotune(identifier)(formats)
    plugin.aot_impl(identifier)(launch)


def _sign(
    function: Callable[..., Any], inputs: Sequence[Parameter], description: Any, more: Mapping[str, Any], gives: Any
) -> None:
    """Give a function the signature that TensorRT reads: one parameter for each input, then ``more``."""
    named = {parameter.name: description for parameter in inputs} | dict(more)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, annotation=annotation) for name, annotation in named.items()]
    vars(function)["__signature__"] = inspect.Signature(parameters, return_annotation=gives)


def output_shapes(kernel: Kernel, tile: Tile, inputs: Sequence[Any], cdiv: Callable[[Any, int], Any]) -> list[tuple[Any, ...]]:
    """Shapes of the outputs of a plugin.

    Args:
        kernel: The kernel.
        tile: The tile it is compiled for.
        inputs: Shapes of its inputs; their sides may be symbolic.
        cdiv: Division that rounds up.
    """
    channels, streams = kernel.constants.get("C", 0), kernel.streams
    if kernel.source == "mixing_weights":
        return [(streams, 9, channels, channels)]
    height, width = inputs[0][2], inputs[0][3]
    strips = cdiv(width, tile.columns) * cdiv(height, tile.rows)
    if kernel.source == "attention_statistics":
        return [(streams, strips, partial_size(channels))]
    if kernel.source == "to_plane":
        return [(1, 1, height, width), (strips, 2)]
    both = kernel.source == "fusion_gate" or kernel.constants.get("JOINED", 0)
    return [(1, 2 * channels, height, width) if both else (streams, channels, height, width)]


def grid(kernel: Kernel, tile: Tile, inputs: Sequence[Any], cdiv: Callable[[Any, int], Any]) -> tuple[Any, Any, Any]:
    """Number of programs along x, y and z; arguments as in ``output_shapes``."""
    if kernel.grid == "streams":
        return kernel.streams, 1, 1
    return cdiv(inputs[0][3], tile.columns), cdiv(inputs[0][2], tile.rows), kernel.streams


def integers(kernel: Kernel, inputs: Sequence[Any]) -> list[Any]:
    """Values of the integer parameters of a kernel, in order."""
    # Partial sums are (streams, strips, numbers).
    values = {"strips": inputs[0][1], "height": inputs[0][2]} | ({"width": inputs[0][3]} if kernel.grid == "strips" else {})
    return [values[parameter.name] for parameter in kernel.parameters if parameter.type == "int32"]


def _pointers(kernel: Kernel) -> list[Parameter]:
    """Inputs, then outputs."""
    ordered = [kernel.parameters[index] for index in plugin_order(kernel.parameters)]
    return [parameter for parameter in ordered if parameter.type != "int32"]


def _is_features(parameter: Parameter) -> bool:
    return parameter.type == "float16*" and parameter.name in _FEATURES


class _Graph:
    """Nodes and initializers of a model, and the tensor that currently holds each buffer."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        self._tensors: dict[str, str] = {PLANES: PLANES}

    def add(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node with one output and return the output."""
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def constant(self, name: str, array: Array) -> str:
        """Add an initializer unless it exists, and return its name."""
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def tensor(self, buffer: str) -> str:
        """Name of the tensor that holds a buffer."""
        return self._tensors[buffer]

    def write(self, buffer: str) -> str:
        """Name a new tensor that holds a buffer from now on; a buffer that is written twice becomes two tensors."""
        known = self._tensors.get(buffer)
        self._tensors[buffer] = f"{buffer}.plugin" if known is None else f"{known}.next"
        return self._tensors[buffer]


def _named(kernel: Kernel, launch: Launch) -> dict[str, Argument]:
    return {parameter.name: one for parameter, one in zip(kernel.parameters, launch.arguments, strict=True)}


def _plugin_node(graph: _Graph, kernel: Kernel, launch: Launch, weights: Mapping[str, Array]) -> None:
    given = _named(kernel, launch)

    def source(name: str) -> str:
        argument = given[name]
        if argument.kind == "weights":
            return graph.constant(argument.name, weights[argument.name])
        return graph.tensor(argument.name)

    inputs = [source(parameter.name) for parameter in _pointers(kernel) if not parameter.written]
    outputs = [graph.write(given[parameter.name].name) for parameter in _pointers(kernel) if parameter.written]
    attributes: dict[str, Any] = {"plugin_namespace": NAMESPACE, "aot": 1}
    graph.nodes.append(helper.make_node(kernel.name, inputs, outputs, outputs[0], domain=NAMESPACE, **attributes))
