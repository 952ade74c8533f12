"""Ranges that follow a scene slowly: exponential smoothing over time, with a jump at a change of scene."""

from __future__ import annotations

import math

import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.stream.frames import SECOND

# A range widens with the time constant and narrows this many times more slowly, so that a hot object that comes and goes finds
# a wide enough range and does not pull it back and forth.
_RELEASE = 10.0
# Ranges that overlap by less than this part of the smaller one belong to different scenes (a lens cap, a sensor correction).
_MIN_OVERLAP = 0.1


class SmoothedRange:
    """A range (low, high) that approaches the measured one with a time constant.

    Args:
        time_constant_s: After this time the range has followed 63 % of a widening, after ten times as long 63 % of a narrowing;
            0 adopts every measurement directly.
        slack: The range does not narrow as long as it exceeds the measured one by less than this share of it at either end, so
            that a moving scene does not make it breathe.

    Attributes:
        jumped: Whether the last measurement was adopted directly, as the first one of a scene.
    """

    def __init__(self, time_constant_s: float, slack: float = 0.0) -> None:
        self._time_constant_s = time_constant_s
        self._slack = slack
        self._range: tuple[float, float] | None = None
        self._time_ns = 0
        self.jumped = False

    def update(self, low: float, high: float, time_ns: int) -> tuple[float, float]:
        """Add a measurement and return the range to use.

        Args:
            low: Measured lower end.
            high: Measured upper end, not below ``low``.
            time_ns: Capture time of the image; a step back counts as zero.
        """
        elapsed_ns, self._time_ns = time_ns - self._time_ns, time_ns
        self.jumped = self._range is None or self._time_constant_s <= 0 or _is_another_scene(self._range, (low, high))
        if self._range is None or self.jumped:
            self._range = (low, high)
            return self._range
        widening = follow_share(elapsed_ns, self._time_constant_s)
        narrowing = follow_share(elapsed_ns, self._time_constant_s * _RELEASE)
        before_low, before_high = self._range
        room = self._slack * (high - low)
        low = low if low < before_low else max(before_low, low - room)
        high = high if high > before_high else min(before_high, high + room)
        self._range = (
            before_low + (widening if low < before_low else narrowing) * (low - before_low),
            before_high + (widening if high > before_high else narrowing) * (high - before_high),
        )
        return self._range

    def reset(self) -> None:
        """Forget the range; the next measurement is adopted directly."""
        self._range = None


def inner_range(sample: Array, percents: tuple[float, float]) -> tuple[float, float]:
    """Two percentiles with the result of np.percentile, in a fraction of the time.

    Args:
        sample: Any shape, at least one finite value.
        percents: Lower and upper percentile.
    """
    values = sample.ravel()
    low, high = (_between(values, percent / 100 * (values.size - 1)) for percent in percents)
    return low, high


def _between(values: Array, place: float) -> float:
    """The value at a place in sorted order, counted from 0; between two of them, the mixture of both."""
    rank = int(place)
    after = min(rank + 1, values.size - 1)
    # Selecting several ranks at a time takes several times as long, and sorting everything still longer.
    parted = np.partition(values, after)
    first, second = float(parted[: rank + 1].max()), float(parted[after])
    return first + (place - rank) * (second - first)


def follow_share(elapsed_ns: int, time_constant_s: float) -> float:
    """Share of a change that exponential smoothing adopts: ``1 - exp(-t / T)``; 1 for ``T = 0``."""
    return 1.0 if time_constant_s <= 0 else 1.0 - math.exp(-max(0, elapsed_ns) / SECOND / time_constant_s)


def _is_another_scene(before: tuple[float, float], now: tuple[float, float]) -> bool:
    shared = min(before[1], now[1]) - max(before[0], now[0])
    smaller = min(before[1] - before[0], now[1] - now[0])
    return shared < _MIN_OVERLAP * smaller or shared < 0
