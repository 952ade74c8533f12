"""Online refinement of the rig while a stream runs: when to measure, and what the next pictures are warped with.

How a correction is measured and bounded is the business of whoever gives a ``Refinement``; here is only its place in the run.
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

# Mounts move slowly, and a measurement costs as much as some pictures.
_EVERY_NS = 5 * SECOND
_GRID = 5


class Refinement(Protocol):
    """A bounded correction of the rig, see ``calibration.tracking.OnlineRefinement``."""

    @property
    def correction(self) -> Matrix:
        """Point of the base view to the point of it that the rig's homography is to be asked for, (3, 3)."""

    @property
    def bound_px(self) -> float:
        """Largest displacement by the correction, RMS over the base view."""

    def update(self, base: Array, moved: Array, *, sensor_base: bool = False, sensor_moved: bool = True) -> Verdict:
        """Measure what is left between two views and take over a part of it."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What refinement has done, for the report.

    Attributes:
        bound_px: How far it may go, RMS over the base view.
        moved: Measurements that were followed.
        refused: Measurements without enough evidence, or that led out of the bounds.
        resets: How often it went back to the rig.
        correction_px: How far the warp of now is from the rig's, RMS over the base view.
    """

    bound_px: float
    moved: int = 0
    refused: int = 0
    resets: int = 0
    correction_px: float = 0.0


class RigRefiner:
    """Measures now and then, and makes the warp that follows. ``wants`` and ``measure`` may be called from two threads.

    Args:
        refinement: Measures and bounds.
        rig: Rig that is refined.
        distance_m: Working distance of it, or None.
        statistics: Counters of the run.
        every_ns: Time of the scene between two measurements.
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
        """Whether it is time to measure, and this picture can be measured: both cameras, and neither frozen nor held."""
        if frame.mode != "fused" or frame.marks:
            return False
        if self._measured_ns is not None and 0 <= frame.time_ns - self._measured_ns < self._every_ns:
            return False
        self._measured_ns = frame.time_ns
        return True

    def measure(self, frame: FusedFrame) -> RigWarp | None:
        """Measure one picture; the warp for the next ones, or None where nothing changes."""
        assert frame.ir is not None
        assert frame.vis is not None
        vis = cv2.cvtColor(frame.vis, cv2.COLOR_BGR2GRAY) if frame.vis.ndim == 3 else frame.vis
        base, moved = (vis, frame.ir) if self._rig.base == "vis" else (frame.ir, vis)
        # Luma has gone through the gain control: it is no raw sensor data any more.
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
            self._statistics.note("refinement", "back to the rig, as several measurements in a row were refused")
        if self._progress.correction_px == before.correction_px:
            return None
        return make_warp(self._rig, self._distance_m, correction=correction)


class RigFollower:
    """Takes pictures to a refiner, and its warps to the pictures after them.

    One measurement at a time: the next one starts from pictures that were warped with what the last one found.

    Args:
        refiner: Measures.
        beside: Whether it does so in a thread of its own (``run``), so that cameras do not wait; else at once, so that the same
            files give the same pictures.
    """

    def __init__(self, refiner: RigRefiner, *, beside: bool) -> None:
        self._refiner, self._beside = refiner, beside
        self._to_measure: Channel[FusedFrame] = Channel(1, lossless=False)
        self._measured: Channel[RigWarp | None] = Channel(1, lossless=False)
        self._measuring = False

    def next_warp(self, fused: FusedFrame) -> RigWarp | None:
        """Show a picture; gives another warp for the ones after it, or None where nothing changes."""
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
        """Measure what is shown until the end."""
        while (fused := self._to_measure.get()) is not None:
            self._measured.put(self._refiner.measure(fused))

    def close(self) -> None:
        """No more pictures will come."""
        self._to_measure.close()


def _displacement_px(correction: Matrix, size_wh: tuple[int, int]) -> float:
    x, y = np.meshgrid(*(np.linspace(0, side - 1, _GRID) for side in size_wh))
    points = np.column_stack((x.ravel(), y.ravel()))
    return float(np.sqrt(((warp_points(correction, points) - points) ** 2).sum(axis=1).mean()))
