"""What the decoder takes, and that it refuses everything else by its name and line."""

from __future__ import annotations

import numpy as np
import pytest

from refusion_edge.errors import BackendError
from refusion_edge.kernels.emulator.compiled import is_built, load_module
from refusion_edge.kernels.emulator.decoder import decode
from refusion_edge.kernels.emulator.instructions import INSTRUCTIONS
from tests.kernels.emulator.snippets import pointers, run, text_of
from tests.raising import raises

if not is_built():
    pytest.skip("the PTX emulator was not built", allow_module_level=True)

GOOD = text_of("mov.u32 %r1, %tid.x;", 2)


def test_a_kernel_is_described_as_it_is_written() -> None:
    kernel = decode(GOOD)
    assert (kernel.name, kernel.architecture, kernel.threads) == ("snippet", 90, 32)
    assert kernel.parameters == (("u64", 0), ("u64", 8))
    assert kernel.parameter_bytes == 16
    assert kernel.opcodes == ("mov.u32", "ret")
    lines = GOOD.split("\n")
    assert [lines[line - 1].strip() for line in kernel.lines] == [f"{text};" for text in kernel.texts]


def test_comments_and_empty_statements_keep_the_lines() -> None:
    changed = GOOD.replace("mov.u32", "/* two\nlines */ ; // mov.b32 %r1, 5;\n;; mov.u32")
    kernel = decode(changed)
    assert kernel.opcodes == ("mov.u32", "ret")
    assert changed.split("\n")[kernel.lines[0] - 1].endswith("mov.u32 %r1, %tid.x;")


