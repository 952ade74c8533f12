"""Every instruction that the emulator knows: the forms in which it is written, and the operation that runs it.

A form is a template of the operands. A capital letter is a register that is written, a small one is read: ``r`` has 32 bits,
``d`` 64, ``h`` 16, and ``p`` is a predicate; what is read may also be a constant. ``i`` is an integer, ``a`` an address in
shared memory, ``g`` one in global memory, ``k`` a parameter of the kernel.

Source:
    NVIDIA, Parallel Thread Execution ISA, version 8.8.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

WARP_GROUP = 4
"""Warps that share one ``wgmma``."""


@dataclass(frozen=True, slots=True)
class Form:
    """One way to write an instruction.

    Attributes:
        operation: Name in the compiled module.
        letters: One for each operand, in the order in which they are written.
        pattern: Matches the operands, one group for each.
        size: Bytes of an element of a memory access; negative if it is sign-extended.
        count: Elements of a memory access, matrices, or columns.
        kind: Flags of wgmma: 1 for A from shared memory.
    """

    operation: str
    letters: str
    pattern: re.Pattern[str]
    size: int = 0
    count: int = 0
    kind: int = 0


_OPERAND = r"([^\s,{}\[\]]+)"
_ADDRESS = r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\d+)\s*)?\]"


@functools.cache
def _pattern(template: str) -> re.Pattern[str]:
    parts = []
    for token in re.findall(r"[A-Za-z]|[{},]", template):
        if token in "{},":
            parts.append(re.escape(token) + r"\s*" if token != "}" else r"\s*\}")
        else:
            parts.append(_ADDRESS if token in "agk" else _OPERAND)
        if token == ",":
            parts[-1] = r"\s*,\s*"
    return re.compile("".join(parts) + r"\s*")


def _form(operation: str, template: str, *, size: int = 0, count: int = 0, kind: int = 0) -> Form:
    return Form(operation, re.sub(r"[^A-Za-z]", "", template), _pattern(template), size, count, kind)


def _arithmetic() -> dict[str, tuple[Form, ...]]:
    operands = {
        "R, d": "cvt.u32.u64",
        "R, r": "neg.s32 neg.f32 abs.f32 rsqrt.approx.ftz.f32 sqrt.approx.ftz.f32 ex2.approx.f32 cvt.rn.f32.u32 "
        "cvt.rmi.ftz.f32.f32",
        "R, r, r": "add.s32 sub.s32 mul.lo.s32 min.s32 and.b32 or.b32 xor.b32 shl.b32 shr.u32 add.f32 sub.f32 mul.f32 "
        "min.f32 max.f32 max.NaN.f32 div.full.f32 div.approx.f32 cvt.rn.f16x2.f32",
        "R, r, r, r": "mad.lo.s32 bfe.u32 bfe.s32 prmt.b32 fma.rn.f32",
        "R, r, r, p": "selp.b32",
        "R, h": "cvt.u32.u16 cvt.f32.f16",
        "R, h, r": "sub.rn.f32.f16",
        "D, d": "mov.b64",
        "D, d, d": "add.s64 mul.lo.s64 and.b64 or.b64 add.f32x2 sub.f32x2 mul.f32x2",
        "D, d, d, d": "mad.lo.s64 fma.rn.f32x2",
        "D, d, r": "shl.b64",
        "D, r": "cvt.s64.s32 cvt.u64.u32",
        "D, r, r": "mul.wide.s32 mul.wide.u32",
        "D, r, r, d": "mad.wide.s32 mad.wide.u32",
        "H, h": "mov.b16",
        "H, h, h": "and.b16 or.b16",
        "H, h, r": "shl.b16 shr.u16",
        "H, h, h, p": "selp.b16",
        "H, r": "cvt.u16.u32 cvt.rn.f16.f32 cvt.rzi.u16.f32",
        "P, r, r": "setp.eq.b32 setp.ne.b32 setp.lt.s32 setp.le.s32 setp.gt.s32 setp.lt.u32 setp.gt.u32 setp.lt.f32 "
        "setp.gt.f32 setp.ge.f32",
        "P, d, d": "setp.ne.b64 setp.lt.s64 setp.le.s64 setp.gt.s64",
        "P, p": "mov.pred",
        "P, p, p": "and.pred",
    }
    known: dict[str, tuple[Form, ...]] = {
        opcode: (_form(opcode.replace(".", "_"), template),)
        for template, opcodes in operands.items()
        for opcode in opcodes.split()
    }
    known["selp.f32"] = known["selp.b32"]
    for name in ("min", "max"):
        known[f"{name}.f32"] += (_form(f"{name}3_f32", "R, r, r, r"),)
    known["mov.b32"] = (_form("mov_b32", "R, r"), _form("pack_b32", "R, {h, h}"), _form("unpack_b32", "{H, H}, r"))
    known["mov.u32"] = known["mov.b32"][:1]
    known["mov.b64"] += (_form("pack_b64", "D, {r, r}"), _form("unpack_b64", "{R, R}, d"))
    return known


def _memory() -> dict[str, tuple[Form, ...]]:
    known: dict[str, tuple[Form, ...]] = {}
    for bits, letter in ((16, "h"), (32, "r"), (64, "d")):
        for count in (1, 2, 4):
            if bits * count > 128:
                continue
            opcode = f"{f'.v{count}' if count > 1 else ''}.b{bits}"
            for space, address in (("global", "g"), ("shared", "a")):
                loaded, stored = ("{" + ", ".join(given * count) + "}" for given in (letter.upper(), letter))
                sizes = {"size": bits // 8, "count": count}
                loads = [_form(f"ld_{space}", f"{loaded}, {address}", **sizes)]
                stores = [_form(f"st_{space}", f"{address}, {stored}", **sizes)]
                if count == 1:
                    loads.append(_form(f"ld_{space}", f"{letter.upper()}, {address}", **sizes))
                    stores.append(_form(f"st_{space}", f"{address}, {letter}", **sizes))
                known[f"ld.{space}{opcode}"], known[f"st.{space}{opcode}"] = tuple(loads), tuple(stores)
    # A byte lies in the lower half of a 16-bit register or of a wider one.
    known["st.global.b8"] = tuple(
        _form("st_global", f"g, {stored}", size=1, count=1) for given in "hr" for stored in (f"{{{given}}}", given)
    )
    known["ld.param.b32"] = (_form("ld_param", "R, k", size=4, count=1),)
    known["ld.param.b64"] = (_form("ld_param", "D, k", size=8, count=1),)
    known["ld.param.s32"] = (_form("ld_param", "D, k", size=-4, count=1), *known["ld.param.b32"])
    return known


def _collective() -> dict[str, tuple[Form, ...]]:
    fragments = "{R, R, R, R}, {r, r, r, r}, {r, r}, {r, r, r, r}"
    known: dict[str, tuple[Form, ...]] = {
        "shfl.sync.bfly.b32": (_form("shfl_bfly", "R, r, r, r, i"),),
        "shfl.sync.idx.b32": (_form("shfl_idx", "R, r, r, r, i"),),
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32": (_form("mma_m16n8k16", fragments),),
        "bar.sync": (_form("bar_sync", "i"),),
        "bar.warp.sync": (_form("bar_warp_sync", "i"),),
        "fence.proxy.async.shared::cta": (_form("fence_proxy_async", ""),),
        "wgmma.fence.sync.aligned": (_form("wgmma_fence", ""),),
        "wgmma.commit_group.sync.aligned": (_form("wgmma_commit", ""),),
        "wgmma.wait_group.sync.aligned": (_form("wgmma_wait", "i"),),
        "ret": (_form("ret", ""),),
    }
    for count in (1, 2, 4):
        shape = f"sync.aligned.m8n8.x{count}"
        registers = [given if count == 1 else "{" + ", ".join(given * count) + "}" for given in "Rr"]
        loads, stores = [registers[0]], [registers[1]]
        if count == 1:
            loads.append("{R}")
            stores.append("{r}")
        for suffix, name in (("", "ldmatrix"), (".trans", "ldmatrix_trans")):
            known[f"ldmatrix.{shape}{suffix}.shared.b16"] = tuple(_form(name, f"{given}, a", count=count) for given in loads)
        known[f"stmatrix.{shape}.shared.b16"] = tuple(_form("stmatrix", f"a, {given}", count=count) for given in stores)
    for columns in range(8, 257, 8):
        accumulators = "{" + ", ".join("R" * (columns // 2)) + "}"
        known[f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.f16.f16"] = (
            _form("wgmma", f"{accumulators}, {{r, r, r, r}}, d, p, i, i, i", count=columns),
            _form("wgmma", f"{accumulators}, d, d, p, i, i, i, i", count=columns, kind=1),
        )
    return known


INSTRUCTIONS: dict[str, tuple[Form, ...]] = {**_arithmetic(), **_memory(), **_collective()}
"""Forms by opcode with its modifiers. Branches are not among them: their operand is a label."""

SPECIAL_REGISTERS = {
    "%tid.x": 1,
    "%ctaid.x": 2,
    "%ctaid.y": 3,
    "%ctaid.z": 4,
    "%nctaid.x": 5,
    "%nctaid.y": 6,
    "%nctaid.z": 7,
    "%ntid.x": 8,
}
"""Special registers, with their numbers in the compiled module."""
