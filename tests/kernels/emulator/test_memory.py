"""Loads and stores, the checks of memory, and the counters of traffic, on kernels of a few lines."""

from __future__ import annotations

import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.kernels.emulator.compiled import is_built
from refusion_edge.kernels.emulator.instructions import INSTRUCTIONS

if not is_built():
    pytest.skip("the PTX emulator was not built", allow_module_level=True)

from tests.kernels.emulator.snippets import Snippet, pointers, run

WORDS = np.random.default_rng(0).integers(0, 2**32, 32 * 4, np.uint32)
PREFIX = {8: "%rs", 16: "%rs", 32: "%r", 64: "%rd"}
SHARED = "mov.u32 %r1, global_smem;\nmad.lo.s32 %r2, %r150, {item}, %r1;"


def widths() -> list[tuple[int, int]]:
    return [(bits, count) for bits in (16, 32, 64) for count in (1, 2, 4) if bits * count <= 128]


def registers(bits: int, count: int) -> str:
    names = ", ".join(f"{PREFIX[bits]}{20 + k}" for k in range(count))
    return names if count == 1 else f"{{{names}}}"


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize(("bits", "count"), widths())
def test_elements_keep_their_order_in_loads_and_stores(space: str, bits: int, count: int) -> None:
    item = bits // 8 * count
    vector = f"{f'.v{count}' if count > 1 else ''}.b{bits}"
    source = WORDS.view(np.uint8)[: 32 * item].view(f"uint{bits}")
    outputs = [np.zeros(32 * count, f"uint{bits}") for _ in range(2)]
    each = [f"%rd41+{bits // 8 * k}" for k in range(count)]
    lines = [pointers(3, item=item), SHARED.format(item=item)]
    if space == "global":
        # Loaded together and stored one by one, and the other way round.
        lines.append(f"ld.global{vector} {registers(bits, count)}, [%rd40];")
    else:
        for k in range(count):
            lines += [
                f"ld.global.b{bits} {PREFIX[bits]}1, [%rd40+{bits // 8 * k}];",
                f"st.shared.b{bits} [%r2+{bits // 8 * k}], {PREFIX[bits]}1;",
            ]
        lines += ["bar.sync 0;", f"ld.shared{vector} {registers(bits, count)}, [%r2];", "bar.sync 0;"]
    lines += [f"st.global.b{bits} [{place}], {PREFIX[bits]}{20 + k};" for k, place in enumerate(each)]
    if space == "global":
        lines.append(f"st.global{vector} [%rd42], {registers(bits, count)};")
    else:
        lines.append(f"st.shared{vector} [%r2], {registers(bits, count)};")
        for k in range(count):
            lines += [
                f"ld.shared.b{bits} {PREFIX[bits]}1, [%r2+{bits // 8 * k}];",
                f"st.global.b{bits} [%rd42+{bits // 8 * k}], {PREFIX[bits]}1;",
            ]
    snippet = run("\n".join(lines), [source], outputs)
    assert snippet.findings == ()
    for got in snippet.arrays:
        assert np.array_equal(got, source)


@pytest.mark.parametrize("register", ["%rs1", "%r1"])
def test_a_byte_is_the_lowest_of_its_register(register: str) -> None:
    load = "ld.global.b16 %rs1, [%rd40];" if register == "%rs1" else "ld.global.b32 %r1, [%rd40];"
    body = (
        f"{pointers(2, item=4)}\n{load}\nsub.s32 %r3, %r150, %r150;\ncvt.u64.u32 %rd1, %r150;\n"
        f"ld.param.b64 %rd2, [p1];\nadd.s64 %rd2, %rd2, %rd1;\nst.global.b8 [%rd2], {register};"
    )
    snippet = run(body, [WORDS[:32]], [np.zeros(32, np.uint8)])
    assert snippet.findings == ()
    assert np.array_equal(snippet.arrays[0], (WORDS[:32] & 0xFF).astype(np.uint8))


def test_every_memory_instruction_that_is_known_is_tested() -> None:
    known = {opcode for opcode in INSTRUCTIONS if opcode.startswith(("ld.global", "st.global", "ld.shared", "st.shared"))}
    vectors = {f"{f'.v{count}' if count > 1 else ''}.b{bits}" for bits, count in widths()}
    assert known == {
        f"{verb}.{space}{vector}" for verb in ("ld", "st") for space in ("global", "shared") for vector in vectors
    } | {"st.global.b8"}


# ---- what is wrong with an access


