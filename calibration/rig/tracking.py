"""Bounded online refinement: small corrections of a rig while it runs, from the frames themselves.

Mounts warm up, bend and get bumped. A correction needs the evidence that ``align auto`` requires, moves slowly, and never
leaves its bounds around the alignment of the rig. It is off by default.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.calibration.rig.coarse import SearchRange
from refusion_edge.calibration.rig.motion import apart_px
from refusion_edge.calibration.rig.scene import align_scene
from refusion_edge.errors import AlignmentError
from refusion_edge.rig.model import Matrix
from refusion_edge.stream.run.refinement import Verdict


@dataclass(frozen=True, slots=True)
class Bounds:
    """How far and how fast a correction may go.

    Attributes:
        shift_px: Largest RMS displacement of the base view by the whole correction, in its pixels.
        smoothing: Part of a newly measured displacement that is applied, (0, 1].
        refusals: Consecutive measurements without evidence or out of bounds after which the correction is reset.
    """

    shift_px: float = 20.0
    smoothing: float = 0.2
    refusals: int = 3


class OnlineRefinement:
    """A correction of the rig's homography that follows slow changes.

    A stream warps with ``make_warp(rig, distance_m, correction=refinement.correction)`` and calls ``update`` from
    time to time, from a single thread, with the two resulting views; an update takes as long as an ``align auto`` of that size.
    Implements ``stream.run.refinement.Refinement``.

    Args:
        bounds: How far and how fast.
    """

    def __init__(self, bounds: Bounds = Bounds()) -> None:
        self.bounds = bounds
        self._correction: Matrix = np.eye(3)
        self._refused = 0

    @property
    def correction(self) -> Matrix:
        """Maps a point of the base view to the one to pass to the rig's homography, (3, 3)."""
        return self._correction.copy()

    @property
    def bound_px(self) -> float:
        """Largest RMS displacement by the correction over the base view."""
        return self.bounds.shift_px

    def update(self, base: Array, moved: Array, *, sensor_base: bool = False, sensor_moved: bool = True) -> Verdict:
        """Measure the remaining misalignment of two views and apply a part of it.

        Args:
            base: Base view, (H, W) or (H, W, 3); uint8, uint16 or float32.
            moved: Moving view, warped onto it with the rig and the present correction.
            sensor_base: Whether 16-bit or float gray of ``base`` is raw sensor data.
            sensor_moved: Whether that of ``moved`` is.

        Returns:
            ``moved`` if the correction was changed, ``refused`` if there was no evidence or the bounds would be left, and
            ``reset`` if that happened so often that the correction was dropped.
        """
        size_wh = (base.shape[1], base.shape[0])
        within = SearchRange(shift=min(0.2, 1.5 * self.bounds.shift_px / max(size_wh)), rotation_deg=1.0, field=(0.98, 1.02))
        try:
            found = align_scene(
                base, moved, sensor_base=sensor_base, sensor_moving=sensor_moved, model="similarity", within=within
            )
        except AlignmentError:
            return self._refuse()
        step = np.eye(3) + self.bounds.smoothing * (found.homography - np.eye(3))
        proposed = self._correction @ step
        if found.doubts or apart_px(np.eye(3), proposed, size_wh) > self.bounds.shift_px:
            return self._refuse()
        self._correction = proposed / proposed[2, 2]
        self._refused = 0
        return "moved"

    def _refuse(self) -> Verdict:
        self._refused += 1
        if self._refused < self.bounds.refusals:
            return "refused"
        self._correction, self._refused = np.eye(3), 0
        return "reset"
