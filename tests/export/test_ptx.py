"""PTX in the shape that TensorRT launches: text that Triton wrote, and kernels that an assembler takes."""

from __future__ import annotations

import importlib
import re
import subprocess
from pathlib import Path

import pytest

from refusion_edge.export.compiler import PtxKernel, compile_plugin, plugin_order
from refusion_edge.export.cubins import run_compilers
from refusion_edge.export.plugins import LARGEST_SHARED_BYTES, compile_plugins, plugin_kernels, plugin_tiles
from refusion_edge.export.ptx import PtxError, parameters, rearranged
from refusion_edge.kernels.language import TRITON_INSTALLED
from refusion_edge.program import Parameter

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
        (PTX.replace("\tret;", "\tld.param.b64 %rd3, [scale_kernel_param_4];\n\tret;"), (0, 2, 1), "param_4 to be unused"),
        (PTX, (0, 1), "param_2 to be unused"),
        (PTX, (0, 0, 1), "an order of 5"),
        (PTX, (0, 1, 5), "an order of 5"),
        (PTX.replace(".visible .entry", ".func"), (0,), "one kernel in the PTX, got 0"),
        (PTX + PTX, (0,), "one kernel in the PTX, got 2"),
        (PTX.replace("scale_kernel_param_1,", "param,"), (0,), "declarations of parameters"),
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


@pytest.fixture(scope="module")
def compiled() -> dict[str, PtxKernel]:
    """Every plugin, compiled for Orin and the driver of JetPack 6.2."""
    if not TRITON_INSTALLED:
        pytest.skip("compiling kernels needs the extra 'triton' (pip install 'refusion-edge[triton]')")
    return compile_plugins(87, 85, jobs=2)


def test_every_plugin_has_the_parameters_of_its_kernel(compiled: dict[str, PtxKernel]) -> None:
    assert compiled.keys() == plugin_kernels().keys()
    for name, kernel in plugin_kernels().items():
        ordered = [kernel.parameters[index] for index in plugin_order(kernel.parameters)]
        kinds = ["u32" if parameter.type == "int32" else "u64" for parameter in ordered]
        assert [kind for kind, _ in parameters(compiled[name].text)] == kinds
        assert compiled[name].shared_bytes <= LARGEST_SHARED_BYTES
        assert ".version 8.5" in compiled[name].text
        assert re.search(r"\.target sm_87\b", compiled[name].text)
        assert f".reqntid {32 * compiled[name].tile.warps}" in compiled[name].text


@pytest.mark.skipif(
    not TRITON_INSTALLED, reason="compiling kernels needs the extra 'triton' (pip install 'refusion-edge[triton]')"
)
def test_the_one_kernel_that_is_too_large_on_hopper_has_a_smaller_tile() -> None:
    kernel, tile = plugin_kernels()["decoder_apply"], plugin_tiles(90)["decoder_apply"]
    work = {"decoder_apply for sm_90": (compile_plugin, (kernel, tile, 90, 85))}
    (compiled,) = run_compilers(work, jobs=1).values()
    assert compiled.shared_bytes <= LARGEST_SHARED_BYTES


def test_every_plugin_is_taken_by_the_assembler_for_orin(compiled: dict[str, PtxKernel], tmp_path: Path) -> None:
    compiler = importlib.import_module("triton.backends.nvidia.compiler")
    assembler = compiler.get_ptxas(87).path
    for name, kernel in compiled.items():
        source, module = tmp_path / f"{name}.ptx", tmp_path / f"{name}.cubin"
        source.write_text(kernel.text)
        done = subprocess.run(
            [assembler, "-arch=sm_87", "-v", str(source), "-o", str(module)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        # The assembler counts the bytes of the arguments: those that TensorRT hands over, and no more.
        sizes = [8 if parameter.type != "int32" else 4 for parameter in plugin_kernels()[name].parameters]
        found = re.search(r"(\d+) bytes cmem\[0\]", done.stderr)
        assert found is not None
        integers = sizes.count(4)
        padding = 4 * (integers % 2)
        assert int(found[1]) == 0x160 + sum(sizes) + padding