@pytest.mark.parametrize(
    ("place", "got"),
    [
        ("add.rz.f32 %r1, %r2, %r3;", "add.rz.f32"),
        ("add.ftz.f32 %r1, %r2, %r3;", "add.ftz.f32"),
        ("add.sat.s32 %r1, %r2, %r3;", "add.sat.s32"),
        ("add.f64 %rd1, %rd2, %rd3;", "add.f64"),
        ("atom.global.add.f32 %r1, [%rd1], %r2;", "atom.global.add.f32"),
        ("cp.async.cg.shared.global [%r1], [%rd1], 16;", "cp.async.cg.shared.global"),
        ("ld.local.b32 %r1, [%rd1];", "ld.local.b32"),
        ("ld.volatile.global.b32 %r1, [%rd1];", "ld.volatile.global.b32"),
        ("ld.const.b32 %r1, [%rd1];", "ld.const.b32"),
        ("ld.global.v4.b64 {%rd1, %rd2, %rd3, %rd4}, [%rd5];", "ld.global.v4.b64"),
        ("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%r1}, {%r2}, {%r3}, {%r4};",
         "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"),
        ("barrier.cluster.arrive;", "barrier.cluster.arrive"),
        ("tcgen05.wait::ld.sync.aligned;", "tcgen05.wait::ld.sync.aligned"),
    ],
)  # fmt: skip
def test_an_unknown_instruction_is_named_with_its_line(place: str, got: str) -> None:
    text = text_of(f"mov.u32 %r1, %tid.x;\n{place}")
    line = next(number for number, one in enumerate(text.split("\n"), 1) if place in one)
    with raises(BackendError, got, f"line {line}", got=got):
        decode(text)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("mov.u32 %r1, %tid.x;", "mov.u32 %r1, %tid.y;", "%tid.y"),
        ("mov.u32 %r1, %tid.x;", "mov.u32 %r1, %laneid;", "%laneid"),
        ("mov.u32 %r1, %tid.x;", "mov.u32 %r1, %r9999;", "%r9999"),
        ("mov.u32 %r1, %tid.x;", "mov.u32 %r1, elsewhere;", "elsewhere"),
        ("mov.u32 %r1, %tid.x;", "mov.u32 %rd1, %tid.x;", "%rd1"),
        ("mov.u32 %r1, %tid.x;", "mov.u32 5, %tid.x;", "5"),
        ("mov.u32 %r1, %tid.x;", "mov.u32 %r1;", "mov.u32"),
        ("mov.u32 %r1, %tid.x;", "mov.u32 %r1, %r2, %r3;", "mov.u32"),
        ("mov.u32 %r1, %tid.x;", "mov.u32 %r1, %tid.x", "ret"),
        ("mov.u32 %r1, %tid.x;", "bra $L9;", "$L9"),
        ("mov.u32 %r1, %tid.x;", "@%r1 mov.u32 %r1, 0;", "@%r1"),
        ("mov.u32 %r1, %tid.x;", "@%p99 mov.u32 %r1, 0;", "%p99"),
        ("mov.u32 %r1, %tid.x;", "bar.sync 1;", "1"),
        ("mov.u32 %r1, %tid.x;", "bar.sync 0, 64;", "bar.sync"),
        ("mov.u32 %r1, %tid.x;", "bar.warp.sync 255;", "255"),
        ("mov.u32 %r1, %tid.x;", "shfl.sync.bfly.b32 %r1, %r2, 1, 31, 255;", "255"),
        ("mov.u32 %r1, %tid.x;", "ld.param.b32 %r1, [p0];", "p0"),
        ("mov.u32 %r1, %tid.x;", "ld.param.b64 %rd1, [p7];", "p7"),
        ("mov.u32 %r1, %tid.x;", "ld.param.b64 %rd1, [p0+4];", "p0"),
        ("mov.u32 %r1, %tid.x;", ".local .align 4 .b8 stack[16];", ".local"),
        ("mov.u32 %r1, %tid.x;", ".reg .f64 %fd<3>;", ".f64"),
        ("mov.u32 %r1, %tid.x;", ".reg .b32 %r<3>;", "%r0"),
        (".reqntid 32", "", ".reqntid"),
        (".reqntid 32", ".reqntid 32\n.reqnctapercluster 2", ".reqnctapercluster"),
        (".reqntid 32", ".reqntid 32, 2, 1", ".reqntid 32, 2, 1"),
        (".version 8.8", ".version 8.8\n.const .b8 table[4];", ".const"),
        (".version 8.8", ".version 8.8\n.extern .shared .align 16 .b8 more[];", "2 shared arrays"),
        (".u64 .ptr .global .align 1 p0", ".f64 p0", ".f64"),
        ("\tret;", "", "ret"),
        (".visible .entry", ".visible .func", "0 entries"),
    ],
)
def test_whatever_else_is_unknown_is_named(old: str, new: str, named: str) -> None:
    assert old in GOOD
    with raises(BackendError, named):
        decode(GOOD.replace(old, new))


def test_two_kernels_in_a_module_are_refused() -> None:
    with raises(BackendError, "2 entries", got=2):
        decode(GOOD + GOOD)


def test_every_form_names_an_operation_of_the_compiled_module_and_the_other_way_round() -> None:
    used = {form.operation for forms in INSTRUCTIONS.values() for form in forms} | {"bra"}
    assert used == set(load_module().OPERATIONS)


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace("ret;", "bra $L1;\nret;\n$L1:"),
        GOOD[: GOOD.rindex("}")],
        GOOD.replace("%r<160>", "%r<1000000000>"),
        GOOD.replace(".reqntid 32\n{", ".maxnreg 8\n" * 40),
    ],
    ids=["a label behind the end", "no last brace", "a billion registers", "directives without a kernel"],
)
def test_what_would_not_end_or_crash_is_refused(text: str) -> None:
    assert text != GOOD
    with raises(BackendError):
        decode(text)


@pytest.mark.parametrize(("text", "value"), [("010", 10), ("0x10", 16), ("0XfFU", 255), ("-7", -7), ("08", 8)])
def test_numbers_are_read_as_they_are_written(text: str, value: int) -> None:
    snippet = run(f"{pointers(1)}\nmov.b32 %r1, {text};\nst.global.b32 [%rd40], %r1;", [], [np.zeros(32, np.int32)])
    assert snippet.arrays[0][0] == value
