"""PTX in the shape that TensorRT launches: text that Triton wrote, and kernels that an assembler takes."""

from __future__ import annotations

import functools
import importlib
import os
import re
import subprocess
from pathlib import Path

import pytest

from refusion_edge.cuda.program import Binary, Parameter
from refusion_edge.errors import BackendError
from refusion_edge.export.targets.compiler import (
    PtxError,
    PtxKernel,
    assembler_version,
    compile_plugin,
    complaint,
    parameters,
    plugin_order,
    rearranged,
)
from refusion_edge.export.targets.cubins import dump, run_compilers
from refusion_edge.export.targets.plugins import (
    LARGEST_SHARED_BYTES,
    compile_plugins,
    plugin_kernels,
    plugin_tiles,
    ptx_version,
)
from refusion_edge.kernels.gpu.language import TRITON_INSTALLED
from refusion_edge.machine import ARCHITECTURES, parse_architectures
from tests.raising import raises

# Orin, and Hopper as one that has instructions of its own, in every run; all of them by `make test-architectures`.
CHOSEN = parse_architectures(os.environ.get("REFUSION_EDGE_ARCHITECTURES", "sm_87,sm_90"))

# Version of PTX of the oldest driver of CUDA 12 or newer that knows an architecture; on Orin that of JetPack 6.2.
OLDEST_PTX = {80: 80, 86: 80, 87: 85, 89: 80, 90: 80, 110: 90, 120: 87}

PTX = """\
.version 8.5
.target sm_87
.address_size 64

	// .globl	scale_kernel // -- Begin function scale_kernel
.extern .shared .align 16 .b8 global_smem[];
.visible .entry scale_kernel(
	.param .u64 .ptr .global .align 1 scale_kernel_param_0,
	.param .u64 .ptr .global .align 1 scale_kernel_param_1,
	.param .u32 scale_kernel_param_2,
	.param .u64 .ptr .global .align 1 scale_kernel_param_3,
	.param .u64 .ptr .global .align 1 scale_kernel_param_4
)
.reqntid 128
{
	ld.param.b64 	%rd1, [scale_kernel_param_0];
	ld.param.b64 	%rd2, [scale_kernel_param_1];
	ld.param.b32 	%r1, [scale_kernel_param_2];
	ret;
}
"""


def test_hidden_parameters_go_and_the_rest_is_put_in_order() -> None:
    text = rearranged(PTX, (0, 2, 1))
    assert [name[-1] for _, name in parameters(text)] == ["0", "2", "1"]
    assert [kind for kind, _ in parameters(text)] == ["u64", "u32", "u64"]
    # Nothing else has changed.
    head, _, body = PTX.partition(".visible")
    assert text.startswith(head)
    assert text.endswith(body.partition(")")[2])


@pytest.mark.parametrize(
    ("text", "order", "words"),
    [
        (PTX.replace("\tret;", "\tld.param.b64 %rd3, [scale_kernel_param_4];\n\tret;"), (0, 2, 1), "param_4"),
        (PTX, (0, 1), "param_2"),
        (PTX, (0, 0, 1), r"\[0, 0, 1\]"),
        (PTX, (0, 1, 5), r"\[0, 1, 5\]"),
        (PTX.replace(".visible .entry", ".func"), (0,), "0 kernels"),
        (PTX + PTX, (0,), "2 kernels"),
        (PTX.replace("scale_kernel_param_1,", "param,"), (0,), "scale_kernel_param_0"),
    ],
)
def test_ptx_of_another_shape_is_refused(text: str, order: tuple[int, ...], words: str) -> None:
    with pytest.raises(PtxError, match=words):
        rearranged(text, order)


def test_a_name_that_begins_like_another_is_not_taken_for_it() -> None:
    longer = PTX.replace("[scale_kernel_param_0]", "[scale_kernel_param_30]")
    assert len(parameters(rearranged(longer, (0, 2, 1)))) == 3


def test_inputs_come_before_integers_and_outputs_last() -> None:
    declared = [
        Parameter("x_ptr", "float16*"), Parameter("y_ptr", "float16*", written=True), Parameter("height", "int32"),
        Parameter("gain_ptr", "float32*"), Parameter("width", "int32"), Parameter("z_ptr", "float32*", written=True),
    ]  # fmt: skip
    assert plugin_order(declared) == (0, 3, 2, 4, 1, 5)


@functools.cache
def compiled(architecture: int) -> dict[str, PtxKernel]:
    """Every plugin for an architecture, in the oldest PTX that knows it, compiled once."""
    if not TRITON_INSTALLED:
        pytest.skip("compiling kernels needs the extra 'triton' (pip install 'refusion-edge[triton]')")
    return compile_plugins(architecture, OLDEST_PTX[architecture], jobs=2)


