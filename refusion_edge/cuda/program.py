"""A program for a GPU: its kernels, its buffers, and the schedule of launches. Types and arithmetic only, no device.

The same schedule runs in three ways: through Triton in development (``refusion_edge.kernels.gpu.triton_frame``), through the
CUDA driver on a device (``refusion_edge.backends.fused``), and on a simulated device with the reference of every kernel
(``refusion_edge.kernels.gpu.simulated_device``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from refusion_edge.arrays import Array

POINTER_TYPES: dict[str, np.dtype[np.generic]] = {
    "float16*": np.dtype(np.float16),
    "float32*": np.dtype(np.float32),
    "float64*": np.dtype(np.float64),
    "uint8*": np.dtype(np.uint8),
}
"""Pointer types and the dtypes they point at; the only other type of a parameter is ``int32``."""

ALIGNMENT = 256
"""Every buffer and every weight starts at a multiple of this many bytes; the kernels need at least 16."""


@dataclass(frozen=True, slots=True)
class Tile:
    """The part of an image that one program of a kernel works on.

    Attributes:
        columns: Columns of a strip, at least 16.
        rows: Rows of a strip.
        warps: Warps of 32 threads.
    """

    columns: int
    rows: int
    warps: int

    def strips(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Number of strips across and down an image."""
        return -(-size_hw[1] // self.columns), -(-size_hw[0] // self.rows)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a kernel.

    Attributes:
        name: Its name in the source.
        type: ``int32`` or a key of ``POINTER_TYPES``.
        written: Whether the kernel writes to it.
    """

    name: str
    type: str
    written: bool = False


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel, compiled from a source with constants.

    Attributes:
        name: Name in this program.
        source: Name of the source (``refusion_edge.kernels.gpu.schedule.SOURCES``).
        parameters: In order.
        constants: Compile-time constants, except those of the tile.
        grid: ``strips``: one program for each strip and stream. ``streams``: one for each stream.
        streams: Number of streams.
    """

    name: str
    source: str
    parameters: tuple[Parameter, ...]
    constants: Mapping[str, int]
    grid: Literal["strips", "streams"]
    streams: int

    def constants_for(self, tile: Tile) -> dict[str, int]:
        """All compile-time constants, including those of the tile."""
        of_tile = {"TILE": tile.columns, "ROWS": tile.rows} if self.grid == "strips" else {}
        return {**self.constants, **of_tile}

    def launch_grid(self, tile: Tile, size_hw: tuple[int, int]) -> tuple[int, int, int]:
        """Number of programs along x, y and z for an image."""
        return (*tile.strips(size_hw), self.streams) if self.grid == "strips" else (self.streams, 1, 1)


@dataclass(frozen=True, slots=True)
class Argument:
    """The value of one parameter in a launch.

    Attributes:
        kind: ``buffer`` or ``weights`` for a pointer; ``size`` for the height or width of the image; ``strips`` for the
            number of strips that a kernel cuts the image into.
        name: Of the buffer, of the weights, ``height`` or ``width``, or of the kernel.
    """

    kind: Literal["buffer", "weights", "size", "strips"]
    name: str


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch.

    Attributes:
        kernel: Name of the kernel.
        arguments: One for each parameter.
    """

    kernel: str
    arguments: tuple[Argument, ...]


@dataclass(frozen=True, slots=True)
class Buffer:
    """Device memory whose size depends on that of the image.

    Attributes:
        name: Name in this program.
        dtype: NumPy's name.
        role: ``input`` and ``output`` are visible from outside, ``scratch`` is not.
        per_pixel: Elements for each pixel.
        per_strip: Elements for each strip of ``strips_of``.
        strips_of: A kernel, or empty.
        fixed: Further elements, independent of the size.
        first: First launch that uses it; an input is in use before.
        last: Last launch that uses it; an output is in use after.
    """

    name: str
    dtype: str
    role: Literal["input", "output", "scratch"]
    per_pixel: int = 0
    per_strip: int = 0
    strips_of: str = ""
    fixed: int = 0
    first: int = 0
    last: int = 0

    def elements(self, size_hw: tuple[int, int], tiles: Mapping[str, Tile]) -> int:
        """Number of elements for an image size."""
        across, down = tiles[self.strips_of].strips(size_hw) if self.strips_of else (0, 0)
        return size_hw[0] * size_hw[1] * self.per_pixel + across * down * self.per_strip + self.fixed

    def bytes(self, size_hw: tuple[int, int], tiles: Mapping[str, Tile]) -> int:
        """Size in bytes for an image size."""
        return self.elements(size_hw, tiles) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True, slots=True)
class Schedule:
    """The launches of one frame.

    Attributes:
        kernels: By name.
        buffers: By name.
        launches: In order.
    """

    kernels: Mapping[str, Kernel]
    buffers: Mapping[str, Buffer]
    launches: tuple[Launch, ...]


@dataclass(frozen=True, slots=True)
class Binary:
    """A kernel compiled for one architecture.

    Attributes:
        symbol: Name of the function in the module.
        tile: The tile it was compiled for.
        shared_bytes: Dynamic shared memory.
        hidden_pointers: Trailing pointers that Triton adds to the parameters; always null.
        image: The module (cubin).
    """

    symbol: str
    tile: Tile
    shared_bytes: int
    hidden_pointers: int
    image: bytes


@dataclass(frozen=True, slots=True)
class Target:
    """The kernels for one architecture.

    Attributes:
        architecture: 10 times the compute capability: 87 for sm_87.
        driver_version: Least CUDA version of the driver, as it reports it: 12060 for 12.6.
        binaries: By name of the kernel.
    """

    architecture: int
    driver_version: int
    binaries: Mapping[str, Binary]

    @property
    def tiles(self) -> dict[str, Tile]:
        """Tile of every kernel."""
        return {name: binary.tile for name, binary in self.binaries.items()}


@dataclass(frozen=True, slots=True)
class SelfTest:
    """A small pair of images and its correct result.

    Attributes:
        planes: (2, H, W) float32, source a before source b, [0, 1].
        fused: (H, W) float32.
        tolerance: Largest permitted absolute difference.
    """

    planes: Array
    fused: Array
    tolerance: float


@dataclass(frozen=True, slots=True)
class Program:
    """Everything that a device needs to fuse.

    Attributes:
        model: Task, precision, hash of the weights, versions of the tools; texts by name.
        schedule: Kernels, buffers, launches.
        weights: Arrays by name.
        targets: By architecture.
        self_test: Checked before the first frame.
    """

    model: Mapping[str, str]
    schedule: Schedule
    weights: Mapping[str, Array]
    targets: Mapping[int, Target]
    self_test: SelfTest


def cuda_text(version: int) -> str:
    """Write a CUDA version: ``12.6`` for 12060."""
    return f"{version // 1000}.{version % 1000 // 10}"


def with_lifetimes(buffers: Iterable[Buffer], launches: tuple[Launch, ...]) -> dict[str, Buffer]:
    """Set the first and the last launch that use each buffer."""
    used: dict[str, list[int]] = {}
    for index, launch in enumerate(launches):
        for argument in launch.arguments:
            if argument.kind == "buffer":
                used.setdefault(argument.name, []).append(index)
    return {buffer.name: _alive(buffer, used[buffer.name][0], used[buffer.name][-1]) for buffer in buffers}


def _alive(buffer: Buffer, first: int, last: int) -> Buffer:
    sizes = buffer.per_pixel, buffer.per_strip, buffer.strips_of, buffer.fixed
    return Buffer(buffer.name, buffer.dtype, buffer.role, *sizes, first, last)


def aligned(size: int) -> int:
    """Round up to the alignment of buffers."""
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True, slots=True)
class Arena:
    """Offsets of the scratch buffers of one image size within one allocation.

    Attributes:
        offsets: Bytes from its start, by name of the buffer.
        size: Bytes in all.
    """

    offsets: Mapping[str, int]
    size: int


def lay_out(buffers: Iterable[Buffer], size_hw: tuple[int, int], tiles: Mapping[str, Tile]) -> Arena:
    """Place scratch buffers so that two of them share bytes only if they are never in use at the same time.

    Large buffers come first, each at the lowest offset that is free while it is in use.
    """
    placed: list[tuple[Buffer, int, int]] = []
    scratch = [(buffer, aligned(buffer.bytes(size_hw, tiles))) for buffer in buffers if buffer.role == "scratch"]
    for buffer, size in sorted(scratch, key=lambda item: (-item[1], item[0].first, item[0].name)):
        offset = 0
        for start, end in _taken(placed, buffer):
            if offset + size <= start:
                break
            offset = max(offset, end)
        placed.append((buffer, offset, size))
    offsets = {buffer.name: offset for buffer, offset, _ in placed}
    return Arena(offsets, max((offset + size for _, offset, size in placed), default=0))


def _taken(placed: list[tuple[Buffer, int, int]], buffer: Buffer) -> Iterator[tuple[int, int]]:
    """Byte ranges taken while a buffer is in use, by their start."""
    alive = (
        (offset, offset + size) for other, offset, size in placed if other.first <= buffer.last and buffer.first <= other.last
    )
    yield from sorted(alive)


def pack(parameters: Sequence[Parameter], values: Sequence[int], hidden_pointers: int) -> bytes:
    """Pack arguments into the block that a launch takes.

    Args:
        parameters: Parameters of the kernel.
        values: Addresses and integers, one for each.
        hidden_pointers: Trailing pointers that the compiler added.
    """
    block = bytearray()
    items = [(parameter.type in POINTER_TYPES, value) for parameter, value in zip(parameters, values, strict=True)]
    for is_pointer, value in (*items, *((True, 0),) * hidden_pointers):
        size = 8 if is_pointer else 4
        block.extend(bytes(-len(block) % size))
        block.extend(value.to_bytes(size, "little", signed=not is_pointer))
    return bytes(block)


def unpack(parameters: Sequence[Parameter], block: bytes, hidden_pointers: int) -> list[int]:
    """Unpack a block of arguments.

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
        raise ValueError(f"{len(block)} bytes where {offset} ending in null pointers are due")
    return values[: len(parameters)]
