"""What the processor and a GPU can do at best, measured: the rate of matrix products and the rate of large copies.

The GPU's kernels are PTX text, which the driver compiles for the device at hand; torch is not needed.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from refusion_edge.cuda.driver import Driver
from refusion_edge.cuda.program import Parameter, pack
from refusion_edge.machine import usable_cores
from refusion_edge.network.cost import Work

_MATRIX_SIDE = 1024
# Far beyond the last-level cache of a core; each core copies its own.
_COPY_BYTES = 96 << 20
_LEAST_REPEATS, _LEAST_S = 5, 0.5
_THREADS = 256
# Chains of dependent products in each warp; one alone would wait for the latency of the unit.
_CHAINS = 8
_MATRIX_BLOCKS = 4096
# One m16n8k16 product of a warp, two operations for a multiplication with addition.
_PRODUCT_FLOPS = 2 * 16 * 8 * 16
_FIRST_ROUNDS, _MOST_ROUNDS = 64, 1 << 20
# Several times the largest last-level cache of a GPU (126 MB), read and written.
_DEVICE_COPY_BYTES = 256 << 20
_VECTOR_BYTES = 16
_DEVICE_MIN_MS = 20.0
_DEVICE_REPEATS = 5
_COPY_PARAMETERS = (Parameter("target", "uint8*", written=True), Parameter("source", "uint8*"))
_MATRIX_PARAMETERS = (Parameter("target", "float32*", written=True), Parameter("rounds", "int32"))
LEAST_ARCHITECTURE = 80
"""The first architecture with the instruction that is timed."""

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


class Rates(Protocol):
    """Best rates of arithmetic and memory of a processor or a device."""

    @property
    def matrix_gflops(self) -> float:
        """10^9 operations per second."""

    @property
    def copy_gb_per_s(self) -> float:
        """10^9 bytes per second."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Best rates of several tries.

    Attributes:
        matrix_gflops: float32 product of two 1024x1024 matrices by NumPy's library, on as many threads as it chooses: what
            arithmetic can reach here, in 10^9 operations per second.
        copy_gb_per_s: Bytes read plus bytes written by copies of 96 MiB, one on each usable core at the same time, in 10^9
            bytes per second.
        cores: Number of those cores.
    """

    matrix_gflops: float
    copy_gb_per_s: float
    cores: int


@dataclass(frozen=True, slots=True)
class Roofline:
    """How close a measurement came to the limits of the processor or device it ran on.

    Attributes:
        gflops: Arithmetic performed, in 10^9 operations per second.
        least_traffic_gb_per_s: Minimum memory traffic over the measured time, in 10^9 bytes per second.
        least_ms: Time that arithmetic or the minimum traffic takes at the limits, whichever is longer.
        share: That time over the measured time.
        bound: ``arithmetic`` or ``memory``.
    """

    gflops: float
    least_traffic_gb_per_s: float
    least_ms: float
    share: float
    bound: str


def measure_limits() -> Limits:
    """Measure this machine for about a second."""
    cores = usable_cores()
    rng = np.random.default_rng(0)
    left, right = (rng.standard_normal((_MATRIX_SIDE, _MATRIX_SIDE), np.float32) for _ in range(2))
    product = np.empty_like(left)
    matrix_s = _best_s(lambda: np.matmul(left, right, out=product))

    sources = [np.ones(_COPY_BYTES, np.uint8) for _ in range(cores)]
    targets = [np.zeros(_COPY_BYTES, np.uint8) for _ in range(cores)]
    with ThreadPoolExecutor(cores) as pool:
        copy_s = _best_s(lambda: list(pool.map(np.copyto, targets, sources)))
    return Limits(2 * _MATRIX_SIDE**3 / matrix_s / 1e9, 2 * _COPY_BYTES * cores / copy_s / 1e9, cores)


def roofline(work: Work, pixels: int, infer_ms: float, limits: Rates) -> Roofline:
    """Compare a measured time of the network with the limits.

    Args:
        work: Arithmetic and traffic per pixel.
        pixels: Number of pixels.
        infer_ms: Measured time.
        limits: Limits of the processor or device that ran it.

    Source:
        Williams, Waterman, Patterson: Roofline, CACM 2009.
    """
    gflop, gigabytes = work.flops * pixels / 1e9, work.least_bytes * pixels / 1e9
    arithmetic_ms, memory_ms = 1e3 * gflop / limits.matrix_gflops, 1e3 * gigabytes / limits.copy_gb_per_s
    least_ms = max(arithmetic_ms, memory_ms)
    bound = "arithmetic" if arithmetic_ms >= memory_ms else "memory"
    return Roofline(1e3 * gflop / infer_ms, 1e3 * gigabytes / infer_ms, least_ms, least_ms / infer_ms, bound)


def _best_s(work: Callable[[], object]) -> float:
    work()
    best_s, started = float("inf"), time.perf_counter()
    repeats = 0
    while repeats < _LEAST_REPEATS or time.perf_counter() - started < _LEAST_S:
        before = time.perf_counter()
        work()
        best_s = min(best_s, time.perf_counter() - before)
        repeats += 1
    return best_s


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
        Its limits; None if it is too old for the instruction that is timed.

    Raises:
        BackendError: The driver reports an error, or 512 MiB of device memory are not available.
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
        source = driver.allocate(_DEVICE_COPY_BYTES)
        stack.callback(driver.free, source)
        target = driver.allocate(_DEVICE_COPY_BYTES)
        stack.callback(driver.free, target)

        def best_ms(work: Callable[[], None]) -> float:
            times = []
            for _ in range(_DEVICE_REPEATS):
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
            blocks = _DEVICE_COPY_BYTES // (_VECTOR_BYTES * _THREADS)
            driver.launch_kernel(copy, (blocks, 1, 1), _THREADS, 0, pack(_COPY_PARAMETERS, (target, source), 0), stream)

        copy_ms = best_ms(move)
        # Long enough for the launch overhead not to matter.
        rounds = _FIRST_ROUNDS
        while (matrix_ms := best_ms(functools.partial(multiply, rounds))) < _DEVICE_MIN_MS and rounds < _MOST_ROUNDS:
            rounds *= 2
        driver.synchronize(stream)
    flops = _MATRIX_BLOCKS * (_THREADS // 32) * _CHAINS * rounds * _PRODUCT_FLOPS
    return DeviceLimits(driver.device.name, flops / matrix_ms / 1e6, 2 * _DEVICE_COPY_BYTES / copy_ms / 1e6)


def matrix_kernel() -> str:
    """PTX of ``matrix_rate(float32 *target, int32 rounds)``: products on registers, eight chains in each warp.

    Each thread stores the sum of its results, so that no product can be optimized away; ``target`` has room for one
    float32 per thread of the grid.
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
    """PTX of ``copy_rate(uint8 *target, uint8 *source)``: 16 bytes per thread."""
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
    # The driver reads PTX up to a null byte.
    return text.encode() + b"\0"
