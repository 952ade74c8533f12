"""Ahead-of-time compilation of the Triton kernels to machine code, and programs of them. Needs Triton, but no GPU and no torch.

Kernels are compiled in separate processes (``refusion_edge.export.targets.compiler``), so that a compiler that crashes does not
take the build down with it.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import multiprocessing
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from refusion_edge.arrays import State
from refusion_edge.cuda.program import Binary, Program, SelfTest, Target
from refusion_edge.errors import BackendError, CheckpointError
from refusion_edge.export.targets.compiler import CompileError, compile_kernel, prepare_compiler
from refusion_edge.kernels.gpu.folding import FoldedWeights
from refusion_edge.kernels.gpu.kernel_sets import REFUSION, KernelSet, fast_kernels, kernel_set
from refusion_edge.kernels.gpu.language import TRITON_INSTALLED
from refusion_edge.kernels.gpu.schedule import FUSED, fuse_reference
from refusion_edge.machine import ARCHITECTURES, parse_architectures
from refusion_edge.network import NETWORK_NAMES
from refusion_edge.network.family import DEFAULT_NETWORK
from refusion_edge.network.fast import FastLayout

# The slowest kernel takes about 10 s on an idle core.
_LONGEST_COMPILE_S = 900.0

# First CUDA toolkit whose assembler supports an architecture, if that of Triton 3.6 is older. CUDA 12 calls Thor sm_101.
_FIRST_TOOLKITS = {110: "13.0"}
# A wrong kernel is off by tenths, half precision by less than this.
_SELF_TEST_TOLERANCE = 0.02


@dataclass(frozen=True, slots=True)
class Resources:
    """Resources that a compiled kernel takes, read from its module.

    Attributes:
        registers: Registers per thread.
        spilled: Loads from and stores to local memory in its code.
        shared_bytes: Shared memory per program.
        tensor_core: Tensor-core instructions: HMMA (mma), HGMMA (wgmma) and UTCHMMA (tcgen05).
    """

    registers: int
    spilled: int
    shared_bytes: int
    tensor_core: int


def compile_targets(architectures: Iterable[int], *, jobs: int = 1, kernels: KernelSet = REFUSION) -> dict[int, Target]:
    """Compile every kernel of a network.

    Args:
        architectures: Out of ``ARCHITECTURES``.
        jobs: Number of compilers that run at a time.
        kernels: The kernels of the network.

    Returns:
        The kernels by architecture.

    Raises:
        BackendError: Triton is not installed, its assembler is too old for an architecture, or a kernel does not compile.
    """
    schedule, wanted = kernels.schedule("float16"), tuple(architectures)
    require_assembler(wanted)
    work = {
        f"{name} for sm_{architecture}": (compile_kernel, (kernel, kernels.tiles(architecture)[name], architecture))
        for architecture in wanted
        for name, kernel in schedule.kernels.items()
    }
    compiled = run_compilers(work, jobs=jobs)
    targets = {}
    for architecture in wanted:
        found = {name: compiled[f"{name} for sm_{architecture}"] for name in schedule.kernels}
        binaries = {name: binary for name, (binary, _) in found.items()}
        targets[architecture] = Target(architecture, max(toolkit for _, toolkit in found.values()), binaries)
    return targets


def make_program(state: State, model: Mapping[str, str], architectures: Iterable[int], *, jobs: int = 1) -> Program:
    """Compile a network with these weights.

    Args:
        state: Parameters of either network.
        model: Description of the model, texts by name; the version of the compiler is added.
        architectures: Out of ``refusion_edge.export.targets.cubins.ARCHITECTURES``.
        jobs: Number of compilers that run at a time.

    Raises:
        BackendError: Triton is missing, or a kernel does not compile.
        CheckpointError: A folded weight is out of the range of half precision.
        UsageError: There are no kernels for this layout of the network.
    """
    kernels = kernel_set(state)
    folded = kernels.fold(state)
    targets = compile_targets(architectures, jobs=jobs, kernels=kernels)
    return assemble(folded, {**model, "triton": importlib.metadata.version("triton")}, targets, kernels)


def assemble(
    folded: FoldedWeights, model: Mapping[str, str], targets: Mapping[int, Target], kernels: KernelSet = REFUSION
) -> Program:
    """Put folded weights and compiled kernels together, with a self-test.

    Args:
        folded: Weights as the kernels take them.
        model: Description of the model, texts by name.
        targets: The compiled kernels by architecture.
        kernels: The kernels of the network.

    Raises:
        CheckpointError: A folded weight is out of the range of half precision.
    """
    with np.errstate(over="ignore"):
        weights = folded.rounded(np.dtype(np.float16))
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise CheckpointError(
                f"the folded weights {name} are out of the range of half precision", "use other weights or another back end"
            )
    height, width = kernels.self_test_hw
    noise = np.random.default_rng(0).random((2, height, width)).astype(np.float32)
    planes = np.stack([cv2.GaussianBlur(plane, (5, 5), 1.0) for plane in noise])
    wide = folded.rounded(np.dtype(np.float64))
    exact = fuse_reference(kernels.schedule("float64"), wide, planes.astype(np.float64))[FUSED]
    test = SelfTest(planes, exact.astype(np.float32), _SELF_TEST_TOLERANCE)
    return Program(dict(model), kernels.schedule("float16"), weights, dict(targets), test)


def require_assembler(architectures: Iterable[int]) -> None:
    """Check that the assembler of Triton supports the architectures, before anything is compiled.

    Args:
        architectures: 10 times the compute capabilities.

    Raises:
        BackendError: Triton is not installed, or its assembler does not support one of them.
    """
    _require_triton()
    tool = importlib.import_module("triton.backends.nvidia.compiler").get_ptxas
    for architecture in architectures:
        first, found = _FIRST_TOOLKITS.get(architecture, "0.0"), str(tool(architecture).version)
        if _numbers(found) < _numbers(first):
            raise BackendError(
                f"sm_{architecture} needs the assembler of CUDA {first} or newer, but Triton "
                f"{importlib.metadata.version('triton')} comes with that of CUDA {found}",
                "install Triton 3.9, or set TRITON_PTXAS_BLACKWELL_PATH to a newer ptxas and TRITON_CUOBJDUMP_PATH to a "
                "newer cuobjdump",
                expected=first,
                got=found,
            )


def run_compilers(work: Mapping[str, tuple[Callable[..., Any], tuple[Any, ...]]], *, jobs: int) -> dict[str, Any]:
    """Run compilers, each in a prepared process.

    Args:
        work: Function and arguments by what is compiled, such as ``stem for sm_87``.
        jobs: Number of compilers that run at a time.

    Returns:
        The result of each function.

    Raises:
        BackendError: Triton is not installed, or a compiler fails, crashes or hangs.
    """
    _require_triton()
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=prepare_compiler) as pool:
        waiting = {name: pool.submit(function, *arguments) for name, (function, arguments) in work.items()}
        done = {}
        for name, future in waiting.items():
            try:
                done[name] = future.result(_LONGEST_COMPILE_S)
            except (BrokenProcessPool, FutureTimeoutError, CompileError) as error:
                pool.shutdown(wait=False, cancel_futures=True)
                raise BackendError(
                    f"Triton {importlib.metadata.version('triton')} cannot compile the kernel {name} "
                    f"({str(error).strip() or type(error).__name__})",
                    "try another version of Triton",
                ) from error
    return done


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _require_triton() -> None:
    if not TRITON_INSTALLED:
        raise BackendError("compiling the GPU kernels needs Triton", "run: pip install 'refusion-edge[triton]'")


def resources(binary: Binary) -> Resources:
    """Read the resources of a kernel from its module, with the tool that comes with Triton.

    Raises:
        BackendError: The tool is missing or cannot read the module.
    """
    usage, code = dump(binary, "-res-usage"), dump(binary, "-sass")
    registers = re.search(r"REG:(\d+)", usage)
    if registers is None:
        raise BackendError(f"cuobjdump does not report the registers of a kernel, only '{usage[:80]}'", "reinstall Triton")

    def count(pattern: str) -> int:
        return len(re.findall(rf"\b(?:{pattern})\b", code))

    return Resources(int(registers[1]), count("LDL|STL"), binary.shared_bytes, count("HMMA|HGMMA|UTCHMMA"))


def dump(binary: Binary, option: str) -> str:
    """Output of ``cuobjdump``, of Triton or in TRITON_CUOBJDUMP_PATH, for a module.

    Args:
        binary: The module.
        option: ``-sass`` for its machine code, ``-res-usage`` for its resources.

    Raises:
        BackendError: The tool is missing or cannot read the module.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.image)
        file.flush()
        try:
            tool = importlib.import_module("triton.knobs").nvidia.cuobjdump
            return subprocess.run(
                [tool.path, option, file.name], capture_output=True, text=True, check=True, timeout=120
            ).stdout
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            raise BackendError(
                f"cuobjdump cannot read a compiled kernel ({error})",
                "reinstall Triton, or set TRITON_CUOBJDUMP_PATH to a newer cuobjdump",
            ) from error


