"""ONNX Runtime on the CPU: always installed, and runs ``model.onnx`` directly."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import onnxruntime as ort
from typing_extensions import Self

from refusion_edge.arrays import Float32Array, State
from refusion_edge.backends.registry import BACKENDS, Engine, RunOptions, Status, execution_error, load_error, require_size
from refusion_edge.errors import BackendError
from refusion_edge.network.family import make_model
from refusion_edge.network.forms import REFERENCE
from refusion_edge.network.graph import INPUT_A, INPUT_B, OUTPUT, UINT8_INPUTS

# What ONNX Runtime logs of an error, its exception says, too.
_SILENT = 4


def probe() -> Status:
    """Report the installed version."""
    return Status(usable=True, reason=f"onnxruntime {version()}")


def version() -> str:
    """Version of the installed package."""
    return importlib.metadata.version("onnxruntime")


def open_engine(engine: Engine, options: RunOptions) -> OrtBackend:
    """Run the ONNX model of a bundle."""
    return OrtBackend(engine.data, threads=options.threads, streaming=options.streaming)


def open_weights(state: State, options: RunOptions) -> OrtBackend:
    """Run weights of either network in fp32, in the graph form of this back end."""
    model = make_model(BACKENDS[OrtBackend.name].forms["fp32"], "fp32", state).SerializeToString()
    return OrtBackend(model, threads=options.threads, streaming=options.streaming)


def open_reference(state: State, threads: int = 0) -> OrtBackend:
    """Open the fp32 reference that engines are compared with: a graph that is run without optimizations.

    For the paper's network, it is the graph as in the official release.

    Args:
        state: Parameters of either network.
        threads: Threads within an operator; 0 for one per physical core.
    """
    return OrtBackend(make_model(REFERENCE, "fp32", state).SerializeToString(), threads=threads, optimized=False)


class OrtBackend:
    """An ONNX Runtime session on the CPU. Implements ``Backend``.

    Args:
        model: Serialized ONNX model with the inputs ``a`` and ``b`` and the output ``fused``.
        threads: Threads within an operator; 0 for one per physical core.
        optimized: Whether ONNX Runtime may rewrite the graph. False for the reference of the accuracy gate, so that it does
            not share faults with the engines that it is compared with.
        streaming: Whether there are pauses between images. Idle threads then sleep instead of spinning, which would keep
            the cores busy that decode and display frames.

    Raises:
        BackendError: ONNX Runtime cannot load the model.
    """

    name = "onnxruntime"

    def __init__(self, model: bytes, *, threads: int = 0, optimized: bool = True, streaming: bool = False) -> None:
        options = ort.SessionOptions()
        # Planning all buffers of an image as one block takes twice the memory, for no measurable gain in time.
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0" if streaming else "1")
        options.log_severity_level = _SILENT
        options.intra_op_num_threads = threads
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
        try:
            self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own exception types are not public
            raise load_error(f"ONNX Runtime {version()}", error) from error
        names = [value.name for value in self._session.get_inputs()]
        # Additional outputs of a model for TensorRT are not requested, so not computed; its additional inputs are set to zero.
        self._unused = [name for name in names if name in UINT8_INPUTS.values()]
        if names != [INPUT_A, INPUT_B, *self._unused] or self._session.get_outputs()[0].name != OUTPUT:
            raise BackendError(
                f"the model must have the inputs {INPUT_A} and {INPUT_B} and the output {OUTPUT}, but has {len(names)} inputs "
                f"({', '.join(names[:3])}, ...)",
                "build it again",
                expected=(INPUT_A, INPUT_B),
                got=tuple(names),
            )
        height, width = self._session.get_inputs()[0].shape[2:]
        self._size_hw = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        self._last_hw: tuple[int, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        # The arena of a session is sized for the largest image that it has seen; free it now rather than at a later collection.
        del self._session

    def fuse(self, a: Float32Array, b: Float32Array) -> Float32Array:
        """Fuse two luma planes; see ``Backend.fuse``. The result is a new array.

        Raises:
            BackendError: There is not enough memory, or ONNX Runtime cannot run the model.
        """
        require_size(self._size_hw, a.shape[2:])
        options = None
        if a.shape[2:] != self._last_hw:
            # Memory that the arena keeps from images of another size fits poorly and would be wasted.
            options = ort.RunOptions()
            options.log_severity_level = _SILENT
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
            self._last_hw = a.shape[2:]
        given = {INPUT_A: a, INPUT_B: b, **{name: np.zeros(a.shape, np.uint8) for name in self._unused}}
        try:
            fused: Float32Array = self._session.run([OUTPUT], given, options)[0]
        except Exception as error:
            raise execution_error(f"ONNX Runtime {version()}", error, a.shape[2:]) from error
        return fused
