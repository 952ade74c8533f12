"""The building blocks of the network in training, each one node of the graph, with the channels innermost.

    expand:              y = depthwise(W norm(x))
    gated_feed_forward:  y = W_out (gelu(depthwise(W_gate norm(x))) * depthwise(W_update norm(x))) + x
    gated_sum:           the same of two inputs, without the norm, and with a residual of its own

The compiled kernels go through an image row by row. Only a few rows of each intermediate exist at a time and never leave the
caches; the gradient recomputes them. The kernels provide values, gradients and the forward mode in fp32 on a CPU; ``composed``,
the formula, does everything else, and all further derivatives.

Source:
    Restormer (Zamir et al., CVPR 2022), features of the attention and gated feed-forward; ReFusion's fusion module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from refusion_edge.kernels.cpu.features import arrays, compiled_module, even, machine, pointwise, suits_kernels
from refusion_edge.network.layers import EPSILON

# kNormChannels of the kernels.
_MOST_NORM_CHANNELS = 256

Lists: TypeAlias = tuple[list[Any], list[Any], list[Any], list[Any], list[Any], list[Any]]


@dataclass(frozen=True, slots=True)
class Form:
    """Which block to compute, and so what its points are: inputs, norm, weights, taps, weights back, residual, in this order.

    Attributes:
        inputs: 1, or 2 where each operand of a gate has its own. Each has weights, (N, C, 1, 1), and taps, (N, 1, 3, 3).
        norm: Whether the input goes through a layer norm; its weight and bias, (C,).
        operands: Depthwise convolutions: of each input one, of a single one as many as its N is cut into.
        gated: Whether the first of two operands gates the second; then there are weights back, (C', N, 1, 1).
        residual: ``input`` where the only input is added to the result; ``own`` where a last point is.
    """

    inputs: int
    norm: bool
    operands: int
    gated: bool = False
    residual: Literal["none", "input", "own"] = "none"

    @property
    def results(self) -> int:
        """Number of results."""
        return 1 if self.gated else self.operands

    def split(self, points: Sequence[Tensor]) -> tuple[list[Tensor], ...]:
        """The points kind by kind."""
        counts = (self.inputs, 2 * self.norm, self.inputs, self.inputs, int(self.gated), int(self.residual == "own"))
        rest = list(points)
        kinds = []
        for count in counts:
            kinds.append(rest[:count])
            rest = rest[count:]
        return tuple(kinds)


def expand(x: Tensor, norm: tuple[Tensor, Tensor] | None, weight: Tensor, taps: Tensor, parts: int) -> tuple[Tensor, ...]:
    """Layer norm, 1x1 convolution to more channels, depthwise 3x3 convolution, and the result cut into parts.

    Args:
        x: (B, H, W, C), floating.
        norm: Weight and bias of the norm, each (C,); None for no norm.
        weight: (parts * C', C, 1, 1).
        taps: (parts * C', 1, 3, 3); zero-padded.
        parts: Number of parts.

    Returns:
        The parts, each (B, H, W, C').

    Raises:
        UsageError: The environment asks for an instruction set that this processor lacks, or that does not compute in fp32.
    """
    return _apply(Form(1, norm is not None, parts), x, *(norm or ()), weight, taps)


def gated_feed_forward(x: Tensor, norm: tuple[Tensor, Tensor], weight: Tensor, taps: Tensor, out: Tensor) -> Tensor:
    """Layer norm, gated feed-forward and residual.

    Args:
        x: (B, H, W, C), floating.
        norm: Weight and bias of the norm, each (C,).
        weight: To the gate and to the update, (2 * N, C, 1, 1).
        taps: Of both, (2 * N, 1, 3, 3); zero-padded.
        out: (C, N, 1, 1).

    Returns:
        (B, H, W, C).

    Raises:
        UsageError: As ``expand``.
    """
    return _apply(Form(1, True, 2, True, "input"), x, *norm, weight, taps, out)[0]


def gated_sum(
    inputs: tuple[Tensor, Tensor],
    weights: tuple[Tensor, Tensor],
    taps: tuple[Tensor, Tensor],
    out: Tensor,
    residual: Tensor,
) -> Tensor:
    """Gate one input with another, project the product and add a residual.

    Args:
        inputs: What the gate and what the update is made of, (B, H, W, C) each with its own C, floating.
        weights: Of both, (N, C, 1, 1).
        taps: Of both, (N, 1, 3, 3); zero-padded.
        out: (C', N, 1, 1).
        residual: (B, H, W, C').

    Returns:
        (B, H, W, C').

    Raises:
        UsageError: As ``expand``.
    """
    return _apply(Form(2, False, 2, True, "own"), *inputs, *weights, *taps, out, residual)[0]


def composed(form: Form, *points: Tensor) -> tuple[Tensor, ...]:
    """The same functions in torch operations."""
    inputs, norm, weights, taps, out, residual = form.split(points)
    x = [F.layer_norm(inputs[0], norm[0].shape, norm[0], norm[1], EPSILON)] if norm else inputs
    if form.inputs == 1:
        # Part by part on a CPU: each lies contiguous and fits the cache better, and no gradients have to be joined.
        apart = form.gated or x[0].device.type == "cpu"
        pieces = form.operands if apart else 1
        operands = list(zip(x * pieces, weights[0].chunk(pieces), taps[0].chunk(pieces), strict=True))
    else:
        operands = list(zip(x, weights, taps, strict=True))
    spread = [_depthwise(pointwise(features, weight), own) for features, weight, own in operands]
    if not form.gated:
        return tuple(spread) if len(spread) == form.operands else spread[0].chunk(form.operands, dim=-1)
    added = inputs if form.residual == "input" else residual
    gated = F.gelu(spread[0]) * spread[1]
    return (pointwise(gated, out[0], added[0] if added else None),)


def _apply(form: Form, *points: Tensor) -> tuple[Tensor, ...]:
    narrow = not form.norm or points[0].shape[-1] <= _MOST_NORM_CHANNELS
    found: tuple[Tensor, ...] = (
        _Expansion.apply(form, *points) if narrow and suits_kernels(*points) else composed(form, *points)
    )
    return found


def _composed_gradient(form: Form, *slopes_and_points: Tensor) -> tuple[Tensor, ...]:
    """The gradient of ``composed`` by its points but an own residual, from the slopes of the results."""
    slopes, points = slopes_and_points[: form.results], slopes_and_points[form.results :]
    gradients: tuple[Tensor, ...] = torch.func.vjp(partial(composed, form), *points)[1](slopes)
    return gradients[:-1] if form.residual == "own" else gradients


def _composed_tangent(form: Form, *points_and_directions: Tensor) -> tuple[Tensor, ...]:
    """The derivative of ``composed`` at the points along the directions."""
    points, directions = _halves(points_and_directions)
    found: tuple[Tensor, ...] = torch.func.jvp(partial(composed, form), tuple(points), tuple(directions))[1]
    return found


class _Expansion(Function):
    @staticmethod
    def forward(form: Form, *points: Tensor) -> tuple[Tensor, ...]:
        y = _empty_results(form, points)
        compiled_module().expand(_lists(form, points), arrays(y), **_options(form))
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _keep(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        gradients = _ExpansionGradient.apply(ctx.form, *slopes, *ctx.saved_tensors)
        return None, *gradients, *(slopes if ctx.form.residual == "own" else ())

    @staticmethod
    def jvp(ctx: Any, _: None, *along: Tensor | None) -> tuple[Tensor, ...]:
        points = ctx.saved_tensors
        found: tuple[Tensor, ...] = _ExpansionTangent.apply(ctx.form, *points, *_materialized(along, points))
        return found


class _ByFormula(Function):
    """What the kernels compute once: its own derivatives are those of ``ctx.formula``, in operations of torch."""

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        return None, *torch.func.vjp(partial(ctx.formula, ctx.form), *ctx.saved_tensors)[1](slopes)

    @staticmethod
    def jvp(ctx: Any, _: None, *along: Tensor | None) -> tuple[Tensor, ...]:
        points = ctx.saved_tensors
        found: tuple[Tensor, ...] = torch.func.jvp(partial(ctx.formula, ctx.form), points, _materialized(along, points))[1]
        return found


class _ExpansionGradient(_ByFormula):
    @staticmethod
    def forward(form: Form, *slopes_and_points: Tensor) -> tuple[Tensor, ...]:
        slopes, points = slopes_and_points[: form.results], slopes_and_points[form.results :]
        by = points[:-1] if form.residual == "own" else points
        gradients = tuple(point.new_empty(point.shape) for point in by)
        compiled_module().expand_gradient(
            _lists(form, points), arrays([even(slope) for slope in slopes]), _lists(form, gradients), **_options(form)
        )
        return gradients

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.formula = _composed_gradient
        _keep(ctx, inputs)


class _ExpansionTangent(_ByFormula):
    @staticmethod
    def forward(form: Form, *points_and_directions: Tensor) -> tuple[Tensor, ...]:
        points, directions = _halves(points_and_directions)
        y = _empty_results(form, points)
        compiled_module().expand_tangent(_lists(form, points), _lists(form, directions), arrays(y), **_options(form))
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.formula = _composed_tangent
        _keep(ctx, inputs)


def _keep(ctx: Any, inputs: tuple[Any, ...]) -> None:
    ctx.form, *tensors = inputs
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _depthwise(x: Tensor, taps: Tensor) -> Tensor:
    return F.conv2d(x.permute(0, 3, 1, 2), taps, padding=1, groups=taps.shape[0]).permute(0, 2, 3, 1)


def _halves(points: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    return points[: len(points) // 2], points[len(points) // 2 :]


def _empty_results(form: Form, points: Sequence[Tensor]) -> tuple[Tensor, ...]:
    inputs, _, weights, _, out, _ = form.split(points)
    channels = out[0].shape[0] if form.gated else weights[0].shape[0] // form.operands
    return tuple(inputs[0].new_empty(*inputs[0].shape[:3], channels) for _ in range(form.results))


def _lists(form: Form, tensors: Sequence[Tensor]) -> Lists:
    """Points, directions or gradients as the kernels take them: kind by kind, the parameters operand by operand."""
    inputs, norm, weights, taps, out, residual = form.split(tensors)
    pieces = form.operands // form.inputs
    features = arrays([even(x) for x in inputs])
    return (
        features,
        arrays([own.contiguous() for own in norm]),
        arrays([part for own in weights for part in own.contiguous().chunk(pieces)]),
        arrays([part for own in taps for part in own.contiguous().chunk(pieces)]),
        arrays([own.contiguous() for own in out]),
        features if form.residual == "input" else arrays([even(own) for own in residual]),
    )


def _materialized(along: Sequence[Tensor | None], points: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(torch.zeros_like(point) if one is None else one for one, point in zip(along, points, strict=True))


def _options(form: Form) -> dict[str, Any]:
    return {"gated": form.gated, "residual_is_input": form.residual == "input", **machine()}
