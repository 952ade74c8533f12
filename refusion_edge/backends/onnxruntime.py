"""ONNX Runtime on the CPU: always installed, runs ``model.onnx`` as it is."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import onnxruntime as ort
from typing_extensions import Self

from refusion_edge.arrays import Float32Array, State
from refusion_edge.backends.registry import Engine, RunOptions, Status, read_graph, require_size
from refusion_edge.errors import BackendError
from refusion_edge.network.graph import INPUT_A, INPUT_B, OUTPUT, UINT8_INPUTS, fill

_ERRORS_ONLY = 3


def probe() -> Status:
    """Report the installed version."""
    return Status(usable=True, reason=f"onnxruntime {version()}")


def version() -> str:
    """Version of the installed package."""
    return importlib.metadata.version("onnxruntime")


def open_engine(engine: Engine, options: RunOptions) -> OrtBackend:
    """Run a model."""
    return OrtBackend(engine.data, threads=options.threads, streaming=options.streaming)


def open_weights(state: State, options: RunOptions) -> OrtBackend:
    """Run parameters in the form of the graph that suits."""
    model = fill(read_graph(OrtBackend.name, "fp32"), state).SerializeToString()
    return OrtBackend(model, threads=options.threads, streaming=options.streaming)


class OrtBackend:
    """A session on the CPU. Implements ``Backend``.

    Args:
        model: Serialised ONNX model with the inputs ``a`` and ``b`` and the output ``fused``.
        threads: Threads inside an operator; 0 for one per physical core.
        optimized: Whether ONNX Runtime may rewrite the graph. Off for the reference of the accuracy gate, so that
            it does not share a fault with what it judges.
        streaming: Whether pictures come with pauses between them. Threads then sleep when they have nothing to do
            instead of spinning, which would keep the cores busy that decode and show the frames.

    Raises:
        BackendError: ONNX Runtime cannot load the model.
    """

    name = "onnxruntime"

    def __init__(self, model: bytes, *, threads: int = 0, optimized: bool = True, streaming: bool = False) -> None:
        options = ort.SessionOptions()
        # Planning all buffers of a picture as one block holds twice the memory, for no measurable time.
        options.enable_mem_pattern = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0" if streaming else "1")
        options.log_severity_level = _ERRORS_ONLY
        options.intra_op_num_threads = threads
        level = ort.GraphOptimizationLevel
        options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
        try:
            self._session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own exception types are not public
            raise BackendError(
                f"expected a model that ONNX Runtime {version()} can load, got '{error}'; build it again."
            ) from error
        names = [value.name for value in self._session.get_inputs()]
        # What a model for TensorRT gives besides is not computed, because nobody asks for it; what it takes besides is zero.
        self._unused = [name for name in names if name in UINT8_INPUTS.values()]
        if names != [INPUT_A, INPUT_B, *self._unused] or self._session.get_outputs()[0].name != OUTPUT:
            raise BackendError(
                f"expected a model with the inputs {INPUT_A} and {INPUT_B} and the output {OUTPUT}, got {len(names)} inputs "
                f"({', '.join(names[:3])}, ...); build it again."
            )
        height, width = self._session.get_inputs()[0].shape[2:]
        self._size_hw = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        self._last_hw: tuple[int, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        # The arena of a session is the size of the largest picture it saw; give it back now, not at some collection.
        del self._session

    def fuse(self, a: Float32Array, b: Float32Array) -> Float32Array:
        """Fuse two luma planes; see ``Backend.fuse``. The result is new memory."""
        require_size(self._size_hw, a.shape[2:])
        options = None
        if a.shape[2:] != self._last_hw:
            # What the arena keeps from pictures of another size fits badly and would be held for nothing.
            options = ort.RunOptions()
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
            self._last_hw = a.shape[2:]
        given = {INPUT_A: a, INPUT_B: b, **{name: np.zeros(a.shape, np.uint8) for name in self._unused}}
        fused: Float32Array = self._session.run([OUTPUT], given, options)[0]
        return fused
