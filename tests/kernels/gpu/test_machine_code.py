"""What lies between the PTX that the emulator executes and the device: the machine code, as far as it can be read.

The assembler neither splits, merges nor repeats instructions of a whole warp or CTA here, so that their numbers are those of
the PTX. Two assemblers, of CUDA 12 and 13, have to agree on them.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="the GPU kernels are compiled by Triton: pip install 'refusion-edge[triton]'")
pytest.importorskip("torch", reason="the operands come from a module that imports torch")

from refusion_edge.cuda.program import Binary, Tile
from refusion_edge.errors import BackendError
from refusion_edge.export.targets.cubins import dump, resources
from refusion_edge.kernels.gpu.kernel_sets import REFUSION, KernelSet
from refusion_edge.machine import parse_architectures
from tests.kernels.emulator.launches import FAST, QUICK, ptx_target, why_not

# One architecture in every run; all of them by `make test-architectures`, which takes minutes for each.
CHOSEN = parse_architectures(os.environ.get("REFUSION_EDGE_ARCHITECTURES", "sm_90"))

# Machine code by what it is in the PTX. Warps of sm_120 and older wait in BAR.SYNC, with a suffix or not.
PAIRS = {
    r"BAR\.SYNC": r"bar\.sync",
    r"HMMA\.16816": r"mma\.sync\.aligned\.m16n8k16",
    r"HGMMA": r"wgmma\.mma_async",
    r"LDSM": r"ldmatrix",
    r"STSM": r"stmatrix",
    r"SHFL\.BFLY": r"shfl\.sync\.bfly",
    r"FENCE\.VIEW\.ASYNC": r"fence\.proxy\.async",
}
WITHOUT_PRODUCTS = ("stem", "encoder_mixing", "decoder_mixing", "to_plane", "stretch", "fast_statistics")


def assemblers() -> dict[str, str]:
    """Path of each assembler that comes with Triton, by the version of its CUDA."""
    tool = importlib.import_module("triton.backends.nvidia.compiler").get_ptxas
    return {str(found.version): str(found.path) for found in (tool(87), tool(100))}


def assembled(text: str, assembler: str, folder: Path) -> Binary | None:
    """Machine code of a kernel, or None if the assembler is too old; symbol, tile and shared memory do not matter here."""
    source, module = folder / "kernel.ptx", folder / "kernel.cubin"
    source.write_text(text)
    target = re.search(r"^\.target (sm_\w+)", text, re.MULTILINE)
    assert target
    command = [assembler, f"-arch={target[1]}", str(source), "-o", str(module)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    if done.returncode:
        said = done.stderr + done.stdout
        assert "Unsupported .version" in said or "not defined for option 'gpu-name'" in said, said
        return None
    return Binary("kernel", Tile(64, 16, 4), 0, 0, module.read_bytes())


@functools.cache
def why_not_disassembled() -> str:
    """Why machine code cannot be read here; empty if it can."""
    try:
        path = importlib.import_module("triton.knobs").nvidia.cuobjdump.path
    except RuntimeError as error:
        return str(error)
    return "" if Path(path).is_file() else f"{path} does not exist"


def counts(text: str, patterns: Mapping[str, str]) -> dict[str, int]:
    return {name: len(re.findall(pattern, text)) for name, pattern in patterns.items()}


def check(name: str, text: str, folder: Path) -> None:
    if reason := why_not_disassembled():
        pytest.skip(f"needs the disassembler that comes with Triton: {reason}")
    expected = counts(text, PAIRS)
    assert (expected[r"HMMA\.16816"] + expected["HGMMA"] > 0) == (name not in WITHOUT_PRODUCTS)
    registers = {}
    for version, assembler in assemblers().items():
        if (binary := assembled(text, assembler, folder)) is None:
            continue
        code, usage = dump(binary, "-sass"), dump(binary, "-res-usage")
        found = counts(code, {pattern: rf"\b{pattern}\b" for pattern in PAIRS})
        assert found == expected, version
        # Without the options that Triton passes, one of CUDA 13.4 spills two registers of `fast_convolutions` on sm_110. What
        # ships does not, see `test_architectures.py`.
        if ".target sm_110" not in text:
            assert not re.findall(r"\b(?:LDL|STL)\b", code), version
            assert re.search(r"\bSTACK:0\b", usage), version
            assert re.search(r"\bLOCAL:0\b", usage), version
        registers[version] = resources(binary).registers
    assert max(registers.values()) <= 255
    # Another allocator, not another program.
    assert max(registers.values()) <= 1.25 * min(registers.values()), registers


@pytest.mark.parametrize("name", QUICK)
def test_machine_code_has_the_collective_instructions_of_its_ptx(name: str, tmp_path: Path) -> None:
    check(name, ptx_target(87, REFUSION, QUICK).binaries[name].image.decode(), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", CHOSEN)
@pytest.mark.parametrize("kernels", [REFUSION, FAST], ids=["refusion", "fast"])
def test_so_does_that_of_every_kernel(kernels: KernelSet, architecture: int, tmp_path: Path) -> None:
    if reason := why_not(architecture):
        pytest.skip(reason)
    for name, binary in ptx_target(architecture, kernels).binaries.items():
        check(name, binary.image.decode(), tmp_path)


def test_an_assembler_that_merges_barriers_would_be_seen(tmp_path: Path) -> None:
    text = ptx_target(87, REFUSION, QUICK).binaries["encoder_apply"].image.decode()
    fewer = text.replace("bar.sync \t0;", "", 1)
    binary = assembled(fewer, next(iter(assemblers().values())), tmp_path)
    assert binary
    try:
        code = dump(binary, "-sass")
    except BackendError as error:
        pytest.skip(str(error))
    assert len(re.findall(r"\bBAR\.SYNC\b", code)) == len(re.findall(r"bar\.sync", text)) - 1
