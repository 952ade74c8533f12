"""A device that is none and knows the kernels of one program: it computes with their plain references.

The accuracy gate of ``build`` runs a program on it where there is no GPU, and the tests run whole frames on it. It holds
every launch against the plan: order, grid, threads, shared memory, the block of arguments, the bounds of every buffer, and
that no two buffers that are alive share memory. Memory becomes NaN again when a buffer's life ends.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from refusion_edge.arrays import Uint8Array, bytes_of
from refusion_edge.cuda.arguments import unpack
from refusion_edge.cuda.driver import Device
from refusion_edge.cuda.host_driver import POISON, HostDriver
from refusion_edge.kernels.catalogue import run_on_host
from refusion_edge.program import POINTER_TYPES, Binary, Buffer, Kernel, Program, cuda_text

# No driver is newer.
_NEWEST_DRIVER = 99_990


class HostProgram(HostDriver):
    """Stands in for a GPU that runs one program. Implements ``Driver``.

    Args:
        program: The program that will run.
        architecture: What it pretends to be.
        driver_version: CUDA version of the driver that it pretends to have.
        integrated: Whether it pretends to share its memory with the processor.
    """

    def __init__(
        self, program: Program, architecture: int, *, driver_version: int = _NEWEST_DRIVER, integrated: bool = False
    ) -> None:
        capability = f"{architecture // 10}.{architecture % 10}"
        super().__init__(Device("no device", capability, integrated, True, cuda_text(driver_version)))
        self._program = program
        self._functions: dict[int, tuple[Kernel, Binary]] = {}
        self._frame = _Frame()

    def load(self, image: bytes, symbol: str, shared_bytes: int) -> int:
        """Find a module in the program and return its function."""
        for target in self._program.targets.values():
            for name, known in target.binaries.items():
                if (known.image, known.symbol, known.shared_bytes) == (image, symbol, shared_bytes):
                    handle = len(self._functions) + 1
                    self._functions[handle] = self._program.plan.kernels[name], known
                    return handle
        raise self.refusal("a module of the program", symbol)

    def launch_kernel(
        self, function: int, grid: tuple[int, int, int], threads: int, shared_bytes: int, arguments: bytes, stream: int
    ) -> None:
        """Check a launch and run it with the plain reference."""
        kernel, binary = self._functions[function]
        if (threads, shared_bytes) != (32 * binary.tile.warps, binary.shared_bytes):
            expected = f"{32 * binary.tile.warps} threads and {binary.shared_bytes} bytes"
            raise self.refusal(expected, f"{threads} and {shared_bytes}")
        self.start(f"kernel {kernel.name}", lambda: self._run(kernel, binary, grid, arguments), stream)

    def launch(self, graph: Any, stream: int) -> None:
        """Run a graph, which has to be one whole frame."""
        self._frame = _Frame()
        super().launch(graph, stream)
        if self._frame.index != len(self._program.plan.launches):
            raise self.refusal(f"{len(self._program.plan.launches)} launches", str(self._frame.index))

    def _run(self, kernel: Kernel, binary: Binary, grid: tuple[int, int, int], block: bytes) -> None:
        frame, plan = self._frame, self._program.plan
        launch = plan.launches[frame.index]
        if launch.kernel != kernel.name:
            raise self.refusal(f"the kernel {launch.kernel} as launch {frame.index}", kernel.name)
        try:
            values = unpack(kernel.parameters, block, binary.hidden_pointers)
        except ValueError as error:
            raise self.refusal(f"the arguments of {kernel.name}", str(error)) from error
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
                view = self.view(value, array.nbytes)
                if not np.array_equal(view, bytes_of(array)):
                    raise self.refusal(f"the weights {argument.name}", "other bytes")
                given[parameter.name] = view.view(POINTER_TYPES[parameter.type])
            elif argument.kind == "buffer":
                view = self._buffer(plan.buffers[argument.name], value, size_hw)
                given[parameter.name] = view.view(POINTER_TYPES[parameter.type])
        run_on_host(kernel.source, given, kernel.streams)
        for name in [name for name, (address, _) in frame.placed.items() if self._ends(plan.buffers[name])]:
            address, size = frame.placed.pop(name)
            self.view(address, size)[:] = POISON
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
                    raise self.refusal(f"memory of its own for {buffer.name}", f"that of {name}, which is alive")
            placed[buffer.name] = address, size
        self._require_equal(f"the address of {buffer.name}", placed[buffer.name][0], address)
        return self.view(address, size)

    def _require_equal(self, what: str, expected: object, got: object) -> None:
        if expected != got:
            raise self.refusal(f"{expected} for {what}", str(got))


class _Frame:
    """How far one frame has come: the next launch, the size of the picture, and where the buffers alive now lie."""

    def __init__(self) -> None:
        self.index = 0
        self.sizes: dict[str, int] = {}
        self.placed: dict[str, tuple[int, int]] = {}
