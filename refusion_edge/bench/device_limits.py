"""What a GPU could do at best: the rate of its matrix units and the rate of large copies, measured without torch.

Two kernels in PTX text, which the driver compiles for the device that is there, and the device's own clock.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass

from refusion_edge.cuda.driver import Driver
from refusion_edge.cuda.program import Parameter, pack

_THREADS = 256
# Chains of dependent products in each warp; one alone would wait for the latency of the unit.
_CHAINS = 8
_MATRIX_BLOCKS = 4096
# One m16n8k16 product of a warp, two operations for a multiplication with addition.
_PRODUCT_FLOPS = 2 * 16 * 8 * 16
_FIRST_ROUNDS, _MOST_ROUNDS = 64, 1 << 20
# Several times the largest last-level cache of a GPU (126 MB), read and written.
_COPY_BYTES = 256 << 20
_VECTOR_BYTES = 16
_LEAST_MS = 20.0
_REPEATS = 5

_COPY_PARAMETERS = (Parameter("target", "uint8*", written=True), Parameter("source", "uint8*"))
_MATRIX_PARAMETERS = (Parameter("target", "float32*", written=True), Parameter("rounds", "int32"))

LEAST_ARCHITECTURE = 80
"""The first architecture that has the product which is timed."""

# What both kernels begin with, and the number of a thread in the grid.
_HEAD = f"""\
.version 7.0
.target sm_{LEAST_ARCHITECTURE}
.address_size 64"""
_INDEX = """\
    mov.u32 %thread, %tid.x;
    mov.u32 %block, %ctaid.x;
    mov.u32 %threads, %ntid.x;
    mad.lo.u32 %index, %block, %threads, %thread;"""


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """Best rates of several tries.

    Attributes:
        device: Name of the device.
        matrix_gflops: Products of half-precision matrices with float32 sums by the instruction mma.m16n8k16, on registers:
            what that instruction reaches here, in 10^9 operations per second. Hopper and later have wider ones.
        copy_gb_per_s: Bytes read plus bytes written by a copy of 256 MiB within the device's memory, in 10^9 bytes per second.
    """

    device: str
    matrix_gflops: float
    copy_gb_per_s: float


def measure_device_limits(driver: Driver) -> DeviceLimits | None:
    """Measure a device for about a second.

    Args:
        driver: The device.

    Returns:
        Its limits; None if it is older than the product that is timed.

    Raises:
        BackendError: The driver reports an error, or there are no 512 MiB of device memory.
    """
    if driver.device.architecture < LEAST_ARCHITECTURE:
        return None
    with contextlib.ExitStack() as stack:
        stream = driver.create_stream()
        stack.callback(driver.destroy_stream, stream)
        first = driver.create_event()
        stack.callback(driver.destroy_event, first)
        last = driver.create_event()
        stack.callback(driver.destroy_event, last)
        source = driver.allocate(_COPY_BYTES)
        stack.callback(driver.free, source)
        target = driver.allocate(_COPY_BYTES)
        stack.callback(driver.free, target)

        def best_ms(work: Callable[[], None]) -> float:
            times = []
            for _ in range(_REPEATS):
                driver.record(first, stream)
                work()
                driver.record(last, stream)
                times.append(driver.elapsed_ms(first, last))
            return min(times)

        matrix = driver.load(_image(matrix_kernel()), "matrix_rate", 0)
        copy = driver.load(_image(copy_kernel()), "copy_rate", 0)

        def multiply(rounds: int) -> None:
            arguments = pack(_MATRIX_PARAMETERS, (target, rounds), 0)
            driver.launch_kernel(matrix, (_MATRIX_BLOCKS, 1, 1), _THREADS, 0, arguments, stream)

        def move() -> None:
            blocks = _COPY_BYTES // (_VECTOR_BYTES * _THREADS)
            driver.launch_kernel(copy, (blocks, 1, 1), _THREADS, 0, pack(_COPY_PARAMETERS, (target, source), 0), stream)

        copy_ms = best_ms(move)
        # Long enough that starting it does not count.
        rounds = _FIRST_ROUNDS
        while (matrix_ms := best_ms(functools.partial(multiply, rounds))) < _LEAST_MS and rounds < _MOST_ROUNDS:
            rounds *= 2
        driver.synchronize(stream)
    flops = _MATRIX_BLOCKS * (_THREADS // 32) * _CHAINS * rounds * _PRODUCT_FLOPS
    return DeviceLimits(driver.device.name, flops / matrix_ms / 1e6, 2 * _COPY_BYTES / copy_ms / 1e6)


def matrix_kernel() -> str:
    """PTX of ``matrix_rate(float32 *target, int32 rounds)``: products on registers, eight chains in each warp.

    Each thread stores the sum of its results, so that no product can be left out; ``target`` has room for one float32 for
    each thread of the grid.
    """
    sums = [[f"%c{chain}_{index}" for index in range(4)] for chain in range(_CHAINS)]
    names = [name for four in sums for name in four]
    zeros = "\n".join(f"    mov.f32 {name}, 0f00000000;" for name in names)
    products = "\n".join(
        f"    mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {{{', '.join(four)}}}, {{%a, %a, %a, %a}}, {{%a, %a}}, "
        f"{{{', '.join(four)}}};"
        for four in sums
    )
    additions = "\n".join(f"    add.f32 {names[0]}, {names[0]}, {name};" for name in names[1:])
    return f"""\
{_HEAD}
.visible .entry matrix_rate(.param .u64 target, .param .u32 rounds)
{{
    .reg .pred %more;
    .reg .b32 %a, %left, %thread, %block, %threads, %index;
    .reg .b64 %base, %offset;
    .reg .f32 {", ".join(names)};
    ld.param.u64 %base, [target];
    ld.param.u32 %left, [rounds];
{_INDEX}
    mov.b32 %a, 0x00010001;
{zeros}
again:
{products}
    sub.u32 %left, %left, 1;
    setp.ne.u32 %more, %left, 0;
    @%more bra again;
{additions}
    cvta.to.global.u64 %base, %base;
    mul.wide.u32 %offset, %index, 4;
    add.u64 %base, %base, %offset;
    st.global.f32 [%base], {names[0]};
    ret;
}}
"""


def copy_kernel() -> str:
    """PTX of ``copy_rate(uint8 *target, uint8 *source)``: 16 bytes for each thread."""
    return f"""\
{_HEAD}
.visible .entry copy_rate(.param .u64 target, .param .u64 source)
{{
    .reg .b32 %thread, %block, %threads, %index, %v0, %v1, %v2, %v3;
    .reg .b64 %to, %from, %offset;
    ld.param.u64 %to, [target];
    ld.param.u64 %from, [source];
{_INDEX}
    mul.wide.u32 %offset, %index, {_VECTOR_BYTES};
    cvta.to.global.u64 %to, %to;
    cvta.to.global.u64 %from, %from;
    add.u64 %to, %to, %offset;
    add.u64 %from, %from, %offset;
    ld.global.v4.b32 {{%v0, %v1, %v2, %v3}}, [%from];
    st.global.v4.b32 [%to], {{%v0, %v1, %v2, %v3}};
    ret;
}}
"""


def _image(text: str) -> bytes:
    # The driver reads PTX up to a null.
    return text.encode() + b"\0"
