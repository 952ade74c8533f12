"""The PTX of our kernels, compiled here: for the emulator, which executes it in place of the machine code made from it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping
from dataclasses import replace

from refusion_edge.cuda.program import Binary, Kernel, Program, Target, Tile
from refusion_edge.errors import BackendError, MisfitError
from refusion_edge.export.targets.compiler import compile_with_ptx
from refusion_edge.export.targets.cubins import require_assembler, run_compilers
from refusion_edge.kernels.gpu.kernel_sets import REFUSION, KernelSet

_ELF = b"\x7fELF"


def compile_ptx_targets(
    architectures: Iterable[int], *, jobs: int = 1, kernels: KernelSet = REFUSION, names: Iterable[str] | None = None
) -> dict[int, Target]:
    """Compile the kernels of a network, and keep their PTX in place of their machine code.

    Args:
        architectures: Out of ``refusion_edge.machine.ARCHITECTURES``.
        jobs: Number of compilers that run at a time.
        kernels: The kernels of the network.
        names: Those to compile; None for all.

    Raises:
        BackendError: Triton is not installed, its assembler is too old for an architecture, or a kernel does not compile.
    """
    wanted, known = tuple(architectures), kernels.schedule("float16").kernels
    chosen = tuple(known if names is None else names)
    targets = {}
    for architecture in wanted:
        cut = kernels.tiles(architecture)
        compiled = _compile({name: (known[name], cut[name]) for name in chosen}, architecture, jobs)
        binaries = {name: replace(binary, image=ptx.encode()) for name, (binary, _, ptx) in compiled.items()}
        targets[architecture] = Target(architecture, max(toolkit for _, toolkit, _ in compiled.values()), binaries)
    return targets


def with_ptx(program: Program, architecture: int, *, jobs: int = 1) -> Program:
    """A program for one architecture with the PTX of its kernels in place of their machine code.

    A program file holds machine code alone. The kernels are compiled anew, and the PTX is that of the program if the machine
    code is the same, byte for byte.

    Args:
        program: The program; its kernels may be PTX already.
        architecture: 10 times the compute capability.
        jobs: Number of compilers that run at a time.

    Raises:
        BackendError: The program has no kernels for the architecture, or Triton is not installed or cannot compile them.
        MisfitError: The program was built with another compiler, or with other kernels.
    """
    known = ", ".join(f"sm_{one}" for one in sorted(program.targets))
    if architecture not in program.targets:
        raise BackendError(
            f"the program has kernels for {known} but none for sm_{architecture}",
            "name one of these with --arch, or build it with 'refusion-edge build --backend fused'",
            expected=tuple(sorted(program.targets)),
            got=architecture,
        )
    target = program.targets[architecture]
    if not any(binary.image.startswith(_ELF) for binary in target.binaries.values()):
        return replace(program, targets={architecture: target})
    # The verdict of the file is cheaper than 16 compilers.
    compiled_by, here = program.model.get("triton", ""), _triton_version()
    if compiled_by != here:
        raise _misfit(f"was compiled by Triton {compiled_by or 'of an unknown version'}, and this is {here}", here, compiled_by)
    kernels = program.schedule.kernels
    from refusion_edge.kernels.gpu.schedule import SOURCES

    if unknown := {kernel.source for kernel in kernels.values()} - SOURCES.keys():
        raise _misfit(f"has the kernel {min(unknown)}, which this version does not have", tuple(SOURCES), min(unknown))
    compiled = _compile({name: (kernels[name], binary.tile) for name, binary in target.binaries.items()}, architecture, jobs)
    images: dict[str, Binary] = {}
    for name, binary in target.binaries.items():
        found = compiled[name]
        if found[0].image != binary.image:
            raise _misfit(f"holds another kernel {name} than this version of refusion-edge compiles", name, name)
        images[name] = replace(binary, image=found[2].encode())
    return replace(program, targets={architecture: replace(target, binaries=images)})


def _compile(kernels: Mapping[str, tuple[Kernel, Tile]], architecture: int, jobs: int) -> dict[str, tuple[Binary, int, str]]:
    require_assembler([architecture])
    work = {
        f"{name} for sm_{architecture}": (compile_with_ptx, (kernel, tile, architecture))
        for name, (kernel, tile) in kernels.items()
    }
    compiled = run_compilers(work, jobs=jobs)
    return {name: compiled[f"{name} for sm_{architecture}"] for name in kernels}


def _misfit(problem: str, expected: object, got: object) -> MisfitError:
    return MisfitError(
        f"the program holds machine code without its PTX and {problem}",
        "build it again here with 'refusion-edge build --backend fused'",
        expected=expected,
        got=got,
    )


def _triton_version() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        raise BackendError(
            "the program holds machine code without its PTX, and Triton, which would compile the PTX, is not installed",
            "run: pip install 'refusion-edge[triton]'",
        ) from None
