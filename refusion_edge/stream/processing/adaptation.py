"""The statistics that the network ``fast`` adapts to, smoothed over time, so that their noise does not make a video flicker."""

from __future__ import annotations

import numpy as np

from refusion_edge.arrays import Float64Array
from refusion_edge.errors import UsageError
from refusion_edge.stream.processing.smoothing import follow_share

MOST_CHANGE = 0.2
"""A frame one of whose statistics is farther than this from the smoothed one, in units of luma, begins another scene."""


class Adaptation:
    """Statistics of a stream that follow the scene slowly. Use one instance per stream, with frames in order of time.

    Args:
        time_constant_s: Time constant of the smoothing; 0 takes those of every frame.

    Attributes:
        cuts: How often another scene began; the first frame and those after ``reset`` do not count.

    Raises:
        UsageError: The time constant is negative or not a number.
    """

    def __init__(self, time_constant_s: float = 1.0) -> None:
        if not time_constant_s >= 0:
            raise UsageError(f"a time constant of {time_constant_s:g} s is out of range", "choose one of at least 0 s")
        self._time_constant_s = time_constant_s
        self._figures: Float64Array | None = None
        self._time_ns = 0
        self.cuts = 0

    def update(self, measured: Float64Array, time_ns: int) -> Float64Array:
        """Add the statistics of a frame and return those to adapt to.

        Args:
            measured: Statistics of the frame, (8,).
            time_ns: Capture time of the frame; a step back counts as zero.

        Returns:
            (8,): the smoothed statistics, which hold 63 % of a change after the time constant; for the first frame of a scene
            its own.
        """
        elapsed_ns, self._time_ns = time_ns - self._time_ns, time_ns
        if self._figures is None:
            self._figures = measured
        elif not np.abs(measured - self._figures).max() <= MOST_CHANGE:
            self.cuts += 1
            self._figures = measured
        else:
            self._figures = self._figures + follow_share(elapsed_ns, self._time_constant_s) * (measured - self._figures)
        return self._figures

    def reset(self) -> None:
        """Forget the scene: the next frame is adapted to its own statistics."""
        self._figures = None
