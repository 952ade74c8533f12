"""Every instruction in single lanes against NumPy, Python's integers, exact fractions, and the tables of the PTX ISA."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.kernels.emulator.compiled import is_built
from refusion_edge.kernels.emulator.instructions import INSTRUCTIONS

if not is_built():
    pytest.skip("the PTX emulator was not built", allow_module_level=True)

from tests.kernels.emulator.snippets import compute, pointers, run

LANES = 1024
CANONICAL_NAN = 0x7FFFFFFF

EDGES = np.array(
    [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 2.0**-149, -(2.0**-149), 2.0**-127, 2.0**-126, -(2.0**-126), 3.4e38,
     -3.4e38, 2.0**126, 2.0**127, 0.5, 1.5, 2.5, -2.5, 255.5, 65535.0, 65536.5, 65504.0, 65519.996, 65520.0, 2.0**-24, 2.0**-25,
     1.5 * 2.0**-25,
     1 + 2.0**-11, 1 + 3 * 2.0**-11, 2.0**-14 - 2.0**-25],
    np.float32,
)  # fmt: skip


def draw(letter: str, seed: int, floats: bool) -> Array:
    """Operands: random bits, edges, and for floats ordinary numbers."""
    generator = np.random.default_rng(seed)
    if letter == "p":
        return generator.integers(0, 2, LANES, np.uint32)
    dtype = {"r": np.uint32, "d": np.uint64, "h": np.uint16}[letter]
    values = generator.integers(0, np.iinfo(dtype).max, LANES, dtype, endpoint=True)
    if floats and letter in "rd":
        words = values.view(np.uint32)
        third = words.size // 3
        words[:third] = generator.choice(EDGES, third).view(np.uint32)
        words[third : 2 * third] = generator.standard_normal(third).astype(np.float32).view(np.uint32)
    elif floats:
        values[::2] = generator.standard_normal(LANES // 2).astype(np.float16).view(np.uint16)
    else:
        small = generator.integers(0, 70, LANES // 2).astype(dtype)
        values[::2] = np.where(generator.integers(0, 2, LANES // 2) > 0, small, np.iinfo(dtype).max - small)
    return values


def signed(values: Array) -> Array:
    return values.view(f"int{values.itemsize * 8}")


def number(values: Array) -> Array:
    return values.view(f"float{values.itemsize * 8}")


def bits(values: Array) -> Array:
    """Bits of single precision, with the NaN that PTX produces."""
    single = values.astype(np.float32)
    return np.where(np.isnan(single), np.uint32(CANONICAL_NAN), single.view(np.uint32))


def half_bits(values: Array) -> Array:
    half = values.astype(np.float16)
    return np.where(np.isnan(half), np.uint16(0x7FFF), half.view(np.uint16))


def each(function: Callable[..., int], width: int) -> Callable[..., Array]:
    """Lift a function of Python's integers."""

    def lifted(*arrays: Array) -> Array:
        rows = zip(*(array.tolist() for array in arrays), strict=True)
        return np.array([function(*row) & ((1 << width) - 1) for row in rows], f"uint{width}")

    return lifted


def as_signed(value: int, width: int) -> int:
    return value - (1 << width) if value >> (width - 1) else value


def rounded(value: Fraction) -> float:
    """To single precision, to the nearest, ties to even."""
    if value == 0:
        return 0.0
    magnitude, exponent = abs(value), 0
    while magnitude >= 2:
        magnitude, exponent = magnitude / 2, exponent + 1
    while magnitude < 1:
        magnitude, exponent = magnitude * 2, exponent - 1
    step = Fraction(2) ** (max(exponent, -126) - 23)
    result = round(abs(value) / step) * step  # Python rounds ties to even
    sign = -1 if value < 0 else 1
    return sign * (float(result) if result < Fraction(2) ** 128 else float("inf"))


