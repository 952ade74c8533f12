"""Whether single windows of two aligned images agree on the alignment, each by itself.

Two images of different scenes can be laid over each other so that their edges correlate, by a few windows that happen to
agree; most others then prefer to lie elsewhere. Where the alignment is right, most windows prefer it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from refusion_edge.arrays import Float32Array
from refusion_edge.calibration.rig.motion import MODELS, Numbers, apart_px, basis_at, motion_matrix
from refusion_edge.calibration.rig.structure import Mask

# Side of a window, and how far it is moved each way.
WINDOW_PX, REACH_PX = 40, 10
# A window votes for the alignment if it fits best within this.
_NEAR_PX = 2.5
# Windows that are known or hold edges in less than this part of what is usual have no vote.
_LEAST_KNOWN, _LEAST_ENERGY = 0.8, 0.25
_PRIOR = 40
# A window that fits nearly as well further away than this says little.
_BESIDE_PX, _AS_GOOD = 4, 0.97


@dataclass(frozen=True, slots=True)
class Votes:
    """What the windows say.

    Attributes:
        windows: How many there were.
        agreeing: How many of them fit best where the alignment has them.
        ambiguous: How many of these fit as well elsewhere, as in a pattern that repeats itself.
        offset_px: Distance between the alignment and the similarity that suits the agreeing windows best, RMS over the base in
            its pixels; infinite if there are too few.
    """

    windows: int
    agreeing: int
    ambiguous: int
    offset_px: float

    @property
    def support(self) -> float:
        """Part of the windows that agree, as if there were some more that do not: a few can agree by chance."""
        return self.agreeing / (self.windows + _PRIOR)

    @property
    def repeating(self) -> float:
        """Part of the agreeing windows that fit as well elsewhere."""
        return self.ambiguous / max(self.agreeing, 1)


def votes(base: Float32Array, base_mask: Mask, other: Float32Array, other_mask: Mask) -> Votes:
    """Move each window of the base over its surroundings in the other field, and count those that fit best in place.

    Args:
        base: (H, W, C) float32, structure of the base image.
        base_mask: (H, W), True where it is known.
        other: (H, W, C), structure of the other image, aligned with it.
        other_mask: (H, W).
    """
    height, width = base_mask.shape
    window = min(WINDOW_PX, (min(height, width) - 2 * REACH_PX) // 3)
    if window < WINDOW_PX // 2:
        return Votes(0, 0, 0, math.inf)
    both = base_mask & other_mask
    energy = (base**2).sum(axis=2) * both
    usual = float(energy[both].mean()) if both.any() else 0.0
    tops, lefts = (_places(side, window) for side in (height, width))
    windows = ambiguous = 0
    centers: list[tuple[float, float]] = []
    offsets: list[tuple[float, float]] = []
    for top in tops:
        for left in lefts:
            own = np.s_[top : top + window, left : left + window]
            if both[own].mean() < _LEAST_KNOWN or energy[own].mean() < _LEAST_ENERGY * usual:
                continue
            around = other[top - REACH_PX : top + window + REACH_PX, left - REACH_PX : left + window + REACH_PX]
            fits = cv2.matchTemplate(np.ascontiguousarray(around), np.ascontiguousarray(base[own]), cv2.TM_CCORR_NORMED)
            row, column = np.unravel_index(int(np.argmax(fits)), fits.shape)
            windows += 1
            if np.hypot(row - REACH_PX, column - REACH_PX) <= _NEAR_PX:
                centers.append((left + (window - 1) / 2, top + (window - 1) / 2))
                x = column + _between(fits[row, column - 1 : column + 2].tolist())
                y = row + _between(fits[row - 1 : row + 2, column].tolist())
                offsets.append((x - REACH_PX, y - REACH_PX))
                most = fits[row, column]
                fits[
                    max(0, row - _BESIDE_PX) : row + _BESIDE_PX + 1, max(0, column - _BESIDE_PX) : column + _BESIDE_PX + 1
                ] = -1
                ambiguous += bool(fits.max() > _AS_GOOD * most)
    return Votes(windows, len(centers), ambiguous, _offset_px(np.array(centers), np.array(offsets), (width, height)))


def _between(fits: list[float]) -> float:
    """Where a parabola through three values is highest, from the middle one."""
    before, middle, after = fits
    bend = before - 2 * middle + after
    return 0.5 * (before - after) / bend if bend < 0 else 0.0


def _offset_px(centers: Numbers, offsets: Numbers, size_wh: tuple[int, int]) -> float:
    if len(centers) < MODELS["similarity"]:
        return math.inf
    basis = basis_at(centers[:, 0], centers[:, 1], size_wh, MODELS["similarity"])
    rows = basis.transpose(0, 2, 1).reshape(-1, MODELS["similarity"])
    parameters = np.linalg.lstsq(rows, offsets.T.ravel(), rcond=None)[0].astype(np.float64)
    return apart_px(np.eye(3), motion_matrix(parameters, size_wh), size_wh)


def _places(side: int, window: int) -> list[int]:
    """Where windows begin, half a window apart."""
    last = side - window - REACH_PX
    count = max(1, round((last - REACH_PX) / (window / 2)))
    return sorted({round(at) for at in np.linspace(REACH_PX, last, count + 1)})
