"""The update rules of ReFusion's training as pure functions: tensors in, tensors out, nothing changed in place.

Three networks take part: F_theta fuses, P_phi proposes the weights of the fusion loss, R_rho reconstructs the sources.

- Inner update: ``theta' = theta - a dL_f(F_theta, w_phi) / dtheta`` on the meta-train batch (``inner_step``).
- Outer update: phi moves against ``dL_r(R_rho(F_theta')) / dphi`` on the meta-test batch (``meta_gradient``). Other terms may
  join L_r or take its place (``outer_objective``).
- Fusion and reconstruction update: theta moves against ``dL_f / dtheta`` (``fusion_gradient``), rho against
  ``dL_r / drho`` on the current fused plane (``reconstruction_gradient``).

The outer gradient does not need a second-order graph. P enters the fusion loss only through weights that do not depend
on F, so with f = F_theta on meta-train and J its Jacobian in theta

    dL_r(theta') / dphi = -a d/dphi < dL_f/df (f, w_phi), J v >,    v = dL_r / dtheta'

where f and J v are constants: J v is one forward-mode product, and only the loss itself is differentiated twice. This
is the exact gradient, not a first-order approximation; without the mixed derivative, nothing would remain.

Source:
    Bai et al., "ReFusion: Learning Image Fusion from Reconstruction with Learnable Loss via Meta-Learning", IJCV 2024.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from refusion_edge.errors import UsageError
from refusion_edge.network.fast_module import swapped
from refusion_edge.train.layers import Parameters
from refusion_edge.train.losses import (
    GradientTerm,
    IntensityTerm,
    LossWeights,
    ReconstructionLoss,
    TeacherSettings,
    fusion_loss,
    reconstruction_loss,
    teacher_loss,
)
from refusion_edge.train.outer import OuterSettings, visible_loss
from refusion_edge.train.targets import Targets

Engine = Literal["exact", "exact-fd", "pixel", "double", "off"]
"""``exact``: forward-mode product. ``exact-fd``: the same product by a central difference of F, for an F without a
forward-mode rule. ``pixel``: the fused pixels move instead of theta, another and less noisy objective. ``double``: the
definition, by a second-order graph. ``off``: P stays at its prior."""

Average: TypeAlias = Callable[[Parameters], Parameters]
"""Mean of tensors over all ranks."""

# Step of the central difference in units of the norm of theta; larger steps suffer from curvature, smaller ones from rounding.
_DIFFERENCE_STEP = {torch.float32: 1e-4, torch.float64: 1e-6}


def alone(tensors: Parameters) -> Parameters:
    """The mean over one rank."""
    return tensors


@dataclass(frozen=True, slots=True)
class Networks:
    """The three networks as functions of their parameters.

    Attributes:
        fuse: ``(theta, first, second)`` to the fused plane; for ``fast``, the statistics may follow.
        propose: ``(phi, a, b)`` to the weights of [(A, B), (B, A)].
        reconstruct: ``(rho, fused)`` to both sources by modality.
        fuse_forward_mode: As ``fuse``, able to run under ``torch.func.jvp``, which a compiled function may not support.
        reconstructs: Whether R is trained.
    """

    fuse: Callable[..., Tensor]
    propose: Callable[[Mapping[str, Tensor], Tensor, Tensor], LossWeights]
    reconstruct: Callable[[Mapping[str, Tensor], Tensor], tuple[Tensor, Tensor]]
    fuse_forward_mode: Callable[..., Tensor]
    reconstructs: bool = True


@dataclass(frozen=True, slots=True)
class Batch:
    """B pairs in both orders, so that no network learns which input is which: [(A, B), (B, A)].

    What F, P and the fusion loss see follows the order; what R has to reconstruct follows the modality.

    Attributes:
        first: First input of F, (2B, 1, H, W): A, which may be shifted, then B.
        second: Second input of F: B, then A.
        a: Source a, (2B, 1, H, W), repeated.
        b: Source b, repeated.
        figures: Statistics of the images in the order that F sees, (2B, 8); None for those of the crops.
        taught: What a teacher makes of the order (A, B), repeated: F is to give it in either order; None without one.
        targets: What the loss compares the result with, (B, 1, H, W) each; None for the sources and the teacher themselves.
    """

    first: Tensor
    second: Tensor
    a: Tensor
    b: Tensor
    figures: Tensor | None = None
    taught: Tensor | None = None
    targets: Targets | None = None

    @classmethod
    def in_both_orders(
        cls,
        a: Tensor,
        b: Tensor,
        figures: Tensor | None = None,
        taught: Tensor | None = None,
        targets: Targets | None = None,
        seen_a: Tensor | None = None,
    ) -> Batch:
        """Make the batch from both sources, each (B, 1, H, W).

        Args:
            a: Source a.
            b: Source b.
            figures: Statistics of the order (A, B).
            taught: The teacher's result; if there are targets, theirs takes its place.
            targets: What the loss compares the result with.
            seen_a: Source a as F sees it, if that is not the one to compare with.
        """
        if targets is not None:
            taught = targets.taught
        seen_a = a if seen_a is None else seen_a
        return cls(
            torch.cat((seen_a, b)),
            torch.cat((b, seen_a)),
            torch.cat((a, a)),
            torch.cat((b, b)),
            None if figures is None else torch.cat((figures, swapped(figures))),
            None if taught is None else torch.cat((taught, taught)),
            targets,
        )

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Inputs of F."""
        return (self.first, self.second) if self.figures is None else (self.first, self.second, self.figures)

    @property
    def compared(self) -> tuple[Tensor, Tensor]:
        """What the loss compares the result with for source a and source b, (B, 1, H, W) each; P weighs the two."""
        if self.targets is not None:
            return self.targets.a, self.targets.b
        pairs = len(self.a) // 2
        return self.a[:pairs], self.b[:pairs]