def fused(a: Array, b: Array, c: Array) -> Array:
    with np.errstate(all="ignore"):
        simple = a.astype(np.float64) * b + c.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b) & np.isfinite(c) & (simple != 0)
    exact = [
        rounded(Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))) if sure else other
        for x, y, z, sure, other in zip(a, b, c, finite, simple, strict=True)
    ]
    with np.errstate(all="ignore"):
        return bits(np.array(exact, np.float64))


def bit_field(value: int, start: int, length: int, is_signed: bool) -> int:
    """The pseudocode of the ISA."""
    start, length = start & 0xFF, length & 0xFF
    sign = value >> min(start + length - 1, 31) & 1 if is_signed and length else 0
    result = 0
    for index in range(32):
        result |= (value >> (start + index) & 1 if index < length and start + index <= 31 else sign) << index
    return result


def permuted(a: int, b: int, selector: int) -> int:
    data = a.to_bytes(4, "little") + b.to_bytes(4, "little")
    digits = [selector >> 4 * index & 15 for index in range(4)]
    chosen = [data[digit & 7] for digit in digits]
    signs = [0xFF * (byte >> 7) for byte in chosen]
    return int.from_bytes(
        [sign if digit & 8 else byte for digit, byte, sign in zip(digits, chosen, signs, strict=True)], "little"
    )


def extreme(a: Array, b: Array, largest: bool) -> Array:
    """Of the total order in which -0 comes before +0; a number wins against NaN."""

    def key(values: Array) -> Array:
        raw = values.view(np.int32)
        return np.where(raw >= 0, raw, np.int32(-1) ^ (raw & np.int32(0x7FFFFFFF)))

    first = key(a) >= key(b) if largest else key(a) <= key(b)
    return np.where(np.isnan(a), b, np.where(np.isnan(b) | first, a, b))


def pairs(function: Callable[..., Array]) -> Callable[..., Array]:
    """A function of floats in both halves of 64 bits."""

    def lifted(*arrays: Array) -> Array:
        result: Array = function(*(array.view(np.uint32) for array in arrays)).view(np.uint64)
        return result

    return lifted


def add(a: Array, b: Array) -> Array:
    return bits(number(a) + number(b))


def subtract(a: Array, b: Array) -> Array:
    return bits(number(a) - number(b))


def multiply(a: Array, b: Array) -> Array:
    return bits(number(a) * number(b))


def multiply_add(a: Array, b: Array, c: Array) -> Array:
    return fused(number(a), number(b), number(c))


def flushed(values: Array) -> Array:
    return np.where(np.abs(values) < np.float32(2.0**-126), np.copysign(np.float32(0), values), values)


