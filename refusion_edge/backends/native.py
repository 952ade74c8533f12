"""Our fused C++ kernels on the CPU: the whole network, without a graph in between. Needs the compiled module."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from typing_extensions import Self

from refusion_edge.arrays import Float32Array, State
from refusion_edge.backends.registry import Engine, RunOptions, Status, require_size
from refusion_edge.errors import BackendError, ShapeError, UsageError
from refusion_edge.kernels.cpu.compiled import MODULE, chosen_isa, load_module
from refusion_edge.machine import MAX_THREADS, is_installed, processor, usable_cores
from refusion_edge.network.checkpoint import parse_checkpoint
from refusion_edge.network.layouts import Precision
from refusion_edge.network.parameters import PARAMETERS
from refusion_edge.sizes import MAX_SIDE, MIN_SIDE

_FIX = "pip install . -Cwheel.cmake=true (in the source folder, with a C++17 compiler)"


def probe() -> Status:
    """Report the instruction sets that would be used, or how to get the module."""
    if not is_installed(MODULE):
        return Status(usable=False, reason="its C++ module is not built", fix=_FIX)
    try:
        isas, for_bf16 = instruction_sets(), instruction_sets("bf16")
    except ImportError as error:
        return Status(usable=False, reason=f"its C++ module cannot be loaded ({error})", fix=_FIX)
    if chosen := chosen_isa():
        return Status(usable=True, reason=f"{chosen} kernels", lacks=() if chosen in for_bf16 else ("bf16",))
    if not for_bf16:
        return Status(usable=True, reason=f"{isas[0]} kernels", lacks=("bf16",))
    return Status(usable=True, reason=f"{isas[0]} kernels, {for_bf16[0]} for bf16")


def instruction_sets(precision: Precision = "fp32") -> tuple[str, ...]:
    """Names of the instruction sets that the module holds and this processor has for a precision, the fastest first.

    Raises:
        ImportError: The module is not built.
    """
    return tuple(load_module().isas(precision))


def flat_parameters(state: State) -> Float32Array:
    """Lay all parameters out one after another, in the order of the table, as the module takes them."""
    return np.concatenate([np.asarray(state[name], np.float32).ravel() for name in PARAMETERS])


def open_engine(engine: Engine, options: RunOptions) -> NativeBackend:
    """Run the weights file of a bundle: the kernels are the network, and its parameters are all they need."""
    state = parse_checkpoint(engine.data, Path(engine.name)).state
    return NativeBackend(state, precision=engine.precision, threads=options.threads, size_hw=engine.size_hw)


def open_weights(state: State, options: RunOptions) -> NativeBackend:
    """Run parameters."""
    return NativeBackend(state, threads=options.threads)


class NativeBackend:
    """The fused kernels. Implements ``Backend``; calls from several threads wait for one another.

    Keeps two buffers of 32 float32 numbers per pixel of the last size, and gives them back on ``__exit__``. The result
    does not depend on the number of threads, bit for bit; it does, in the last bits, on the instruction set.

    Args:
        state: The 86 parameters.
        precision: ``fp32``, or ``bf16`` for products of 1x1 and dense 3x3 convolutions and of attention's mix with eight bits
            of mantissa; their sums and all else stay in fp32.
        threads: Threads; 0 for one per core that this process may use.
        size_hw: Height and width that every picture must have, or None for any.
        isa: Instruction set (``avx512``, ``avx2``, ``sse2``, ``neon``, ``scalar``; for bf16 ``avx512_bf16``); by default that
            of the variable REFUSION_EDGE_ISA, else the fastest.

    Raises:
        UsageError: The number of threads is out of range, or the processor does not have the instruction set.
        BackendError: The processor has no bf16, or there is no memory or no thread left.
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
            raise UsageError(f"expected 0 to {MAX_THREADS} threads, got {threads}; leave it out for one per core.")
        if not instruction_sets(precision):
            raise BackendError(
                f"expected a processor and a compiled module with {precision} instructions, got {processor()} and "
                f"{', '.join(instruction_sets())}; build with --precision fp32."
            )
        self._size_hw = size_hw
        try:
            self._network = load_module().Network(
                flat_parameters(state),
                threads or min(usable_cores(), MAX_THREADS),
                chosen_isa() if isa is None else isa,
                precision,
            )
        except ValueError as error:
            raise UsageError(str(error)) from error
        except (MemoryError, RuntimeError) as error:
            raise BackendError(
                f"expected memory and {threads} threads for native, got '{error}'; use fewer threads."
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

    def fuse(self, a: Float32Array, b: Float32Array) -> Float32Array:
        """Fuse two luma planes; see ``Backend.fuse``. The result is new memory.

        The planes may be read-only and have any strides, also negative ones; they are not copied. If a pixel of either is
        NaN or infinite, every pixel of the result is NaN.

        Raises:
            ShapeError: The planes are no float32 planes of one size, from 8x8 to 16384x16384, or not of the fixed size.
            BackendError: There is not enough memory.
        """
        height, width = self._require_planes(a, b)
        fused = np.empty((1, 1, height, width), np.float32)
        try:
            self._network.fuse(a[0, 0], b[0, 0], fused[0, 0])
        except MemoryError as error:
            raise BackendError(
                f"expected memory for a picture of {width}x{height} (about {2 * 32 * 4 * width * height / 1e6:.0f} MB), got "
                "none; fuse smaller pictures."
            ) from error
        return fused

    def _require_planes(self, a: Float32Array, b: Float32Array) -> tuple[int, int]:
        if a.dtype != np.float32 or b.dtype != np.float32 or a.shape != b.shape or a.ndim != 4 or a.shape[:2] != (1, 1):
            raise ShapeError(
                f"expected two float32 planes (1, 1, H, W) of one size, got {a.dtype} {a.shape} and {b.dtype} {b.shape}; "
                "convert them."
            )
        height, width = a.shape[2:]
        if not all(MIN_SIDE <= side <= MAX_SIDE for side in (height, width)):
            raise ShapeError(
                f"expected sides from {MIN_SIDE} to {MAX_SIDE} pixels, got {width}x{height} (width x height); resize them."
            )
        require_size(self._size_hw, (height, width))
        return height, width
