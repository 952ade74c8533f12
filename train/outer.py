"""What the outer update of P may lower beside the reconstruction loss, or instead of it: what the eye and the metrics ask for.

Each term but ``edge_loss``, which is at least 0.025, is 0 where nothing is lost. All are differentiable in the fused plane,
and means over pixels or images, so that a batch on several ranks is worth as much as one on a single rank. Planes are
(B, 1, H, W) floating in [0, 1], source a before source b by modality.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from refusion_edge.errors import UsageError
from refusion_edge.train.losses import gradient_magnitude, sobel
from refusion_edge.train.targets import clipped_pixels, hot_objects, local_contrast

_SSIM_WINDOW_PX = 7
_SSIM_CONSTANTS = 0.01**2, 0.03**2
# Gain, slope and center of the sigmoids of strength and of orientation, as in the metric Qabf.
_STRENGTH, _ORIENTATION = (0.9994, -15.0, 0.5), (0.9879, -22.0, 0.8)
# Gradients below this have no direction; the arc cosine has no slope closer than this to 1.
_FLAT, _PARALLEL = 1e-3, 1e-4


@dataclass(frozen=True, slots=True)
class OuterSettings:
    """Factors of the terms of the outer objective.

    Attributes:
        reconstruction: Of the reconstruction loss L_r, the paper's objective.
        similarity: Of ``similarity_loss``.
        edges: Of ``edge_loss``.
        detail: Of ``detail_loss``.
        targets: Of ``target_loss``, for ``ir_vis`` only.
    """

    reconstruction: float = 1.0
    similarity: float = 0.0
    edges: float = 0.0
    detail: float = 0.0
    targets: float = 0.0

    def __post_init__(self) -> None:
        if not any((self.reconstruction, self.similarity, self.edges, self.detail, self.targets)):
            raise UsageError("without any term in [outer], P has nothing to learn", "set a factor above 0")


def visible_loss(fused: Tensor, a: Tensor, b: Tensor, settings: OuterSettings) -> Tensor:
    """Sum of the terms below by their factors, without L_r; a scalar."""
    terms = (
        (settings.similarity, similarity_loss),
        (settings.edges, edge_loss),
        (settings.detail, detail_loss),
        (settings.targets, target_loss),
    )
    return sum((factor * term(fused, a, b) for factor, term in terms if factor), fused.new_zeros(()))


def similarity_loss(fused: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """``1 - (SSIM(f, a) + SSIM(f, b)) / 2`` over windows of 7x7 pixels inside the image, [0, 2].

    Source:
        Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004.
    """
    return 1 - (_structural_similarity(fused, a) + _structural_similarity(fused, b)) / 2


def edge_loss(fused: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """1 - Qabf, mean over the images, [0.025, 1]: how much of the sources' edges is lost.

    As the metric Qabf, apart from the angle between two edges, which here is that of their directions modulo 180 degrees, so
    that it has a gradient everywhere. The outermost pixels do not count: on a crop, zero padding makes edges there.
    """
    gradients = [sobel(plane)[..., 1:-1, 1:-1] for plane in (fused, a, b)]
    strengths = [_length(gradient) for gradient in gradients]
    kept, whole = fused.new_zeros(len(fused)), fused.new_zeros(len(fused))
    for gradient, strength in zip(gradients[1:], strengths[1:], strict=True):
        weaker, stronger = torch.minimum(strength, strengths[0]), torch.maximum(strength, strengths[0])
        cosine = (gradient * gradients[0]).sum(dim=1, keepdim=True).abs() / (strength * strengths[0])
        aligned = 1 - torch.acos(cosine.clamp(max=1 - _PARALLEL)) / (math.pi / 2)
        preserved = _sigmoid(weaker / stronger, _STRENGTH) * _sigmoid(aligned, _ORIENTATION)
        kept = kept + (preserved * strength).sum(dim=(1, 2, 3))
        whole = whole + strength.sum(dim=(1, 2, 3))
    return (1 - kept / whole).mean()


def detail_loss(fused: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Mean of ``lost_detail`` without the outermost pixels, where zero padding makes edges."""
    return lost_detail(fused, a, b)[..., 1:-1, 1:-1].mean()


def target_loss(fused: Tensor, a: Tensor, _b: Tensor) -> Tensor:
    """Mean of ``lost_contrast``."""
    return lost_contrast(fused, a).mean()


def lost_detail(fused: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """By how much gradients of a source fall short in glare, where the other one is clipped; same shape, at least 0."""
    wanted_a, wanted_b, has = (gradient_magnitude(plane) for plane in (a, b, fused))
    return clipped_pixels(b) * (wanted_a - has).relu() + clipped_pixels(a) * (wanted_b - has).relu()


def lost_contrast(fused: Tensor, a: Tensor) -> Tensor:
    """By how much the contrast of hot objects falls short of that in the infrared image a; same shape, at least 0."""
    return hot_objects(a) * (local_contrast(a) - local_contrast(fused)).relu()


def _structural_similarity(x: Tensor, y: Tensor) -> Tensor:
    def mean(plane: Tensor) -> Tensor:
        return F.avg_pool2d(plane, _SSIM_WINDOW_PX, stride=1)

    mean_x, mean_y = mean(x), mean(y)
    variances = mean(x * x) - mean_x.square() + mean(y * y) - mean_y.square()
    covariance = mean(x * y) - mean_x * mean_y
    level, structure = _SSIM_CONSTANTS
    brightness = (2 * mean_x * mean_y + level) / (mean_x.square() + mean_y.square() + level)
    return (brightness * (2 * covariance + structure) / (variances + structure)).mean()


def _length(gradient: Tensor) -> Tensor:
    return (gradient.square().sum(dim=1, keepdim=True) + _FLAT**2).sqrt()


def _sigmoid(x: Tensor, shape: tuple[float, float, float]) -> Tensor:
    gain, slope, center = shape
    return gain * torch.sigmoid(-slope * (x - center))
