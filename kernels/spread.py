"""Depthwise 3x3 convolutions with the channels innermost, alone or gated: what training needs of them.

    y = depthwise(x)        y = gelu(depthwise(gate)) * depthwise(update)

The compiled kernels read both inputs of a gated pair and write the result, then read inputs and slope and write both gradients:
nothing lies in memory in between, the convolutions are computed again when the gradient needs them. They do values,
gradients and the forward mode in fp32 on a CPU; ``composed``, the formula, does everything else, and all further derivatives.

Source:
    Restormer (Zamir et al., CVPR 2022), the spatial half of attention's features and of the gated feed-forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from refusion_edge.errors import UsageError
from refusion_edge.kernels.compiled import ISA_VARIABLE, chosen_isa, load_module


def composed(parts: int, *points: Tensor) -> tuple[Tensor, ...]:
    """What the kernels compute, in operations of torch.

    Args:
        parts: Number of parts that the result is cut into.
        points: One or two inputs, (B, H, W, C) floating, then the taps of each, (C, 1, 3, 3).

    Returns:
        The parts, each (B, H, W, C / parts), of the convolution of one input, or of gelu of that of the first times that of
        the second.
    """
    inputs, taps = _halves(points)
    spread = [_convolved(x, own) for x, own in zip(inputs, taps, strict=True)]
    return (F.gelu(spread[0]) * spread[1] if len(spread) == 2 else spread[0]).chunk(parts, dim=-1)


def depthwise_parts(x: Tensor, taps: Tensor, parts: int) -> tuple[Tensor, ...]:
    """Convolve every channel on its own, 3x3 and zero-padded, and cut the result into parts of equal size.

    Args:
        x: (B, H, W, parts * C), floating.
        taps: (parts * C, 1, 3, 3).
        parts: Number of parts.

    Returns:
        The parts, each (B, H, W, C).

    Raises:
        UsageError: The environment asks for an instruction set that this processor lacks, or that does not compute in fp32.
    """
    return _spread(parts, x, taps)


def gated_depthwise(gate: Tensor, update: Tensor, gate_taps: Tensor, update_taps: Tensor) -> Tensor:
    """``gelu(depthwise(gate)) * depthwise(update)``, with the exact gelu and 3x3 taps, zero-padded.

    Args:
        gate: (B, H, W, C), floating.
        update: The same.
        gate_taps: (C, 1, 3, 3).
        update_taps: The same.

    Returns:
        (B, H, W, C).

    Raises:
        UsageError: The environment asks for an instruction set that this processor lacks, or that does not compute in fp32.
    """
    (y,) = _spread(1, gate, update, gate_taps, update_taps)
    return y


def suits_kernels(*tensors: Tensor) -> bool:
    """Whether the compiled kernels are built, and compute in what these tensors are: fp32 on a CPU, and no autocast."""
    return (
        all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 and tensor.numel() > 0 for tensor in tensors)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and _module() is not None
    )


def _spread(parts: int, *points: Tensor) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = _Spread.apply(parts, *points) if suits_kernels(*points) else composed(parts, *points)
    return found


def _composed_gradient(parts: int, *slopes_and_points: Tensor) -> tuple[Tensor, ...]:
    """The gradient of ``composed`` by its points, from the slopes of the parts."""
    slopes, points = slopes_and_points[:parts], slopes_and_points[parts:]
    found: tuple[Tensor, ...] = torch.func.vjp(partial(composed, parts), *points)[1](slopes)
    return found


def _composed_tangent(parts: int, *points_and_directions: Tensor) -> tuple[Tensor, ...]:
    """The derivative of ``composed`` at the points along the directions."""
    points, directions = _halves(points_and_directions)
    found: tuple[Tensor, ...] = torch.func.jvp(partial(composed, parts), tuple(points), tuple(directions))[1]
    return found


class _Spread(Function):
    @staticmethod
    def forward(parts: int, *points: Tensor) -> tuple[Tensor, ...]:
        y = _empty_parts(parts, points[0])
        for own, *operands in zip(y, *_operands(parts, points), strict=True):
            _module().spread(*operands, own.numpy(), **_machine())
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _keep(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_SpreadGradient.apply(ctx.parts, *slopes, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, _: None, *along: Tensor | None) -> tuple[Tensor, ...]:
        points = ctx.saved_tensors
        found: tuple[Tensor, ...] = _SpreadTangent.apply(ctx.parts, *points, *_materialised(along, points))
        return found


class _ByFormula(Function):
    """What the kernels compute once: its own derivatives are those of ``ctx.formula``, in operations of torch."""

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        return None, *torch.func.vjp(partial(ctx.formula, ctx.parts), *ctx.saved_tensors)[1](slopes)

    @staticmethod
    def jvp(ctx: Any, _: None, *along: Tensor | None) -> tuple[Tensor, ...]:
        points = ctx.saved_tensors
        found: tuple[Tensor, ...] = torch.func.jvp(partial(ctx.formula, ctx.parts), points, _materialised(along, points))[1]
        return found


class _SpreadGradient(_ByFormula):
    @staticmethod
    def forward(parts: int, *slopes_and_points: Tensor) -> tuple[Tensor, ...]:
        slopes, points = slopes_and_points[:parts], slopes_and_points[parts:]
        gradients = tuple(point.new_empty(point.shape) for point in points)
        operands = (*_operands(parts, points), *_operands(parts, gradients))
        for own, x, taps, *written in zip(slopes, *operands, strict=True):
            _module().spread_gradient(x, taps, *_arrays((_even(own),)), *written, **_machine())
        return gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.formula = _composed_gradient
        _keep(ctx, inputs)


class _SpreadTangent(_ByFormula):
    @staticmethod
    def forward(parts: int, *points_and_directions: Tensor) -> tuple[Tensor, ...]:
        points, directions = _halves(points_and_directions)
        y = _empty_parts(parts, points[0])
        for own, *operands in zip(y, *_operands(parts, points), *_operands(parts, directions), strict=True):
            _module().spread_tangent(*operands, own.numpy(), **_machine())
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.formula = _composed_tangent
        _keep(ctx, inputs)


def _keep(ctx: Any, inputs: tuple[Any, ...]) -> None:
    ctx.parts, *tensors = inputs
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _convolved(x: Tensor, taps: Tensor) -> Tensor:
    return F.conv2d(x.permute(0, 3, 1, 2), taps, padding=1, groups=taps.shape[0]).permute(0, 2, 3, 1)


def _halves(points: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    return points[: len(points) // 2], points[len(points) // 2 :]


def _empty_parts(parts: int, x: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(*x.shape[:3], x.shape[3] // parts) for _ in range(parts))


def _operands(parts: int, points: Sequence[Tensor]) -> tuple[list[list[Any]], list[list[Any]]]:
    """Arrays of the inputs and of the taps, a list of each for every part."""
    inputs, taps = _halves(points)
    whole, whole_taps = [_even(x) for x in inputs], [own.contiguous() for own in taps]
    if parts == 1:
        return [_arrays(whole)], [_arrays(whole_taps)]
    x_parts = zip(*(x.chunk(parts, dim=-1) for x in whole), strict=True)
    taps_parts = zip(*(own.chunk(parts) for own in whole_taps), strict=True)
    return [_arrays(part) for part in x_parts], [_arrays(part) for part in taps_parts]


def _arrays(tensors: Sequence[Tensor]) -> list[Any]:
    return [tensor.detach().numpy() for tensor in tensors]


def _even(x: Tensor) -> Tensor:
    """Features as the kernels take them: pixels at one distance from each other, each with consecutive channels."""
    _, height, width, channels = x.shape
    picture, row, column, channel = x.stride()
    even = picture == height * row and row == width * column and column >= channels and channel == 1
    return x if even else x.contiguous()


def _materialised(along: Sequence[Tensor | None], points: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(torch.zeros_like(point) if one is None else one for one, point in zip(along, points, strict=True))


def _machine() -> dict[str, Any]:
    return {"threads": torch.get_num_threads(), "isa": _isa()}


# Looked up once: a step calls the kernels more than a hundred times.
@cache
def _isa() -> str:
    isa, usable = chosen_isa(), _module().isas()
    if isa and isa not in usable:
        raise UsageError(
            f"expected {ISA_VARIABLE} to be one of {', '.join(usable)} for training, got {isa!r}; set one of them."
        )
    return isa


@cache
def _module() -> Any:
    try:
        return load_module()
    except ImportError:
        return None
