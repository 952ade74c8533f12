"""What the back end ``fused`` needs of a GPU: a dozen calls, and which libraries provide them."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from refusion_edge._optional import is_installed
from refusion_edge.arrays import Array, Uint8Array
from refusion_edge.errors import BackendError
from refusion_edge.program import POINTER_TYPES, Binary, Parameter


@dataclass(frozen=True, slots=True)
class Properties:
    """What a device is.

    Attributes:
        name: Its name.
        architecture: 10 times the compute capability.
        driver_version: CUDA version of the driver, as it reports it: 12060 for 12.6.
        integrated: Whether it shares its memory with the processor.
    """

    name: str
    architecture: int
    driver_version: int
    integrated: bool


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Page-locked memory of the processor that the device can read and write.

    Attributes:
        array: The bytes, as the processor sees them.
        address: Where the device sees them.
    """

    array: Uint8Array
    address: int


@dataclass(frozen=True, slots=True)
class Frame:
    """Everything on a device that belongs to one picture size; owned by the back end.

    Attributes:
        size_hw: Height and width.
        arena: Address of the scratch memory and, where the device has memory of its own, of its input and outputs.
        visible: Page-locked memory of input and outputs.
        graph: All copies and launches.
    """

    size_hw: tuple[int, int]
    arena: int
    visible: dict[str, HostMemory]
    graph: int


class Device(Protocol):
    """One GPU, one stream, its primary context. Everything is ordered by the stream; only ``synchronise`` waits."""

    @property
    def properties(self) -> Properties:
        """What the device is."""

    def load(self, binary: Binary) -> int:
        """Load a module and return its function."""

    def allocate(self, size: int) -> int:
        """Allocate device memory and return its address, a multiple of 256."""

    def free(self, address: int) -> None:
        """Free device memory."""

    def allocate_host(self, size: int) -> HostMemory:
        """Allocate page-locked memory that the device sees, too."""

    def free_host(self, memory: HostMemory) -> None:
        """Free page-locked memory."""

    def upload(self, address: int, memory: HostMemory, size: int) -> None:
        """Copy page-locked memory to the device."""

    def download(self, memory: HostMemory, address: int, size: int) -> None:
        """Copy device memory to page-locked memory."""

    def launch(self, function: int, grid: tuple[int, int, int], threads: int, shared_bytes: int, arguments: bytes) -> None:
        """Launch a function with a block of arguments as ``pack`` makes it."""

    def begin_capture(self) -> None:
        """Record what follows instead of running it."""

    def end_capture(self) -> int:
        """Stop recording and return the graph."""

    def replay(self, graph: int) -> None:
        """Run a graph."""

    def free_graph(self, graph: int) -> None:
        """Free a graph."""

    def synchronise(self) -> None:
        """Wait until everything has run."""

    def close(self) -> None:
        """Give everything back."""


def pack(parameters: Sequence[Parameter], values: Sequence[int], hidden_pointers: int) -> bytes:
    """Lay arguments out as a function takes them: each at a multiple of its own size, hidden pointers null.

    Args:
        parameters: Parameters of the kernel.
        values: Addresses and integers, one for each.
        hidden_pointers: Trailing pointers that the compiler added.
    """
    block = bytearray()
    items = [("int32" not in parameter.type, value) for parameter, value in zip(parameters, values, strict=True)]
    for is_pointer, value in (*items, *((True, 0),) * hidden_pointers):
        size = 8 if is_pointer else 4
        block.extend(bytes(-len(block) % size))
        block.extend(value.to_bytes(size, "little", signed=not is_pointer))
    return bytes(block)


def unpack(parameters: Sequence[Parameter], block: bytes, hidden_pointers: int) -> list[int]:
    """Read a block of arguments back.

    Raises:
        ValueError: The block has another length, or a hidden pointer is not null.
    """
    values, offset = [], 0
    for is_pointer in [parameter.type in POINTER_TYPES for parameter in parameters] + [True] * hidden_pointers:
        size = 8 if is_pointer else 4
        offset += -offset % size
        values.append(int.from_bytes(block[offset : offset + size], "little", signed=not is_pointer))
        offset += size
    if offset != len(block) or any(values[len(parameters) :]):
        raise ValueError(f"{len(block)} bytes of arguments where {offset} with null at the end were due")
    return values[: len(parameters)]


def bytes_of(array: Array) -> Uint8Array:
    """The bytes of an array, without a copy where it is contiguous."""
    flat: Uint8Array = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return flat


BINDINGS_FIX = "pip install 'refusion-edge[fused]'"


def bindings() -> str | None:
    """Name the installed library that reaches the CUDA driver, with its version; None where there is none."""
    if is_installed("cuda") and is_installed("cuda.bindings"):
        return f"cuda-bindings {importlib.metadata.version('cuda-bindings')}"
    return None


def open_device() -> Device:
    """Open the first CUDA device.

    Raises:
        BackendError: No library reaches the driver, or there is no driver or no device.
    """
    if bindings() is None:
        raise BackendError(f"expected cuda-bindings to reach the CUDA driver, got none; run: {BINDINGS_FIX}.")
    from refusion_edge.backends.cuda_device import CudaDevice

    return CudaDevice()
