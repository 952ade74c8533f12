"""What stands in for an engine that needs a device: the nearest thing to it that runs on the CPU, for its accuracy gate.

A plan is judged by its ONNX model, run by ONNX Runtime: the same arithmetic up to the order of sums. Of a program of our own
kernels the very launches are run, each by the plain reference of its kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from refusion_edge.backends.onnxruntime import OrtBackend
from refusion_edge.backends.registry import Backend, Engine
from refusion_edge.backends.tensorrt.product import FLAVOURS
from refusion_edge.errors import UsageError

MODEL_ON_CPU, LAUNCHES_ON_CPU = "its model on the CPU", "its launches on the CPU"


@dataclass(frozen=True, slots=True)
class StandIn:
    """What runs instead of an engine.

    Attributes:
        name: What to call it, to put behind "judged is".
        open: Opens it.
    """

    name: str
    open: Callable[[], Backend]


def stand_in(backend: str, engine: Engine, model: bytes, *, threads: int = 0) -> StandIn:
    """Find what stands in for an engine of a back end.

    Args:
        backend: The back end.
        engine: The engine.
        model: Its ONNX model.
        threads: Threads on the CPU; 0 for the back end's own choice.

    Raises:
        UsageError: The back end needs no device, so that nothing can stand in for it.
    """
    if backend in FLAVOURS:
        return StandIn(MODEL_ON_CPU, lambda: OrtBackend(model, threads=threads))
    if backend == "fused":
        return StandIn(LAUNCHES_ON_CPU, lambda: _open_launches(engine))
    raise UsageError(
        f"expected an engine that needs a device to simulate, got one for {backend}, which runs on the CPU itself; leave "
        "--simulate out."
    )


def _open_launches(engine: Engine) -> Backend:
    from refusion_edge.backends.fused import FusedBackend
    from refusion_edge.cuda.program_file import parse_program
    from refusion_edge.kernels.gpu.simulated_device import SimulatedProgramDevice

    program = parse_program(engine.data, engine.name)
    return FusedBackend(engine.data, engine.name, SimulatedProgramDevice(program, min(program.targets)))