@dataclass(frozen=True, slots=True)
class FusionObjective:
    """The fusion loss L_f at one moment of a run.

    Attributes:
        term: Gradient term.
        coefficient: Its factor.
        intensity: Intensity term.
        lesson: How a teacher takes part.
    """

    term: GradientTerm
    coefficient: float
    intensity: IntensityTerm = "squared"
    lesson: TeacherSettings = field(default_factory=TeacherSettings)

    def __call__(self, fused: Tensor, batch: Batch, weights: LossWeights) -> Tensor:
        """Evaluate the loss of a fused batch."""
        a, b = batch.compared
        emphasis = None if batch.targets is None else torch.cat((batch.targets.weight, batch.targets.weight))
        loss = fusion_loss(
            fused, torch.cat((a, b)), torch.cat((b, a)), weights, self.coefficient, self.term, self.intensity, emphasis=emphasis
        )
        if batch.taught is None:
            return loss
        return self.lesson.loss * loss + teacher_loss(fused, batch.taught, self.lesson, emphasis)


@dataclass(frozen=True, slots=True)
class MetaRule:
    """How the outer gradient is taken.

    Attributes:
        engine: One of ``Engine``.
        inner_rate: Step a of the inner update.
        adapt_reconstruction: Whether R also takes an inner step before it evaluates.
        centered: Whether the mean of J v over each image, a plain shift of brightness, is left out. Changes the
            objective.
        outer: What the outer update lowers.
    """

    engine: Engine
    inner_rate: float
    adapt_reconstruction: bool = False
    centered: bool = False
    outer: OuterSettings = field(default_factory=OuterSettings)


@dataclass(frozen=True, slots=True)
class FusionGradient:
    """F on a batch, and the gradient of theta.

    Attributes:
        fused: Fused planes, (2B, 1, H, W), detached.
        loss: L_f, scalar.
        gradient: dL_f / dtheta, mean over all ranks.
    """

    fused: Tensor
    loss: Tensor
    gradient: Parameters


@dataclass(frozen=True, slots=True)
class ReconstructionGradient:
    """The loss of R on a batch, and the gradient of rho.

    Attributes:
        loss: Both terms of L_r.
        gradient: dL_r / drho, mean over all ranks.
    """

    loss: ReconstructionLoss
    gradient: Parameters