def seen(body: str, *, inputs: Array | None = None, outputs: Array | None = None, **options: int) -> Snippet:
    given = np.arange(64, dtype=np.uint32) if inputs is None else inputs
    return run(f"{pointers(2)}\nmov.u32 %r1, global_smem;\nmad.lo.s32 %r2, %r150, 4, %r1;\n{body}", [given],
               [np.zeros(64, np.uint32) if outputs is None else outputs], **options)  # fmt: skip


BARRIER = "bar.sync 0;"

FAULTS = {
    "global_bounds behind": ("ld.global.b32 %r3, [%rd40+132];", {"global_bounds"}),
    "global_bounds in front": ("ld.global.b32 %r3, [%rd40+-4];", {"global_bounds"}),
    "global_bounds at null": ("mov.b64 %rd1, 0;\nst.global.b32 [%rd1], 1;", {"global_bounds"}),
    "global_alignment": ("ld.global.v2.b32 {%r3, %r4}, [%rd40];", {"global_alignment", "global_bounds"}),
    "global_read_only": ("st.global.b32 [%rd40], 1;", {"global_read_only"}),
    "shared_bounds": ("st.shared.b32 [%r2+1024], 1;", {"shared_bounds"}),
    "shared_bounds in front": ("st.shared.b32 [%r2+-4], 1;", {"shared_bounds"}),
    "shared_alignment": ("ld.shared.v4.b32 {%r3, %r4, %r5, %r6}, [%r2];", {"shared_alignment"}),
    "undefined_address": ("ld.global.b32 %r3, [%rd9];", {"undefined_address", "global_bounds"}),
    "undefined_address shared": ("ld.shared.b32 %r3, [%r9];", {"undefined_address", "shared_bounds"}),
    "undefined_guard": ("@%p1 bra $L1;\n$L1: mov.u32 %r3, 0;", {"undefined_guard"}),
    "undefined_guard of a load": ("@%p1 ld.global.b32 %r3, [%rd40];", {"undefined_guard"}),
    "undefined_store": ("st.global.b32 [%rd41], %r9;", {"undefined_store"}),
    "undefined_store through arithmetic": (
        "add.s32 %r3, %r9, 1;\nxor.b32 %r4, %r3, %r1;\nst.global.b32 [%rd41], %r4;",
        {"undefined_store"},
    ),
    "undefined_store of a half": ("mov.b32 %r3, {%rs1, 7};\nst.global.b32 [%rd41], %r3;", {"undefined_store"}),
    "undefined_store of a byte": ("st.global.b8 [%rd41], %rs1;", {"undefined_store"}),
    "undefined_store from shared memory": ("ld.shared.b32 %r3, [%r2];\nst.global.b32 [%rd41], %r3;", {"undefined_store"}),
    "undefined_store through shared memory": (
        f"st.shared.b32 [%r2], %r9;\n{BARRIER}\nld.shared.b32 %r3, [%r2];\nst.global.b32 [%rd41], %r3;",
        {"undefined_store"},
    ),
    "undefined_store through a shuffle": (
        "setp.gt.s32 %p1, %r150, 0;\n@%p1 mov.u32 %r3, 5;\nshfl.sync.idx.b32 %r4, %r3, 0, 31, -1;\nst.global.b32 [%rd41], %r4;",
        {"undefined_store"},
    ),
    "undefined_guard by comparison": ("setp.gt.s32 %p1, %r9, 0;\n@%p1 st.global.b32 [%rd41], 1;", {"undefined_guard"}),
    "shared_read_after_write": (
        "st.shared.b32 [%r2], 1;\nxor.b32 %r3, %r2, 128;\nld.shared.b32 %r4, [%r3];",
        {"shared_read_after_write", "shared_write_after_read"},
    ),
    "shared_write_after_read": (
        f"st.shared.b32 [%r2], %r150;\n{BARRIER}\nxor.b32 %r3, %r2, 128;\nld.shared.b32 %r4, [%r3];\nst.shared.b32 [%r2], 7;",
        {"shared_write_after_read", "shared_read_after_write"},
    ),
    "shared_write_after_write": ("st.shared.b32 [%r1], %r150;", {"shared_write_after_write", "shared_within_warp"}),
    "shared_within_warp": ("st.shared.b32 [%r2], 1;\nxor.b32 %r3, %r2, 4;\nld.shared.b32 %r4, [%r3];", {"shared_within_warp"}),
    "global_within_cta": (
        "st.global.b32 [%rd41], %r150;\nxor.b32 %r3, %r150, 32;\nld.param.b64 %rd1, [p1];\n"
        "mad.wide.u32 %rd1, %r3, 4, %rd1;\nld.global.b32 %r4, [%rd1];",
        {"global_within_cta"},
    ),
    "global_within_cta by writing": ("ld.param.b64 %rd1, [p1];\nst.global.b32 [%rd1], %r150;", {"global_within_cta"}),
    "barrier after some have left": ("setp.gt.s32 %p1, %r150, 31;\n@%p1 ret;\nbar.sync 0;", {"barrier"}),
    "barrier in a branch": ("setp.gt.s32 %p1, %r150, 7;\n@%p1 bra $L1;\nbar.sync 0;\n$L1: mov.u32 %r3, 0;", {"barrier"}),
    "barrier under a guard": ("setp.gt.s32 %p1, %r150, 7;\n@%p1 bar.sync 0;", {"barrier"}),
    "collective": ("setp.gt.s32 %p1, %r150, 7;\n@%p1 shfl.sync.bfly.b32 %r3, %r150, 1, 31, -1;", {"collective"}),
    "collective in a branch": (
        "setp.gt.s32 %p1, %r150, 7;\n@%p1 bra $L1;\nbar.warp.sync -1;\n$L1: mov.u32 %r3, 0;",
        {"collective"},
    ),
    "same_value": ("st.shared.b32 [%r1], 5;", {"same_value"}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_reported_and_nothing_else(name: str) -> None:
    body, kinds = FAULTS[name]
    snippet = seen(body, threads=64)
    assert name.split(maxsplit=1)[0] in kinds
    assert snippet.kinds == kinds


def test_races_between_ctas_are_seen_in_any_order() -> None:
    body = "ld.param.b64 %rd1, [p1];\nmad.wide.u32 %rd1, %r151, 4, %rd1;\nst.global.b32 [%rd1], %r152;"
    for backward in (False, True):
        assert seen(body, grid=(2, 1, 1), backward=backward).kinds == {"global_between_ctas"}
    reads = "setp.eq.b32 %p1, %r152, 0;\n@%p1 st.global.b32 [%rd41], 1;\nld.param.b64 %rd1, [p1];\nld.global.b32 %r3, [%rd1];"
    for backward in (False, True):
        assert "global_between_ctas" in seen(reads, grid=(2, 1, 1), backward=backward).kinds


GOOD = {
    "a barrier orders shared memory": f"st.shared.b32 [%r2], %r150;\n{BARRIER}\n"
    "xor.b32 %r3, %r2, 128;\n"
    "ld.shared.b32 %r4, [%r3];\n"
    f"{BARRIER}\nst.shared.b32 [%r2], %r4;",
    "bar.warp.sync orders a warp": "st.shared.b32 [%r2], 1;\nbar.warp.sync -1;\n"
    "xor.b32 %r3, %r2, 4;\nld.shared.b32 %r4, [%r3];",
    "a barrier orders global memory in a CTA": f"st.global.b32 [%rd41], %r150;\n{BARRIER}\n"
    "xor.b32 %r3, %r150, 32;\n"
    "ld.param.b64 %rd1, [p1];\n"
    "mad.wide.u32 %rd1, %r3, 4, %rd1;\nld.global.b32 %r4, [%rd1];",
    "what is known to be false decides alone": "setp.gt.s32 %p2, %r150, 99;\n"
    "and.pred %p1, %p3, %p2;\n"
    "@%p1 st.global.b32 [%rd41], 1;",
    "a choice needs only what it takes": "setp.gt.s32 %p2, %r150, -1;\n"
    "selp.b32 %r3, %r150, %r9, %p2;\n"
    "st.global.b32 [%rd41], %r3;",
    "undefined values that nobody uses": "add.s32 %r3, %r9, %r8;\nmul.lo.s32 %r4, %r3, %r3;",
    "the defined half of a pair": "mov.b32 %r3, {7, %rs1};\nmov.b32 {%rs2, %rs3}, %r3;\nst.global.b16 [%rd41], %rs2;",
    "lanes that leave early": "setp.gt.s32 %p1, %r150, 7;\n@%p1 ret;\nst.global.b32 [%rd41], 1;",
    "lanes that part and meet": "setp.gt.s32 %p1, %r150, 7;\n@%p1 bra $L1;\nmov.u32 %r3, 1;\nbra $L2;\n$L1: mov.u32 %r3, 2;\n"
    "$L2: bar.sync 0;\nst.global.b32 [%rd41], %r3;",
}


@pytest.mark.parametrize("name", GOOD)
def test_what_is_right_is_not_reported(name: str) -> None:
    for backward in (False, True):
        assert seen(GOOD[name], threads=64, backward=backward).findings == ()


def test_loops_run_as_often_as_each_lane_needs() -> None:
    body = (
        f"{pointers(1)}\nmov.u32 %r1, 0;\nmov.u32 %r2, 0;\n$L1: add.s32 %r2, %r2, %r1;\n"
        "add.s32 %r1, %r1, 1;\nsetp.le.s32 %p1, %r1, %r150;\n@%p1 bra $L1;\nst.global.b32 [%rd40], %r2;"
    )
    snippet = run(body, [], [np.zeros(32, np.uint32)])
    assert snippet.findings == ()
    assert snippet.arrays[0].tolist() == [lane * (lane + 1) // 2 for lane in range(32)]


def test_undefined_inputs_are_seen_where_they_are_stored() -> None:
    body = f"{pointers(2)}\nld.global.b32 %r1, [%rd40];\nst.global.b32 [%rd41], %r1;"
    snippet = run(body, [WORDS[:32]], [np.zeros(32, np.uint32)], defined=False)
    (finding,) = snippet.findings
    assert (finding.kind, finding.count, finding.register, finding.thread) == ("undefined_store", 1, "%r1", 0)


def test_a_finding_says_where_it_was() -> None:
    snippet = seen("setp.gt.s32 %p1, %r150, 63;\n@%p1 ld.global.b32 %r3, [%rd40];", threads=96)
    (finding,) = snippet.findings
    assert finding.kind == "global_bounds"
    assert (finding.cta, finding.thread, finding.count) == (0, 64, 32)
    assert finding.place == "p0 at byte 256 of 256"
    assert finding.instruction.startswith("@%p1 ld.global.b32")
    assert finding.line == snippet.result.kernel.lines[-2]
    assert all(text in str(finding) for text in ("snippet", f"line {finding.line}", "thread 64", "p0"))
    assert finding.to_json()["cause"]


def test_a_kernel_that_does_not_end_is_stopped() -> None:
    assert run("$L1: bra $L1;", budget=1000).kinds == {"budget"}


def test_without_the_checker_bounds_are_checked_all_the_same() -> None:
    snippet = seen("st.global.b32 [%rd41], %r9;\nld.global.b32 %r3, [%rd40+4096];", check=False)
    assert snippet.kinds == {"global_bounds"}


# ---- counters


def units(snippet: Snippet, start: str) -> tuple[int, int]:
    rows = [index for index, opcode in enumerate(snippet.result.kernel.opcodes) if opcode.startswith(start)]
    counts = snippet.result.counts[rows].sum(axis=0)
    return int(counts[2]), int(counts[3])


@pytest.mark.parametrize(
    ("stride", "vector", "taken", "least"),
    [(4, 1, 1, 1), (8, 1, 2, 1), (128, 1, 32, 1), (0, 1, 1, 1), (16, 4, 4, 4), (8, 2, 2, 2), (32, 4, 8, 4), (132, 1, 1, 1)],
)
def test_wavefronts_are_those_of_32_banks_of_four_bytes(stride: int, vector: int, taken: int, least: int) -> None:
    names = ", ".join(f"%r{10 + k}" for k in range(vector))
    suffix = f".v{vector}" if vector > 1 else ""
    body = (
        f"mov.u32 %r1, %tid.x;\nmov.u32 %r2, global_smem;\nmad.lo.s32 %r3, %r1, {stride}, %r2;\n"
        f"ld.shared{suffix}.b32 {{{names}}}, [%r3];"
    )
    assert units(run(body, shared_bytes=8192), "ld.shared") == (taken, least)


@pytest.mark.parametrize(("stride", "sectors"), [(4, 4), (0, 1), (32, 32), (8, 8)])
def test_sectors_are_pieces_of_32_bytes(stride: int, sectors: int) -> None:
    body = f"{pointers(1, item=stride)}\nld.global.b32 %r1, [%rd40];"
    snippet = run(body, [np.zeros(1024, np.uint32)], grid=(2, 1, 1))
    assert units(snippet, "ld.global")[0] == 2 * sectors
    requests, read, once_per_cta, once, written, _ = snippet.result.traffic[0].tolist()
    assert (requests, read, once_per_cta, written) == (2, 2 * sectors, 2 * sectors, 0)
    assert once == (sectors if stride == 0 else 2 * sectors)
