"""Layer norm and channel attention, the two building blocks with statistics over pixels or channels."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-5


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Normalize each pixel over its channels, then scale and shift.

    ``y[:, c] = (x[:, c] - mean) / sqrt(var + 1e-5) * weight[c] + bias[c]`` with the mean and the population
    variance taken over the C channels of one pixel.

    Args:
        x: (B, C, H, W), any floating dtype. The statistics are taken in fp32 at least.
        weight: (C,), dtype of ``x``.
        bias: (C,), dtype of ``x``.

    Returns:
        (B, C, H, W), dtype of ``x``.

    Source:
        Restormer (Zamir et al., CVPR 2022), the layer norm with bias; ReFusion uses it unchanged.
    """
    # Sums of squares exceed the range of fp16 long before the result does.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centered = wide - wide.mean(dim=1, keepdim=True)
    variance = (centered * centered).mean(dim=1, keepdim=True)
    normalized = (centered / torch.sqrt(variance + EPSILON)).to(x.dtype)
    return normalized * weight[:, None, None] + bias[:, None, None]


NORM_FLOOR = 1e-12


def channel_attention(q: Tensor, k: Tensor, v: Tensor, temperature: Tensor, *, means: bool = False) -> Tensor:
    """Mix the channels of ``v``, head by head, by the similarity of those of ``q`` and ``k`` over the image.

    Per head, with D = C / N channels: ``A = softmax(temperature * q k^T / (|q| |k|^T))``, ``y = A v``. The norms
    run over all H*W pixels of a channel; those of a row are clamped below at 1e-12.

    Args:
        q: Queries, (B, C, H, W), any floating dtype. Channels of one head are consecutive.
        k: Keys, same shape and dtype.
        v: Values, same shape and dtype.
        temperature: One factor per head, (N, 1, 1).
        means: See ``mixing_weights``.

    Returns:
        (B, C, H, W), dtype of ``v``.

    Source:
        Restormer (Zamir et al., CVPR 2022), multi-Dconv head transposed attention; crossed between the two
        sources in ReFusion's fusion module.
    """
    attention = mixing_weights(q, k, temperature, means=means)
    return (attention.to(v.dtype) @ v.flatten(2)).reshape(v.shape)


def mixing_weights(q: Tensor, k: Tensor, temperature: Tensor, *, means: bool = False) -> Tensor:
    """Compute the attention matrix of ``channel_attention``, for all heads in one matrix.

    Computed as one C x C product of which only the diagonal D x D blocks are used: a matrix product of this shape sums
    a million pixels more accurately than eight of shape D x D, which matters for images of that size. The norms divide
    the product instead of the vectors of length H*W, which gives the same result for a fraction of the work.

    Args:
        q: Queries, (B, C, H, W), any floating dtype.
        k: Keys, same shape and dtype.
        temperature: One factor per head, (N, 1, 1).
        means: Whether, in half precision, q and k are divided by sqrt(H*W) first, which the norms cancel. The product is then
            a mean over the image and stays in fp16; otherwise it is a sum, in fp32 at least.

    Returns:
        (B, C, C), zero outside the diagonal blocks, fp32 or the wider dtype of ``q``.
    """
    num_heads, channels = temperature.shape[0], q.shape[1]
    head_dim = channels // num_heads
    # Norms, products and softmax in fp32 at least: a sum of squares over an image reaches 1e6, while fp16 ends at 65504.
    wide = torch.promote_types(q.dtype, torch.float32)
    if means and q.dtype == torch.float16:
        factor = (q.shape[2] * q.shape[3]) ** -0.5
        q, k = q * factor, k * factor
        gram = (q.flatten(2) @ k.flatten(2).transpose(-2, -1)).to(wide)
        q, k = q.to(wide), k.to(wide)
    else:
        q, k = q.to(wide), k.to(wide)
        gram = q.flatten(2) @ k.flatten(2).transpose(-2, -1)
    row_temperature = temperature.to(wide).expand(num_heads, head_dim, 1).reshape(channels, 1)
    scores = gram / (_norms(q) * _norms(k).transpose(-2, -1)) * row_temperature

    head = torch.arange(channels, device=q.device) // head_dim
    attention: Tensor = scores.masked_fill(head[:, None] != head[None, :], float("-inf")).softmax(dim=-1)
    return attention


def _norms(x: Tensor) -> Tensor:
    """L2 norm of each channel over the image: (B, C, H, W) to (B, C, 1)."""
    # Row by row: engines that add up one by one lose two digits in a sum over millions of pixels. The rows are clamped instead
    # of their sum, because some optimizers merge consecutive sums. Without a clamp, the gradient of the root at 0, for a
    # channel of a black image, would be NaN.
    rows = (x * x).sum(dim=-1).clamp(min=NORM_FLOOR**2)
    return rows.sum(dim=-1, keepdim=True).sqrt()