@dataclass(frozen=True, slots=True)
class MetaGradient:
    """The gradient of phi.

    Attributes:
        loss: The outer objective, L_r by default, on the meta-test batch after the inner update, scalar.
        gradient: Its gradient divided by the inner rate (a factor that normalizing optimizers
            ignore; without it the numbers stay clear of underflow), mean over all ranks.
        constant_share: Part of the energy of J v that is one constant per image, [0, 1].
    """

    loss: Tensor
    gradient: Parameters
    constant_share: Tensor


def fusion_gradient(
    networks: Networks,
    theta: Parameters,
    batch: Batch,
    weights: LossWeights,
    objective: FusionObjective,
    average: Average = alone,
) -> FusionGradient:
    """Differentiate the fusion loss with respect to theta, with constant weights."""
    leaves = _leaves(theta)
    fused = networks.fuse(leaves, *batch.inputs)
    loss = objective(fused, batch, weights.detach())
    return FusionGradient(fused.detach(), loss.detach(), average(_gradient(loss, leaves)))


def reconstruction_gradient(
    networks: Networks, rho: Parameters, fused: Tensor, batch: Batch, average: Average = alone
) -> ReconstructionGradient:
    """Differentiate the reconstruction loss with respect to rho, with a constant fused plane."""
    leaves = _leaves(rho)
    loss = reconstruction_loss(*networks.reconstruct(leaves, fused.detach()), batch.a, batch.b)
    gradient = average(_gradient(loss.total, leaves))
    return ReconstructionGradient(ReconstructionLoss(loss.intensity.detach(), loss.gradient.detach()), gradient)


def inner_step(parameters: Parameters, gradient: Parameters, rate: float) -> Parameters:
    """``theta' = theta - a dL/dtheta`` as new tensors."""
    return {name: tensor - rate * gradient[name] for name, tensor in parameters.items()}


def meta_gradient(
    networks: Networks,
    theta: Parameters,
    phi: Parameters,
    rho: Parameters,
    train: Batch,
    test: Batch,
    weights: LossWeights,
    inner: FusionGradient,
    objective: FusionObjective,
    rule: MetaRule,
    average: Average = alone,
) -> MetaGradient:
    """Differentiate the outer objective after the inner update with respect to phi.

    Args:
        networks: The three networks.
        theta: Parameters of F.
        phi: Parameters of P, leaves that require gradients.
        rho: Parameters of R.
        train: Meta-train batch.
        test: Meta-test batch.
        weights: What P proposes for ``train``, with the graph that leads to ``phi``.
        inner: ``fusion_gradient`` of ``train`` with these weights.
        objective: The fusion loss.
        rule: Engine, inner rate and switches.
        average: Mean over all ranks. Applied to the inner gradient, v and the outer gradient, it makes several ranks
            equivalent to one rank on the joint batch.

    Raises:
        UsageError: The engine is ``off``, which has no gradient.
    """
    if rule.adapt_reconstruction:
        rho = inner_step(rho, reconstruction_gradient(networks, rho, inner.fused, train, average).gradient, rule.inner_rate)
    if rule.engine == "double":
        return _by_double_backward(networks, theta, phi, rho, train, test, weights, objective, rule, average)
    if rule.engine == "pixel":
        loss, tangent = _pixel_tangent(networks, rho, train, weights, inner, objective, rule)
    elif rule.engine == "off":
        raise UsageError("the engine 'off' has no meta-gradient", "choose exact")
    else:
        ahead = _leaves(inner_step(theta, inner.gradient, rule.inner_rate))
        loss = outer_objective(networks, rho, networks.fuse(ahead, *test.inputs), test, rule.outer)
        v = average(_gradient(loss, ahead))
        product = forward_product if rule.engine == "exact" else difference_product
        tangent = product(networks, theta, v, train)
    constant = tangent.mean(dim=(1, 2, 3), keepdim=True)
    share = constant.square().mean() / tangent.square().mean().clamp(min=torch.finfo(tangent.dtype).tiny)
    if rule.centered:
        tangent = tangent - constant
    fused = inner.fused.clone().requires_grad_()
    (slope,) = torch.autograd.grad(objective(fused, train, weights), fused, create_graph=True)
    gradient = _gradient(-(slope * tangent).sum(), phi)
    return MetaGradient(loss.detach(), average(gradient), share)