def main(argv: list[str] | None = None) -> int:
    """Compile the kernels and print their resources."""
    parser = argparse.ArgumentParser(
        prog="python -m refusion_edge.export.targets.cubins",
        description="Compile the GPU kernels and print the resources that each one takes. Needs Triton but no GPU.",
    )
    everything = ",".join(f"sm_{architecture}" for architecture in ARCHITECTURES)
    parser.add_argument(
        "--arch", default=everything, metavar="LIST", help="architectures, separated by commas (default: %(default)s)"
    )
    parser.add_argument("--jobs", type=int, default=1, help="compilers to run at a time (default: %(default)s)")
    parser.add_argument(
        "--network", choices=NETWORK_NAMES, default=DEFAULT_NETWORK,
        help="whose kernels; those of fast in the layout of its weights in the package (default: %(default)s)",
    )  # fmt: skip
    options = parser.parse_args(argv)
    kernels = REFUSION if options.network == DEFAULT_NETWORK else fast_kernels(FastLayout())
    targets = compile_targets(parse_architectures(options.arch), jobs=options.jobs, kernels=kernels)
    print(f"{'kernel':24} {'arch':7} {'tile':>12} {'registers':>9} {'spilled':>7} {'shared':>7} {'tensor':>6} {'kB':>4}")
    for architecture, target in targets.items():
        for name, binary in target.binaries.items():
            taken = resources(binary)
            tile = f"{binary.tile.columns}x{binary.tile.rows}/{binary.tile.warps}"
            print(
                f"{name:24} sm_{architecture:<4} {tile:>12} {taken.registers:9} {taken.spilled:7} {taken.shared_bytes:7} "
                f"{taken.tensor_core:6} {len(binary.image) // 1000:4}"
            )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
