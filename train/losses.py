"""The fusion loss, parameterized by weights, and the reconstruction loss that evaluates them.

Planes are (B, 1, H, W) floating in [0, 1]. Weights are (B, 1, H, W) in [0, 1] and give the share of source a at a pixel;
source b has the rest, as in a softmax over two maps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from refusion_edge.errors import BackendError, UsageError
from refusion_edge.kernels.gpu.language import TRITON_INSTALLED, is_interpreted

Logits: TypeAlias = tuple[Tensor, Tensor]
"""Logits of source a for intensity and for gradient, each (B, 1, H, W)."""

GradientTerm = Literal["signed", "magnitude", "signed-max"]
IntensityTerm = Literal["squared", "absolute"]
LossEngine = Literal["auto", "reference", "triton"]
"""``reference``: the formula in torch operations, which autograd differentiates. ``triton``: kernels with the gradient in
the same pass and the second order in closed form. ``auto``: the kernels for planes on a CUDA device where Triton is
installed, else the reference."""

LOSS_ENGINE: LossEngine = "auto"
"""Default of ``fusion_loss``: the switch for a whole run."""


@dataclass(frozen=True, slots=True)
class LossWeights:
    """Weights of source a.

    Attributes:
        intensity: w, weight of its intensity, (B, 1, H, W), [0, 1].
        gradient: v, weight of its gradient, (B, 1, H, W), [0, 1].
    """

    intensity: Tensor
    gradient: Tensor

    @classmethod
    def from_logits(cls, logits: Logits) -> LossWeights:
        """Weights from the logits of source a; the sigmoid of a difference is the softmax over the two maps."""
        return cls(torch.sigmoid(logits[0]), torch.sigmoid(logits[1]))

    def detach(self) -> LossWeights:
        """The same weights, detached from the graph."""
        return LossWeights(self.intensity.detach(), self.gradient.detach())


def fusion_loss(
    fused: Tensor,
    a: Tensor,
    b: Tensor,
    weights: LossWeights,
    gradient_coefficient: float,
    term: GradientTerm = "signed",
    intensity: IntensityTerm = "squared",
    engine: LossEngine | None = None,
    emphasis: Tensor | None = None,
) -> Tensor:
    """Weighted distance of the fused plane to both sources, in intensity and in gradient.

    ``L_f = L_int + c L_grad``. L_int is one of

    - ``squared``, the paper's: ``mse(w (a - f)) + mse((1 - w) (b - f))``. Its optimum is a weighted mean of the sources
      wherever w is neither 0 nor 1.
    - ``absolute``: ``mean(w |a - f| + (1 - w) |b - f|)``. Its optimum is the source of larger weight itself, so
      textures are not attenuated; c settles conflicts between the two terms at a pixel.

    L_grad is one of

    - ``magnitude``, the paper's: ``mse(v (|grad a| - |grad f|)) + mse((1 - v) (|grad b| - |grad f|))``. It is
      blind to inverted contrast.
    - ``signed``: ``mean(v |grad a - grad f|_1 + (1 - v) |grad b - grad f|_1)`` on the signed Sobel responses.
    - ``signed-max``: ``mean |grad s - grad f|_1`` with s the source of larger gradient magnitude at the pixel;
      equals ``signed`` where v is 0 or 1 accordingly. The weights v have no effect on it.

    Args:
        fused: Network output f, (B, 1, H, W).
        a: Source a, same shape.
        b: Source b, same shape.
        weights: Weights w and v of source a.
        gradient_coefficient: Factor c of the gradient term.
        term: Gradient term.
        intensity: Intensity term.
        engine: How to compute it; None for ``LOSS_ENGINE``.
        emphasis: How much each pixel counts in the means, (B, 1, H, W), at least 0; 1 for all if None. Only ``reference``
            has it, and ``auto`` then chooses that.

    Returns:
        Scalar.

    Raises:
        UsageError: There is no such engine, or it has no emphasis.
        BackendError: The kernels are requested where they cannot run.

    Source:
        ReFusion's fusion loss (IJCV 2024); the signed gradient term follows TDFusion, with weights added.
    """
    w, v = weights.intensity, weights.gradient
    chosen = _choose_engine(engine or LOSS_ENGINE, fused, has_emphasis=emphasis is not None)
    if chosen == "triton":
        from refusion_edge.kernels.gpu.weighted_loss import weighted_loss

        return weighted_loss(fused, a, b, w, v, gradient_coefficient, term, "triton", intensity)
    distance = _intensity_loss(fused, a, b, w, intensity) + gradient_coefficient * _gradient_loss(fused, a, b, v, term)
    return distance.mean() if emphasis is None else (emphasis * distance).mean()


def _choose_engine(engine: LossEngine, fused: Tensor, *, has_emphasis: bool) -> LossEngine:
    if has_emphasis and engine == "triton":
        raise UsageError(
            "the loss kernels do not support emphasis", "choose the engine reference", expected="reference", got=engine
        )
    if engine == "auto" and has_emphasis:
        return "reference"
    if engine == "auto":
        return "triton" if fused.is_cuda and TRITON_INSTALLED and fused.dtype == torch.float32 else "reference"
    if engine == "triton" and not (TRITON_INSTALLED and (fused.is_cuda or is_interpreted())):
        raise BackendError(
            "the loss kernels need Triton and planes on a CUDA device; the planes are on "
            f"{fused.device}{'' if TRITON_INSTALLED else ' and Triton is not installed'}",
            "choose the engine reference, or move the run to a GPU",
            expected="cuda",
            got=fused.device.type,
        )
    if engine not in ("reference", "triton"):
        raise UsageError(
            f"there is no loss engine '{engine}'",
            "choose from auto, reference, triton",
            expected=("auto", "reference", "triton"),
            got=engine,
        )
    return engine


def _intensity_loss(fused: Tensor, a: Tensor, b: Tensor, w: Tensor, term: IntensityTerm) -> Tensor:
    """Distance at each pixel, (B, 1, H, W)."""
    if term == "absolute":
        return w * (a - fused).abs() + (1 - w) * (b - fused).abs()
    return (w * (a - fused)).square() + ((1 - w) * (b - fused)).square()


def _gradient_loss(fused: Tensor, a: Tensor, b: Tensor, v: Tensor, term: GradientTerm) -> Tensor:
    """Distance at each pixel, (B, 1, H, W)."""
    if term == "magnitude":
        magnitude = gradient_magnitude(fused)
        distance_a, distance_b = gradient_magnitude(a) - magnitude, gradient_magnitude(b) - magnitude
        return (v * distance_a).square() + ((1 - v) * distance_b).square()
    if term == "signed-max":
        v = (gradient_magnitude(a) >= gradient_magnitude(b)).to(v.dtype)
    gradient = sobel(fused)
    distance_a = (sobel(a) - gradient).abs().sum(dim=1, keepdim=True)
    distance_b = (sobel(b) - gradient).abs().sum(dim=1, keepdim=True)
    return v * distance_a + (1 - v) * distance_b


@dataclass(frozen=True, slots=True)
class TeacherSettings:
    """How much a teacher counts.

    Attributes:
        intensity: Factor of the mean distance to the teacher's result.
        gradient: Factor of the mean distance of the signed Sobel responses, both components together.
        loss: Factor of the fusion loss beside them.
        variants: Tone curves, and masks of synthetic defocus, per image, each of which the teacher has to fuse once.
        sha256: Hash of the teacher's weights, set by ``--teacher``; empty without one.
    """

    intensity: float = 1.0
    gradient: float = 0.5
    loss: float = 0.1
    variants: int = 2
    sha256: str = ""


def teacher_loss(fused: Tensor, taught: Tensor, settings: TeacherSettings, emphasis: Tensor | None = None) -> Tensor:
    """Distance from the result of a teacher, in intensity and in gradient.

    Args:
        fused: Network output, (B, 1, H, W).
        taught: Result of the teacher, same shape.
        settings: Factors of the two terms.
        emphasis: How much each pixel counts, same shape; 1 for all if None.

    Returns:
        Scalar.
    """
    difference = fused - taught
    # The Sobel filter is linear: the response of the difference is the difference of the responses.
    distance = settings.intensity * difference.abs() + settings.gradient * gradient_magnitude(difference)
    return distance.mean() if emphasis is None else (emphasis * distance).mean()


@dataclass(frozen=True, slots=True)
class ReconstructionLoss:
    """The two terms of the reconstruction loss, both with coefficient 1.

    Attributes:
        intensity: Scalar.
        gradient: Scalar.
    """

    intensity: Tensor
    gradient: Tensor

    @property
    def total(self) -> Tensor:
        """L_r."""
        return self.intensity + self.gradient


def reconstruction_loss(reconstructed_a: Tensor, reconstructed_b: Tensor, a: Tensor, b: Tensor) -> ReconstructionLoss:
    """Distance of the reconstructed sources from the sources, the worse of the two at every pixel.

    ``L_r = mean max(|a - a'|, |b - b'|)^2 + mean max(|ga - ga'|, |gb - gb'|)^2`` with g the gradient magnitude: the
    maximum penalizes a fused plane that serves one source at the cost of the other, which a mean would not.

    Args:
        reconstructed_a: a', (B, 1, H, W).
        reconstructed_b: b', same shape.
        a: Source a, same shape.
        b: Source b, same shape.

    Source:
        ReFusion's reconstruction loss (IJCV 2024), as its public derivative C3SM computes it.
    """
    intensity = torch.maximum((a - reconstructed_a).abs(), (b - reconstructed_b).abs())
    gradient_a = gradient_magnitude(a) - gradient_magnitude(reconstructed_a)
    gradient_b = gradient_magnitude(b) - gradient_magnitude(reconstructed_b)
    gradient = torch.maximum(gradient_a.abs(), gradient_b.abs())
    return ReconstructionLoss(intensity.square().mean(), gradient.square().mean())


def sobel(x: Tensor) -> Tensor:
    """Unnormalized 3x3 Sobel responses, zero-padded.

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
