"""Layer normalisation over the channels of every pixel."""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-5


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Normalise each pixel over its channels, then scale and shift.

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
    # Sums of squares leave the range of fp16 long before the result does.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = wide - wide.mean(dim=1, keepdim=True)
    variance = (centred * centred).mean(dim=1, keepdim=True)
    normalised = (centred / torch.sqrt(variance + EPSILON)).to(x.dtype)
    return normalised * weight[:, None, None] + bias[:, None, None]