def condition(test: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda a, b: test(a, b).astype(np.uint32)


def unpacked(values: Array) -> tuple[Array, Array]:
    width = values.itemsize * 4
    return (values & ((1 << width) - 1)).astype(f"uint{width}"), (values >> width).astype(f"uint{width}")


def to_u16(a: Array) -> Array:
    return np.where(np.isnan(number(a)), 0, np.clip(np.trunc(number(a)), 0, 65535)).astype(np.uint16)


INTEGERS: dict[str, tuple[str, Callable[..., Any]]] = {
    "add.s32": ("Rrr", lambda a, b: a + b),
    "sub.s32": ("Rrr", lambda a, b: a - b),
    "mul.lo.s32": ("Rrr", lambda a, b: a * b),
    "mad.lo.s32": ("Rrrr", lambda a, b, c: a * b + c),
    "neg.s32": ("Rr", lambda a: ~a + np.uint32(1)),
    "min.s32": ("Rrr", lambda a, b: np.minimum(signed(a), signed(b)).view(np.uint32)),
    "and.b32": ("Rrr", np.bitwise_and),
    "or.b32": ("Rrr", np.bitwise_or),
    "xor.b32": ("Rrr", np.bitwise_xor),
    "shl.b32": ("Rrr", each(lambda a, b: a << b if b < 32 else 0, 32)),
    "shr.u32": ("Rrr", each(lambda a, b: a >> b, 32)),
    "bfe.u32": ("Rrrr", each(lambda a, b, c: bit_field(a, b, c, False), 32)),
    "bfe.s32": ("Rrrr", each(lambda a, b, c: bit_field(a, b, c, True), 32)),
    "prmt.b32": ("Rrrr", each(permuted, 32)),
    "selp.b32": ("Rrrp", lambda a, b, p: np.where(p, a, b)),
    "selp.f32": ("Rrrp", lambda a, b, p: np.where(p, a, b)),
    "selp.b16": ("Hhhp", lambda a, b, p: np.where(p, a, b)),
    "mov.b32": ("Rr", lambda a: a),
    "mov.u32": ("Rr", lambda a: a),
    "mov.b16": ("Hh", lambda a: a),
    "mov.b64": ("Dd", lambda a: a),
    "mov.pred": ("Pp", lambda p: p),
    "and.pred": ("Ppp", lambda p, q: p & q),
    "add.s64": ("Ddd", lambda a, b: a + b),
    "mul.lo.s64": ("Ddd", lambda a, b: a * b),
    "mad.lo.s64": ("Dddd", lambda a, b, c: a * b + c),
    "and.b64": ("Ddd", np.bitwise_and),
    "or.b64": ("Ddd", np.bitwise_or),
    "shl.b64": ("Ddr", each(lambda a, b: a << b if b < 64 else 0, 64)),
    "mul.wide.s32": ("Drr", each(lambda a, b: as_signed(a, 32) * as_signed(b, 32), 64)),
    "mul.wide.u32": ("Drr", each(lambda a, b: a * b, 64)),
    "mad.wide.s32": ("Drrd", each(lambda a, b, c: as_signed(a, 32) * as_signed(b, 32) + c, 64)),
    "mad.wide.u32": ("Drrd", each(lambda a, b, c: a * b + c, 64)),
    "cvt.s64.s32": ("Dr", lambda a: signed(a).astype(np.int64).view(np.uint64)),
    "cvt.u64.u32": ("Dr", lambda a: a.astype(np.uint64)),
    "cvt.u32.u64": ("Rd", lambda a: a.astype(np.uint32)),
    "cvt.u16.u32": ("Hr", lambda a: a.astype(np.uint16)),
    "cvt.u32.u16": ("Rh", lambda a: a.astype(np.uint32)),
    "and.b16": ("Hhh", np.bitwise_and),
    "or.b16": ("Hhh", np.bitwise_or),
    "shl.b16": ("Hhr", each(lambda a, b: a << b if b < 16 else 0, 16)),
    "shr.u16": ("Hhr", each(lambda a, b: a >> b, 16)),
    "setp.eq.b32": ("Prr", condition(np.equal)),
    "setp.ne.b32": ("Prr", condition(np.not_equal)),
    "setp.lt.s32": ("Prr", condition(lambda a, b: signed(a) < signed(b))),
    "setp.le.s32": ("Prr", condition(lambda a, b: signed(a) <= signed(b))),
    "setp.gt.s32": ("Prr", condition(lambda a, b: signed(a) > signed(b))),
    "setp.lt.u32": ("Prr", condition(np.less)),
    "setp.gt.u32": ("Prr", condition(np.greater)),
    "setp.ne.b64": ("Pdd", condition(np.not_equal)),
    "setp.lt.s64": ("Pdd", condition(lambda a, b: signed(a) < signed(b))),
    "setp.le.s64": ("Pdd", condition(lambda a, b: signed(a) <= signed(b))),
    "setp.gt.s64": ("Pdd", condition(lambda a, b: signed(a) > signed(b))),
}

FLOATS: dict[str, tuple[str, Callable[..., Any]]] = {
    "add.f32": ("Rrr", add),
    "sub.f32": ("Rrr", subtract),
    "mul.f32": ("Rrr", multiply),
    "fma.rn.f32": ("Rrrr", multiply_add),
    "neg.f32": ("Rr", lambda a: bits(-number(a))),
    "abs.f32": ("Rr", lambda a: bits(np.abs(number(a)))),
    "min.f32": ("Rrr", lambda a, b: bits(extreme(number(a), number(b), False))),
    "max.f32": ("Rrr", lambda a, b: bits(extreme(number(a), number(b), True))),
    "max.NaN.f32": (
        "Rrr",
        lambda a, b: bits(np.maximum(extreme(number(a), number(b), True), np.maximum(number(a), number(b)))),
    ),
    "sub.rn.f32.f16": ("Rhr", lambda a, b: bits(number(a).astype(np.float32) - number(b))),
    "add.f32x2": ("Ddd", pairs(add)),
    "sub.f32x2": ("Ddd", pairs(subtract)),
    "mul.f32x2": ("Ddd", pairs(multiply)),
    "fma.rn.f32x2": ("Dddd", pairs(multiply_add)),
    "cvt.f32.f16": ("Rh", lambda a: bits(number(a).astype(np.float32))),
    "cvt.rn.f16.f32": ("Hr", lambda a: half_bits(number(a))),
    "cvt.rn.f16x2.f32": ("Rrr", lambda a, b: half_bits(number(a)).astype(np.uint32) << 16 | half_bits(number(b))),
    "cvt.rn.f32.u32": ("Rr", lambda a: bits(a.astype(np.float32))),
    "cvt.rmi.ftz.f32.f32": ("Rr", lambda a: bits(np.floor(flushed(number(a))))),
    "cvt.rzi.u16.f32": ("Hr", to_u16),
    "setp.lt.f32": ("Prr", condition(lambda a, b: number(a) < number(b))),
    "setp.gt.f32": ("Prr", condition(lambda a, b: number(a) > number(b))),
    "setp.ge.f32": ("Prr", condition(lambda a, b: number(a) >= number(b))),
}

# Bounds of the ISA: relative, but of div in units of the last place.
APPROXIMATE: dict[str, tuple[str, Callable[..., Any], float]] = {
    "ex2.approx.f32": ("Rr", np.exp2, 2.0**-22),
    "rsqrt.approx.ftz.f32": ("Rr", lambda a: 1 / np.sqrt(a), 2.0**-22.9),
    "sqrt.approx.ftz.f32": ("Rr", np.sqrt, 2.0**-23),
    "div.full.f32": ("Rrr", np.divide, 2 * 2.0**-23),
    "div.approx.f32": ("Rrr", np.divide, 2 * 2.0**-23),
}

# Results that the ISA's tables fix, by the operands.
TABLES = {
    "ex2.approx.f32": [((-np.inf,), 0.0), ((-0.0,), 1.0), ((0.0,), 1.0), ((np.inf,), np.inf), ((np.nan,), np.nan),
                       ((-149.0,), 2.0**-149), ((2.0**-149,), 1.0)],
    "rsqrt.approx.ftz.f32": [((-np.inf,), np.nan), ((-1.0,), np.nan), ((-(2.0**-149),), -np.inf), ((-0.0,), -np.inf),
                             ((0.0,), np.inf),
                             ((2.0**-149,), np.inf), ((np.inf,), 0.0), ((np.nan,), np.nan)],
    "sqrt.approx.ftz.f32": [((-np.inf,), np.nan), ((-1.0,), np.nan), ((-(2.0**-149),), -0.0), ((-0.0,), -0.0), ((0.0,), 0.0),
                            ((2.0**-149,), 0.0), ((np.inf,), np.inf), ((np.nan,), np.nan)],
    "div.approx.f32": [((1.0, 2.0**127), 0.0), ((-1.0, 2.0**127), -0.0), ((np.inf, 2.0**127), np.nan), ((1.0, 0.0), np.inf),
                       ((0.0, 0.0), np.nan), ((1.0, np.inf), 0.0), ((1.0, 2.0**126), 2.0**-126)],
    "div.full.f32": [((2.0**127, 2.0**127), 1.0), ((1.0, 0.0), np.inf), ((0.0, 0.0), np.nan), ((np.inf, np.inf), np.nan)],
    "max.NaN.f32": [((np.nan, 1.0), np.nan), ((1.0, np.nan), np.nan), ((-0.0, 0.0), 0.0)],
    "max.f32": [((np.nan, 1.0), 1.0), ((1.0, np.nan), 1.0), ((-0.0, 0.0), 0.0), ((np.nan, np.nan), np.nan)],
    "min.f32": [((np.nan, 1.0), 1.0), ((1.0, np.nan), 1.0), ((0.0, -0.0), -0.0), ((np.nan, np.nan), np.nan)],
    "cvt.rzi.u16.f32": [((65535.9,), 65535), ((-3.0,), 0), ((np.nan,), 0), ((np.inf,), 65535), ((2.9,), 2)],
}  # fmt: skip

# Tested in test_memory.py and test_collectives.py, each by itself.
ELSEWHERE = ("ld.", "st.", "ldmatrix.", "stmatrix.", "shfl.", "mma.", "wgmma.", "bar.", "fence.", "ret")


def test_every_instruction_that_is_known_is_tested() -> None:
    here = INTEGERS.keys() | FLOATS.keys() | APPROXIMATE.keys()
    assert {opcode for opcode in INSTRUCTIONS if not opcode.startswith(ELSEWHERE)} == here


@pytest.mark.parametrize("opcode", [*INTEGERS, *FLOATS])
def test_results_are_those_of_numpy_bit_for_bit(opcode: str) -> None:
    letters, expected = (INTEGERS | FLOATS)[opcode]
    inputs = [draw(letter, seed, opcode in FLOATS) for seed, letter in enumerate(filter(str.islower, letters))]
    with np.errstate(all="ignore"):
        wanted = expected(*inputs)
    (got,) = compute(opcode, letters, inputs)
    wrong = np.flatnonzero(got != wanted)
    assert not wrong.size, [(hex(got[k]), hex(wanted[k]), [hex(one[k]) for one in inputs]) for k in wrong[:3]]


@pytest.mark.parametrize("name", ["min", "max"])
def test_three_operands_are_taken_one_after_another(name: str) -> None:
    a, b, c = (draw("r", seed, True) for seed in range(3))
    (got,) = compute(f"{name}.f32", "Rrrr", [a, b, c])
    first = extreme(number(a), number(b), name == "max")
    assert np.array_equal(got, bits(extreme(first, number(c), name == "max")))


@pytest.mark.parametrize(
    ("opcode", "letters", "template"),
    [("mov.b32", "Rhh", "{0}, {{{1}, {2}}}"), ("mov.b64", "Drr", "{0}, {{{1}, {2}}}")],
)
def test_the_first_of_a_packed_pair_is_the_lower_half(opcode: str, letters: str, template: str) -> None:
    low, high = draw(letters[1], 0, False), draw(letters[2], 1, False)
    (got,) = compute(opcode, letters, [low, high], template)
    assert np.array_equal(got, low.astype(got.dtype) | high.astype(got.dtype) << (got.itemsize * 4))


@pytest.mark.parametrize(("opcode", "letters"), [("mov.b32", "HHr"), ("mov.b64", "RRd")])
def test_unpacking_gives_the_lower_half_first(opcode: str, letters: str) -> None:
    values = draw(letters[2], 0, False)
    low, high = compute(opcode, letters, [values], "{{{0}, {1}}}, {2}")
    assert np.array_equal(low, unpacked(values)[0])
    assert np.array_equal(high, unpacked(values)[1])
    # A sink takes what is not wanted.
    prefix = "%rs1" if letters[0] == "H" else "%r1"
    store = "b16" if letters[0] == "H" else "b32"
    load = "ld.global.b32 %r10, [%rd40];" if letters[2] == "r" else "ld.global.b64 %rd10, [%rd40];"
    source = "%r10" if letters[2] == "r" else "%rd10"
    unpack = f"{opcode} {{_, {prefix}}}, {source};"
    body = f"{pointers(2, item=values.itemsize)}\n{load}\n{unpack}\nst.global.{store} [%rd41], {prefix};"
    snippet = run(body, [values[:32]], [np.zeros(32, values.dtype)])
    assert np.array_equal(unpacked(snippet.arrays[0])[0], high[:32])


@pytest.mark.parametrize("opcode", APPROXIMATE)
def test_approximations_are_within_the_bounds_of_the_isa(opcode: str) -> None:
    letters, function, bound = APPROXIMATE[opcode]
    draws = np.random.default_rng(3)
    # Results that are normal numbers.
    low, high = (-126, 127) if opcode.startswith("ex2") else (2.0**-60, 2.0**60)
    inputs = [draws.uniform(low, high, LANES).astype(np.float32) for _ in letters[1:]]
    if not opcode.startswith("ex2"):
        inputs = [np.exp2(draws.uniform(-60, 60, LANES)).astype(np.float32) for _ in letters[1:]]
    (got,) = compute(opcode, letters, [values.view(np.uint32) for values in inputs])
    exact = function(*(values.astype(np.float64) for values in inputs))
    assert (np.abs(number(got).astype(np.float64) / exact - 1) <= bound).all()


@pytest.mark.parametrize("opcode", TABLES)
def test_special_values_are_those_of_the_tables(opcode: str) -> None:
    rows = TABLES[opcode]
    letters = (FLOATS.get(opcode) or APPROXIMATE[opcode])[0]
    inputs = []
    for index in range(len(letters) - 1):
        values = np.zeros(32, np.float32)
        values[: len(rows)] = [operands[index] for operands, _ in rows]
        inputs.append(values.view(np.uint32))
    (got,) = compute(opcode, letters, inputs)
    wanted = np.array([result for _, result in rows])
    if got.dtype == np.uint16:
        assert got[: len(rows)].tolist() == wanted.tolist()
    else:
        assert [hex(one) for one in got[: len(rows)]] == [hex(one) for one in bits(wanted)]


def test_every_half_is_converted_to_its_value_and_back() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    (wide,) = compute("cvt.f32.f16", "Rh", [halves])
    (back,) = compute("cvt.rn.f16.f32", "Hr", [wide])
    is_number = ~np.isnan(halves.view(np.float16))
    assert np.array_equal(number(wide)[is_number], halves.view(np.float16)[is_number].astype(np.float32))
    assert np.array_equal(back[is_number], halves[is_number])
    assert (back[~is_number] == 0x7FFF).all()


@pytest.mark.slow
def test_rounding_to_half_is_that_of_numpy_around_every_half() -> None:
    positive = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    upper = np.append(positive[1:], np.float32(65536))
    middle = (positive.astype(np.float64) + upper) / 2
    for values in (
        middle,
        np.nextafter(middle.astype(np.float32), 0),
        np.nextafter(middle.astype(np.float32), np.float32(np.inf)),
    ):
        for sign in (1, -1):
            single = (sign * values).astype(np.float32)
            (got,) = compute("cvt.rn.f16.f32", "Hr", [single.view(np.uint32)])
            with np.errstate(over="ignore"):
                assert np.array_equal(got, half_bits(single))


def test_a_signed_parameter_is_extended_to_64_bits() -> None:
    from refusion_edge.kernels.emulator.decoder import decode
    from refusion_edge.kernels.emulator.launch import Region, launch
    from tests.kernels.emulator.snippets import text_of

    body = "ld.param.s32 %rd1, [p0];\nld.param.b32 %r1, [p0];\nld.param.b64 %rd2, [p1];\nst.global.b64 [%rd2], %rd1;"
    text = text_of(body, 2).replace(".param .u64 .ptr .global .align 1 p0", ".param .u32 p0")
    data = np.zeros(8, np.uint8)
    block = (-5).to_bytes(4, "little", signed=True) + bytes(4) + (4096).to_bytes(8, "little")
    launch(decode(text), (1, 1, 1), 32, 0, block, [Region("p1", 4096, data, np.zeros(8, np.uint8), True, 8)])
    assert data.view(np.int64)[0] == -5
