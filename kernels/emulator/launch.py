"""Launches of decoded kernels on arrays that stand for device memory."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from refusion_edge.arrays import Array, Uint8Array
from refusion_edge.kernels.emulator.compiled import load_module
from refusion_edge.kernels.emulator.decoder import SHARED_BASE, DecodedKernel
from refusion_edge.kernels.emulator.findings import Finding, is_race, names_register
from refusion_edge.kernels.gpu.simulated_device import DeviceMisuseError

BUDGET = 1 << 40
"""Warp instructions that a launch may take unless it is told otherwise."""

MOST_SHARED_BYTES = {80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 110: 227, 120: 99}
"""KiB of shared memory that a CTA may have, by architecture. Source: CUDA C++ Programming Guide, "Compute Capabilities"."""

_MOST_CTAS = 2**31 - 1
_MOST_GRID = (2**31 - 1, 65535, 65535)
_GUARD_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Region:
    """A buffer that a launch may touch.

    Attributes:
        name: What to call it.
        address: Of its first byte.
        data: Its bytes, which the launch changes.
        defined: For each byte, whether it has been written (1) or not (0); the launch changes it, too.
        writable: Whether a write is right.
        item_bytes: Bytes of an element, by which races are told apart.
    """

    name: str
    address: int
    data: Uint8Array
    defined: Uint8Array
    writable: bool
    item_bytes: int


@dataclass(frozen=True, slots=True)
class Result:
    """What a launch did.

    Attributes:
        kernel: The kernel.
        grid: CTAs along x, y and z.
        findings: What the checker found.
        counts: (instructions, 4) uint64: how often a warp issued each instruction, lanes that took part, sectors or
            wavefronts, and the fewest there could have been.
        traffic: (regions, 6) uint64: requests to read, sectors read, those counted once for each CTA, once in all, sectors
            written, once in all.
        regions: Names of the rows of ``traffic``.
        seconds: Time of the processor that it took here.
    """

    kernel: DecodedKernel
    grid: tuple[int, int, int]
    findings: tuple[Finding, ...]
    counts: Array = field(repr=False)
    traffic: Array = field(repr=False)
    regions: tuple[str, ...]
    seconds: float = 0.0


def launch(
    kernel: DecodedKernel,
    grid: tuple[int, int, int],
    threads: int,
    shared_bytes: int,
    block: bytes,
    regions: Sequence[Region],
    *,
    check: bool = True,
    backward: bool = False,
    budget: int = BUDGET,
) -> Result:
    """Run a kernel.

    Args:
        kernel: From ``decode``.
        grid: CTAs along x, y and z.
        threads: Threads of a CTA.
        shared_bytes: Dynamic shared memory.
        block: Arguments, as the driver takes them.
        regions: Every buffer that it may touch.
        check: Whether to look for races and undefined values. Bounds and alignment are always checked.
        backward: Whether the last CTA and the last warp go first.
        budget: Warp instructions after which it is stopped.

    Raises:
        DeviceMisuseError: The launch does not fit the kernel or the architecture.
    """
    _check(kernel, grid, threads, shared_bytes, block, regions)
    module = load_module()
    counts = np.zeros((len(kernel.opcodes), module.COUNT_FIELDS), np.uint64)
    traffic = np.zeros((len(regions), module.TRAFFIC_FIELDS), np.uint64)
    rows = [
        (region.address, region.data, region.defined, region.writable, region.item_bytes.bit_length() - 1) for region in regions
    ]
    started = time.thread_time()
    found = module.run(
        kernel.handle, rows, block, list(grid), threads, shared_bytes, SHARED_BASE, check, backward, budget, counts, traffic
    )
    seconds = time.thread_time() - started
    findings = tuple(_finding(kernel, regions, *one) for one in found)
    return Result(kernel, grid, findings, counts, traffic, tuple(region.name for region in regions), seconds)


def _check(
    kernel: DecodedKernel,
    grid: tuple[int, int, int],
    threads: int,
    shared_bytes: int,
    block: bytes,
    regions: Sequence[Region],
) -> None:
    def require(what: str, expected: object, got: object, *, sound: bool) -> None:
        if not sound:
            raise DeviceMisuseError(
                f"the launch of {kernel.name} has {got} {what} instead of {expected}",
                "launch it as it was compiled",
                expected=expected,
                got=got,
            )

    require("threads in a CTA", kernel.threads, threads, sound=threads == kernel.threads)
    require("bytes of arguments", kernel.parameter_bytes, len(block), sound=len(block) == kernel.parameter_bytes)
    limits = tuple((1, most) for most in _MOST_GRID)
    require("CTAs", limits, grid, sound=all(low <= side <= high for side, (low, high) in zip(grid, limits, strict=True)))
    # The emulator counts them in 32 bits.
    require("CTAs in all", _MOST_CTAS, math.prod(grid), sound=math.prod(grid) <= _MOST_CTAS)
    most = MOST_SHARED_BYTES.get(kernel.architecture, max(MOST_SHARED_BYTES.values())) * 1024
    require("bytes of shared memory", (0, most), shared_bytes, sound=0 <= shared_bytes <= most)
    for region in regions:
        sizes = region.data.nbytes, region.defined.nbytes
        require(f"bytes in the shadow of {region.name}", *sizes, sound=sizes[0] == sizes[1])


def _finding(
    kernel: DecodedKernel,
    regions: Sequence[Region],
    kind: str,
    pc: int,
    cta: int,
    thread: int,
    other: int,
    address: int,
    count: int,
) -> Finding:
    register, place = "", ""
    if names_register(kind):
        # Which file it is in follows from the kind: only a guard is a predicate, addresses may be either.
        names = {kernel.registers[file].get(other, "") for file in ((2,) if kind == "undefined_guard" else (0, 1))}
        register = next((name for name in sorted(names) if name and _mentions(kernel.texts[pc], name)), "")
    if kind.startswith("global") or kind == "undefined_store":
        place = _place(regions, address)
    elif kind.startswith(("shared", "proxy", "wgmma_overwritten")):
        place = f"shared memory at {address:#x}"
    return Finding(
        kind,
        kernel.name,
        kernel.lines[pc],
        kernel.texts[pc],
        cta,
        thread,
        other if is_race(kind) else -1,
        register,
        place,
        count,
    )


def _mentions(text: str, register: str) -> bool:
    at = text.find(register)
    return at >= 0 and not text[at + len(register) : at + len(register) + 1].isdigit()


def _place(regions: Sequence[Region], address: int) -> str:
    """The nearest buffer and the offset in it, which is negative or beyond its size where the address is outside."""
    if not regions:
        return f"{address:#x}"

    def distance(region: Region) -> int:
        return max(region.address - address, address - region.address - region.data.nbytes + 1, 0)

    nearest = min(regions, key=distance)
    if distance(nearest) > _GUARD_BYTES:
        return f"{address:#x}, far from every buffer"
    return f"{nearest.name} at byte {address - nearest.address} of {nearest.data.nbytes}"
