"""Online refinement of the rig during a stream: when to measure, and how the next frames are warped.

This module only schedules measurements; a ``Refinement`` defines how a correction is measured and bounded.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, Protocol

import cv2
import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.rig.model import Matrix, Rig
from refusion_edge.rig.warp import RigWarp, make_warp, warp_points
from refusion_edge.stream.frames import SECOND, FusedFrame
from refusion_edge.stream.run.channel import Channel
from refusion_edge.stream.statistics import Statistics

Verdict = Literal["moved", "refused", "reset"]

# Mounts move slowly, and a measurement takes as long as several frames.
_EVERY_NS = 5 * SECOND
_GRID = 5


class Refinement(Protocol):
    """A bounded correction of the rig, see ``calibration.rig.tracking.OnlineRefinement``."""

    @property
    def correction(self) -> Matrix:
        """Homography within the base view that is applied before the one of the rig, (3, 3)."""

    @property
    def bound_px(self) -> float:
        """Maximum displacement by the correction in pixels, RMS over the base view."""

    def update(self, base: Array, moved: Array, *, sensor_base: bool = False, sensor_moved: bool = True) -> Verdict:
        """Measure the remaining misalignment of two views and adopt a part of it."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of refinement, for the report.

    Attributes:
        bound_px: Maximum displacement from the rig, RMS over the base view.
        moved: Measurements that were adopted.
        refused: Measurements without enough evidence, or beyond the bounds.
        resets: How often the correction was reset to the rig.
        correction_px: Displacement of the current warp from the rig, RMS over the base view.
    """

    bound_px: float
    moved: int = 0
    refused: int = 0
    resets: int = 0
    correction_px: float = 0.0


class RigRefiner:
    """Measures at intervals and makes the corrected warp. ``wants`` and ``measure`` may be called from different threads.

    Args:
        refinement: Measures and bounds the correction.
        rig: Rig to refine.
        distance_m: Working distance in m, or None for the default of the rig.
        statistics: Counters of the run.
        every_ns: Interval between two measurements, by the times of the frames.
    """

    def __init__(
        self,
        refinement: Refinement,
        rig: Rig,
        distance_m: float | None,
        statistics: Statistics,
        *,
        every_ns: int = _EVERY_NS,
    ) -> None:
        self._progress = Progress(refinement.bound_px)
        self._statistics = statistics
        statistics.refined(asdict(self._progress))
        self._refinement, self._rig, self._distance_m = refinement, rig, distance_m
        self._every_ns = every_ns
        self._measured_ns: int | None = None

    def wants(self, frame: FusedFrame) -> bool:
        """Whether a measurement is due and this frame is suitable: it shows both cameras, neither frozen nor held."""
        if frame.mode != "fused" or frame.marks:
            return False
        if self._measured_ns is not None and 0 <= frame.time_ns - self._measured_ns < self._every_ns:
            return False
        self._measured_ns = frame.time_ns
        return True

    def measure(self, frame: FusedFrame) -> RigWarp | None:
        """Measure one frame; returns the warp for the next frames, or None if it does not change."""
        assert frame.ir is not None
        assert frame.vis is not None
        vis: Array = cv2.cvtColor(frame.vis, cv2.COLOR_BGR2GRAY) if frame.vis.ndim == 3 else frame.vis
        ir: Array = frame.ir
        # NaN is no part of a scene.
        if frame.no_ir is not None:
            ir = np.where(frame.no_ir, np.float32(np.nan), ir)
        if frame.no_vis is not None:
            vis = np.where(frame.no_vis, np.float32(np.nan), vis * np.float32(1 / 255))
        base, moved = (vis, ir) if self._rig.base == "vis" else (ir, vis)
        # Luma has passed through the gain control, so it is not raw sensor data.
        verdict = self._refinement.update(base, moved, sensor_base=False, sensor_moved=False)
        before, correction = self._progress, self._refinement.correction
        self._progress = Progress(
            before.bound_px,
            moved=before.moved + (verdict == "moved"),
            refused=before.refused + (verdict != "moved"),
            resets=before.resets + (verdict == "reset"),
            correction_px=_displacement_px(correction, self._rig.view_size_wh),
        )
        self._statistics.refined(asdict(self._progress))
        if verdict == "reset" and before.correction_px > 0:
            self._statistics.note("refinement", "reset to the rig after several refused measurements in a row")
        if self._progress.correction_px == before.correction_px:
            return None
        return make_warp(self._rig, self._distance_m, correction=correction)


class RigFollower:
    """Passes frames to a refiner, and its warps back to the frames that follow.

    There is one measurement at a time: the next one starts from frames that were warped with the last result.

    Args:
        refiner: Measures the frames.
        beside: Whether to measure in a separate thread (``run``), so that cameras do not wait; otherwise it measures at once,
            so that the same files give the same fused frames.
    """

    def __init__(self, refiner: RigRefiner, *, beside: bool) -> None:
        self._refiner, self._beside = refiner, beside
        self._to_measure: Channel[FusedFrame] = Channel(1, lossless=False)
        self._measured: Channel[RigWarp | None] = Channel(1, lossless=False)
        self._measuring = False

    def next_warp(self, fused: FusedFrame) -> RigWarp | None:
        """Pass a frame on; returns a new warp for the frames after it, or None if the warp does not change."""
        if self._measuring and len(self._measured):
            self._measuring = False
            return self._measured.get()
        if self._measuring or not self._refiner.wants(fused):
            return None
        if not self._beside:
            return self._refiner.measure(fused)
        self._measuring = True
        self._to_measure.put(fused)
        return None

    def run(self) -> None:
        """Measure frames until the channel is closed."""
        while (fused := self._to_measure.get()) is not None:
            self._measured.put(self._refiner.measure(fused))

    def close(self) -> None:
        """No more frames will come."""
        self._to_measure.close()


def _displacement_px(correction: Matrix, size_wh: tuple[int, int]) -> float:
    x, y = np.meshgrid(*(np.linspace(0, side - 1, _GRID) for side in size_wh))
    points = np.column_stack((x.ravel(), y.ravel()))
    return float(np.sqrt(((warp_points(correction, points) - points) ** 2).sum(axis=1).mean()))
