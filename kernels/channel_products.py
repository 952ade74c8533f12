"""What attention between channels needs of its queries and keys, as one node of the graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


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
    gram, q_squares, k_squares = _ChannelProducts.apply(q, k)
    return gram, q_squares, k_squares


class _ChannelProducts(torch.autograd.Function):
    @staticmethod
    def forward(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return q.transpose(1, 2) @ k, q.square().sum(dim=1), k.square().sum(dim=1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, gram: Tensor, q_squares: Tensor, k_squares: Tensor) -> tuple[Tensor, Tensor]:
        q, k = ctx.saved_tensors
        # Sums over a picture stay in the precision of the forward pass, also where autocast would choose bf16.
        with torch.autocast(q.device.type, enabled=False):
            by_q = (k @ gram.transpose(1, 2)).addcmul_(q, 2 * q_squares[:, None])
            by_k = (q @ gram).addcmul_(k, 2 * k_squares[:, None])
        return by_q, by_k

    @staticmethod
    def jvp(ctx: Any, along_q: Tensor, along_k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k = ctx.saved_tensors
        gram = along_q.transpose(1, 2) @ k + q.transpose(1, 2) @ along_k
        return gram, 2 * (q * along_q).sum(dim=1), 2 * (k * along_k).sum(dim=1)
