"""One launch of a kernel on random operands: with Triton on poisoned memory, and with its NumPy reference in float64.

The tests run this in Triton's interpreter; ``pytest -m gpu`` and the GPU benchmark run it on a device. Needs torch and Triton.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from refusion_edge.arrays import Array
from refusion_edge.cuda.program import Argument, Kernel, Tile
from refusion_edge.errors import BackendError
from refusion_edge.kernels.gpu.fast_statistics import PARTIAL_SIZE, figures_reference
from refusion_edge.kernels.gpu.folding import FoldedWeights
from refusion_edge.kernels.gpu.kernel_sets import REFUSION, KernelSet
from refusion_edge.kernels.gpu.schedule import SOURCES
from refusion_edge.kernels.gpu.triton_frame import launch_options

RELATIVE_ERROR = {"float32": 2e-6, "float16": 2.5e-3}
"""Largest permitted error, relative to the largest value of a result: sums of some hundred rounded terms."""

_GUARD = 64


@dataclass(frozen=True, slots=True)
class Case:
    """One launch with its operands.

    Attributes:
        kernel: The kernel.
        tile: What it is cut into.
        size_hw: Height and width.
        operands: By parameter: arrays, flat, and integers.
    """

    kernel: Kernel
    tile: Tile
    size_hw: tuple[int, int]
    operands: dict[str, Any]

    @property
    def written(self) -> list[str]:
        """Parameters that the kernel writes."""
        return [parameter.name for parameter in self.kernel.parameters if parameter.written]

    def reference(self) -> dict[str, Array]:
        """The correct outputs, computed in float64 from the same operands."""
        wide = {
            name: value.astype(np.float64) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value
            for name, value in self.operands.items()
        }
        wide |= {name: np.full_like(wide[name], np.nan if wide[name].dtype.kind == "f" else 0) for name in self.written}
        SOURCES[self.kernel.source].run_reference({**wide, **self.kernel.constants}, self.kernel.streams)
        return {name: wide[name] for name in self.written}


def make_case(
    name: str,
    size_hw: tuple[int, int],
    dtype: str,
    folded: FoldedWeights,
    tiles: Mapping[str, Tile],
    *,
    scale: float = 1.0,
    seed: int = 0,
    kernels: KernelSet = REFUSION,
) -> Case:
    """Draw operands for the first launch of a kernel.

    Args:
        name: The kernel's.
        size_hw: Height and width.
        dtype: Of the features: float16 or float32.
        folded: Weights.
        tiles: Tile of every kernel.
        scale: Standard deviation of the features.
        seed: Of the operands.
        kernels: The kernels of the network.
    """
    schedule = kernels.schedule(dtype)
    kernel = schedule.kernels[name]
    launch = next(launch for launch in schedule.launches if launch.kernel == name)
    weights = folded.rounded(np.dtype(dtype))
    draw = np.random.default_rng(seed)

    def operand(argument: Argument) -> Any:
        if argument.kind == "weights":
            return weights[argument.name].ravel()
        if argument.kind == "buffer":
            buffer = schedule.buffers[argument.name]
            values = draw.standard_normal(buffer.elements(size_hw, tiles)) * scale
            if argument.name.endswith((".strips", "planes", "extremes", "partial")):
                values = np.abs(values)
            if argument.name == "extremes" and name == "stretch":
                values = values.reshape(-1, 2) + np.array([-4.0, 4.0])
            return values.ravel().astype(buffer.dtype)
        if argument.kind == "strips":
            across, down = tiles[argument.name].strips(size_hw)
            return across * down
        return size_hw[("height", "width").index(argument.name)]

    operands = {
        parameter.name: operand(argument) for parameter, argument in zip(kernel.parameters, launch.arguments, strict=True)
    }
    return Case(kernel, tiles[name], size_hw, operands)


def launch(case: Case, device: str = "cpu") -> dict[str, Array]:
    """Run a kernel with Triton on poisoned memory: NaN around every operand and in every output.

    Returns:
        The outputs, flat, by parameter.

    Raises:
        BackendError: It wrote outside its outputs, or changed an input.
    """
    memory: dict[str, Any] = {}
    arguments = []
    for parameter in case.kernel.parameters:
        operand = case.operands[parameter.name]
        if isinstance(operand, int):
            arguments.append(operand)
            continue
        poison = np.nan if operand.dtype.kind == "f" else 7
        guarded = np.full(operand.size + 2 * _GUARD, poison, operand.dtype)
        if not parameter.written:
            guarded[_GUARD:-_GUARD] = operand
        memory[parameter.name] = torch.from_numpy(guarded).to(device)
        arguments.append(memory[parameter.name][_GUARD:])
    grid = case.kernel.launch_grid(case.tile, case.size_hw)
    SOURCES[case.kernel.source].function[grid](*arguments, **launch_options(case.kernel, case.tile))
    results = {}
    for name, tensor in memory.items():
        array = tensor.cpu().numpy()
        edges = np.concatenate([array[:_GUARD], array[-_GUARD:]])
        untouched = (np.isnan(edges) if array.dtype.kind == "f" else edges == 7).all()
        kept = name in case.written or np.array_equal(array[_GUARD:-_GUARD], case.operands[name])
        if not untouched or not kept:
            raise BackendError(
                f"the kernel {case.kernel.name} changed memory {'in' if untouched else 'around'} {name}, which it must not "
                "write",
                "this is a bug, please report it",
            )
        if name in case.written:
            results[name] = array[_GUARD:-_GUARD]
    return results


def largest_error(case: Case, results: Mapping[str, Array]) -> float:
    """Largest difference from the reference, relative to the largest value of each result.

    An 8-bit level may fall on either side of a half: only what exceeds one level counts.
    """
    errors = []
    for name, expected in case.reference().items():
        if name == "scratch_ptr":  # what a kernel leaves there is its own affair
            continue
        got, wanted = (comparable(case.kernel, name, values).astype(np.float64) for values in (results[name], expected))
        off = float(np.abs(got - wanted).max())
        errors.append(max(off - 1.0, 0.0) if name == "levels_ptr" else off / float(np.abs(wanted).max()))
    # Not max(): that drops a NaN.
    return float(np.array(errors).max())


def comparable(kernel: Kernel, name: str, values: Array) -> Array:
    """Sum over the strips if their order is not part of the result."""
    if name == "partial_ptr" and kernel.source == "fast_statistics":
        return figures_reference(values.reshape(PARTIAL_SIZE, -1))
    if name == "partial_ptr":
        dim = kernel.constants["C"] // 8
        sums: Array = values.reshape(kernel.streams, -1, (dim * dim + 2 * dim) * 8).astype(np.float64).sum(axis=1)
        return sums
    if name == "extremes_ptr":
        pairs = values.reshape(-1, 2)
        return np.array([pairs[:, 0].min(), pairs[:, 1].max()])
    return values
