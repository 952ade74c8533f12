"""One launch of every kernel on random operands, through Triton and through its reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from refusion_edge.arrays import Array, State
from refusion_edge.kernels.catalogue import run_on_host
from refusion_edge.kernels.folding import FoldedWeights, fold
from refusion_edge.kernels.plan import make_plan
from refusion_edge.program import Argument, Kernel, Tile

TILE = Tile(16, 4, 1)


@pytest.fixture(scope="session")
def folded(random_state: State) -> FoldedWeights:
    return fold(random_state)


@dataclass
class Case:
    """One launch with its operands.

    Attributes:
        kernel: The kernel.
        size_hw: Height and width.
        operands: By parameter: arrays, flat, and integers.
    """

    kernel: Kernel
    size_hw: tuple[int, int]
    operands: dict[str, Any]

    @property
    def written(self) -> list[str]:
        return [parameter.name for parameter in self.kernel.parameters if parameter.written]

    def reference(self) -> dict[str, Array]:
        """What the kernel should write, computed in float64 from the same operands."""
        wide = {
            name: value.astype(np.float64) if isinstance(value, np.ndarray) and value.dtype.kind == "f" else value
            for name, value in self.operands.items()
        }
        wide |= {name: np.full_like(wide[name], np.nan if wide[name].dtype.kind == "f" else 0) for name in self.written}
        run_on_host(self.kernel.source, {**wide, **self.kernel.constants}, self.kernel.streams)
        return {name: wide[name] for name in self.written}


def make_case(
    name: str, size_hw: tuple[int, int], dtype: str, folded: FoldedWeights, *, scale: float = 1.0, seed: int = 0
) -> Case:
    """Draw operands for the first launch of a kernel."""
    plan = make_plan(dtype)
    kernel = plan.kernels[name]
    launch = next(launch for launch in plan.launches if launch.kernel == name)
    weights = folded.rounded(np.dtype(dtype))
    tiles = dict.fromkeys(plan.kernels, TILE)
    draw = np.random.default_rng(seed)

    def operand(argument: Argument) -> Any:
        if argument.kind == "weights":
            return weights[argument.name].ravel()
        if argument.kind == "buffer":
            buffer = plan.buffers[argument.name]
            values = draw.standard_normal(buffer.elements(size_hw, tiles)) * scale
            if argument.name.endswith((".strips", "planes", "extremes")):
                values = np.abs(values)
            if argument.name == "extremes" and name == "stretch":
                values = values.reshape(-1, 2) + np.array([-4.0, 4.0])
            return values.ravel().astype(buffer.dtype)
        across, down = TILE.strips(size_hw)
        return (
            across * down if argument.kind == "strips" else dict(zip(("height", "width"), size_hw, strict=True))[argument.name]
        )

    operands = {
        parameter.name: operand(argument) for parameter, argument in zip(kernel.parameters, launch.arguments, strict=True)
    }
    return Case(kernel, size_hw, operands)


def comparable(kernel: Kernel, name: str, values: Array) -> Array:
    """Bring what strips contribute to what the picture has: the order of strips is not part of a result."""
    if name == "partial_ptr":
        dim = kernel.constants["C"] // 8
        return values.reshape(kernel.streams, -1, (dim * dim + 2 * dim) * 8).astype(np.float64).sum(axis=1)
    if name == "extremes_ptr":
        pairs = values.reshape(-1, 2)
        return np.array([pairs[:, 0].min(), pairs[:, 1].max()])
    return values
