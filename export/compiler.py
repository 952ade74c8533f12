"""The process that compiles one kernel after another: Triton decides at its first import whether it compiles or interprets.

Nothing here may import a kernel or Triton before ``prepare_compiler`` has run.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any

from refusion_edge.program import Binary, Kernel, Tile

_TRITON_TYPES = {"float16*": "*fp16", "float32*": "*fp32", "uint8*": "*u8", "int32": "i32"}


class CompileError(Exception):
    """The last line of what the compiler said; Triton's own exceptions do not travel between processes."""


def prepare_compiler() -> None:
    """Make this process one that compiles; called before it imports Triton."""
    os.environ.pop("TRITON_INTERPRET", None)
    # Without lines a cubin has a quarter of the size; with fused multiply-adds it has the accuracy that was measured.
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"
    os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"


def compile_kernel(kernel: Kernel, tile: Tile, architecture: int) -> tuple[Binary, int]:
    """Compile one kernel in a prepared process.

    Returns:
        The kernel, and the least CUDA version of a driver that loads it.

    Raises:
        CompileError: It does not compile.
    """
    from refusion_edge.kernels.catalogue import SOURCES

    types = {parameter.name: _TRITON_TYPES[parameter.type] for parameter in kernel.parameters}
    return compile_function(SOURCES[kernel.source].function, types, kernel.constants_for(tile), tile, architecture)


def compile_function(
    function: Any, types: Mapping[str, str], constants: Mapping[str, int], tile: Tile, architecture: int
) -> tuple[Binary, int]:
    """Compile one Triton function in a prepared process; see ``compile_kernel``.

    Args:
        function: What ``triton.jit`` made.
        types: Triton's types of its parameters by name; pointers are taken to be multiples of 256.
        constants: Its compile-time constants.
        tile: What it is compiled for; only the warps matter here.
        architecture: 10 times the compute capability.
    """
    triton = importlib.import_module("triton")
    compiler = importlib.import_module("triton.backends.nvidia.compiler")
    gpu_target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", architecture, 32)
    place = {name: (index,) for index, name in enumerate(function.arg_names)}
    source = triton.compiler.ASTSource(
        fn=function,
        signature={name: types.get(name, "constexpr") for name in function.arg_names},
        constexprs={place[name]: value for name, value in constants.items()},
        # Every buffer starts at a multiple of 256 bytes, which lets the compiler load 16 bytes at a time.
        attrs={place[name]: [["tt.divisibility", 16]] for name, kind in types.items() if kind.startswith("*")},
    )
    try:
        # One stage: with more, the pipeliner copies the taps into shared memory anew for every row.
        compiled = triton.compile(source, target=gpu_target, options={"num_warps": tile.warps, "num_stages": 1})
        toolkit = str(compiler.get_ptxas(architecture).version)
    except Exception as error:  # the compiler raises whatever its passes raise
        raise CompileError((str(error).strip().splitlines() or [type(error).__name__])[-1]) from None
    metadata = compiled.metadata
    scratch = metadata.global_scratch_size, metadata.profile_scratch_size
    if any(scratch):
        raise CompileError(f"needs scratch memory of {scratch} bytes")
    # Modules run on drivers of their toolkit's major version (CUDA minor version compatibility).
    driver_version = int(toolkit.split(".", maxsplit=1)[0]) * 1000
    return Binary(metadata.name, tile, metadata.shared, len(scratch), compiled.asm["cubin"]), driver_version
