"""Fine alignment by the enhanced correlation coefficient (ECC), with an error estimated from the data.

OpenCV implements ECC for one channel, without a similarity and, in most supported releases, with a mask for one image
only. Fields of gradient structure have two channels, both images have borders, and a few common edges determine no more
than a similarity, so the iteration is implemented here. ``tests/calibration/rig/test_ecc.py`` compares it with OpenCV's.

Source:
    Evangelidis and Psarakis, Parametric image alignment using enhanced correlation coefficient maximization, PAMI 2008,
    equations 20 to 26 (forward, here compositional).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from refusion_edge.arrays import Float32Array
from refusion_edge.calibration.rig.motion import MODELS, Model, Numbers, basis_at, motion_matrix, spread_px
from refusion_edge.calibration.rig.structure import Mask
from refusion_edge.rig.model import Matrix

_MOST_STEPS = 15
_CONVERGED_PX = 0.02
_LONGEST_STEP_PX = 3.0
_SHORTEST_FRACTION = 0.1
# Lower correlations are meaningless; this bounds the length of a step.
_LEAST_CORRELATION = 0.08
_RIDGE = 1e-6
# Blocks of at least this many pixels, and at most this many across the image, count as independent.
_BLOCK_PX, _BLOCKS = 32, 10


@dataclass(frozen=True, slots=True, eq=False)
class Fit:
    """A warp that maximizes the correlation.

    Attributes:
        homography: Point of the base field to point of the other field, (3, 3).
        correlation: Normalized correlation in the overlap, at most 1.
        overlap: Part of the base field that the other one covers.
        covariance: Covariance of the last step's parameters, (K, K), from the disagreement between blocks of the image.
        size_wh: Size of the base field.
    """

    homography: Matrix
    correlation: float
    overlap: float
    covariance: Numbers
    size_wh: tuple[int, int]

    @property
    def error_px(self) -> float:
        """RMS over the base field of the standard error of the displacement, in pixels."""
        return spread_px(self.covariance, self.size_wh)


def fit(
    base: Float32Array, base_mask: Mask, other: Float32Array, other_mask: Mask, *, model: Model, start: Matrix | None = None
) -> Fit | None:
    """Maximize the correlation of two fields over a warp of the second.

    Args:
        base: (H, W, C) float32; with the mask applied it should have a mean of about 0.
        base_mask: (H, W), True where ``base`` is known.
        other: (H', W', C).
        other_mask: (H', W').
        model: Motion model of the warp.
        start: Homography to start from; the identity if None.

    Returns:
        The best warp found, or None if the fields have too little in common for a single step.
    """
    height, width = base_mask.shape
    count = MODELS[model]
    x, y = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))
    basis = basis_at(x, y, (width, height), count).astype(np.float32)
    planes = np.ascontiguousarray(base.transpose(2, 0, 1))
    homography = np.eye(3) if start is None else start
    best: _Step | None = None
    fraction = 1.0
    for _ in range(_MOST_STEPS):
        overlay = _overlay(planes, base_mask, other, other_mask, homography)
        if overlay is None or np.count_nonzero(overlay.mask) < 8 * count:
            break
        if best is not None and overlay.correlation < best.overlay.correlation:
            # Too far: step back, and take a shorter step in the same direction.
            fraction /= 2
            if fraction < _SHORTEST_FRACTION:
                break
        else:
            best, fraction = _step(overlay, homography, basis), 1.0
            if np.abs(best.parameters).max() < _CONVERGED_PX:
                break
        homography = best.homography @ motion_matrix(fraction * best.parameters, (width, height))
    if best is None:
        return None
    scores = _block_sums(np.einsum("chw,kchw->khw", best.residual, best.jacobian))
    covariance = best.inverse @ _scatter(scores) @ best.inverse
    overlap = float(best.overlay.mask.sum()) / max(float(base_mask.sum()), 1.0)
    return Fit(best.homography / best.homography[2, 2], best.overlay.correlation, overlap, covariance, (width, height))


@dataclass(frozen=True, slots=True, eq=False)
class _Overlay:
    """Both fields where both are known, (C, H, W), and the sums of their products."""

    f: Float32Array
    g: Float32Array
    mask: Mask
    fg: float
    ff: float
    gg: float

    @property
    def correlation(self) -> float:
        return self.fg / math.sqrt(self.ff * self.gg)


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    homography: Matrix
    overlay: _Overlay
    parameters: Numbers
    inverse: Numbers
    residual: Float32Array
    jacobian: Float32Array


def _overlay(base: Float32Array, base_mask: Mask, other: Float32Array, other_mask: Mask, homography: Matrix) -> _Overlay | None:
    """Sample the other field; None if either is 0 throughout the overlap."""
    count, height, width = base.shape
    flags = cv2.WARP_INVERSE_MAP
    looked_up = cv2.warpPerspective(other, homography, (width, height), flags=flags | cv2.INTER_LINEAR)
    covered = cv2.warpPerspective(other_mask.astype(np.uint8), homography, (width, height), flags=flags | cv2.INTER_NEAREST)
    mask = base_mask & (covered > 0)
    f: Float32Array = base * mask
    planes = looked_up.reshape(height, width, count).transpose(2, 0, 1)
    g = np.ascontiguousarray(planes * mask, dtype=np.float32)
    fg, ff, gg = float(np.vdot(f, g)), float(np.vdot(f, f)), float(np.vdot(g, g))
    return None if min(ff, gg) <= 0 else _Overlay(f, g, mask, fg, ff, gg)


def _step(overlay: _Overlay, homography: Matrix, basis: Float32Array) -> _Step:
    f, g, mask = overlay.f, overlay.g, overlay.mask
    count = basis.shape[1]
    dx, dy = (
        np.stack([cv2.Scharr(plane, cv2.CV_32F, *order, scale=1 / 32) for plane in g]) * mask for order in ((1, 0), (0, 1))
    )
    # Jacobian of g by the parameters, (K, C, H, W).
    jacobian = basis[0][:, None] * dx
    jacobian += basis[1][:, None] * dy
    rows: Float32Array = jacobian.reshape(count, -1)
    normal: Numbers = (rows @ rows.T).astype(np.float64)
    ridge = _RIDGE * float(np.trace(normal)) / count + 1e-12
    inverse = np.linalg.inv(normal + ridge * np.eye(count)).astype(np.float64)
    toward_f: Numbers = (rows @ f.ravel()).astype(np.float64)
    toward_g: Numbers = (rows @ g.ravel()).astype(np.float64)
    most = math.sqrt(overlay.gg / overlay.ff) / _LEAST_CORRELATION
    across = float(toward_f @ inverse @ toward_g)
    gain = most
    if overlay.fg > across:
        gain = min((overlay.gg - float(toward_g @ inverse @ toward_g)) / (overlay.fg - across), most)
    parameters = np.asarray(inverse @ (gain * toward_f - toward_g), np.float64)
    parameters *= min(1.0, _LONGEST_STEP_PX / max(float(np.linalg.norm(parameters, np.inf)), _CONVERGED_PX))
    return _Step(homography, overlay, parameters, inverse, (gain * f - g).astype(np.float32), jacobian)


def _block_sums(scores: Float32Array) -> Numbers:
    """Sums over blocks of the image: (B, K) from (K, H, W)."""
    _, height, width = scores.shape
    block = max(_BLOCK_PX, max(height, width) // _BLOCKS)
    rows, columns = (np.arange(0, max(side - block // 2, 1), block) for side in (height, width))
    sums = np.add.reduceat(np.add.reduceat(scores.astype(np.float64), rows, axis=1), columns, axis=2)
    return sums.reshape(len(scores), -1).T


def _scatter(scores: Numbers) -> Numbers:
    """Covariance of the sum of independent block scores, with the usual small-sample correction."""
    used = np.count_nonzero(np.abs(scores).sum(axis=1))
    freedom = max(used - scores.shape[1] / 2, 1.0)
    scatter: Numbers = scores.T @ scores * (used / freedom)
    return scatter
