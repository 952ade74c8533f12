"""Kernels of the networks in the emulator: compiled once, launched on operands with guarded memory around them.

Compiling all kernels of the paper's network takes half a minute. What runs in every `make test` therefore takes three short
ones, and frames of a small layout of the network `fast`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.gpu_cases import Case, largest_error
from refusion_edge.arrays import Array, State
from refusion_edge.cuda.program import Binary, Target, pack
from refusion_edge.errors import BackendError
from refusion_edge.export.targets.cubins import require_assembler
from refusion_edge.export.targets.ptx import compile_ptx_targets
from refusion_edge.kernels.emulator.decoder import DecodedKernel, decode
from refusion_edge.kernels.emulator.findings import Finding, faults
from refusion_edge.kernels.emulator.launch import Region, Result, launch
from refusion_edge.kernels.gpu.kernel_sets import REFUSION, KernelSet, fast_kernels
from refusion_edge.machine import parse_architectures
from refusion_edge.network.family import DEFAULT_NETWORK, network_of, shapes_of
from refusion_edge.network.fast import FastLayout, layout_of

_START = 1 << 40
_GAP = 4096

# One architecture for each kind of matrix instruction in every run; all of them by `make test-architectures`.
CHOSEN = parse_architectures(os.environ.get("REFUSION_EDGE_ARCHITECTURES", "sm_87,sm_90,sm_120"))
# Short kernels with shared memory, shuffles and products.
QUICK = ("encoder_mixing", "encoder_apply", "to_plane")
# The paper's network and the layout of the weights in the package, and one that compiles and runs in a few seconds.
FAST_LAYOUT, SMALL_LAYOUT = FastLayout(), FastLayout(channels=8, convolutions=2)
FAST, SMALL = fast_kernels(FAST_LAYOUT), fast_kernels(SMALL_LAYOUT)


@functools.cache
def ptx_target(architecture: int, kernels: KernelSet = REFUSION, names: tuple[str, ...] | None = None) -> Target:
    """The kernels for an architecture as PTX, compiled once."""
    return compile_ptx_targets([architecture], jobs=2, kernels=kernels, names=names)[architecture]


def why_not(architecture: int) -> str:
    """Why the kernels cannot be compiled here; empty if they can."""
    try:
        require_assembler([architecture])
    except BackendError as error:
        return str(error)
    return ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One launch: what the checker found, the outputs, and how many of their bytes are undefined."""

    case: Case
    result: Result
    outputs: dict[str, Array]
    unwritten: dict[str, int]

    @property
    def error(self) -> float:
        """Largest distance from the reference in float64, relative to the largest value."""
        with np.errstate(all="ignore"):
            return largest_error(self.case, self.outputs)

    @property
    def faults(self) -> list[Finding]:
        return faults(self.result.findings)

    @property
    def is_suspicious(self) -> bool:
        """Whether the emulator has anything to say, apart from the outputs."""
        return bool(self.faults or self.unwritten)


def run_case(
    case: Case,
    kernel: DecodedKernel,
    binary: Binary,
    undefined: str = "",
    order: Sequence[int] | None = None,
    **options: Any,
) -> Outcome:
    """Launch a kernel on the operands of a case. Outputs start as NaN and undefined; nothing lies between the buffers.

    Args:
        case: Kernel and operands.
        kernel: Its PTX.
        binary: What it was compiled for.
        undefined: An input that counts as never written.
        order: Of the parameters of a plugin, which has no hidden ones; None for those of the kernel.
        options: Of ``launch``, in place of the right ones.
    """
    regions: dict[str, Region] = {}
    values: list[int] = []
    address = _START
    for parameter in case.kernel.parameters:
        operand = case.operands[parameter.name]
        if isinstance(operand, int):
            values.append(operand)
            continue
        poison = np.nan if operand.dtype.kind == "f" else 7
        data = (np.full_like(operand, poison) if parameter.written else operand.copy()).view(np.uint8)
        defined = np.full(data.size, not parameter.written and parameter.name != undefined, np.uint8)
        regions[parameter.name] = Region(parameter.name, address, data, defined, parameter.written, operand.itemsize)
        values.append(address)
        address += -(-data.size // 256) * 256 + _GAP
    grid = case.kernel.launch_grid(case.tile, case.size_hw)
    if order is None:
        block = pack(case.kernel.parameters, values, binary.hidden_pointers)
    else:
        block = pack([case.kernel.parameters[index] for index in order], [values[index] for index in order], 0)
    options = {"grid": grid, "threads": 32 * binary.tile.warps, "shared_bytes": binary.shared_bytes, "block": block, **options}
    result = launch(kernel, regions=list(regions.values()), **options)
    outputs = {name: regions[name].data.view(case.operands[name].dtype) for name in case.written}
    unwritten = {name: int((regions[name].defined == 0).sum()) for name in case.written}
    return Outcome(case, result, outputs, {name: count for name, count in unwritten.items() if count})


@functools.cache
def decoded(architecture: int, name: str, kernels: KernelSet = REFUSION) -> tuple[DecodedKernel, Binary]:
    """A kernel of a network, decoded once."""
    quick = kernels is REFUSION and name in QUICK
    binary = ptx_target(architecture, kernels, QUICK if quick else None).binaries[name]
    return decode(binary.image.decode()), binary


def fast_state(layout: FastLayout = SMALL_LAYOUT) -> State:
    """Parameters of the network `fast` that no training made."""
    draw = np.random.default_rng(3)
    return {name: draw.normal(0, 0.1, shape).astype(np.float32) for name, shape in layout.shapes.items()}


def kernels_of(state: State) -> KernelSet:
    """The kernels for parameters, one object for each layout, so that they are compiled once."""
    return REFUSION if network_of(state).name == DEFAULT_NETWORK else _kernels_of(layout_of(shapes_of(state)))


@functools.cache
def _kernels_of(layout: FastLayout) -> KernelSet:
    return {FAST_LAYOUT: FAST, SMALL_LAYOUT: SMALL}.get(layout) or fast_kernels(layout)


def same_outputs(a: Mapping[str, Array], b: Mapping[str, Array]) -> bool:
    """Whether all outputs have the same bits."""
    return all(np.array_equal(a[name].view(np.uint8), b[name].view(np.uint8)) for name in a)
