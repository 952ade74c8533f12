"""A whole frame with the Triton kernels and torch for memory: for developing kernels and for checking them on a GPU.

Runs on a CUDA device, or on the CPU in Triton's interpreter (``TRITON_INTERPRET=1`` before the first import). Users run
the back end ``fused``, which needs neither torch nor Triton.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from refusion_edge.arrays import Array
from refusion_edge.cuda.program import Argument, Kernel, Launch, Schedule, Tile
from refusion_edge.errors import BackendError, ShapeError
from refusion_edge.kernels.gpu.language import COMPILER_OPTIONS, TRITON_INSTALLED, is_interpreted
from refusion_edge.kernels.gpu.schedule import FUSED, LEVELS, PLANES, SOURCES


@dataclass(frozen=True, slots=True)
class FusedImage:
    """A fused pair.

    Attributes:
        plane: (H, W), the network's output, before any stretch.
        levels: (H, W) uint8, stretched.
    """

    plane: Tensor
    levels: Tensor


@dataclass(frozen=True, slots=True)
class Frame:
    """Everything that one image size needs on a device.

    Attributes:
        schedule: Launches of one frame.
        tiles: Tile of every kernel.
        size_hw: Height and width.
        buffers: Flat memory of every buffer of the schedule, by name.
        weights: Folded weights, by name.
    """

    schedule: Schedule
    tiles: Mapping[str, Tile]
    size_hw: tuple[int, int]
    buffers: Mapping[str, Tensor]
    weights: Mapping[str, Tensor]

    def start(self, launch: Launch) -> None:
        """Start one launch of the schedule."""
        kernel, tile = self.schedule.kernels[launch.kernel], self.tiles[launch.kernel]
        function = SOURCES[kernel.source].function
        arguments = map(self._value, launch.arguments)
        function[kernel.launch_grid(tile, self.size_hw)](*arguments, **launch_options(kernel, tile))

    def run(self) -> None:
        """Start all launches of the schedule; the sources are those in its buffer of planes."""
        for launch in self.schedule.launches:
            self.start(launch)

    def _value(self, argument: Argument) -> Any:
        if argument.kind == "strips":
            across, down = self.tiles[argument.name].strips(self.size_hw)
            return across * down
        if argument.kind == "size":
            return self.size_hw[("height", "width").index(argument.name)]
        return (self.buffers if argument.kind == "buffer" else self.weights)[argument.name]


def prepare(
    schedule: Schedule,
    weights: Mapping[str, Array],
    tiles: Mapping[str, Tile],
    size_hw: tuple[int, int],
    device: torch.device,
    *,
    fill: float = 0.0,
) -> Frame:
    """Put weights and buffers on a device; arguments as in ``fuse``."""
    memory = {name: torch.from_numpy(np.ascontiguousarray(array)).to(device) for name, array in weights.items()}
    buffers = {
        name: torch.empty(buffer.elements(size_hw, tiles), dtype=getattr(torch, buffer.dtype), device=device)
        for name, buffer in schedule.buffers.items()
    }
    for buffer in buffers.values():
        buffer.fill_(fill if buffer.is_floating_point() else 0)
    return Frame(schedule, tiles, size_hw, buffers, memory)


def fuse(
    schedule: Schedule, weights: Mapping[str, Array], tiles: Mapping[str, Tile], a: Tensor, b: Tensor, *, fill: float = 0.0
) -> FusedImage:
    """Fuse two luma planes with the Triton kernels.

    Args:
        schedule: Launches of one frame.
        weights: Folded weights in the dtypes of the schedule.
        tiles: Tile of every kernel.
        a: Source a, (1, 1, H, W) float32, contiguous, [0, 1].
        b: Source b, same shape and device.
        fill: Initial value of the buffers; NaN in tests, so that reading an unwritten value is noticed.

    Raises:
        ShapeError: Shape, dtype or memory layout does not fit.
        BackendError: Triton is not installed.
    """
    if not TRITON_INSTALLED:
        raise BackendError("Triton is not installed", "run: pip install 'refusion-edge[triton]'")
    for name, plane in (("a", a), ("b", b)):
        _check(name, plane, a)
    size_hw = a.shape[2], a.shape[3]
    frame = prepare(schedule, weights, tiles, size_hw, a.device, fill=fill)
    frame.buffers[PLANES].copy_(torch.cat((a.flatten(), b.flatten())))
    # Triton launches on the current device, whatever its arguments lie on.
    with torch.cuda.device_of(a):
        frame.run()
    return FusedImage(frame.buffers[FUSED].reshape(size_hw), frame.buffers[LEVELS].reshape(size_hw))


def launch_options(kernel: Kernel, tile: Tile) -> dict[str, Any]:
    """Options of a launch: compile-time constants, warps, and compiler options."""
    return {**kernel.constants_for(tile), "num_warps": tile.warps, **COMPILER_OPTIONS}


def _check(name: str, plane: Tensor, other: Tensor) -> None:
    if plane.dim() != 4 or plane.shape[:2] != (1, 1):
        raise ShapeError(
            f"source {name} has the shape {tuple(plane.shape)} instead of (1, 1, H, W)",
            "fuse the pairs of a batch one by one",
            expected=(1, 1, "H", "W"),
            got=tuple(plane.shape),
        )
    if plane.dtype != torch.float32:
        raise ShapeError(
            f"source {name} is {plane.dtype} instead of float32",
            "convert it with .float()",
            expected=torch.float32,
            got=plane.dtype,
        )
    if not plane.is_contiguous():
        raise ShapeError(f"source {name} is not contiguous in memory (strides {plane.stride()})", "call .contiguous()")
    if not (plane.is_cuda or is_interpreted()):
        raise ShapeError(
            f"source {name} is on {plane.device} and not on a CUDA device",
            "move it with .cuda()",
            expected="cuda",
            got=plane.device.type,
        )
    if plane.shape != other.shape or plane.device != other.device:
        raise ShapeError(
            f"the sources are {tuple(other.shape)} on {other.device} and {tuple(plane.shape)} on {plane.device}",
            "bring them to one size on one device",
            expected=(tuple(other.shape), other.device),
            got=(tuple(plane.shape), plane.device),
        )
