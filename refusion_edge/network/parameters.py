"""Names and shapes of the fusion network's parameters, available without torch.

One table serves checkpoints (does the file hold this network?), graph templates (what has to be filled in?) and the
network itself (a test compares it with this table).
"""

from __future__ import annotations

from collections.abc import Iterator

DIM = 16
NUM_HEADS = 8
NUM_BLOCKS = 2
EXPANSION = 2

Shape = tuple[int, ...]


def _block(prefix: str, dim: int) -> Iterator[tuple[str, Shape]]:
    hidden = dim * EXPANSION
    yield f"{prefix}.norm1.body.weight", (dim,)
    yield f"{prefix}.norm1.body.bias", (dim,)
    yield f"{prefix}.attn.temperature", (NUM_HEADS, 1, 1)
    yield f"{prefix}.attn.qkv.weight", (3 * dim, dim, 1, 1)
    yield f"{prefix}.attn.qkv_dwconv.weight", (3 * dim, 1, 3, 3)
    yield f"{prefix}.attn.project_out.weight", (dim, dim, 1, 1)
    yield f"{prefix}.norm2.body.weight", (dim,)
    yield f"{prefix}.norm2.body.bias", (dim,)
    yield f"{prefix}.ffn.project_in.weight", (2 * hidden, dim, 1, 1)
    yield f"{prefix}.ffn.dwconv.weight", (2 * hidden, 1, 3, 3)
    yield f"{prefix}.ffn.project_out.weight", (dim, hidden, 1, 1)


def _fusion_module(prefix: str, dim: int) -> Iterator[tuple[str, Shape]]:
    hidden = 2 * dim * EXPANSION
    yield f"{prefix}.temperature1", (NUM_HEADS, 1, 1)
    yield f"{prefix}.temperature2", (NUM_HEADS, 1, 1)
    for source in (1, 2):
        yield f"{prefix}.qkv{source}.weight", (3 * dim, dim, 1, 1)
        yield f"{prefix}.qkv{source}_dwconv.weight", (3 * dim, 1, 3, 3)
    yield f"{prefix}.project_mid1.weight", (dim, dim, 1, 1)
    yield f"{prefix}.project_mid2.weight", (dim, dim, 1, 1)
    yield f"{prefix}.project_E.weight", (2 * hidden, 2 * dim, 1, 1)
    yield f"{prefix}.project_E_d.weight", (2 * hidden, 1, 3, 3)
    for source in (1, 2):
        yield f"{prefix}.project_E{source}.weight", (hidden, dim, 1, 1)
        yield f"{prefix}.project_E{source}_d.weight", (hidden, 1, 3, 3)
    yield f"{prefix}.project_out1.weight", (2 * dim, hidden, 1, 1)
    yield f"{prefix}.project_out2.weight", (2 * dim, hidden, 1, 1)


def _network() -> Iterator[tuple[str, Shape]]:
    yield "project_in_1.weight", (DIM, 1, 3, 3)
    yield "project_in_2.weight", (DIM, 1, 3, 3)
    for encoder in ("encoder1", "encoder2"):
        for index in range(NUM_BLOCKS):
            yield from _block(f"{encoder}.{index}", DIM)
    yield from _fusion_module("FM", DIM)
    for index in range(NUM_BLOCKS):
        yield from _block(f"decoder.{index}", 2 * DIM)
    yield "project_out_0.weight", (DIM, 2 * DIM, 3, 3)
    yield "project_out_1.weight", (1, DIM, 3, 3)


PARAMETERS: dict[str, Shape] = dict(_network())
"""Shapes of all 86 parameters by name, in module order; 59,856 elements in total."""


def is_convolution(name: str) -> bool:
    """Tell whether a parameter is a convolution kernel; these are exactly the 4-D parameters."""
    return len(PARAMETERS[name]) == 4
