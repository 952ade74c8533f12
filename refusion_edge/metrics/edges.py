"""Metrics of how well the fused image preserves the edges of the sources: Qabf and Nabf."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from refusion_edge.metrics.planes import Plane, sobel, total

# Xydeas and Petrovic, 2000: gain, slope and center of the sigmoids of strength and of orientation.
_STRENGTH = (0.9994, -15.0, 0.5)
_ORIENTATION = (0.9879, -22.0, 0.8)

# Shreyamsha Kumar, 2013: the same, and a threshold on strength, its exponent, and the weight below it.
_ARTIFACT_STRENGTH = (0.9999, -19.0, 0.5)
_ARTIFACT_ORIENTATION = (0.9995, -22.0, 0.5)
_ARTIFACT_THRESHOLD, _ARTIFACT_EXPONENT, _ARTIFACT_LEAST_WEIGHT = 2.0, 1.5, 0.001


@dataclass(frozen=True, slots=True)
class _Edges:
    strength: Plane
    angle: Plane


def edge_preservation(a: Plane, b: Plane, fused: Plane) -> float:
    """Edge information preserved, Qabf: sum(Q_AF g_A + Q_BF g_B) / sum(g_A + g_B).

    Q_XF = S(G; 0.9994, -15, 0.5) S(O; 0.9879, -22, 0.8) with S(x; t, k, d) = t / (1 + exp(k (x - d))), G the ratio of
    the weaker to the stronger Sobel strength, O = 1 - |angle_X - angle_F| / (pi/2), strengths g as weights.

    Args:
        a: Source a, (H, W).
        b: Source b, (H, W).
        fused: (H, W).

    Returns:
        [0, 0.975], higher is better; undefined (NaN) if both sources are constant. Conventions ``evaluator`` and
        ``vifb``: outside the image is 0, the angle is atan(gy / gx) in [-pi/2, pi/2] so that O can be negative, and
        where both strengths are equal G is that strength instead of 1.

    Source:
        Xydeas, Petrovic: Objective image fusion performance measure, Electron. Lett. 36(4), 2000; the case of equal
        strengths as in the widely used code of Xiaobo Qu, whose numbers are the published ones.
    """
    edges_a, edges_b, edges_fused = (_edges(plane) for plane in (a, b, fused))
    weight = total(edges_a.strength) + total(edges_b.strength)
    if weight == 0:
        return math.nan
    kept = sum(total(_preservation(edges, edges_fused) * edges.strength) for edges in (edges_a, edges_b))
    return kept / weight


def artifacts(a: Plane, b: Plane, fused: Plane) -> float:
    """Fusion artifacts, modified Nabf: sum over N of ((1 - Q_AF) w_A + (1 - Q_BF) w_B) / sum(w_A + w_B).

    N are the pixels whose edge is stronger in F than in A and in B. Q_XF = sqrt(S(G; 0.9999, -19, 0.5)
    S(O; 0.9995, -22, 0.5)), G = min / max of the strengths (0 if one is 0), O = | |angle_X - angle_F| - pi/2 | / (pi/2),
    w = g^1.5 where g >= 2, else 0.001; Sobel divided by 8, border mirrored.

    Args:
        a: Source a, (H, W).
        b: Source b, (H, W).
        fused: (H, W).

    Returns:
        [0, 1], lower is better. Convention ``survey``.

    Source:
        Shreyamsha Kumar: Multifocus and multispectral image fusion based on pixel significance using discrete cosine
        harmonic wavelet transform, Signal Image Video Process. 7, 2013; after Petrovic, Xydeas, 2005.
    """
    edges_a, edges_b, edges_fused = (_mirrored_edges(plane) for plane in (a, b, fused))
    added = (edges_fused.strength > edges_a.strength) & (edges_fused.strength > edges_b.strength)
    lost, weight = 0.0, 0.0
    for edges in (edges_a, edges_b):
        weights = np.where(edges.strength >= _ARTIFACT_THRESHOLD, edges.strength**_ARTIFACT_EXPONENT, _ARTIFACT_LEAST_WEIGHT)
        lost += float(np.sum(((1 - _artifact_preservation(edges, edges_fused)) * weights)[added]))
        weight += float(np.sum(weights[~np.isnan(edges.strength)]))
    return lost / weight if weight > 0 else math.nan


def _edges(plane: Plane) -> _Edges:
    x, y = sobel(plane, cv2.BORDER_CONSTANT)
    # y points up, as in the original: with pi/2 for every vertical gradient the sign of the others matters.
    angle = np.full_like(x, math.pi / 2)
    np.divide(-y, x, out=angle, where=x != 0)
    np.arctan(angle, out=angle, where=x != 0)
    return _Edges(np.sqrt(x * x + y * y), angle)


def _mirrored_edges(plane: Plane) -> _Edges:
    x, y = sobel(plane, cv2.BORDER_REFLECT_101)
    x, y = x / 8, y / 8
    # The original divides the derivative along the rows by the one along the columns, and takes 0 where both are 0.
    return _Edges(np.sqrt(x * x + y * y), np.arctan2(x * np.where(y < 0, -1.0, 1.0), np.abs(y)))


def _preservation(source: _Edges, fused: _Edges) -> Plane:
    weaker, stronger = np.minimum(source.strength, fused.strength), np.maximum(source.strength, fused.strength)
    # `weaker` is the result where they are equal.
    ratio = np.divide(weaker, stronger, out=weaker, where=weaker != stronger)
    agreement = 1 - np.abs(source.angle - fused.angle) / (math.pi / 2)
    return _sigmoid(ratio, _STRENGTH) * _sigmoid(agreement, _ORIENTATION)


def _artifact_preservation(source: _Edges, fused: _Edges) -> Plane:
    weaker, stronger = np.minimum(source.strength, fused.strength), np.maximum(source.strength, fused.strength)
    ratio = np.divide(weaker, stronger, out=np.zeros_like(weaker), where=stronger > 0)
    agreement = np.abs(np.abs(source.angle - fused.angle) - math.pi / 2) / (math.pi / 2)
    return np.sqrt(_sigmoid(ratio, _ARTIFACT_STRENGTH) * _sigmoid(agreement, _ARTIFACT_ORIENTATION))


def _sigmoid(x: Plane, parameters: tuple[float, float, float]) -> Plane:
    gain, slope, center = parameters
    return gain / (1 + np.exp(slope * (x - center)))
