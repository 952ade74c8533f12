"""The counts of native instructions: how they are read and attributed, and the hand count against another one."""

from __future__ import annotations

import pytest

from benchmarks.native_counts import Executed, by_operation, multiply_adds, operation_of, read_counts, table
from benchmarks.native_cpu import multiply_adds_per_pixel
from refusion_edge.network.fast import FastLayout
from refusion_edge.network.parameters import DIM, NUM_BLOCKS

KERNELS = "refusion::neon::"


def test_the_hand_count_is_that_of_native_cpu_with_squares_of_queries_and_keys_and_half_of_a_convolution() -> None:
    squares = 2 * (2 * NUM_BLOCKS * DIM + NUM_BLOCKS * 2 * DIM + 2 * DIM)
    saved = 2 * DIM * DIM * 9 / 2
    assert sum(multiply_adds(None).values()) == multiply_adds_per_pixel() + squares - saved


def test_winograd_needs_half_of_the_multiplications() -> None:
    assert sum(multiply_adds(FastLayout()).values()) == multiply_adds_per_pixel("native fast") / 2


def test_blocks_that_overlap_or_were_translated_again_are_added_up() -> None:
    assert read_counts(["400 3 5", "404 1 2", "400 3 1"]) == {0x400: 6, 0x404: 8, 0x408: 6}


@pytest.mark.parametrize(
    ("functions", "operation"),
    [
        (["operator()", f"pointwise_block<{KERNELS}SingleOperand>", f"{KERNELS}Transform<Shape>::feed(int)"], "1x1"),
        (["pointwise<float>", f"{KERNELS}lift(refusion::Tile const&)"], "first convolutions"),
        (["load", f"{KERNELS}Projection::write_block<2>(int)", f"{KERNELS}project(refusion::Tile const&)"], "last convolution"),
        (["load", f"{KERNELS}project(refusion::Tile const&)"], "rest"),
        (["add_products<6, 2>", "refusion::avx2::convolve_block<6, 2>"], "convolutions"),
        (["most", "normal_share", "gelu", "depthwise_rows", f"{KERNELS}Transform<Shape>::gate(int, int)"], "GELU"),
        ([f"{KERNELS}FastRun::run()"], "rest"),
        (["add_product<3>", "refusion::neon_fp16::convolve_block<8, 3>"], "convolutions"),
        (["pair_of_bf16", "mix_rows", "refusion::neon_bf16::FastRun::run()"], "mixes of rows"),
        (["refusion::isa_of"], None),
        (["read_weights", "main"], None),
    ],
)
def test_an_instruction_belongs_to_the_innermost_operation(functions: list[str], operation: str | None) -> None:
    assert operation_of(functions) == operation


def test_instructions_are_told_apart() -> None:
    instructions = {
        0x400: ("fmla", "v0.4s, v1.4s, v2.s[0]"),
        0x404: ("ldp", "q0, q1, [sp, #32]"),
        0x408: ("ld1r", "{v0.4s}, [x0]"),
        0x40C: ("str", "q0, [sp]"),
        0x410: ("fadd", "v0.4s, v1.4s, v2.4s"),
        0x414: ("bfdot", "v0.4s, v1.8h, v2.2h[1]"),
    }
    functions = {address: ["mix_rows", f"{KERNELS}convolve_rows(int)"] for address in instructions}
    executed = by_operation(instructions, dict.fromkeys(instructions, 10), functions)
    assert executed == {"mixes of rows": Executed(fmla=20, loads=20, stores=10, others=10, stack=20)}
    assert executed["mixes of rows"].total == 60


def test_the_table_is_per_pixel_and_ends_with_the_sum() -> None:
    rows = table({"1x1": Executed(fmla=200, loads=100), "GELU": Executed(others=100)}, {"1x1": 8.0}, 100, lanes=4).splitlines()
    cells = [cell.strip() for cell in rows[-1].strip("|").split("|")]
    assert cells == ["sum", "8", "2", "2.0", "1.0", "0.0", "1.0", "0.0", "4.0", "2.00"]
