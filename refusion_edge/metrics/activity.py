"""Metrics of the fused image alone: how much contrast and detail it shows, whether or not a source has it."""

from __future__ import annotations

import math

import cv2
import numpy as np

from refusion_edge.metrics.planes import Plane, defined, mean, sobel, total


def standard_deviation(fused: Plane) -> float:
    """Standard deviation: sqrt(mean (F - mean F)^2), divisor N.

    Args:
        fused: (H, W).

    Returns:
        [0, 127.5] gray levels, higher is better. Conventions ``evaluator`` and ``vifb`` (there called Variance).

    Source:
        Rao: In-fibre Bragg grating sensors, Meas. Sci. Technol. 8, 1997, as cited by fusion surveys.
    """
    return float(np.std(defined(fused)))


def spatial_frequency(fused: Plane) -> float:
    """Spatial frequency: sqrt(mean dx^2 + mean dy^2), dx and dy differences of neighbors.

    Args:
        fused: (H, W).

    Returns:
        [0, 255 sqrt(2)] gray levels, higher is better. Convention ``evaluator``: each mean over its own number of
        differences, H (W - 1) and (H - 1) W.

    Source:
        Eskicioglu, Fisher: Image quality measures and their performance, IEEE Trans. Commun. 43(12), 1995.
    """
    return math.sqrt(mean(np.diff(fused, axis=1) ** 2) + mean(np.diff(fused, axis=0) ** 2))


def spatial_frequency_of_color(fused: Plane) -> float:
    """Spatial frequency of the three planes side by side as one image: sqrt((sum dx^2 + sum dy^2) / (3 H W)).

    Args:
        fused: (3, H, W).

    Returns:
        Gray levels, higher is better. Convention ``vifb`` (Spatial_frequency). The two seams between the planes count
        as differences, as they do in the published numbers.

    Source:
        Zhang, Ye, Xiao: VIFB, CVPR Workshops 2020 (metricsSpatial_frequency.m).
    """
    wide = np.concatenate(list(fused), axis=1)
    differences = total(np.diff(wide, axis=1) ** 2) + total(np.diff(wide, axis=0) ** 2)
    return math.sqrt(differences / defined(wide).size)


def average_gradient(fused: Plane) -> float:
    """Average gradient: mean of sqrt((gx^2 + gy^2) / 2), central differences, one-sided at the border.

    Args:
        fused: (H, W).

    Returns:
        [0, 255] gray levels, higher is better. Convention ``evaluator``: mean over all N pixels.

    Source:
        Cui, Feng, Xu, Li, Chen: Detail preserved fusion of visible and infrared images using regional saliency
        extraction and multi-scale image decomposition, Opt. Commun. 341, 2015.
    """
    return mean(_gradients(fused))


def average_gradient_inside(fused: Plane) -> float:
    """Average gradient as VIFB has it: the sum of ``average_gradient`` divided by (H - 1)(W - 1).

    Args:
        fused: (H, W).

    Returns:
        Gray levels, higher is better. Convention ``vifb`` (Avg_gradient).

    Source:
        Cui et al., 2015; divisor as in the VIFB benchmark (metricsAvg_gradient.m).
    """
    height, width = fused.shape
    return mean(_gradients(fused)) * fused.size / float((height - 1) * (width - 1))


def edge_intensity(fused: Plane) -> float:
    """Edge intensity: mean of sqrt(sx^2 + sy^2), Sobel, border replicated.

    Args:
        fused: (H, W).

    Returns:
        [0, 1020 sqrt(2)], higher is better. Conventions ``vifb`` (Edge_intensity) and ``survey`` (EI).

    Source:
        Rajalingam, Priya: Hybrid multimodality medical image fusion technique for feature enhancement in medical
        diagnosis, Int. J. Eng. Sci. Invent. 2, 2018; border as in the VIFB benchmark (metricsEdge_intensity.m).
    """
    x, y = sobel(fused, cv2.BORDER_REPLICATE)
    return mean(np.sqrt(x * x + y * y))


def _gradients(plane: Plane) -> Plane:
    y, x = np.gradient(plane)
    # A central difference does not read the pixel itself.
    return np.where(np.isnan(plane), np.nan, np.sqrt((x * x + y * y) / 2))
