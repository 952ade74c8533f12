"""What this machine could do at best: the rate of a large matrix product and the rate of large copies, measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from refusion_edge.machine import usable_cores
from refusion_edge.network.cost import Work

_MATRIX_SIDE = 1024
# Far beyond the last-level cache of a core; each core copies its own.
_COPY_BYTES = 96 << 20
_LEAST_REPEATS, _LEAST_S = 5, 0.5


class Rates(Protocol):
    """What arithmetic and memory can do at best, of a processor or of a device."""

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
        matrix_gflops: float32 product of two 1024x1024 matrices by NumPy's library, which runs multiply-add instructions on
            as many threads as it likes: what arithmetic can reach here, in 10^9 operations per second.
        copy_gb_per_s: Bytes read plus bytes written by copies of 96 MiB, one on each usable core at the same time, in 10^9
            bytes per second.
        cores: Number of those cores.
    """

    matrix_gflops: float
    copy_gb_per_s: float
    cores: int


@dataclass(frozen=True, slots=True)
class Roofline:
    """How near to the limits of the processor or the device that ran it a measurement came.

    Attributes:
        gflops: Arithmetic that was done, in 10^9 operations per second.
        least_traffic_gb_per_s: Least memory traffic over the time, in 10^9 bytes per second.
        least_ms: Time that arithmetic or the least traffic needs at the limits, whichever is longer.
        share: That time over the measured one.
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
    """Hold a measured time of the network against the limits.

    Args:
        work: What one pixel takes.
        pixels: Number of pixels.
        infer_ms: Measured time.
        limits: What the processor or device that ran it can do.

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
