"""Blocks of arguments as kernels take them: each at a multiple of its own size, the compiler's hidden pointers null."""

from __future__ import annotations

from collections.abc import Sequence

from refusion_edge.program import POINTER_TYPES, Parameter


def pack(parameters: Sequence[Parameter], values: Sequence[int], hidden_pointers: int) -> bytes:
    """Lay arguments out as a function takes them.

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
