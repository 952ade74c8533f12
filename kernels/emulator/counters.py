"""What launches issued and moved, counted while they were executed.

Instructions are those of the PTX: the assembler removes many moves, and adds what the hardware has no single instruction for.
Wavefronts, sectors, barriers and products of matrices are in the machine code as they are here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from refusion_edge.kernels.emulator.launch import Result

_CLASSES = {
    "tensor": ("mma_m16n8k16", "wgmma"),
    "shared": ("ld_shared", "st_shared", "ldmatrix", "ldmatrix_trans", "stmatrix"),
    "global": ("ld_global", "st_global"),
    "parameter": ("ld_param",),
    "shuffle": ("shfl_bfly", "shfl_idx"),
    "barrier": ("bar_sync", "bar_warp_sync", "fence_proxy_async", "wgmma_fence", "wgmma_commit", "wgmma_wait"),
    "control": ("bra", "ret"),
    "special": ("rsqrt_approx_ftz_f32", "sqrt_approx_ftz_f32", "ex2_approx_f32", "div_full_f32", "div_approx_f32"),
    "move": ("mov_b16", "mov_b32", "mov_b64", "mov_pred", "pack_b32", "pack_b64", "unpack_b32", "unpack_b64"),
}
_CLASS_OF = {operation: name for name, operations in _CLASSES.items() for operation in operations}

CLASSES = (*_CLASSES, "conversion", "comparison", "float", "integer")
"""Classes of instructions; every instruction is in one."""


def class_of(operation: str) -> str:
    """Class of an operation of the compiled module."""
    if operation in _CLASS_OF:
        return _CLASS_OF[operation]
    verb = operation.split("_", maxsplit=1)[0]
    if verb in ("cvt", "setp", "selp") or operation == "and_pred":
        return "conversion" if verb == "cvt" else "comparison"
    return "float" if operation.endswith(("f32", "f32x2", "f16")) else "integer"


@dataclass(frozen=True, slots=True)
class Counters:
    """Sums over launches.

    Attributes:
        launches: Number of launches.
        ctas: CTAs.
        warp_instructions: Instructions that a warp issued.
        thread_instructions: The same for each thread that took part.
        by_class: ``warp_instructions`` by class.
        tensor_products: Multiplications and additions of single numbers by tensor cores.
        barriers: Times that a warp waited at a barrier of its CTA.
        shared_wavefronts: Passes of 128 bytes through shared memory.
        shared_wavefronts_least: The same without conflicts between banks.
        shared_bytes: Bytes that threads asked shared memory for, in both directions.
        sectors_read: Sectors of 32 bytes that warps asked for.
        sectors_read_least: The fewest that hold as many bytes.
        sectors_read_once_per_cta: The same, each counted once for every CTA: what a perfect first cache leaves.
        sectors_read_once: The same, each counted once in every launch: what a perfect second cache leaves.
        sectors_written: Sectors that warps wrote to.
        sectors_written_once: The same, each counted once in every launch.
        global_bytes_read: Bytes that threads asked for.
        global_bytes_written: Bytes that threads wrote.
    """

    launches: int = 0
    ctas: int = 0
    warp_instructions: int = 0
    thread_instructions: int = 0
    by_class: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CLASSES, 0))
    tensor_products: int = 0
    barriers: int = 0
    shared_wavefronts: int = 0
    shared_wavefronts_least: int = 0
    shared_bytes: int = 0
    sectors_read: int = 0
    sectors_read_least: int = 0
    sectors_read_once_per_cta: int = 0
    sectors_read_once: int = 0
    sectors_written: int = 0
    sectors_written_once: int = 0
    global_bytes_read: int = 0
    global_bytes_written: int = 0

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def count(results: Iterable[Result]) -> Counters:
    """Add up what launches counted."""
    sums: dict[str, Any] = Counters().to_json()
    for result in results:
        for name, value in _counted(result).items():
            if name == "by_class":
                for kind, number in value.items():
                    sums["by_class"][kind] += number
            else:
                sums[name] += value
    return Counters(**sums)


def by_kernel(results: Iterable[tuple[str, Result]]) -> dict[str, Counters]:
    """Add up the launches of each kernel, in the order in which they were launched first."""
    found: dict[str, list[Result]] = {}
    for name, result in results:
        found.setdefault(name, []).append(result)
    return {name: count(launches) for name, launches in found.items()}


def _counted(result: Result) -> dict[str, Any]:
    kernel, counts = result.kernel, result.counts.astype(np.int64)
    classes = [class_of(operation) for operation in kernel.operations]
    operations = np.array(kernel.operations)
    moved = counts[:, 1] * np.array(kernel.access_bytes)
    is_shared = np.array([name == "shared" for name in classes])
    loads, stores = operations == "ld_global", operations == "st_global"
    by_class = dict.fromkeys(CLASSES, 0)
    for name, issued in zip(classes, counts[:, 0].tolist(), strict=True):
        by_class[name] += issued
    # Of a warp's share: 16 rows, 16 deep, and the columns of the instruction.
    columns = np.array([_columns(opcode) for opcode in kernel.opcodes])
    traffic = result.traffic.astype(np.int64).sum(axis=0).tolist() if len(result.traffic) else [0] * 6
    return {
        "launches": 1,
        "ctas": int(np.prod(result.grid)),
        "warp_instructions": int(counts[:, 0].sum()),
        "thread_instructions": int(counts[:, 1].sum()),
        "by_class": by_class,
        "tensor_products": int((counts[:, 0] * columns).sum()) * 16 * 16,
        "barriers": int(counts[operations == "bar_sync", 0].sum()),
        "shared_wavefronts": int(counts[is_shared, 2].sum()),
        "shared_wavefronts_least": int(counts[is_shared, 3].sum()),
        "shared_bytes": int(moved[is_shared].sum()),
        "sectors_read": traffic[1],
        "sectors_read_least": int(counts[loads, 3].sum()),
        "sectors_read_once_per_cta": traffic[2],
        "sectors_read_once": traffic[3],
        "sectors_written": traffic[4],
        "sectors_written_once": traffic[5],
        "global_bytes_read": int(moved[loads].sum()),
        "global_bytes_written": int(moved[stores].sum()),
    }


def _columns(opcode: str) -> int:
    if opcode.startswith("mma."):
        return 8
    return int(opcode.split("m64n", maxsplit=1)[1].split("k", maxsplit=1)[0]) if opcode.startswith("wgmma.mma_async") else 0
