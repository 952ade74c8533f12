"""The constant offset between the clocks of two cameras, from motion that both see.

Infrared and visible frames look different, but motion appears in both at the same moment. Change is measured in coarse
cells, so that even an object crossing the view at constant speed marks a time, and the two views need not be aligned
closely.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from refusion_edge.arrays import Array, Float32Array
from refusion_edge.calibration.rig.motion import Numbers
from refusion_edge.errors import AlignmentError

_THUMBNAIL_WH, _CELLS = (64, 48), (6, 8)
_MS, _SECOND = 1e6, 1e9
_FEWEST_SAMPLES, _SHORTEST_S = 24, 3.0
# Steps of the common grid within one period of the faster camera.
_STEPS = 8
# Intervals longer than this many periods contain a dropout; the change in them is meaningless.
_LONGEST_INTERVAL = 1.6
# A peak is where the correlation stays above this part of its maximum; another lag above it is a rival.
_LEAST_CORRELATION, _MOST_RIVAL = 0.3, 0.8
_BLOCKS = 8
# In periods of the faster camera: a less precise offset does not help pairing.
_MOST_ERROR_PERIODS = 0.5


@dataclass(frozen=True, slots=True)
class TimeOffset:
    """A measured offset.

    Attributes:
        offset_ms: Added to the time stamps of ir, makes them agree with those of vis.
        error_ms: Its standard error, from the disagreement between parts of the recording.
        correlation: Correlation of the motion in both cameras at this offset, at most 1.
        duration_s: Time over which both cameras were compared.
    """

    offset_ms: float
    error_ms: float
    correlation: float
    duration_s: float


class MotionTrack:
    """Small copies of the frames of one camera, with their times. Not thread-safe."""

    def __init__(self) -> None:
        self._times_ns: list[int] = []
        self._thumbnails: list[Float32Array] = []

    def add(self, frame: Array, time_ns: int) -> None:
        """Keep a frame.

        A frame that repeats the previous one (a closed shutter) or whose time does not advance is left out.

        Args:
            frame: View of the camera, (H, W) or (H, W, 3) of whole or float numbers. Cells with NaN do not move. It is not
                brought to luma, whose range follows the scene, so that everything would seem to move.
            time_ns: When it was taken.
        """
        plane = frame if frame.ndim == 2 else frame[..., 1]
        plane = plane if plane.itemsize <= 2 else plane.astype(np.float32)
        small = cv2.resize(plane, _THUMBNAIL_WH, interpolation=cv2.INTER_AREA).astype(np.float32)
        small[~np.isfinite(small)] = 0
        if self._times_ns and (time_ns <= self._times_ns[-1] or np.array_equal(small, self._thumbnails[-1])):
            return
        self._times_ns.append(time_ns)
        self._thumbnails.append(small)

    @property
    def period_ns(self) -> float:
        """Median interval between frames; 0 before the second one."""
        return float(np.median(np.diff(self._times_ns))) if len(self._times_ns) > 1 else 0.0

    def activity(self, interval_ns: float) -> tuple[Numbers, Numbers]:
        """Change in each cell over about one interval.

        Args:
            interval_ns: Interval; the nearest whole number of frames is taken.

        Returns:
            Centers of the intervals in nanoseconds, (N,), and the square root of the mean change, (N, 48).
        """
        times, step = np.array(self._times_ns, np.float64), max(1, round(interval_ns / self.period_ns))
        stack = np.stack(self._thumbnails)
        elapsed = times[step:] - times[:-step]
        steady = elapsed < _LONGEST_INTERVAL * step * self.period_ns
        changes = np.abs(stack[step:] - stack[:-step])[steady]
        rows, columns = _CELLS
        width, height = _THUMBNAIL_WH
        blocks = changes.reshape(len(changes), rows, height // rows, columns, width // columns)
        # The root, so that one flash of the whole frame does not outweigh everything else.
        means = np.sqrt(blocks.mean(axis=(2, 4))).reshape(len(changes), -1)
        return ((times[step:] + times[:-step]) / 2)[steady], means.astype(np.float64)

    def __len__(self) -> int:
        return len(self._times_ns)


def measure_offset(ir: MotionTrack, vis: MotionTrack, *, most_ms: float = 500.0) -> TimeOffset:
    """Measure the offset between the clocks of two cameras: the lag at which motion correlates best.

    Args:
        ir: Frames of the infrared camera.
        vis: Frames of the visible camera over the same time.
        most_ms: Largest offset searched for, in either direction.

    Raises:
        AlignmentError: The recording is too short, or its motion does not determine the offset; says which.
    """
    tracks = {"ir": ir, "vis": vis}
    for name, track in tracks.items():
        if len(track) < _FEWEST_SAMPLES:
            raise AlignmentError(
                f"{name} has only {len(track)} different frames, and at least {_FEWEST_SAMPLES} are needed",
                "record for longer, and check that the camera delivers new frames",
                expected=_FEWEST_SAMPLES,
                got=len(track),
            )
    slow_ns, fast_ns = (choose(track.period_ns for track in tracks.values()) for choose in (max, min))
    step_ns = fast_ns / _STEPS
    # Both over the interval of the slower camera, so that both have the same temporal blur.
    series = [track.activity(slow_ns) for track in (ir, vis)]
    first, last = (choose(times[end] for times, _ in series) for choose, end in ((max, 0), (min, -1)))
    if last - first < _SHORTEST_S * _SECOND:
        raise AlignmentError(
            f"both cameras deliver at the same time for only {max(0.0, last - first) / _SECOND:.1f} s, and at least "
            f"{_SHORTEST_S:g} s are needed",
            "record both together, for longer",
            expected=_SHORTEST_S,
            got=float(max(0.0, last - first) / _SECOND),
        )
    grid = np.arange(first, last, step_ns)
    ir_plane, vis_plane = (_on_grid(times, values, grid) for times, values in series)
    if min(ir_plane.std(), vis_plane.std()) <= 0:
        raise AlignmentError("no motion that both cameras see", "have somebody walk through the view or wave a hand")
    most = min(math.ceil(most_ms * _MS / step_ns), len(grid) // 3)
    everywhere = np.ones(len(grid), np.bool_)
    curve = _correlation(ir_plane, vis_plane, everywhere, most)
    best = int(np.argmax(curve))
    correlation = float(curve[best])
    if correlation < _LEAST_CORRELATION:
        raise AlignmentError(
            f"the motion that the two cameras see correlates by only {correlation:.2f}",
            "have somebody walk through the view or wave a hand",
        )
    if not _is_one_peak(curve >= _MOST_RIVAL * correlation):
        raise AlignmentError(
            "the motion repeats or is even, so that several offsets fit", "have somebody walk through the view, stop, and turn"
        )
    if best in (0, 2 * most):
        raise AlignmentError(
            f"the offset is larger than {most * step_ns / _MS:.0f} ms", "search for a larger one, or check the clocks"
        )
    offset_ns = (_refined(curve, best) - most) * step_ns
    parts = [
        (_refined(left, int(np.argmax(left))) - most) * step_ns
        for left in (_correlation(ir_plane, vis_plane, kept, most) for kept in _all_but_one(len(grid)))
    ]
    # Jackknife: how much the result depends on each part of the time.
    error_ns = math.sqrt((_BLOCKS - 1) / _BLOCKS * sum((part - float(np.mean(parts))) ** 2 for part in parts))
    error_ns = math.hypot(error_ns, step_ns / math.sqrt(12))
    if error_ns > _MOST_ERROR_PERIODS * fast_ns:
        raise AlignmentError(
            f"the offset of {offset_ns / _MS:.1f} ms may be off by {error_ns / _MS:.1f} ms, more than "
            f"{_MOST_ERROR_PERIODS * fast_ns / _MS:.1f} ms",
            "record more motion",
            expected=_MOST_ERROR_PERIODS * fast_ns,
            got=error_ns,
        )
    return TimeOffset(offset_ns / _MS, error_ns / _MS, correlation, float(last - first) / _SECOND)


def _is_one_peak(high: NDArray[np.bool_]) -> bool:
    """Whether the lags of high correlation are adjacent, and end before the last lag on at least one side."""
    changes = np.flatnonzero(np.diff(high.astype(np.int8)))
    return 1 <= len(changes) <= 2 - int(high[0] or high[-1])


def _on_grid(times: Numbers, values: Numbers, grid: Numbers) -> Numbers:
    """Interpolate to the grid and subtract the mean of each cell, (C, T)."""
    plane = np.stack([np.interp(grid, times, cell) for cell in values.T])
    centered: Numbers = plane - plane.mean(axis=1, keepdims=True)
    return centered


def _correlation(ir: Numbers, vis: Numbers, kept: NDArray[np.bool_], most: int) -> Numbers:
    """Normalized correlation of ir at a time with vis at that time plus a lag, (2 * most + 1,), over the kept times of ir."""
    count = ir.shape[1]
    size = cv2.getOptimalDFTSize(count + most)
    lags = np.arange(-most, most + 1)
    ir = ir * kept
    product = np.fft.irfft((np.conj(np.fft.rfft(ir, size)) * np.fft.rfft(vis, size)).sum(axis=0), size)
    # What both have in the overlap: energy of ir where vis is known, and of vis where ir is kept.
    energies = [(ir**2).sum(axis=0), (vis**2).sum(axis=0)]
    known = [np.ones(count), kept.astype(np.float64)]
    of_ir = np.fft.irfft(np.conj(np.fft.rfft(energies[0], size)) * np.fft.rfft(known[0], size), size)
    of_vis = np.fft.irfft(np.conj(np.fft.rfft(known[1], size)) * np.fft.rfft(energies[1], size), size)
    floor = 1e-9 * max(float(energies[0].sum() * energies[1].sum()), 1e-300)
    curve: Numbers = (product / np.sqrt(np.maximum(of_ir * of_vis, floor)))[lags]
    return curve


def _refined(curve: Numbers, best: int) -> float:
    """Position of a maximum between the points: the parabola through its neighbors at half a period of the faster camera."""
    reach = min(_STEPS // 2, best, len(curve) - 1 - best)
    if reach == 0:
        return float(best)
    around = np.arange(-reach, reach + 1)
    bend, slope, _ = np.polyfit(around, curve[best - reach : best + reach + 1], 2)
    return best + float(np.clip(-slope / (2 * bend), -reach, reach)) if bend < 0 else float(best)


def _all_but_one(count: int) -> Iterator[NDArray[np.bool_]]:
    for block in np.array_split(np.arange(count), _BLOCKS):
        kept = np.ones(count, np.bool_)
        kept[block] = False
        yield kept
