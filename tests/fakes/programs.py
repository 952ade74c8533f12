"""Programs with text in place of machine code, to test everything except the kernels themselves."""

from __future__ import annotations

import copy
import hashlib
import lzma
from dataclasses import replace

from refusion_edge.arrays import State
from refusion_edge.cuda.program import Binary, Program, Target
from refusion_edge.export.targets.cubins import assemble
from refusion_edge.kernels.gpu.kernel_sets import REFUSION, KernelSet, kernel_set
from tests.conftest import ROOT

_ASSEMBLED: dict[str, Program] = {}


def hollow_target(architecture: int, driver_version: int = 12000, kernels: KernelSet = REFUSION) -> Target:
    cut = kernels.tiles(architecture)
    binaries = {
        name: Binary(f"{kernel.source}_kernel", cut[name], 1024 * index, 2, f"{name} for sm_{architecture}".encode())
        for index, (name, kernel) in enumerate(kernels.schedule("float16").kernels.items())
    }
    return Target(architecture, driver_version, binaries)


def hollow_program(state: State, *architectures: int) -> Program:
    """A program of these parameters of either network; a copy, as the self-test of equal ones is computed once."""
    kernels = kernel_set(state)
    key = hashlib.sha256(b"".join(array.tobytes() for array in state.values())).hexdigest()
    if key not in _ASSEMBLED:
        _ASSEMBLED[key] = assemble(kernels.fold(state), {"task": "medical", "precision": "fp16"}, {}, kernels)
    targets = {architecture: hollow_target(architecture, kernels=kernels) for architecture in architectures}
    return replace(copy.deepcopy(_ASSEMBLED[key]), targets=targets)


def stored_program() -> bytes:
    """A program file that an earlier version wrote, see tests/data/README.md."""
    return lzma.decompress((ROOT / "tests/data/program_2.rfx.xz").read_bytes())
