"""Counts of what every launch of a frame does, from its PTX in the emulator, as a line over the number of pixels.

A frame of two small sizes is executed. The count of a launch is a constant per program plus one per pixel, so the two sizes
give the count at any other size, apart from strips that an image does not fill. Needs the emulator and Triton, but no GPU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refusion_edge.backends.fused import FusedBackend
from refusion_edge.cuda.program import Program, Tile
from refusion_edge.cuda.program_file import program_bytes
from refusion_edge.export.targets.cubins import dump
from refusion_edge.export.targets.ptx import with_ptx
from refusion_edge.kernels.emulator.counters import Counters, count
from refusion_edge.kernels.emulator.device import EmulatedDevice
from refusion_edge.machine import usable_cores

FIELDS = (
    "instructions", "ptx_instructions", "products", "wavefronts", "conflicts", "sectors", "sectors_once", "barriers", "ctas",
)  # fmt: skip
"""What is counted, see ``LaunchCounts``."""

# Every tile of the paper's network divides it.
_LARGEST = Tile(64, 32, 1)
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)[^;]*;")


@dataclass(frozen=True, slots=True)
class LaunchCounts:
    """Counts of one launch of a kernel.

    Attributes:
        instructions: Machine instructions that warps issue: those of the PTX, times the machine instructions for each line of
            PTX in the code of the kernel.
        ptx_instructions: Instructions of the PTX that warps issue.
        products: Multiply-adds of the tensor cores.
        wavefronts: Passes of 128 bytes through shared memory.
        conflicts: Those of them that are due to two words in one bank.
        sectors: Sectors of 32 bytes that warps ask global memory for.
        sectors_once: The same, each counted once a launch.
        barriers: Times that a warp waits for its CTA.
        ctas: Programs.
    """

    instructions: float
    ptx_instructions: float
    products: float
    wavefronts: float
    conflicts: float
    sectors: float
    sectors_once: float
    barriers: float
    ctas: float


def whole_strips(tiles: Mapping[str, Tile]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Two sizes that are whole strips of the heaviest kernels, one twice the other."""
    tile = tiles.get("fast_convolutions", _LARGEST)
    return (2 * tile.rows, 2 * tile.columns), (4 * tile.rows, 2 * tile.columns)


def count_kernels(program: Program, architecture: int) -> dict[str, Any]:
    """Count the first launch of every kernel of a program at two sizes.

    Args:
        program: A program of machine code.
        architecture: Which of its architectures.

    Returns:
        By kernel: ``warps`` of a program, and each of ``FIELDS`` as [for a launch, for each pixel].
    """
    target = program.targets[architecture]
    binaries, sizes_hw = target.binaries, whole_strips(target.tiles)
    machine = {name: machine_instructions(dump(binary, "-sass")) for name, binary in binaries.items()}
    found = executed(with_ptx(program, architecture, jobs=usable_cores()), architecture, machine, sizes_hw)
    return {
        name: {"warps": binaries[name].tile.warps, **line(*counts, *(height * width for height, width in sizes_hw))}
        for name, counts in found.items()
    }


def executed(
    program: Program, architecture: int, machine: Mapping[str, int], sizes_hw: Sequence[tuple[int, int]]
) -> dict[str, list[LaunchCounts]]:
    """Execute a frame of each size, and return the counts of the first launch of every kernel.

    Args:
        program: A program of PTX.
        architecture: Its architecture.
        machine: Instructions in the machine code of every kernel.
        sizes_hw: Sizes of frames.
    """
    device = EmulatedDevice(program, architecture, check=False)
    found: dict[str, list[LaunchCounts]] = {}
    with FusedBackend(program_bytes(program), "the program", device) as engine:
        for size_hw in sizes_hw:
            before = len(device.results)
            planes = np.random.default_rng(0).random((2, 1, 1, *size_hw), np.float32)
            engine.fuse(planes[0], planes[1])
            seen = set()
            for name, result in device.results[before:]:
                if name not in seen:
                    seen.add(name)
                    share = machine[name] / len(result.kernel.opcodes)
                    found.setdefault(name, []).append(launch_counts(count([result]), share))
    return found


def at(counts: Mapping[str, Any], pixels: int) -> LaunchCounts:
    """The counts of a launch at a number of pixels, from what ``count_kernels`` returns for its kernel."""
    return LaunchCounts(**{name: counts[name][0] + counts[name][1] * pixels for name in FIELDS})


def launch_counts(counters: Counters, share: float) -> LaunchCounts:
    """The counts of one launch.

    Args:
        counters: What the emulator counted.
        share: Machine instructions for each instruction of the PTX.
    """
    return LaunchCounts(
        counters.warp_instructions * share,
        counters.warp_instructions,
        counters.tensor_products,
        counters.shared_wavefronts,
        counters.shared_wavefronts - counters.shared_wavefronts_least,
        counters.sectors_read + counters.sectors_written,
        counters.sectors_read_once + counters.sectors_written_once,
        counters.barriers,
        counters.ctas,
    )


def line(small: LaunchCounts, large: LaunchCounts, few: int, many: int) -> dict[str, list[float]]:
    """The line through the counts of two launches: for each of ``FIELDS``, the part of a launch and that of a pixel."""
    lines = {}
    for name in FIELDS:
        low, high = getattr(small, name), getattr(large, name)
        slope = (high - low) / (many - few)
        lines[name] = [low - slope * few, slope]
    return lines


def machine_instructions(code: str) -> int:
    """Count the instructions in the listing of a kernel's machine code."""
    names = [found[1] for found in _INSTRUCTION.finditer(code)]
    # Behind the last exit, code is padded.
    return len(names) - next((index for index, name in enumerate(reversed(names)) if name == "EXIT"), 0)
