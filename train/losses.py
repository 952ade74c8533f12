"""The fusion loss with weights that are given, not learned.

Planes are (B, 1, H, W) float32 in [0, 1]. Weights are (B, 1, H, W) in [0, 1] and say how much source a counts at a
pixel; source b counts for the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Logits per unit of intensity and of gradient magnitude: a prior that is nearly a hard choice of the larger one.
_INTENSITY_SHARPNESS = 20.0
_GRADIENT_SHARPNESS = 4.0
# Width of the bell curve of well-exposedness around mid-grey (Mertens et al., 2007).
_EXPOSURE_SIGMA = 0.2
_FOCUS_WINDOW = 9
_FOCUS_SHARPNESS = 40.0


@dataclass(frozen=True, slots=True)
class FixedWeights:
    """Weights of source a.

    Attributes:
        intensity: Weight of its intensity, (B, 1, H, W), [0, 1].
        gradient: Weight of its gradient, (B, 1, H, W), [0, 1].
    """

    intensity: Tensor
    gradient: Tensor


def sobel(x: Tensor) -> Tensor:
    """Unnormalised 3x3 Sobel responses, zero-padded.

    Args:
        x: (B, 1, H, W).

    Returns:
        (B, 2, H, W): horizontal and vertical component.
    """
    horizontal = x.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    return F.conv2d(x, torch.stack((horizontal, horizontal.T))[:, None], padding=1)


def gradient_magnitude(x: Tensor) -> Tensor:
    """Sum of the two absolute Sobel responses, (B, 1, H, W)."""
    return sobel(x).abs().sum(dim=1, keepdim=True)


def fixed_weights(task: str, a: Tensor, b: Tensor) -> FixedWeights:
    """Choose weights from the sources alone, by the prior of a task.

    ``ir_vis`` and ``medical``: the brighter source, the stronger gradient. ``multi_focus``: the source with the
    larger mean gradient in a 9x9 window, for both terms. ``multi_exposure``: intensity by closeness to mid-grey,
    the stronger gradient.

    Args:
        task: Name of the task.
        a: Source a, (B, 1, H, W), [0, 1].
        b: Source b, same shape.
    """
    magnitude_a, magnitude_b = gradient_magnitude(a), gradient_magnitude(b)
    stronger = torch.sigmoid(_GRADIENT_SHARPNESS * (magnitude_a - magnitude_b))
    if task == "multi_focus":
        sharper = F.avg_pool2d(magnitude_a - magnitude_b, _FOCUS_WINDOW, stride=1, padding=_FOCUS_WINDOW // 2)
        focus = torch.sigmoid(_FOCUS_SHARPNESS * sharper)
        return FixedWeights(focus, focus)
    if task == "multi_exposure":
        exposedness = ((b - 0.5).square() - (a - 0.5).square()) / (2 * _EXPOSURE_SIGMA**2)
        return FixedWeights(torch.sigmoid(exposedness), stronger)
    return FixedWeights(torch.sigmoid(_INTENSITY_SHARPNESS * (a - b)), stronger)


def fusion_loss(fused: Tensor, a: Tensor, b: Tensor, weights: FixedWeights, gradient_coefficient: float) -> Tensor:
    """Weighted distance of the fused plane to both sources, in intensity and in signed gradient.

    ``mse(w_a (a - f)) + mse(w_b (b - f)) + c mean(v_a |grad a - grad f| + v_b |grad b - grad f|)``, where the
    gradient is the signed Sobel response: a magnitude would not see a contrast that is inverted.

    Args:
        fused: Network output, (B, 1, H, W).
        a: Source a, same shape.
        b: Source b, same shape.
        weights: Weights of source a.
        gradient_coefficient: Factor c of the gradient term.

    Returns:
        Scalar.

    Source:
        ReFusion's fusion loss (IJCV 2024); the signed gradient term follows TDFusion, with weights added.
    """
    w, v = weights.intensity, weights.gradient
    intensity = (w * (a - fused)).square().mean() + ((1 - w) * (b - fused)).square().mean()
    gradient = sobel(fused)
    distance_a = (sobel(a) - gradient).abs().sum(dim=1, keepdim=True)
    distance_b = (sobel(b) - gradient).abs().sum(dim=1, keepdim=True)
    return intensity + gradient_coefficient * (v * distance_a + (1 - v) * distance_b).mean()
