"""Compiling one kernel after another in a separate process, because Triton decides at import whether it compiles or interprets.

Nothing here may import a kernel or Triton before ``prepare_compiler`` has run.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from refusion_edge.cuda.program import Binary, Kernel, Parameter, Tile

_TRITON_TYPES = {"float16*": "*fp16", "float32*": "*fp32", "uint8*": "*u8", "int32": "i32"}


# Pointers to scratch memory of the grid and of its profile; null, because our kernels use neither.
_HIDDEN_POINTERS = 2

# The verdict of the assembler, without its name and that of a temporary file.
_VERDICT = re.compile(r"ptxas\S* (?:\S+, )?((?:line \d+; )?(?:fatal|error) .*)")
_ENTRY = re.compile(r"(?P<head>\.visible \.entry (?P<name>[\w$]+)\()(?P<parameters>[^)]*)(?P<tail>\))")
_DECLARED = re.compile(r"\.param\s+\.(?P<type>[a-z]\d+)\b[^,]*?\b(?P<name>[\w$]+_param_\d+)")


@dataclass(frozen=True, slots=True)
class PtxKernel:
    """A kernel in the form that TensorRT takes for a plugin.

    Attributes:
        symbol: Name of the function in the module.
        tile: The tile it was compiled for.
        shared_bytes: Dynamic shared memory.
        text: The module, PTX.
    """

    symbol: str
    tile: Tile
    shared_bytes: int
    text: str


class CompileError(Exception):
    """The most informative line of a compiler error; Triton's own exceptions cannot be sent between processes."""


def prepare_compiler() -> None:
    """Let Triton compile in this process; called before Triton is imported."""
    os.environ.pop("TRITON_INTERPRET", None)
    # Line information would quadruple the size of a cubin.
    os.environ["TRITON_DISABLE_LINE_INFO"] = "1"


def compile_kernel(kernel: Kernel, tile: Tile, architecture: int) -> tuple[Binary, int]:
    """Compile one kernel in a prepared process.

    Returns:
        The kernel, and the oldest CUDA version of a driver that loads it.

    Raises:
        CompileError: It does not compile.
    """
    from refusion_edge.kernels.gpu.schedule import SOURCES

    return compile_function(SOURCES[kernel.source].function, _types(kernel), kernel.constants_for(tile), tile, architecture)


def compile_function(
    function: Any, types: Mapping[str, str], constants: Mapping[str, int], tile: Tile, architecture: int
) -> tuple[Binary, int]:
    """Compile one Triton function in a prepared process; see ``compile_kernel``.

    Args:
        function: Returned by ``triton.jit``.
        types: Triton's types of its parameters by name; pointers are assumed to be multiples of 256.
        constants: Its compile-time constants.
        tile: Only its warps matter here.
        architecture: 10 times the compute capability.
    """
    return function_with_ptx(function, types, constants, tile, architecture)[:2]


def compile_with_ptx(kernel: Kernel, tile: Tile, architecture: int) -> tuple[Binary, int, str]:
    """Compile one kernel in a prepared process.

    Returns:
        The kernel, the oldest CUDA version of a driver that loads it, and the PTX that its machine code was assembled from.

    Raises:
        CompileError: It does not compile.
    """
    from refusion_edge.kernels.gpu.schedule import SOURCES

    return function_with_ptx(SOURCES[kernel.source].function, _types(kernel), kernel.constants_for(tile), tile, architecture)


def function_with_ptx(
    function: Any, types: Mapping[str, str], constants: Mapping[str, int], tile: Tile, architecture: int
) -> tuple[Binary, int, str]:
    """Compile one Triton function in a prepared process; see ``compile_function`` and ``compile_with_ptx``."""
    compiled = _compiled(function, types, constants, tile, architecture)
    return _binary(compiled, tile), _driver_version(architecture), compiled.asm["ptx"]


def _binary(compiled: Any, tile: Tile) -> Binary:
    metadata = compiled.metadata
    return Binary(metadata.name, tile, metadata.shared, _HIDDEN_POINTERS, compiled.asm["cubin"])


def _driver_version(architecture: int) -> int:
    toolkit = str(importlib.import_module("triton.backends.nvidia.compiler").get_ptxas(architecture).version)
    # Modules run on drivers of the same major version as their toolkit (CUDA minor version compatibility).
    return int(toolkit.split(".", maxsplit=1)[0]) * 1000


def compile_plugin(kernel: Kernel, tile: Tile, architecture: int, ptx_version: int) -> PtxKernel:
    """Compile one kernel to PTX with the parameters that TensorRT passes to a plugin, in a prepared process.

    Args:
        kernel: The kernel.
        tile: The tile to compile for.
        architecture: 10 times the compute capability.
        ptx_version: Newest version of PTX to write, 85 for 8.5, because a driver takes versions up to its own. The version is
            older where Triton comes with an older assembler, because Triton assembles whatever it writes.

    Raises:
        CompileError: It does not compile, or its parameters are not those of the kernel.
    """
    from refusion_edge.kernels.gpu.schedule import SOURCES

    function, types, constants = SOURCES[kernel.source].function, _types(kernel), kernel.constants_for(tile)
    version = min(ptx_version, assembler_version(architecture))
    compiled = _compiled(function, types, constants, tile, architecture, ptx_version=version)
    order = plugin_order(kernel.parameters)
    try:
        declared = parameters(compiled.asm["ptx"])
        if len(declared) != len(order) + _HIDDEN_POINTERS:
            raise PtxError(
                f"the PTX declares {len(declared)} parameters instead of {len(order)} and {_HIDDEN_POINTERS} hidden ones"
            )
        text = rearranged(compiled.asm["ptx"], order)
    except PtxError as error:
        raise CompileError(str(error)) from None
    return PtxKernel(compiled.metadata.name, tile, compiled.metadata.shared, text)


