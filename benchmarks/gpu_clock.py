"""Timing with the clock of a CUDA device, through torch: in turns, with graphs, medians."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

Work = Callable[[], object]

_COPY_BYTES = 1 << 30
_MATRIX_SIDE = 8192


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Rates that the device reaches in the two simplest programs.

    Attributes:
        bytes_per_s: Bytes read and written by a copy within its memory.
        flops_per_s: Operations of a product of two matrices in half precision.
    """

    bytes_per_s: float
    flops_per_s: float


def recorded(work: Work) -> Work:
    """Record the device work of a function as a graph, after three warm-up runs; returns a function that replays it."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def medians_ms(works: Mapping[str, Work], rounds: int) -> dict[str, float]:
    """Time several functions in turns between device events, starting with a different one in each round.

    Args:
        works: By name; each is run three times before anything counts.
        rounds: Rounds that count.
    """
    names = list(works)
    times: dict[str, list[float]] = {name: [] for name in names}
    for work in works.values():
        for _ in range(3):
            work()
    for index in range(rounds):
        for name in [*names[index % len(names) :], *names[: index % len(names)]]:
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            first.record()
            works[name]()
            last.record()
            last.synchronize()
            times[name].append(first.elapsed_time(last))
    return {name: statistics.median(found) for name, found in times.items()}


def measure_ceilings(rounds: int) -> Ceilings:
    """Measure the rates that the device reaches."""
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    x, y = (torch.randn(_MATRIX_SIDE, _MATRIX_SIDE, dtype=torch.float16, device="cuda") for _ in range(2))
    found = medians_ms({"copy": lambda: target.copy_(source), "product": lambda: x @ y}, rounds)
    return Ceilings(2e3 * _COPY_BYTES / found["copy"], 2e3 * _MATRIX_SIDE**3 / found["product"])


def count_kernels(work: Work) -> int:
    """Count the kernels that some work starts on the device."""
    work()
    with warnings.catch_warnings():
        # It warns of what it keeps, in words that differ between versions.
        warnings.simplefilter("ignore")
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            work()
            torch.cuda.synchronize()
    return sum(
        event.device_type == torch.autograd.DeviceType.CUDA and "memset" not in event.name.lower() for event in profile.events()
    )