def assembled(kernel: PtxKernel, architecture: int, folder: Path) -> Binary:
    """What Triton's assembler makes of a plugin, by itself."""
    source, module = folder / "plugin.ptx", folder / "plugin.cubin"
    source.write_text(kernel.text)
    assembler = importlib.import_module("triton.backends.nvidia.compiler").get_ptxas(architecture).path
    target = re.search(r"^\.target (sm_\w+)", kernel.text, re.MULTILINE)
    assert target is not None
    command = [assembler, f"-arch={target[1]}", "-v", source, "-o", module]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "0 bytes spill stores, 0 bytes spill loads" in done.stderr
    return Binary(kernel.symbol, kernel.tile, kernel.shared_bytes, 0, module.read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("architecture", CHOSEN)
def test_every_plugin_has_the_parameters_of_its_kernel(architecture: int) -> None:
    plugins = compiled(architecture)
    assert plugins.keys() == plugin_kernels().keys()
    version = OLDEST_PTX[architecture]
    for name, kernel in plugin_kernels().items():
        ordered = [kernel.parameters[index] for index in plugin_order(kernel.parameters)]
        kinds = ["u32" if parameter.type == "int32" else "u64" for parameter in ordered]
        assert [kind for kind, _ in parameters(plugins[name].text)] == kinds
        assert plugins[name].shared_bytes <= LARGEST_SHARED_BYTES
        assert f".version {version // 10}.{version % 10}\n" in plugins[name].text
        # From 9.0 on with an "a": for this architecture and no later one.
        assert re.search(rf"\.target sm_{architecture}{'a' if architecture >= 90 else ''}\b", plugins[name].text)
        assert f".reqntid {32 * plugins[name].tile.warps}" in plugins[name].text


@pytest.mark.slow
@pytest.mark.parametrize("architecture", CHOSEN)
def test_the_assembler_lays_out_the_arguments_that_tensorrt_hands_over(architecture: int, tmp_path: Path) -> None:
    for name, kernel in compiled(architecture).items():
        binary = assembled(kernel, architecture, tmp_path)
        declared = plugin_kernels()[name].parameters
        sizes = [4 if declared[index].type == "int32" else 8 for index in plugin_order(declared)]
        expected, offset = {}, 0
        for ordinal, size in enumerate(sizes):
            offset = -(-offset // size) * size
            expected[ordinal] = (offset, size)
            offset += size
        found = re.findall(r"Ordinal : 0x(\w+)\s+Offset  : 0x(\w+)\s+Size    : 0x(\w+)", dump(binary, "-elf"))
        read = [tuple(int(digits, 16) for digits in numbers) for numbers in found]
        assert {ordinal: (place, size) for ordinal, place, size in read} == expected, name


@pytest.mark.slow
@pytest.mark.skipif(
    not TRITON_INSTALLED, reason="compiling kernels needs the extra 'triton' (pip install 'refusion-edge[triton]')"
)
@pytest.mark.parametrize("architecture", CHOSEN)
def test_a_driver_that_is_newer_than_the_assembler_gets_what_the_assembler_takes(architecture: int, tmp_path: Path) -> None:
    kernel, tile = plugin_kernels()["stem"], plugin_tiles(architecture)["stem"]
    newest = ptx_version("13.2")
    work = {"stem": (compile_plugin, (kernel, tile, architecture, newest)), "assembler": (assembler_version, (architecture,))}
    found = run_compilers(work, jobs=1)
    version = min(newest, found["assembler"])
    assert f".version {version // 10}.{version % 10}\n" in found["stem"].text
    assembled(found["stem"], architecture, tmp_path)


ASSEMBLER = """\
PTXAS error: Internal Triton PTX codegen error
`ptxas` stderr:
ptxas one.ptx, line 5; fatal   : Unsupported .version 9.2; current version is '8.8'
ptxas fatal   : Ptx assembly aborted due to errors

Repro command: ptxas -v --gpu-name=sm_87 one.ptx -o one.ptx.o
"""


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (ASSEMBLER, "line 5; fatal   : Unsupported .version 9.2; current version is '8.8'"),
        ("at 3:4:\n  y = x\nx is not defined\n", "x is not defined"),
        ("", "ValueError"),
    ],
)
def test_of_what_the_compiler_says_the_line_that_tells_most_is_kept(said: str, line: str) -> None:
    assert complaint(ValueError(said)) == line


@pytest.mark.skipif(
    not TRITON_INSTALLED, reason="compiling kernels needs the extra 'triton' (pip install 'refusion-edge[triton]')"
)
def test_a_kernel_that_the_assembler_refuses_is_one_sentence_and_not_printed(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PTXAS_OPTIONS", "--no-such-option")
    kernel, tile = plugin_kernels()["stem"], plugin_tiles(87)["stem"]
    with raises(BackendError, "stem for sm_87", "no-such-option", remedy="Triton"):
        run_compilers({"stem for sm_87": (compile_plugin, (kernel, tile, 87, 85))}, jobs=1)
    assert "entry" not in "".join(capfd.readouterr())


def test_every_architecture_of_the_table_can_be_chosen() -> None:
    assert OLDEST_PTX.keys() == set(ARCHITECTURES)
