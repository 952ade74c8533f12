"""1x1 convolutions with the channels innermost: plain matrix products."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def pointwise(x: Tensor, weight: Tensor, residual: Tensor | None = None) -> Tensor:
    """1x1 convolution, and the residual it is added to.

    Args:
        x: (B, H, W, C), floating.
        weight: (C', C, 1, 1).
        residual: (B, H, W, C'). The convolution must depend on whatever the residual depends on: see ``plus``.

    Returns:
        (B, H, W, C').
    """
    if x.device.type == "cpu" and x.dtype == torch.float32:
        # oneDNN multiplies matrices as narrow as these faster than BLAS does. On one thread torch gives it a 1x1 kernel only
        # where that is dilated, which makes no difference to a 1x1 kernel.
        planes = F.conv2d(x.permute(0, 3, 1, 2), weight, dilation=2)
        return plus(planes, residual if residual is None else residual.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    return plus(F.linear(x, weight.flatten(1)), residual)


def plus(change: Tensor, residual: Tensor | None) -> Tensor:
    """``change + residual`` in the memory of ``change``: new memory is cold, and costs more.

    ``change`` must be nobody else's, no view, whose gradient would be copied twice, and, for transforms of ``torch.func``,
    a function of all that the residual is a function of.
    """
    if residual is None:
        return change
    return change.add_(residual) if change.dtype == residual.dtype else change + residual
