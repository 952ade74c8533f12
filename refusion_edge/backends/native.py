"""Our fused C++ kernels for the CPU, which run a whole network without a graph. Needs the compiled module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import Self

from refusion_edge.arrays import Float32Array, Float64Array, State
from refusion_edge.backends.planes import require_planes
from refusion_edge.backends.registry import Engine, RunOptions, Status, require_size
from refusion_edge.documents import brief
from refusion_edge.errors import BackendError, InputError, UsageError
from refusion_edge.kernels.cpu.compiled import MODULE, chosen_isa, load_module
from refusion_edge.machine import MAX_THREADS, is_installed, processor, usable_cores
from refusion_edge.network.checkpoint import parse_checkpoint
from refusion_edge.network.family import DEFAULT_NETWORK, network_of
from refusion_edge.network.fast import STATISTICS, layout_of
from refusion_edge.network.forms import Precision

# Explicit, so that a build that fails says why.
_FIX = "pip install . -Cwheel.cmake=true (in the source folder, with a C++17 compiler and the headers of Python)"
# The reduced precision of each network, in which some processors compute.
_REDUCED: dict[str, Precision] = {"refusion": "bf16", "fast": "fp16"}


def probe() -> Status:
    """Report the instruction sets that would be used, or how to build the module."""
    if not is_installed(MODULE):
        return Status(usable=False, reason="its C++ module did not compile, or was left out, when this was installed", fix=_FIX)
    try:
        fastest = instruction_sets()[0]
        reduced = {precision: instruction_sets(precision, network) for network, precision in _REDUCED.items()}
    except ImportError as error:
        return Status(usable=False, reason=f"its C++ module cannot be loaded ({error})", fix=_FIX)
    if chosen := chosen_isa():
        lacks = tuple(precision for precision, isas in reduced.items() if chosen not in isas)
        return Status(usable=True, reason=f"{chosen} kernels", lacks=lacks)
    others = [f"{isas[0]} for {precision}" for precision, isas in reduced.items() if isas]
    lacks = tuple(precision for precision, isas in reduced.items() if not isas)
    return Status(usable=True, reason=", ".join([f"{fastest} kernels", *others]), lacks=lacks)


def instruction_sets(precision: Precision = "fp32", network: str = DEFAULT_NETWORK) -> tuple[str, ...]:
    """Names of the instruction sets with which the module computes a network on this CPU in a precision, fastest first.

    Raises:
        ImportError: The module is not built.
    """
    module = load_module()
    return tuple(module.fast_isas(precision) if network == "fast" else module.isas(precision))


def flat_parameters(state: State) -> Float32Array:
    """Concatenate all parameters of a network in their order, as the module expects them."""
    names = network_of(state).shapes({name: array.shape for name, array in state.items()})
    return np.concatenate([np.asarray(state[name], np.float32).ravel() for name in names])


def open_engine(engine: Engine, options: RunOptions) -> NativeBackend:
    """Run the weights file of a bundle, which is all that the kernels need."""
    state = parse_checkpoint(engine.data, Path(engine.name)).state
    return NativeBackend(state, precision=engine.precision, threads=options.threads, size_hw=engine.size_hw)


def open_weights(state: State, options: RunOptions) -> NativeBackend:
    """Run weights in fp32."""
    return NativeBackend(state, threads=options.threads)


class NativeBackend:
    """The fused CPU kernels. Implements ``AdaptedBackend``; calls from several threads are serialized.

    Keeps memory for the next image of the last size, and frees it on ``__exit__``: for the paper's network two buffers of 32
    float32 numbers per pixel, for ``fast`` at most 1.5 MB per thread. Results are identical bit for bit for any number of
    threads, but differ in the last bits between instruction sets.

    Args:
        state: All parameters of one of the networks.
        precision: ``fp32``; or, for the paper's network, ``bf16`` to compute the products of 1x1 convolutions and of the
            attention's mixing with eight bits of mantissa, while their sums and everything else stay in fp32; or,
            for ``fast``, ``fp16`` to compute the convolutions in half precision.
        threads: Threads; 0 for one per core that this process may use.
        size_hw: Height and width that all planes must have, or None for any size.
        isa: Instruction set (``avx512``, ``avx2``, ``sse2``, ``neon``, ``scalar``; for bf16 ``avx512_bf16`` and ``neon_bf16``,
            for fp16 ``neon_fp16``); by default that of the environment variable REFUSION_EDGE_ISA, or else the fastest.

    Raises:
        UsageError: The number of threads is out of range, or the CPU does not support the instruction set.
        BackendError: The CPU or the kernels do not compute this network in this precision, or memory or threads have run out.
    """

    name = "native"

    def __init__(
        self,
        state: State,
        *,
        precision: Precision = "fp32",
        threads: int = 0,
        size_hw: tuple[int, int] | None = None,
        isa: str | None = None,
    ) -> None:
        if not 0 <= threads <= MAX_THREADS:
            raise UsageError(
                f"{threads} threads are out of range",
                f"choose 0 to {MAX_THREADS}, where 0 stands for one per core",
                expected=(0, MAX_THREADS),
                got=threads,
            )
        self._network_name = network_of(state).name
        if precision not in ("fp32", _REDUCED[self._network_name]):
            raise BackendError(
                f"the back end native does not compute the network {self._network_name} in {precision}",
                f"build with --precision fp32 or {_REDUCED[self._network_name]}",
                expected=("fp32", _REDUCED[self._network_name]),
                got=precision,
            )
        if not instruction_sets(precision, self._network_name):
            raise BackendError(
                f"{processor()} cannot compute in {precision} with the kernels that it runs ({', '.join(instruction_sets())})",
                "build with --precision fp32",
                got=precision,
            )
        self._size_hw = size_hw
        threads = threads or min(usable_cores(), MAX_THREADS)
        isa = chosen_isa() if isa is None else isa
        try:
            self._network = _make_network(state, precision, threads, isa)
        except ValueError as error:
            # The message of the kernels reads "problem; remedy", too.
            problem, _, remedy = str(error).partition("; ")
            raise UsageError(problem, remedy) from error
        except (MemoryError, RuntimeError) as error:
            raise BackendError(
                f"there are not enough memory or threads for the back end native ({brief(error)})", "use fewer threads"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        del self._network

    @property
    def isa(self) -> str:
        """Name of the instruction set in use."""
        name: str = self._network.isa
        return name

    @property
    def adapts(self) -> bool:
        """See ``AdaptedBackend``."""
        return self._network_name == "fast"

    def fuse(self, a: Float32Array, b: Float32Array) -> Float32Array:
        """Fuse two luma planes; see ``Backend.fuse``. The result is a new array.

        The planes may be read-only and have any strides, including negative ones; they are not copied. If a pixel of either
        is NaN or infinite, all pixels of the result are NaN.

        Raises:
            ShapeError: The planes are not float32, differ in shape, are not between 8x8 and 16384x16384, or do not have the
                fixed size.
            BackendError: There is not enough memory.
        """
        return self._fuse(a, b)

    def fuse_adapted(self, a: Float32Array, b: Float32Array, figures: Float64Array) -> Float32Array:
        """Fuse two luma planes with the network ``fast``; see ``AdaptedBackend.fuse_adapted``.

        Raises:
            InputError: The figures are not eight finite numbers.
            UsageError: It is another network.
            ShapeError: As ``fuse``.
            BackendError: As ``fuse``.
        """
        self._require_fast()
        finite = int(np.isfinite(figures).sum())
        if figures.shape != (STATISTICS,) or finite != STATISTICS:
            raise InputError(
                f"the statistics are {finite} finite numbers in the shape {figures.shape}, not {STATISTICS} in ({STATISTICS},)",
                "take those of an image",
                expected=(STATISTICS,),
                got=figures.shape,
            )
        return self._fuse(a, b, figures.tolist())

    def statistics(self, a: Float32Array, b: Float32Array) -> Float64Array:
        """Take the statistics of a pair; see ``AdaptedBackend.statistics``.

        Raises:
            ShapeError: As ``fuse``.
            UsageError: It is another network.
        """
        self._require_fast()
        require_planes(a, b)
        return np.array(self._network.statistics(a[0, 0], b[0, 0]))

    def _fuse(self, a: Float32Array, b: Float32Array, *given: list[float]) -> Float32Array:
        height, width = require_planes(a, b)
        require_size(self._size_hw, (height, width))
        fused = np.empty((1, 1, height, width), np.float32)
        try:
            self._network.fuse(a[0, 0], b[0, 0], fused[0, 0], *given)
        except MemoryError as error:
            need = "" if self._network_name == "fast" else f", about {2 * 32 * 4 * width * height / 1e6:.0f} MB"
            raise BackendError(
                f"there is not enough memory to fuse {height}x{width} (height x width{need})", "fuse smaller images"
            ) from error
        return fused

    def _require_fast(self) -> None:
        if not self.adapts:
            raise UsageError(
                f"the network {self._network_name} does not adapt to statistics of the pair",
                "leave them out, or run the network fast",
            )


def _make_network(state: State, precision: Precision, threads: int, isa: str) -> Any:
    if network_of(state).name != "fast":
        return load_module().Network(flat_parameters(state), threads, isa, precision)
    layout = layout_of({name: array.shape for name, array in state.items()})
    sizes = layout.channels, layout.convolutions, layout.factor
    return load_module().FastNetwork(flat_parameters(state), *sizes, threads, isa, precision)
