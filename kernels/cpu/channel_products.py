"""What attention between channels needs of its queries and keys, as one node of the graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from refusion_edge.kernels.cpu.batch_products import dot_products, inner_products, multiply


def channel_products(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Multiply the channels of two features with each other and with themselves, over the whole picture.

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
        # Sums over a picture stay in the precision of the forward pass, also where autocast would choose bf16.
        with torch.autocast(q.device.type, enabled=False):
            return multiply(k, gram, q, 2 * q_squares), multiply(q, gram.transpose(1, 2), k, 2 * k_squares)

    @staticmethod
    def jvp(ctx: Any, along_q: Tensor, along_k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k = ctx.saved_tensors
        gram = inner_products(along_q, k) + inner_products(q, along_k)
        return gram, 2 * dot_products(q, along_q), 2 * dot_products(k, along_k)
