"""Arithmetic and memory traffic per pixel of every launch of a frame, read from the schedule and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.cuda.program import Argument, Kernel, Launch, Parameter, Schedule, Tile

# Not matrices: norms and temperatures, which are not multiplied with every channel.
_VECTORS = (".gain", ".bias", ".temperature")


@dataclass(frozen=True, slots=True)
class LaunchWork:
    """Work of one launch per pixel of the image.

    Attributes:
        kernel: Name of the kernel.
        bytes: Every buffer of image size, read or written once; weights and sums are small and left out, and so is what the
            network ``fast`` writes between its convolutions, which depends on the tile.
        flops: Two for each number of a matrix that is applied at every pixel or cell, and for each product of queries and keys.
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


def layer_rows(kernel: Kernel, tile: Tile) -> list[int]:
    """Rows of cells that one program of the network ``fast`` computes of each convolution, those computed twice included."""
    rows, layers = tile.rows // kernel.constants["FACTOR"], kernel.constants["LAYERS"]
    return [rows + 2 * (layers - 1 - layer) for layer in range(layers)]


def scratch_bytes(schedule: Schedule, kernel: Kernel, tile: Tile) -> float:
    """Bytes per pixel that the network ``fast`` writes and reads between its convolutions, each once."""
    constants = kernel.constants
    window = tile.columns // constants["FACTOR"] + 2 * (constants["LAYERS"] - 1)
    numbers = sum(layer_rows(kernel, tile)[:-1]) * window * constants["C"]
    return 2 * numbers * np.dtype(schedule.buffers["scratch"].dtype).itemsize / (tile.columns * tile.rows)


def least_ms(work: LaunchWork, pixels: int, bytes_per_s: float, flops_per_s: float) -> float:
    """Time that a launch takes at least: at the rate of memory or of the matrix units, whichever is longer."""
    return 1e3 * pixels * max(work.bytes / bytes_per_s, work.flops / flops_per_s)


def _launch_work(schedule: Schedule, weights: Mapping[str, Array], launch: Launch) -> LaunchWork:
    kernel = schedule.kernels[launch.kernel]
    if kernel.grid != "strips":
        return LaunchWork(kernel.name, 0, 0)
    pairs = list(zip(kernel.parameters, launch.arguments, strict=True))
    nbytes = sum(_bytes(schedule, argument) for _, argument in pairs)
    if kernel.source == "fast_convolutions":
        return LaunchWork(kernel.name, nbytes, 2 * weights["taps"].size // kernel.constants["FACTOR"] ** 2)
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
