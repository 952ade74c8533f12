"""A device that is none: it checks everything that is asked of it and computes with the plain references of the kernels.

The accuracy gate of ``build`` runs a program on it where there is no GPU, and the tests run whole frames on it. It knows
the program, so that it can hold every launch against the plan: order, grid, threads, shared memory, the block of
arguments, the bounds of every buffer, and that no two buffers that are alive share memory. Memory starts as NaN and
becomes NaN again when a buffer's life ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from refusion_edge.arrays import Uint8Array
from refusion_edge.backends.device import HostMemory, Properties, bytes_of, unpack
from refusion_edge.errors import BackendError
from refusion_edge.kernels.catalogue import run_on_host
from refusion_edge.program import ALIGNMENT, POINTER_TYPES, Binary, Buffer, Kernel, Program, aligned

# All bits set is NaN in every floating dtype.
_POISON = 0xFF
_GAP = 1 << 16


class HostDevice:
    """Stands in for a GPU. Implements ``Device``.

    Args:
        program: The program that will run.
        architecture: What it pretends to be.
        driver_version: CUDA version of the driver that it pretends to have.
        integrated: Whether it pretends to share its memory with the processor.
    """

    def __init__(
        self, program: Program, architecture: int, *, driver_version: int = 1_000_000, integrated: bool = False
    ) -> None:
        self.properties = Properties("no device", architecture, driver_version, integrated)
        self._program = program
        self._memory: dict[int, Uint8Array] = {}
        self._end = 1 << 40
        self._functions: dict[int, tuple[Kernel, Binary]] = {}
        self._graphs: dict[int, list[Callable[[], None]]] = {}
        self._recording: list[Callable[[], None]] | None = None
        self._recorded = 0
        self._frame = _Frame()

    @property
    def allocated(self) -> int:
        """Number of allocations that were not freed."""
        return len(self._memory) + len(self._graphs)

    def load(self, binary: Binary) -> int:
        """Load a module and return its function."""
        for target in self._program.targets.values():
            for name, known in target.binaries.items():
                if known == binary:
                    handle = len(self._functions) + 1
                    self._functions[handle] = self._program.plan.kernels[name], binary
                    return handle
        raise self._refusal("a module of the program", binary.symbol)

    def allocate(self, size: int) -> int:
        """Allocate memory, filled with NaN, and return its address."""
        address = self._end
        self._memory[address] = np.full(size, _POISON, np.uint8)
        # Nothing lies behind an allocation, so that whoever runs over its end is seen.
        self._end += aligned(size) + _GAP
        return address

    def free(self, address: int) -> None:
        """Free memory."""
        if self._memory.pop(address, None) is None:
            raise self._refusal("an address that was allocated", hex(address))

    def allocate_host(self, size: int) -> HostMemory:
        """Allocate memory that both sides see."""
        address = self.allocate(size)
        return HostMemory(self._memory[address], address)

    def free_host(self, memory: HostMemory) -> None:
        """Free memory that both sides see."""
        self.free(memory.address)

    def upload(self, address: int, memory: HostMemory, size: int) -> None:
        """Copy to the device."""
        self._do(lambda: np.copyto(self._view(address, size), memory.array[:size]))

    def download(self, memory: HostMemory, address: int, size: int) -> None:
        """Copy from the device."""
        self._do(lambda: np.copyto(memory.array[:size], self._view(address, size)))

    def launch(self, function: int, grid: tuple[int, int, int], threads: int, shared_bytes: int, arguments: bytes) -> None:
        """Check a launch and run it with the plain reference."""
        kernel, binary = self._functions[function]
        if threads != 32 * binary.tile.warps or shared_bytes != binary.shared_bytes:
            raise self._refusal(
                f"{32 * binary.tile.warps} threads and {binary.shared_bytes} bytes", f"{threads} and {shared_bytes}"
            )
        self._do(lambda: self._launch(kernel, binary, grid, arguments))

    def begin_capture(self) -> None:
        """Record what follows."""
        self._recording = []

    def end_capture(self) -> int:
        """Stop recording and return the graph."""
        if self._recording is None:
            raise self._refusal("a recording", "none")
        graph, self._recording = self._recording, None
        self._recorded += 1
        self._graphs[self._recorded] = graph
        return self._recorded

    def replay(self, graph: int) -> None:
        """Run a graph, which has to be one whole frame."""
        self._frame = _Frame()
        for step in self._graphs[graph]:
            step()
        if self._frame.index != len(self._program.plan.launches):
            raise self._refusal(f"{len(self._program.plan.launches)} launches", str(self._frame.index))

    def free_graph(self, graph: int) -> None:
        """Free a graph."""
        del self._graphs[graph]

    def synchronise(self) -> None:
        """Wait for nothing."""

    def close(self) -> None:
        """Forget everything that was loaded."""
        self._functions.clear()

    def _do(self, step: Callable[[], None]) -> None:
        if self._recording is None:
            step()
        else:
            self._recording.append(step)

    def _launch(self, kernel: Kernel, binary: Binary, grid: tuple[int, int, int], block: bytes) -> None:
        frame, plan = self._frame, self._program.plan
        launch = plan.launches[frame.index]
        if launch.kernel != kernel.name:
            raise self._refusal(f"the kernel {launch.kernel} as launch {frame.index}", kernel.name)
        try:
            values = unpack(kernel.parameters, block, binary.hidden_pointers)
        except ValueError as error:
            raise self._refusal(f"the arguments of {kernel.name}", str(error)) from error
        given: dict[str, Any] = dict(kernel.constants)
        for parameter, argument, value in zip(kernel.parameters, launch.arguments, values, strict=True):
            if argument.kind == "size":
                self._require_equal(f"the {argument.name}", frame.sizes.setdefault(argument.name, value), value)
            given[parameter.name] = value
        size_hw = frame.sizes["height"], frame.sizes["width"]
        self._require_equal(f"the grid of {kernel.name}", kernel.launch_grid(binary.tile, size_hw), grid)
        for parameter, argument, value in zip(kernel.parameters, launch.arguments, values, strict=True):
            if argument.kind == "strips":
                across, down = self._tiles[argument.name].strips(size_hw)
                self._require_equal(f"strips of {argument.name}", across * down, value)
            elif argument.kind == "weights":
                array = self._program.weights[argument.name]
                view = self._view(value, array.nbytes)
                if not np.array_equal(view, bytes_of(array)):
                    raise self._refusal(f"the weights {argument.name}", "other bytes")
                given[parameter.name] = view.view(POINTER_TYPES[parameter.type])
            elif argument.kind == "buffer":
                view = self._buffer(plan.buffers[argument.name], value, size_hw)
                given[parameter.name] = view.view(POINTER_TYPES[parameter.type])
        run_on_host(kernel.source, given, kernel.streams)
        for name in [name for name, (address, _) in frame.placed.items() if self._ends(plan.buffers[name])]:
            address, size = frame.placed.pop(name)
            self._view(address, size)[:] = _POISON
        frame.index += 1

    @property
    def _tiles(self) -> dict[str, Any]:
        return {kernel.name: binary.tile for kernel, binary in self._functions.values()}

    def _ends(self, buffer: Buffer) -> bool:
        return buffer.role == "scratch" and buffer.last == self._frame.index

    def _buffer(self, buffer: Buffer, address: int, size_hw: tuple[int, int]) -> Uint8Array:
        size, placed = buffer.bytes(size_hw, self._tiles), self._frame.placed
        if buffer.name not in placed:
            for name, (start, length) in placed.items():
                if start < address + size and address < start + length:
                    raise self._refusal(f"memory of its own for {buffer.name}", f"that of {name}, which is alive")
            placed[buffer.name] = address, size
        self._require_equal(f"the address of {buffer.name}", placed[buffer.name][0], address)
        return self._view(address, size)

    def _view(self, address: int, size: int) -> Uint8Array:
        for start, memory in self._memory.items():
            if start <= address and address + size <= start + memory.size:
                if address % ALIGNMENT:
                    raise self._refusal(f"an address at a multiple of {ALIGNMENT}", hex(address))
                return memory[address - start : address - start + size]
        raise self._refusal(f"{size} bytes of allocated memory at {address:#x}", "fewer")

    def _require_equal(self, what: str, expected: object, got: object) -> None:
        if expected != got:
            raise self._refusal(f"{expected} for {what}", str(got))

    def _refusal(self, expected: str, got: str) -> BackendError:
        return BackendError(f"expected {expected} of a program on no device, got {got}; this is a bug, report it.")


class _Frame:
    """How far one frame has come: the next launch, the size of the picture, and where the buffers alive now lie."""

    def __init__(self) -> None:
        self.index = 0
        self.sizes: dict[str, int] = {}
        self.placed: dict[str, tuple[int, int]] = {}
