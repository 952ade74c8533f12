"""Instructions of a whole warp or warp group against the tables of the PTX ISA, written out in NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.kernels.emulator.compiled import is_built
from refusion_edge.kernels.emulator.decoder import SHARED_BASE

if not is_built():
    pytest.skip("the PTX emulator was not built", allow_module_level=True)

from tests.kernels.emulator.snippets import pointers, run

LANES = np.arange(32)


def halves(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float16)


def pack(low: Array, high: Array) -> Array:
    return low.view(np.uint16).astype(np.uint32) | high.view(np.uint16).astype(np.uint32) << 16


def load_words(count: int, first: int, parameter: int) -> str:
    """Statements that load consecutive words of this thread into registers."""
    words = [f"ld.global.b32 %r{first + k}, [%rd{40 + parameter}+{4 * k}];" for k in range(count)]
    return "\n".join(words)


def braces(first: int, count: int) -> str:
    return "{" + ", ".join(f"%r{first + k}" for k in range(count)) + "}"


# ---- shfl


def shuffled(values: Array, b: int, c: int, mode: str) -> Array:
    """The pseudocode of the ISA, lane by lane."""
    result = values.copy()
    for lane in range(32):
        clamp, mask = c & 31, c >> 8 & 31
        most, least = (lane & mask) | (clamp & ~mask & 31), lane & mask
        source = lane ^ (b & 31) if mode == "bfly" else least | (b & 31 & ~mask)
        result[lane] = values[source if source <= most else lane]
    return result


@pytest.mark.parametrize("mode", ["bfly", "idx"])
@pytest.mark.parametrize("b", [0, 1, 5, 16, 31])
@pytest.mark.parametrize("c", [31, 0x1C1F, 0x101F, 7, 0x1800])
def test_shuffles_take_the_lanes_of_the_pseudocode(mode: str, b: int, c: int) -> None:
    values = np.random.default_rng(b).integers(0, 2**32, 32, np.uint32)
    body = (
        f"{pointers(2)}\nld.global.b32 %r1, [%rd40];\nshfl.sync.{mode}.b32 %r2, %r1, {b}, {c}, -1;\nst.global.b32 [%rd41], %r2;"
    )
    snippet = run(body, [values], [np.zeros(32, np.uint32)])
    assert snippet.findings == ()
    assert np.array_equal(snippet.arrays[0], shuffled(values, b, c, mode))


# ---- mma


def mma_fragments(a: Array, b: Array, c: Array) -> tuple[Array, Array, Array]:
    """Registers of every lane: the tables of mma.m16n8k16 with elements of 16 bits."""
    group, thread = LANES >> 2, LANES & 3

    def element_a(i: int) -> Array:
        return a[group + (0 if i < 2 or 4 <= i < 6 else 8), thread * 2 + (i & 1) + (8 if i >= 4 else 0)]

    def element_b(i: int) -> Array:
        return b[thread * 2 + (i & 1) + (8 if i >= 2 else 0), group]

    registers_a = np.stack([pack(element_a(i), element_a(i + 1)) for i in (0, 2, 4, 6)], axis=1)
    registers_b = np.stack([pack(element_b(i), element_b(i + 1)) for i in (0, 2)], axis=1)
    registers_c = np.stack([c[group + (8 if i >= 2 else 0), thread * 2 + (i & 1)] for i in range(4)], axis=1)
    return registers_a, registers_b, np.ascontiguousarray(registers_c).view(np.uint32)


def test_mma_multiplies_the_fragments_of_the_tables() -> None:
    a, b = halves(16, 16), halves(16, 8, seed=1)
    c = np.random.default_rng(2).standard_normal((16, 8)).astype(np.float32)
    registers = mma_fragments(a, b, c)
    opcode = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"
    lines = [pointers(0)]
    for index, count in enumerate((4, 2, 4, 4)):
        lines += [
            f"ld.param.b64 %rd{40 + index}, [p{index}];",
            f"mad.wide.u32 %rd{40 + index}, %r150, {4 * count}, %rd{40 + index};",
        ]
    lines += [load_words(4, 10, 0), load_words(2, 20, 1), load_words(4, 30, 2)]
    lines += [f"{opcode} {braces(1, 4)}, {braces(10, 4)}, {braces(20, 2)}, {braces(30, 4)};"]
    lines += [f"st.global.b32 [%rd43+{4 * k}], %r{1 + k};" for k in range(4)]
    snippet = run("\n".join(lines), registers, [np.zeros((32, 4), np.float32)])
    assert snippet.findings == ()
    exact = a.astype(np.float64) @ b.astype(np.float64) + c
    expected = mma_fragments(a, b, exact.astype(np.float32))[2]
    # The sum is exact but for the rounding of float64, so that the result is nearly always the nearest one.
    got = snippet.arrays[0].view(np.uint32).astype(np.int64)
    assert np.abs(got - expected.astype(np.int64)).max() <= 1
    assert snippet.result.counts[[code.startswith("mma") for code in snippet.result.kernel.opcodes], 0].sum() == 1


# ---- ldmatrix and stmatrix


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_distributes_rows_as_the_isa_says(count: int, transposed: bool) -> None:
    matrices = np.random.default_rng(count).integers(0, 2**16, (4, 8, 8), np.uint16)
    # Rows lie 48 bytes apart and in reverse, so that the addresses of the lanes matter.
    places = 48 * np.random.default_rng(5).permutation(32).astype(np.uint32)
    stored = np.zeros(48 * 32, np.uint8)
    for row, place in enumerate(places):
        stored[place : place + 16] = matrices.reshape(32, 8)[row].view(np.uint8)
    lines = [pointers(3), "mov.u32 %r1, global_smem;", "shl.b32 %r2, %r150, 2;", "add.s32 %r2, %r2, %r1;"]
    for word in range(stored.size // 128):
        lines += [f"ld.global.b32 %r3, [%rd40+{128 * word}];", f"st.shared.b32 [%r2+{128 * word}], %r3;"]
    trans = ".trans" if transposed else ""
    lines += ["bar.sync 0;", "ld.global.b32 %r4, [%rd41];", "add.s32 %r4, %r4, %r1;"]
    lines += [f"ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {braces(10, count)}, [%r4];"]
    lines += [f"st.global.b32 [%rd42+{128 * k}], %r{10 + k};" for k in range(count)]
    snippet = run("\n".join(lines), [stored, places], [np.zeros((count, 32), np.uint32)], shared_bytes=stored.size)
    assert snippet.findings == ()
    for k in range(count):
        matrix = matrices[k].T if transposed else matrices[k]
        row, column = LANES // 4, 2 * (LANES % 4)
        expected = matrix[row, column].astype(np.uint32) | matrix[row, column + 1].astype(np.uint32) << 16
        assert np.array_equal(snippet.arrays[0][k], expected)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_stmatrix_stores_what_ldmatrix_would_load(count: int) -> None:
    fragments = np.random.default_rng(count).integers(0, 2**32, (count, 32), np.uint32)
    lines = [pointers(2), "mov.u32 %r1, global_smem;", "mad.lo.s32 %r2, %r150, 16, %r1;"]
    lines += [f"ld.global.b32 %r{10 + k}, [%rd40+{128 * k}];" for k in range(count)]
    lines += [f"stmatrix.sync.aligned.m8n8.x{count}.shared.b16 [%r2], {braces(10, count)};", "bar.sync 0;"]
    lines += ["shl.b32 %r3, %r150, 2;", "add.s32 %r3, %r3, %r1;"]
    for k in range(count):
        lines += [f"ld.shared.b32 %r4, [%r3+{128 * k}];", f"st.global.b32 [%rd41+{128 * k}], %r4;"]
    snippet = run("\n".join(lines), [fragments], [np.zeros((count, 32), np.uint32)])
    assert snippet.findings == ()
    rows = snippet.arrays[0].view(np.uint16).reshape(count, 8, 8)
    for k in range(count):
        for lane in range(32):
            for half in range(2):
                assert rows[k, lane // 4, 2 * (lane % 4) + half] == fragments[k, lane] >> 16 * half & 0xFFFF


# ---- wgmma


def k_major(rows: int, swizzle: int) -> tuple[Callable[[int, int], int], int, int, int]:
    """Place of element (row, k) with k innermost, leading and stride offsets, bytes: the ISA's figures in 16-byte chunks."""
    if swizzle == 0:
        # Core matrices of 8 rows by 16 bytes, each 128 bytes in a row; the second half of k behind all rows of the first.
        leading = rows // 8 * 128
        return (lambda row, k: row // 8 * 128 + row % 8 * 16 + k // 8 * leading + k % 8 * 2), leading, 128, 2 * leading
    chunks = swizzle // 16

    def place(row: int, k: int) -> int:
        shift = row % 8 // (8 // chunks)  # which of the rows of 128 bytes
        return row * swizzle + ((k // 8) ^ shift) * 16 + k % 8 * 2

    return place, 16, 8 * swizzle, rows * swizzle


def mn_major(rows: int, swizzle: int) -> tuple[Callable[[int, int], int], int, int, int]:
    """The same with rows innermost."""
    if swizzle == 0:
        leading, stride = rows // 8 * 128, 128
        return (lambda row, k: row // 8 * stride + k // 8 * leading + k % 8 * 16 + row % 8 * 2), leading, stride, 2 * leading
    across, chunks = swizzle // 2, swizzle // 16
    blocks = -(-rows // across)
    leading, stride = 8 * swizzle, blocks * 8 * swizzle

    def place(row: int, k: int) -> int:
        inside = row % across
        shift = k % 8 // (8 // chunks)
        return row // across * leading + k // 8 * stride + k % 8 * swizzle + ((inside // 8) ^ shift) * 16 + inside % 8 * 2

    return place, leading, stride, 2 * stride


def descriptor(address: int, leading: int, stride: int, swizzle: int) -> int:
    mode = {0: 0, 128: 1, 64: 2, 32: 3}[swizzle]
    return address >> 4 | leading >> 4 << 16 | stride >> 4 << 32 | mode << 62


def laid_out(matrix: Array, layout: tuple[Callable[[int, int], int], int, int, int]) -> Array:
    place, _, _, size = layout
    stored = np.zeros(size // 2, np.float16)
    for row in range(matrix.shape[0]):
        for k in range(matrix.shape[1]):
            stored[place(row, k) // 2] = matrix[row, k]
    return stored


FILL = """
mov.u32 %r1, global_smem;
shl.b32 %r2, %r150, 2;
add.s32 %r3, %r2, %r1;
cvt.u64.u32 %rd1, %r2;
ld.param.b64 %rd2, [p0];
add.s64 %rd2, %rd2, %rd1;
"""


def wgmma_body(size: int, columns: int, a: str, b: int, tail: str, *, adds: int = 1, fence: bool = True) -> str:
    """Fill shared memory with all of the first input, multiply, and store the accumulators of each thread in a row."""
    lines = [pointers(0), FILL]
    for word in range(size // 512):
        lines += [f"ld.global.b32 %r4, [%rd2+{512 * word}];", f"st.shared.b32 [%r3+{512 * word}], %r4;"]
    if fence:
        lines.append("fence.proxy.async.shared::cta;")
    lines += ["bar.sync 0;", f"setp.ne.b32 %p1, {adds}, 0;", f"mov.b64 %rd10, {b};"]
    lines += [f"mov.b32 %r{10 + k}, 0f3f800000;" for k in range(columns // 2)]
    lines += [a, "wgmma.fence.sync.aligned;"]
    operand = "%rd11" if "%rd11" in a else braces(140, 4)
    lines += [
        f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.f16.f16 {braces(10, columns // 2)}, {operand}, %rd10, "
        f"%p1, 1, 1, {tail};"
    ]
    lines += ["wgmma.commit_group.sync.aligned;", "wgmma.wait_group.sync.aligned 0;"]
    lines += ["ld.param.b64 %rd3, [p1];", f"mad.wide.u32 %rd3, %r150, {2 * columns}, %rd3;"]
    lines += [f"st.global.b32 [%rd3+{4 * k}], %r{10 + k};" for k in range(columns // 2)]
    return "\n".join(lines)


def accumulators(matrix: Array) -> Array:
    """Registers of all 128 threads: the table of wgmma's D."""
    columns = matrix.shape[1]
    thread, i = np.meshgrid(np.arange(128), np.arange(columns // 2), indexing="ij")
    row = thread // 32 * 16 + thread % 32 // 4 + 8 * (i // 2 % 2)
    return matrix[row, 8 * (i // 4) + thread % 4 * 2 + i % 2]


@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("columns", [8, 32, 64])
def test_wgmma_reads_the_layouts_of_its_descriptors(swizzle: int, transposed: bool, columns: int) -> None:
    if transposed and columns < swizzle // 2:
        columns = swizzle // 2
    a, b = halves(64, 16), halves(columns, 16, seed=1)
    layouts = [(mn_major if transposed else k_major)(rows, swizzle) for rows in (64, columns)]
    stored = [laid_out(matrix, layout) for matrix, layout in zip((a, b), layouts, strict=True)]
    stored[0] = np.pad(stored[0], (0, -stored[0].size % 512))  # B starts where the pattern repeats
    both = np.pad(np.concatenate(stored), (0, -(stored[0].size + stored[1].size) % 256))
    start = SHARED_BASE
    words = [
        descriptor(start + offset, layout[1], layout[2], swizzle)
        for offset, layout in zip((0, 2 * stored[0].size), layouts, strict=True)
    ]
    flag = int(transposed)
    body = wgmma_body(2 * both.size, columns, f"mov.b64 %rd11, {words[0]};", words[1], f"{flag}, {flag}")
    snippet = run(body, [both], [np.zeros((128, columns // 2), np.float32)], threads=128, shared_bytes=2 * both.size)
    assert snippet.findings == ()
    expected = accumulators(a.astype(np.float64) @ b.astype(np.float64).T + 1)
    assert np.abs(snippet.arrays[0] - expected).max() <= 2e-6


@pytest.mark.parametrize("changed", [False, True], ids=["", "predicate changed before the commit"])
@pytest.mark.parametrize("adds", [0, 1])
def test_wgmma_takes_a_from_registers_and_adds_only_if_told(adds: int, changed: bool) -> None:
    a, b = halves(64, 16), halves(16, 16, seed=1)
    place = k_major(16, 32)
    stored = np.pad(laid_out(b, place), (0, 0))
    fragments = np.concatenate(
        [mma_fragments(part, np.zeros((16, 8), np.float16), np.zeros((16, 8), np.float32))[0] for part in a.reshape(4, 16, 16)]
    )
    data = np.concatenate([stored.view(np.uint32), fragments.reshape(-1).astype(np.uint32)])
    load = [f"mad.wide.u32 %rd4, %r150, 16, {stored.nbytes};", "ld.param.b64 %rd5, [p0];", "add.s64 %rd4, %rd4, %rd5;"]
    load += [f"ld.global.b32 %r{140 + k}, [%rd4+{4 * k}];" for k in range(4)]
    body = wgmma_body(stored.nbytes, 16, "\n".join(load), descriptor(SHARED_BASE, place[1], place[2], 32), "0", adds=adds)
    if changed:
        # It was read when the product was issued.
        body = body.replace("wgmma.commit_group", f"setp.ne.b32 %p1, {1 - adds}, 0;\nwgmma.commit_group")
    snippet = run(body, [data], [np.zeros((128, 8), np.float32)], threads=128)
    assert snippet.findings == ()
    expected = accumulators(a.astype(np.float64) @ b.astype(np.float64).T + adds)
    assert np.abs(snippet.arrays[0] - expected).max() <= 2e-6


def wgmma_faults(change: Callable[[str], str], **options: int) -> set[str]:
    place = k_major(16, 32)
    stored = laid_out(halves(16, 16), place)
    a = "\n".join(f"mov.b32 %r{140 + k}, 1006648320;" for k in range(4))
    body = wgmma_body(stored.nbytes, 16, a, descriptor(SHARED_BASE, place[1], place[2], 32), "0")
    return run(change(body), [stored], [np.zeros((128, 8), np.float32)], threads=128, **options).kinds


def fence_behind_the_barrier(text: str) -> str:
    fence, barrier = "fence.proxy.async.shared::cta;", "bar.sync 0;"
    return text.replace(fence, "").replace(barrier, f"{barrier}\n{fence}")


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda text: text, None),
        (lambda text: text.replace("fence.proxy.async.shared::cta;", ""), "proxy_fence"),
        # Behind the barrier, the fence is that of the thread that multiplies; without a barrier, that does not count.
        (fence_behind_the_barrier, None),
        (lambda text: fence_behind_the_barrier(text).replace("bar.sync 0;", ""), "shared_read_after_write"),
        (lambda text: text.replace("wgmma.fence.sync.aligned;", ""), "wgmma_fence"),
        (lambda text: text.replace("wgmma.wait_group.sync.aligned 0;", ""), "wgmma_register"),
        (lambda text: text.replace("wgmma.wait_group.sync.aligned 0;", "wgmma.wait_group.sync.aligned 1;"), "wgmma_register"),
        (lambda text: text.replace("wgmma.commit_group.sync.aligned;", ""), "wgmma_unfinished"),
        (lambda text: text.replace("wgmma.wait_group", "mov.b32 %r140, %r1;\nwgmma.wait_group"), "wgmma_register"),
        (lambda text: text.replace("wgmma.wait_group", "st.shared.b32 [%r3], %r2;\nwgmma.wait_group"), "wgmma_overwritten"),
        (lambda text: text.replace("wgmma.fence", "cvt.u64.u32 %rd10, %r150;\nwgmma.fence"), "wgmma_descriptor"),
        (lambda text: text.replace("mov.b64 %rd10", "mov.b64 %rd12"), "undefined_descriptor"),
        (lambda text: text.replace("bar.sync 0;", ""), "shared_read_after_write"),
    ],
)  # fmt: skip
def test_what_goes_wrong_around_wgmma_is_seen(change: Callable[[str], str], kind: str | None) -> None:
    found = wgmma_faults(change)
    assert found == set() if kind is None else kind in found
