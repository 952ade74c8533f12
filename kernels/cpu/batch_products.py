"""Matrix products over the pixels of each image in a batch: what attention between channels is made of in training.

    multiply:          y = x W^T + factors * added
    inner_products:    a^T b
    dot_products:      the diagonal of a^T b
    channel_products:  q^T k, and the squared norms of the channels of q and of k

Each is differentiable any number of times and in forward mode, because the derivatives of each are made of the others. The
compiled kernels compute them in fp32 on a CPU; elsewhere torch does, by ``_multiplied`` and ``_summed``, the references.

``train.layers`` uses them; for inference, the C++ kernels of the whole network do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from refusion_edge.kernels.cpu.features import array, compiled_module, even, machine, plus, suits_kernels


def multiply(x: Tensor, weights: Tensor, added: Tensor | None = None, factors: Tensor | None = None) -> Tensor:
    """``x W^T + factors * added`` of each image.

    Args:
        x: (B, L, C) with L pixels, floating.
        weights: W, (B, C', C), same dtype.
        added: (B, L, C').
        factors: One for each channel, (B, C'); needs ``added``; absent: 1.

    Returns:
        (B, L, C').

    Raises:
        ValueError: There are factors but nothing to multiply by them.
    """
    if factors is not None and added is None:
        raise ValueError("factors without added: pass both, or neither")
    # Dynamo breaks its graph at every function that has a forward mode of its own.
    if torch.compiler.is_compiling():
        return _multiplied(x, weights, added, factors)
    y: Tensor = _Multiply.apply(x, weights, added, factors)
    return y


def inner_products(a: Tensor, b: Tensor) -> Tensor:
    """``a^T b`` of each image: (B, L, C) and (B, L, C') to (B, C, C')."""
    return _pixel_sums(False, a, b)


def dot_products(a: Tensor, b: Tensor) -> Tensor:
    """The sum of ``a * b`` over the pixels of each image, channel by channel: both (B, L, C); returns (B, C)."""
    return _pixel_sums(True, a, b)


def channel_products(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Multiply the channels of two features with each other and with themselves, over the whole image.

    The gradient takes one product and one multiply-add for each of q and k, where autograd would take two more passes
    for the squares and one to add both parts. Differentiable any number of times, and in forward mode.

    Args:
        q: Queries, (B, L, C) with L pixels, fp32 or wider.
        k: Keys, same shape and dtype.

    Returns:
        ``q^T k``, (B, C, C), and the sums of squares of the channels of q and of k, each (B, C).
    """
    # Dynamo breaks its graph at every function that has a forward mode of its own.
    if torch.compiler.is_compiling():
        return inner_products(q, k), dot_products(q, q), dot_products(k, k)
    gram, q_squares, k_squares = _ChannelProducts.apply(q, k)
    return gram, q_squares, k_squares


def _pixel_sums(channelwise: bool, a: Tensor, b: Tensor) -> Tensor:
    if torch.compiler.is_compiling():
        return _summed(channelwise, a, b)
    sums: Tensor = _PixelSums.apply(channelwise, a, b)
    return sums


def _multiplied(x: Tensor, weights: Tensor, added: Tensor | None, factors: Tensor | None) -> Tensor:
    y = x @ weights.transpose(1, 2)
    return plus(y, added) if added is None or factors is None else y.addcmul_(added, factors[:, None])


def _summed(channelwise: bool, a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=1) if channelwise else a.transpose(1, 2) @ b


class _Multiply(Function):
    @staticmethod
    def forward(x: Tensor, weights: Tensor, added: Tensor | None, factors: Tensor | None) -> Tensor:
        given = [tensor for tensor in (x, weights, added, factors) if tensor is not None]
        if not suits_kernels(*given):
            return _multiplied(x, weights, added, factors)
        y = x.new_empty(*x.shape[:2], weights.shape[1])
        own_added = None if added is None else array(even(added))
        own_factors = None if factors is None else array(factors.contiguous())
        compiled_module().multiply(array(even(x)), array(weights.contiguous()), own_added, own_factors, y.numpy(), **machine())
        return y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _keep(ctx, inputs)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, weights, added, factors = ctx.saved_tensors
        by_added = slope if factors is None else slope * factors[:, None]
        by_factors = None if factors is None else dot_products(slope, added)
        return (
            multiply(slope, weights.transpose(1, 2)),
            inner_products(slope, x),
            None if added is None else by_added,
            by_factors,
        )

    @staticmethod
    def jvp(
        ctx: Any, x_along: Tensor | None, weights_along: Tensor | None, added_along: Tensor | None, factors_along: Tensor | None
    ) -> Tensor:
        x, weights, added, factors = ctx.saved_tensors
        moved = None if factors_along is None else added * factors_along[:, None]
        if added_along is not None:
            own = added_along if factors is None else added_along * factors[:, None]
            moved = own if moved is None else moved + own
        if x_along is not None:
            moved = multiply(x_along, weights, moved)
        return _require_tangent(moved) if weights_along is None else multiply(x, weights_along, moved)


class _PixelSums(Function):
    """Sums over pixels of the products of all channels with all, or of each channel with its own."""

    @staticmethod
    def forward(channelwise: bool, a: Tensor, b: Tensor) -> Tensor:
        if not suits_kernels(a, b):
            return _summed(channelwise, a, b)
        sums = a.new_empty(*a.shape[::2]) if channelwise else a.new_empty(*a.shape[::2], b.shape[2])
        module = compiled_module()
        kernel = module.dot_products if channelwise else module.inner_products
        kernel(array(even(a)), array(even(b)), sums.numpy(), **machine())
        return sums

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.channelwise, *factors = inputs
        _keep(ctx, factors)

    @staticmethod
    def backward(ctx: Any, slopes: Tensor) -> tuple[None, Tensor, Tensor]:
        a, b = ctx.saved_tensors
        if ctx.channelwise:
            return None, slopes[:, None] * b, slopes[:, None] * a
        return None, multiply(b, slopes), multiply(a, slopes.transpose(1, 2))

    @staticmethod
    def jvp(ctx: Any, _: None, a_along: Tensor | None, b_along: Tensor | None) -> Tensor:
        a, b = ctx.saved_tensors
        product = dot_products if ctx.channelwise else inner_products
        by_a = None if a_along is None else product(a_along, b)
        by_b = None if b_along is None else product(a, b_along)
        return _require_tangent(by_a if by_b is None else by_b) if by_a is None or by_b is None else by_a + by_b


class _ChannelProducts(Function):
    @staticmethod
    def forward(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return inner_products(q, k), dot_products(q, q), dot_products(k, k)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gram: Tensor, q_squares: Tensor, k_squares: Tensor) -> tuple[Tensor, Tensor]:
        q, k = ctx.saved_tensors
        # Sums over an image stay in the precision of the forward pass, also where autocast would choose bf16.
        with torch.autocast(q.device.type, enabled=False):
            return multiply(k, gram, q, 2 * q_squares), multiply(q, gram.transpose(1, 2), k, 2 * k_squares)

    @staticmethod
    def jvp(ctx: Any, along_q: Tensor, along_k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k = ctx.saved_tensors
        gram = inner_products(along_q, k) + inner_products(q, along_k)
        return gram, 2 * dot_products(q, along_q), 2 * dot_products(k, along_k)


def _keep(ctx: Any, inputs: Sequence[Any]) -> None:
    ctx.save_for_backward(*inputs)
    ctx.save_for_forward(*inputs)


def _require_tangent(tangent: Tensor | None) -> Tensor:
    if tangent is None:
        raise RuntimeError("forward mode needs a tangent of at least one input")
    return tangent
