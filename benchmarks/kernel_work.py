"""Arithmetic and memory traffic per pixel of every launch of a frame, read from the schedule and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.cuda.program import Argument, Launch, Parameter, Schedule

# Not matrices: norms and temperatures, which are not multiplied with every channel.
_VECTORS = (".gain", ".bias", ".temperature")


@dataclass(frozen=True, slots=True)
class LaunchWork:
    """Work of one launch per pixel of the image.

    Attributes:
        kernel: Name of the kernel.
        bytes: Every buffer of image size, read or written once; weights and sums are small and left out.
        flops: Two for each number of a matrix that is applied at every pixel, and for each product of queries and keys.
    """

    kernel: str
    bytes: int
    flops: int


def frame_work(schedule: Schedule, weights: Mapping[str, Array]) -> list[LaunchWork]:
    """Count the work of every launch of a schedule, in order.

    Args:
        schedule: Launches of one frame.
        weights: Folded weights in the dtypes of the schedule.
    """
    return [_launch_work(schedule, weights, launch) for launch in schedule.launches]


def least_ms(work: LaunchWork, pixels: int, bytes_per_s: float, flops_per_s: float) -> float:
    """Time that a launch takes at least: at the rate of memory or of the matrix units, whichever is longer."""
    return 1e3 * pixels * max(work.bytes / bytes_per_s, work.flops / flops_per_s)


def _launch_work(schedule: Schedule, weights: Mapping[str, Array], launch: Launch) -> LaunchWork:
    kernel = schedule.kernels[launch.kernel]
    if kernel.grid != "strips":
        return LaunchWork(kernel.name, 0, 0)
    pairs = list(zip(kernel.parameters, launch.arguments, strict=True))
    nbytes = sum(_bytes(schedule, argument) for _, argument in pairs)
    products = sum(_matrix_size(schedule, weights, parameter, argument) for parameter, argument in pairs)
    if kernel.source == "attention_statistics":
        dim = kernel.constants["C"] // 8
        products += kernel.streams * 8 * (dim * dim + 2 * dim)
    return LaunchWork(kernel.name, nbytes, 2 * products)


def _bytes(schedule: Schedule, argument: Argument) -> int:
    if argument.kind != "buffer":
        return 0
    buffer = schedule.buffers[argument.name]
    return buffer.per_pixel * np.dtype(buffer.dtype).itemsize


def _matrix_size(schedule: Schedule, weights: Mapping[str, Array], parameter: Parameter, argument: Argument) -> int:
    if argument.kind == "weights" and not argument.name.endswith(_VECTORS):
        return weights[argument.name].size
    # Taps of this image.
    return schedule.buffers[argument.name].fixed if argument.kind == "buffer" and not parameter.written else 0