def assembler_version(architecture: int) -> int:
    """Newest version of PTX that Triton's assembler for an architecture takes, 88 for 8.8."""
    compiler = importlib.import_module("triton.backends.nvidia.compiler")
    version: int = compiler.ptx_get_version(compiler.get_ptxas(architecture).version)
    return version


def plugin_order(declared: Sequence[Parameter]) -> tuple[int, ...]:
    """Order of the parameters of a plugin: inputs, integers, outputs."""

    def place(index: int) -> int:
        parameter = declared[index]
        return 2 if parameter.written else 1 if parameter.type == "int32" else 0

    return tuple(sorted(range(len(declared)), key=place))


def _compiled(
    function: Any, types: Mapping[str, str], constants: Mapping[str, int], tile: Tile, architecture: int, **options: int
) -> Any:
    from refusion_edge.kernels.gpu.language import COMPILER_OPTIONS

    triton = importlib.import_module("triton")
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
        chosen = {"num_warps": tile.warps, **COMPILER_OPTIONS, **options}
        # If the assembler fails, Triton prints the whole kernel, and standard output is for results.
        with contextlib.redirect_stdout(io.StringIO()):
            compiled = triton.compile(source, target=gpu_target, options=chosen)
    except Exception as error:  # the compiler raises whatever its passes raise
        raise CompileError(complaint(error)) from None
    metadata = compiled.metadata
    scratch = metadata.global_scratch_size, metadata.profile_scratch_size
    if any(scratch):
        raise CompileError(f"needs scratch memory of {scratch} bytes")
    return compiled


def complaint(error: Exception) -> str:
    """The most informative line of a compiler's exception: the verdict of the assembler, or else the last line."""
    lines = str(error).strip().splitlines()
    verdicts = [match[1] for line in lines if (match := _VERDICT.match(line))]
    return (verdicts or lines[-1:] or [type(error).__name__])[0]


def _types(kernel: Kernel) -> dict[str, str]:
    return {parameter.name: _TRITON_TYPES[parameter.type] for parameter in kernel.parameters}


class PtxError(Exception):
    """PTX in a form that Triton does not write."""


def parameters(ptx: str) -> tuple[tuple[str, str], ...]:
    """Type (``u64``, ``u32``) and name of every parameter of the one kernel in a module, in order.

    Raises:
        PtxError: There is no kernel, or more than one, or a declaration cannot be parsed.
    """
    entries = list(_ENTRY.finditer(ptx))
    if len(entries) != 1:
        raise PtxError(f"the PTX has {len(entries)} kernels instead of one")
    declarations = [text for text in entries[0]["parameters"].split(",") if text.strip()]
    found = [_DECLARED.search(text) for text in declarations]
    return tuple((match["type"], match["name"]) for match in found if match) if all(found) else _not_understood(declarations)


def rearranged(ptx: str, order: Sequence[int]) -> str:
    """Declare the parameters of a kernel in another order, and drop those that are not part of it.

    TensorRT passes inputs, integers and outputs to a plugin, in this order, and nothing else. Triton appends pointers of its
    own (``global_scratch`` and ``profile_scratch``), which a launch without them would read from beyond its arguments, and our
    kernels have their integers last. PTX refers to parameters by name, and the order of the declarations alone decides where
    they lie, so it is enough to rewrite the declarations.

    Args:
        ptx: A module with one kernel.
        order: Indices of the parameters to keep, each once.

    Raises:
        PtxError: A dropped parameter is read, an index is out of range or repeated, or the PTX cannot be parsed.
    """
    declared = parameters(ptx)
    if len(set(order)) != len(order) or not all(0 <= index < len(declared) for index in order):
        raise PtxError(f"{list(order)} is not an order of {len(declared)} parameters")
    entry = next(_ENTRY.finditer(ptx))
    before, body = ptx[: entry.start()], ptx[entry.end() :]
    for index, (_, name) in enumerate(declared):
        if index not in order and re.search(rf"\b{re.escape(name)}\b", body):
            raise PtxError(f"the kernel reads the hidden parameter {name}")
    declarations = [text.strip() for text in entry["parameters"].split(",")]
    kept = ",\n\t".join(declarations[index] for index in order)
    return f"{before}{entry['head']}\n\t{kept}\n{entry['tail']}{body}"


def _not_understood(declarations: Sequence[str]) -> tuple[tuple[str, str], ...]:
    raise PtxError(f"cannot parse the parameters '{' / '.join(text.strip() for text in declarations)[:120]}'")
