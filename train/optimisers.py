"""How the three sets of parameters move along their gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from refusion_edge.train.layers import Parameters
from refusion_edge.train.settings import MetaSettings


class MaxNormalised(Optimizer):
    """Steps along the gradient divided by its largest entry over all parameters: no entry moves by more than the rate.

    Source:
        The outer update of ReFusion's public derivatives (C3SM, TDFusion).
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take one step; a gradient of zero moves nothing."""
        for group in self.param_groups:
            moved = [tensor for tensor in group["params"] if tensor.grad is not None]
            largest = max((tensor.grad.abs().max() for tensor in moved), default=None)
            if largest is not None and largest > 0:
                for tensor in moved:
                    tensor.sub_(tensor.grad / largest, alpha=group["lr"])


def adamw(parameters: Parameters) -> AdamW:
    """Optimiser of F and of R."""
    return AdamW(parameters.values(), weight_decay=0.0, fused=True)


def outer_optimiser(phi: Parameters, settings: MetaSettings) -> Optimizer:
    """Optimiser of P."""
    if settings.optimiser == "max-normalised":
        return MaxNormalised(phi.values(), lr=settings.learning_rate)
    return AdamW(phi.values(), betas=settings.betas, eps=settings.eps, weight_decay=0.0, fused=True)


def apply(optimiser: Optimizer, parameters: Parameters, gradient: Parameters, rate: float) -> None:
    """Move parameters in place along a gradient."""
    for group in optimiser.param_groups:
        group["lr"] = rate
    for name, tensor in parameters.items():
        tensor.grad = gradient[name]
    optimiser.step()
    for tensor in parameters.values():
        tensor.grad = None
