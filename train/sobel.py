"""Image gradients as the losses see them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def sobel(x: Tensor) -> Tensor:
    """Unnormalised 3x3 Sobel responses, zero-padded.

    Args:
        x: (B, 1, H, W).

    Returns:
        (B, 2, H, W): horizontal and vertical component, in the precision of ``x`` also under autocast.
    """
    with torch.autocast(x.device.type, enabled=False):
        horizontal = x.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
        return F.conv2d(x, torch.stack((horizontal, horizontal.T))[:, None], padding=1)


def gradient_magnitude(x: Tensor) -> Tensor:
    """Sum of the two absolute Sobel responses, (B, 1, H, W)."""
    return sobel(x).abs().sum(dim=1, keepdim=True)