def outer_objective(networks: Networks, rho: Parameters, fused: Tensor, batch: Batch, settings: OuterSettings) -> Tensor:
    """Evaluate what the outer update lowers: L_r and the terms of ``refusion_edge.train.outer``, by their factors.

    Args:
        networks: R is asked only if L_r counts.
        rho: Parameters of R.
        fused: Fused planes of ``batch``, (2B, 1, H, W).
        batch: What was fused.
        settings: Factors.

    Returns:
        Scalar.
    """
    loss = visible_loss(fused, batch.a, batch.b, settings)
    if not settings.reconstruction:
        return loss
    return loss + settings.reconstruction * reconstruction_loss(*networks.reconstruct(rho, fused), batch.a, batch.b).total


def forward_product(networks: Networks, theta: Parameters, v: Parameters, batch: Batch) -> Tensor:
    """J v by forward-mode differentiation of F, (2B, 1, H, W)."""
    with warnings.catch_warnings():
        # On first use torch 2.13 loads its own rules through torch.jit, which it deprecates.
        warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
        product: Tensor = torch.func.jvp(lambda p: networks.fuse_forward_mode(p, *batch.inputs), (theta,), (v,))[1]
    return product.detach()


def difference_product(networks: Networks, theta: Parameters, v: Parameters, batch: Batch) -> Tensor:
    """J v by a central difference of F along v, (2B, 1, H, W)."""
    norm = _norm(v)
    if norm == 0:
        return torch.zeros_like(batch.first)
    step = _DIFFERENCE_STEP[batch.first.dtype] * _norm(theta) / norm
    with torch.no_grad():
        above = networks.fuse(inner_step(theta, v, -float(step)), *batch.inputs)
        below = networks.fuse(inner_step(theta, v, float(step)), *batch.inputs)
    return (above - below) / (2 * step)


def _pixel_tangent(
    networks: Networks,
    rho: Parameters,
    train: Batch,
    weights: LossWeights,
    inner: FusionGradient,
    objective: FusionObjective,
    rule: MetaRule,
) -> tuple[Tensor, Tensor]:
    """L_r and dL_r / df' where the pixels of f take the inner step themselves, so that J is the identity."""
    fused = inner.fused.clone().requires_grad_()
    (slope,) = torch.autograd.grad(objective(fused, train, weights.detach()), fused)
    ahead = (fused - rule.inner_rate * slope).detach().requires_grad_()
    loss = outer_objective(networks, rho, ahead, train, rule.outer)
    (tangent,) = torch.autograd.grad(loss, ahead)
    return loss, tangent


def _by_double_backward(
    networks: Networks,
    theta: Parameters,
    phi: Parameters,
    rho: Parameters,
    train: Batch,
    test: Batch,
    weights: LossWeights,
    objective: FusionObjective,
    rule: MetaRule,
    average: Average,
) -> MetaGradient:
    """The definition: a graph through the inner update, differentiated as a whole. One rank only."""
    leaves = _leaves(theta)
    loss = objective(networks.fuse(leaves, *train.inputs), train, weights)
    gradients = torch.autograd.grad(loss, tuple(leaves.values()), create_graph=True)
    ahead = inner_step(leaves, dict(zip(leaves, gradients, strict=True)), rule.inner_rate)
    outer = outer_objective(networks, rho, networks.fuse(ahead, *test.inputs), test, rule.outer)
    return MetaGradient(outer.detach(), average(_gradient(outer / rule.inner_rate, phi)), torch.zeros_like(outer))


def _leaves(parameters: Parameters) -> Parameters:
    return {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}


def _gradient(loss: Tensor, parameters: Parameters) -> Parameters:
    # Zeros instead of an error for unused parameters: with the term signed-max, half of P has no effect.
    gradients = torch.autograd.grad(loss, tuple(parameters.values()), materialize_grads=True)
    return dict(zip(parameters, gradients, strict=True))


def _norm(parameters: Parameters) -> Tensor:
    return torch.stack([tensor.square().sum() for tensor in parameters.values()]).sum().sqrt()
