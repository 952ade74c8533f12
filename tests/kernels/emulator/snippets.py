"""Small kernels around one or a few instructions, and their launches on arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.kernels.emulator.decoder import decode
from refusion_edge.kernels.emulator.findings import Finding
from refusion_edge.kernels.emulator.launch import Region, Result, launch

HEAD = """
.version 8.8
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry snippet(
{parameters}
)
.reqntid {threads}
{{
\t.reg .pred \t%p<16>;
\t.reg .b16 \t%rs<48>;
\t.reg .b32 \t%r<160>;
\t.reg .b64 \t%rd<64>;
{body}
\tret;
}}
"""

_START = 1 << 20
_PREFIX = {"r": "%r", "d": "%rd", "h": "%rs", "p": "%p"}
_BITS = {"r": 32, "d": 64, "h": 16, "p": 32}


@dataclass(frozen=True, slots=True)
class Snippet:
    """A launch that has run."""

    result: Result
    arrays: tuple[Array, ...]

    @property
    def findings(self) -> tuple[Finding, ...]:
        return self.result.findings

    @property
    def kinds(self) -> set[str]:
        return {finding.kind for finding in self.findings}


def text_of(body: str, parameters: int = 0, threads: int = 32) -> str:
    """PTX of a kernel with some pointers ``p0``, ``p1`` and so on."""
    names = ",\n".join(f"\t.param .u64 .ptr .global .align 1 p{index}" for index in range(parameters))
    return HEAD.format(parameters=names, body=body, threads=threads)


def run(
    body: str,
    inputs: Sequence[Array] = (),
    outputs: Sequence[Array] = (),
    *,
    threads: int = 32,
    grid: tuple[int, int, int] = (1, 1, 1),
    shared_bytes: int = 1024,
    defined: bool = True,
    **options: Any,
) -> Snippet:
    """Run a kernel whose parameters are pointers to the inputs and then to the outputs.

    Args:
        body: Statements.
        inputs: Read-only arrays.
        outputs: Arrays to write; undefined at first.
        threads: Of a CTA.
        grid: CTAs.
        shared_bytes: Dynamic shared memory.
        defined: Whether the inputs are.
        options: Of ``launch``.
    """
    arrays = [np.ascontiguousarray(array).copy() for array in (*inputs, *outputs)]
    regions, address = [], _START
    for index, array in enumerate(arrays):
        data, written = array.reshape(-1).view(np.uint8), index >= len(inputs)
        shadow = np.full(data.size, defined and not written, np.uint8)
        regions.append(Region(f"p{index}", address, data, shadow, written, array.itemsize))
        address += -(-data.size // 256) * 256 + 4096
    block = b"".join(region.address.to_bytes(8, "little") for region in regions)
    kernel = decode(text_of(body, len(arrays), threads))
    result = launch(kernel, grid, threads, shared_bytes, block, regions, **options)
    return Snippet(result, tuple(arrays[len(inputs) :]))


def pointers(count: int, index: str = "%r150", item: int = 4) -> str:
    """Statements that put the address of this thread's element of every parameter into ``%rd40`` and up."""
    lines = ["mov.u32 %r151, %tid.x;", "mov.u32 %r152, %ctaid.x;", "mov.u32 %r153, %ntid.x;",
             f"mad.lo.s32 {index}, %r152, %r153, %r151;"]  # fmt: skip
    for number in range(count):
        lines += [
            f"ld.param.b64 %rd{40 + number}, [p{number}];",
            f"mad.wide.u32 %rd{40 + number}, {index}, {item}, %rd{40 + number};",
        ]
    return "\n".join(lines)


def compute(opcode: str, letters: str, inputs: Sequence[Array], template: str = "") -> list[Array]:
    """Run one instruction in as many threads as the inputs have elements.

    Args:
        opcode: With its modifiers.
        letters: Of its operands, as in ``refusion_edge.kernels.emulator.instructions``.
        inputs: One unsigned array for each small letter, (n,), n a multiple of 32; a predicate is 0 or 1.
        template: Operands with a place for each letter; separated by commas if not given.

    Returns:
        The results, one unsigned array for each capital letter.
    """
    body, operands, results = [], [], []
    lanes = inputs[0].size
    given = iter(enumerate(inputs))
    for number, letter in enumerate(letters):
        small = letter.lower()
        register = f"{_PREFIX[small]}{number + 1}"
        operands.append(register)
        if letter.isupper():
            results.append((small, register))
            continue
        index, values = next(given)
        assert values.dtype.itemsize * 8 == _BITS[small], (letter, values.dtype)
        address = f"%rd{30 + index}"
        body += [f"ld.param.b64 {address}, [p{index}];", f"mad.wide.u32 {address}, %r150, {values.itemsize}, {address};"]
        if small == "p":
            body += [f"ld.global.b32 %r{100 + number}, [{address}];", f"setp.ne.b32 {register}, %r{100 + number}, 0;"]
        else:
            body.append(f"ld.global.b{_BITS[small]} {register}, [{address}];")
    body.append(f"{opcode} {template.format(*operands) if template else ', '.join(operands)};")
    outputs = []
    for number, (small, register) in enumerate(results):
        address = f"%rd{20 + number}"
        body += [
            f"ld.param.b64 {address}, [p{len(inputs) + number}];",
            f"mad.wide.u32 {address}, %r150, {_BITS[small] // 8}, {address};",
        ]
        if small == "p":
            body.append(f"selp.b32 %r{120 + number}, 1, 0, {register};")
        body.append(f"st.global.b{_BITS[small]} [{address}], {f'%r{120 + number}' if small == 'p' else register};")
        outputs.append(np.zeros(lanes, f"uint{_BITS[small]}"))
    snippet = run("\n".join([pointers(0), *body]), inputs, outputs, grid=(lanes // 32, 1, 1))
    assert snippet.findings == ()
    return list(snippet.arrays)
