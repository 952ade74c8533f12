"""Compiling the kernels of the GPU benchmark on all cores into Triton's cache, where the launches find them.

Otherwise the launches would compile their kernels one by one in a single process, and the device would wait for minutes.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

from refusion_edge.cuda.program import Tile

_ANY_INTEGER, _ANY_FLOAT = 3, 0.5


@dataclass(frozen=True, slots=True)
class Wanted:
    """One kernel of the network to compile.

    Attributes:
        name: The kernel's.
        dtype: Of the features.
        tile: What it is compiled for.
    """

    name: str
    dtype: str
    tile: Tile


def wanted(tiles: Mapping[str, Tile], dtypes: Sequence[str] = ("float16", "float32")) -> list[Wanted]:
    """Every kernel with its own tile."""
    return [Wanted(name, dtype, tile) for dtype in dtypes for name, tile in tiles.items()]


def compile_ahead(work: Iterable[Wanted], architecture: int, *, with_loss: bool = False, jobs: int | None = None) -> int:
    """Compile kernels as a launch would; a kernel that does not compile fails when it is launched.

    Args:
        work: Kernels of the network.
        architecture: 10 times the compute capability.
        with_loss: Whether the kernels of the loss are compiled, too.
        jobs: Compilers at a time; None for one on each core.

    Returns:
        How many compiled.
    """
    calls: list[tuple[Callable[..., None], tuple[Any, ...]]] = [(_compile_kernel, (one,)) for one in dict.fromkeys(work)]
    if with_loss:
        calls.append((_compile_loss, ()))
    jobs = min(jobs or os.cpu_count() or 1, len(calls))
    with ProcessPoolExecutor(
        jobs, multiprocessing.get_context("spawn"), initializer=_pretend, initargs=(architecture,)
    ) as pool:
        waiting = [pool.submit(function, *arguments) for function, arguments in calls]
        return sum(future.exception() is None for future in waiting)


class _Pretended:
    """A device of an architecture, as far as a compiler asks for it."""

    def __init__(self, architecture: int) -> None:
        self._architecture = architecture

    def get_current_target(self) -> Any:
        return importlib.import_module("triton.backends.compiler").GPUTarget("cuda", self._architecture, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _: int) -> int:
        return 0


def _pretend(architecture: int) -> None:
    os.environ.pop("TRITON_INTERPRET", None)
    importlib.import_module("triton").runtime.driver.set_active(_Pretended(architecture))


def _compile_kernel(one: Wanted) -> None:
    from refusion_edge.kernels.gpu.schedule import SOURCES, make_schedule
    from refusion_edge.kernels.gpu.triton_frame import launch_options

    kernel = make_schedule(one.dtype).kernels[one.name]
    arguments = [_ANY_INTEGER if parameter.type == "int32" else _memory(parameter.type[:-1]) for parameter in kernel.parameters]
    SOURCES[kernel.source].function.warmup(*arguments, grid=(1, 1, 1), **launch_options(kernel, one.tile))


def _compile_loss() -> None:
    from refusion_edge.kernels.gpu import weighted_loss

    for constants in weighted_loss.all_switches():
        for function in (weighted_loss.weighted_loss_kernel, weighted_loss.second_order_kernel):
            numbers = {"height": _ANY_INTEGER, "width": _ANY_INTEGER, "coefficient": _ANY_FLOAT, "scale": _ANY_FLOAT}
            given = {name: numbers.get(name, _memory("float32")) for name in function.arg_names if not name.isupper()}
            chosen = {name: value for name, value in constants.items() if not name.isupper() or name in function.arg_names}
            function.warmup(*given.values(), grid=(1, 1, 1), **chosen)


def _memory(dtype: str) -> Any:
    import torch

    return importlib.import_module("triton.runtime.jit").MockTensor(getattr(torch, dtype))
