"""How well two images agree under a given alignment, to choose between alignments that differ a lot."""

from __future__ import annotations

import math

import numpy as np

from refusion_edge.calibration.rig.structure import Scene, gradient_structure, scaled, warped, without_mean
from refusion_edge.rig.model import Matrix

# Small enough that points picked a few pixels beside do not matter.
_SIDE_PX = 200
LEAST_AGREEMENT, CLEARLY = 0.1, 1.5
"""Agreement that is no accident, and how many times that of another alignment shows that this one is right."""


def agreement(base: Scene, moving: Scene, homography: Matrix) -> float:
    """Correlation of the gradient structures, times the root of the part of the smaller image that overlaps.

    Args:
        base: Base image.
        moving: Moving image.
        homography: Point of the base to point of the moving image.

    Returns:
        At most 1; about 0 for images that do not agree or do not overlap.
    """
    small, up = scaled(base, _SIDE_PX / max(base.size_wh))
    there = warped(moving, homography @ up, small.size_wh)
    (one, one_mask), (other, other_mask) = (gradient_structure(scene) for scene in (small, there))
    mask = one_mask & other_mask
    f, g = (without_mean(field, mask) for field in (one, other))
    energy = float(np.vdot(f, f)) * float(np.vdot(g, g))
    if energy <= 0 or not math.isfinite(energy):
        return 0.0
    step = abs(float(np.linalg.det((homography @ up)[:2, :2])))
    smaller = min(int(one_mask.sum()), moving.mask.sum() / max(step, 1e-9))
    overlap = min(1.0, float(mask.sum()) / max(smaller, 1.0))
    return float(np.vdot(f, g)) / math.sqrt(energy) * math.sqrt(overlap)
