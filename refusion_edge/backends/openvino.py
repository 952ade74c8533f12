"""OpenVINO on the CPU: runs ``model.onnx`` directly, in fp32, or in bf16 if the CPU supports it."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from typing_extensions import Self

from refusion_edge.arrays import Float32Array, State
from refusion_edge.backends.registry import BACKENDS, Engine, RunOptions, Status, execution_error, load_error, require_size
from refusion_edge.errors import BackendError
from refusion_edge.machine import is_installed, processor, require
from refusion_edge.network.family import make_model
from refusion_edge.network.forms import Precision
from refusion_edge.network.graph import INPUT_A, INPUT_B, OUTPUT

_HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16"}


def probe() -> Status:
    """Report the installed version, without importing it."""
    if not is_installed("openvino"):
        return Status(usable=False, reason="openvino is not installed", fix="pip install 'refusion-edge[openvino]'")
    return Status(usable=True, reason=f"openvino {version()}")


def version() -> str:
    """Version of the installed package."""
    return importlib.metadata.version("openvino")


def open_engine(engine: Engine, options: RunOptions) -> OpenVinoBackend:
    """Run the ONNX model of a bundle."""
    return OpenVinoBackend(engine.data, precision=engine.precision, threads=options.threads)


def open_weights(state: State, options: RunOptions) -> OpenVinoBackend:
    """Run weights of either network in fp32, in the graph form of this back end."""
    model = make_model(BACKENDS[OpenVinoBackend.name].forms["fp32"], "fp32", state).SerializeToString()
    return OpenVinoBackend(model, threads=options.threads)


class OpenVinoBackend:
    """A compiled OpenVINO model on the CPU. Implements ``Backend``.

    The model is compiled each time it is opened, which takes about half a second; OpenVINO's cache of compiled models would
    save only half of that.

    Args:
        model: Serialized ONNX model in fp32 with the inputs ``a`` and ``b`` and the output ``fused``.
        precision: ``fp32``, or ``bf16`` to compute convolutions and products with eight bits of mantissa.
        threads: Threads of the process; 0 for one per physical core.

    Raises:
        BackendError: OpenVINO cannot load the model, or the CPU does not support bf16.
        MissingDependencyError: OpenVINO is not installed.
    """

    name = "openvino"

    def __init__(self, model: bytes, *, precision: Precision = "fp32", threads: int = 0) -> None:
        openvino = require("openvino", "openvino", "the back end openvino")
        core = openvino.Core()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise BackendError(
                f"{processor()} has no bf16 instructions, and OpenVINO would only emulate them", "build with --precision fp32"
            )
        settings: dict[str, Any] = {
            # Never left to OpenVINO, which would choose a faster and less accurate one where the CPU supports it.
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "PERFORMANCE_HINT": "LATENCY",
            # On a small board, pinned threads would compete with other processes for the same cores.
            "ENABLE_CPU_PINNING": False,
        }
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            graph = core.read_model(model)
            compiled = core.compile_model(graph, "CPU", settings)
        except RuntimeError as error:
            # Its last line is the reason.
            reason = RuntimeError((str(error).strip().splitlines() or ["no reason given"])[-1].rstrip("."))
            raise load_error(f"OpenVINO {version()}", reason) from error
        names = [port.any_name for port in compiled.inputs]
        if names != [INPUT_A, INPUT_B] or [port.any_name for port in compiled.outputs] != [OUTPUT]:
            raise BackendError(
                f"the model must have the inputs {INPUT_A} and {INPUT_B} and the output {OUTPUT}, but has {len(names)} inputs "
                f"({', '.join(names[:3])}, ...)",
                "build it again",
                expected=(INPUT_A, INPUT_B),
                got=tuple(names),
            )
        shape = compiled.inputs[0].partial_shape
        self._size_hw = None if shape.is_dynamic else (shape[2].get_length(), shape[3].get_length())
        self._request = compiled.create_infer_request()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        del self._request

    def fuse(self, a: Float32Array, b: Float32Array) -> Float32Array:
        """Fuse two luma planes; see ``Backend.fuse``. The result is a new array.

        Raises:
            BackendError: There is not enough memory, or OpenVINO cannot run the model.
        """
        require_size(self._size_hw, a.shape[2:])
        library = f"OpenVINO {version()}"
        try:
            fused: Float32Array = self._request.infer({INPUT_A: a, INPUT_B: b})[0]
        except (RuntimeError, MemoryError) as error:
            raise execution_error(library, error, a.shape[2:]) from error
        if fused.size == 0:
            # What it returns, without an exception, where it cannot allocate its buffers.
            raise execution_error(library, MemoryError(), a.shape[2:])
        return fused
