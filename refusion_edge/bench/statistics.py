"""Summaries of measured times: percentiles backed by enough samples, and ratios with confidence intervals."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refusion_edge.report.bootstrap import interval, median_ratios

PERCENTILES = (90.0, 95.0, 99.0, 99.9)

# With fewer pairs an interval means little.
_LEAST_PAIRS = 10


@dataclass(frozen=True, slots=True)
class Spread:
    """Distribution of a time.

    Attributes:
        count: Number of samples.
        mean_ms: Mean.
        median_ms: Median.
        percentiles_ms: Value of ``p90`` and so on; None where fewer than one sample lies beyond it.
        max_ms: Largest value.
    """

    count: int
    mean_ms: float
    median_ms: float
    percentiles_ms: dict[str, float | None]
    max_ms: float


def spread(times_ms: NDArray[np.float64]) -> Spread:
    """Summarize times, (n,), at least one.

    A percentile is the smallest sample that is not exceeded by at least that percentage of the samples, so it is a measured
    value. It is given only if at least one sample is expected beyond it: p99 needs 100 samples, p99.9 needs 1000.
    """
    count = len(times_ms)
    return Spread(
        count,
        float(np.mean(times_ms)),
        float(np.median(times_ms)),
        {percentile_name(percent): _percentile(times_ms, percent) for percent in PERCENTILES},
        float(np.max(times_ms)),
    )


def percentile_name(percent: float) -> str:
    """Name of a percentile, such as ``p99.9``."""
    return f"p{percent:g}"


def _percentile(times_ms: NDArray[np.float64], percent: float) -> float | None:
    # In whole tenths of a percent: 99.9 / 100 is inexact in binary.
    per_mille, count = round(10 * percent), len(times_ms)
    if count * (1000 - per_mille) < 1000:
        return None
    rank = -(-count * per_mille // 1000)
    return float(np.partition(times_ms, rank - 1)[rank - 1])


@dataclass(frozen=True, slots=True)
class Ratio:
    """How much longer one engine takes than another, measured in turns.

    Attributes:
        value: Median of one over median of the other.
        low: Lower end of the paired bootstrap interval; None below ten pairs.
        high: Upper end.
        pairs: Number of pairs.
    """

    value: float
    low: float | None
    high: float | None
    pairs: int

    @property
    def distinct(self) -> bool:
        """Whether the interval excludes 1."""
        return self.low is not None and self.high is not None and not self.low <= 1 <= self.high


def ratio(above_ms: NDArray[np.float64], below_ms: NDArray[np.float64]) -> Ratio:
    """Compare two engines that were measured in turns.

    Args:
        above_ms: Times of the numerator, (n,), in the order measured.
        below_ms: Times of the denominator, (n,), each measured right next to its counterpart.
    """
    value = float(np.median(above_ms) / np.median(below_ms))
    if len(above_ms) < _LEAST_PAIRS:
        return Ratio(value, None, None, len(above_ms))
    return Ratio(value, *interval(median_ratios(above_ms, below_ms)), len(above_ms))


def verdict(first: str, second: str, found: Ratio) -> str:
    """State how much faster the first is than the second.

    Args:
        first: Name of the denominator.
        second: Name of the numerator.
        found: Time of the second over time of the first.
    """
    if found.low is None or found.high is None:
        return f"{first} and {second}: {found.pairs} pairs are too few to tell"
    if not found.distinct:
        return f"{first} and {second} cannot be told apart: {found.value:.2f}x ({found.low:.2f} to {found.high:.2f})"
    if found.value >= 1:
        return f"{first} is {found.value:.2f}x faster than {second} ({found.low:.2f} to {found.high:.2f})"
    return f"{first} is {1 / found.value:.2f}x slower than {second} ({1 / found.high:.2f} to {1 / found.low:.2f})"
