"""The PyTorch network, operator by operator: slow, but the reference."""

from __future__ import annotations

import importlib.metadata

from typing_extensions import Self

from refusion_edge.arrays import Float32Array, State
from refusion_edge.backends.registry import RunOptions, Status, execution_error
from refusion_edge.machine import is_installed, require
from refusion_edge.network.family import network_of


def probe() -> Status:
    """Report the installed version of torch, without importing it."""
    if not is_installed("torch"):
        return Status(usable=False, reason="torch is not installed", fix="pip install 'refusion-edge[train]'")
    return Status(usable=True, reason=f"torch {importlib.metadata.version('torch')}")


def open_weights(state: State, options: RunOptions) -> EagerBackend:
    """Run weights in fp32."""
    return EagerBackend(state, threads=options.threads)


class EagerBackend:
    """The PyTorch network on the CPU. Implements ``Backend``.

    Args:
        state: Parameters of either network.
        threads: Threads within an operator, for the whole process; 0 for torch's default.
    """

    name = "eager"

    def __init__(self, state: State, *, threads: int = 0) -> None:
        self._torch = require("torch", "train", "the back end eager")
        if threads:
            self._torch.set_num_threads(threads)
        self._network = network_of(state).torch(state)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        del self._network

    def fuse(self, a: Float32Array, b: Float32Array) -> Float32Array:
        """Fuse two luma planes; see ``Backend.fuse``. The result is a new array.

        Raises:
            BackendError: There is not enough memory, or torch cannot run the network.
        """
        try:
            with self._torch.inference_mode():
                fused = self._network(self._torch.from_numpy(a.copy()), self._torch.from_numpy(b.copy()))
        except (RuntimeError, MemoryError) as error:
            raise execution_error(f"torch {self._torch.__version__}", error, a.shape[2:]) from error
        result: Float32Array = fused.numpy()
        return result
