"""Bootstrap intervals with a fixed seed: the same values always give the same interval."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
SEED = 20_240_806
CONFIDENCE = 0.95

# Numbers held in memory at a time while medians are computed.
_CHUNK = 4_000_000


def interval(estimates: NDArray[np.float64]) -> tuple[float, float]:
    """Percentile interval of the estimates from resamples, (RESAMPLES,).

    Source:
        Efron, Tibshirani: An Introduction to the Bootstrap, 1993, section 13.3.
    """
    low, high = np.quantile(estimates, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


@functools.lru_cache(maxsize=8)
def resampling(count: int) -> NDArray[np.float64]:
    """Weights of ``count`` independent cases in each resample, (RESAMPLES, count)."""
    drawn = np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return drawn / count


def median_ratios(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ratio of the medians in each resample of paired measurements that follow one another in time.

    Runs of consecutive pairs are drawn, not single pairs: disturbances of a machine outlast single measurements, and
    intervals from single draws would be too narrow.

    Args:
        above: Numerators, (n,), in the order measured.
        below: Denominators, (n,).

    Returns:
        (RESAMPLES,).

    Source:
        Politis, Romano: A circular block-resampling procedure for stationary data, 1992; runs of n^(1/3).
    """
    count = len(above)
    length = max(1, round(count ** (1 / 3)))
    runs = -(-count // length)
    rng = np.random.default_rng(SEED)
    step = max(1, _CHUNK // count)
    ratios = []
    for first in range(0, RESAMPLES, step):
        starts = rng.integers(0, count, (min(step, RESAMPLES - first), runs, 1))
        drawn = ((starts + np.arange(length)) % count).reshape(len(starts), -1)[:, :count]
        ratios.append(np.median(above[drawn], axis=1) / np.median(below[drawn], axis=1))
    return np.concatenate(ratios)
