"""The schedule of a run, and the optimizers that update the parameters.

Progress, in [0, 1], is the share of the steps or of the time that has passed, whichever is larger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from refusion_edge.train.layers import Parameters
from refusion_edge.train.settings import LossSettings, MetaSettings, OptimizerSettings, RunSettings


@dataclass(frozen=True, slots=True)
class Action:
    """What a step does.

    Attributes:
        meta: A meta cycle: inner update, outer gradient.
        update: An update of F and R.
    """

    meta: bool
    update: bool


def action_at(meta: MetaSettings, step: int, progress: float, *, learning: bool) -> Action:
    """Decide what a step does.

    Args:
        meta: Settings of the learning of P.
        step: Number of the step, from 0.
        progress: Share of the run that has passed.
        learning: Whether P may learn; False once a guard has frozen it.
    """
    if meta.engine == "off" or not learning or progress < meta.warm_up:
        return Action(meta=False, update=True)
    if meta.phase:
        in_meta_phase = step % (2 * meta.phase) < meta.phase
        return Action(meta=in_meta_phase, update=not in_meta_phase)
    return Action(meta=step % meta.every == 0, update=True)


def learning_factor(settings: OptimizerSettings, step: int, progress: float) -> float:
    """Factor of all learning rates, (0, 1]."""
    rise = min(1.0, (step + 1) / settings.warm_up_steps) if settings.warm_up_steps else 1.0
    if settings.schedule == "steps":
        return rise * settings.decay ** math.floor(progress / settings.decay_every)
    return rise * (settings.floor + (1 - settings.floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def gradient_coefficient(settings: LossSettings, progress: float) -> float:
    """Factor of the gradient term."""
    risen = min(1.0, progress / settings.coefficient_rise)
    return settings.coefficient * (settings.coefficient_start + (1 - settings.coefficient_start) * risen)


def crop_at(run: RunSettings, progress: float) -> int:
    """Side of the crops, in pixels."""
    return run.late_crop_px if progress >= run.late_from else run.crop_px


def average_decay(settings: OptimizerSettings, run: RunSettings, step: int) -> float:
    """Decay of the moving average of theta; shorter at first, to forget the random initialization."""
    longest = min(settings.ema, 0.99) if run.steps < 1000 else settings.ema
    return min(longest, (1 + step) / (10 + step))


class MaxNormalized(Optimizer):
    """Steps against the gradient divided by its largest entry over all parameters: no entry moves by more than the rate.

    Source:
        The outer update of ReFusion's public derivatives (C3SM, TDFusion).
    """

    def __init__(self, parameters: Iterable[Tensor], lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Take one step; a zero gradient changes nothing."""
        for group in self.param_groups:
            moved = [tensor for tensor in group["params"] if tensor.grad is not None]
            largest = max((tensor.grad.abs().max() for tensor in moved), default=None)
            if largest is not None and largest > 0:
                for tensor in moved:
                    tensor.sub_(tensor.grad / largest, alpha=group["lr"])


def adamw(parameters: Parameters) -> AdamW:
    """Optimizer of F and of R."""
    return AdamW(parameters.values(), weight_decay=0.0, fused=True)


def outer_optimizer(phi: Parameters, settings: MetaSettings) -> Optimizer:
    """Optimizer of P."""
    if settings.optimizer == "max-normalized":
        return MaxNormalized(phi.values(), lr=settings.learning_rate)
    return AdamW(phi.values(), betas=settings.betas, eps=settings.eps, weight_decay=0.0, fused=True)


def clipped(gradient: Parameters, limit: float) -> Parameters:
    """Shorten a gradient to a norm of at most ``limit``, all tensors together; 0 for no limit."""
    norm = torch.nn.utils.get_total_norm(gradient.values())
    if not limit or norm <= limit:
        return gradient
    return {name: tensor * (limit / norm) for name, tensor in gradient.items()}


def without_frozen(gradient: Parameters, frozen: tuple[str, ...]) -> Parameters:
    """A gradient that is zero for the parameters whose names begin with one of ``frozen``."""
    return {name: torch.zeros_like(tensor) if name.startswith(frozen) else tensor for name, tensor in gradient.items()}


def apply(optimizer: Optimizer, parameters: Parameters, gradient: Parameters, rate: float) -> None:
    """Update parameters in place, given a gradient."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    for name, tensor in parameters.items():
        # A convolution of channels-last features returns its gradient in that layout, and torch's fused AdamW takes the memory
        # of parameter and gradient in the same order, whatever their strides are.
        tensor.grad = gradient[name].contiguous()
    optimizer.step()
    for tensor in parameters.values():
        tensor.grad = None
