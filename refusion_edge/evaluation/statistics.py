"""Means, ranks and paired differences of per-image values; undefined values are NaN and excluded."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refusion_edge.report.bootstrap import interval, resampling


@dataclass(frozen=True, slots=True)
class Summary:
    """Values of one method in one metric.

    Attributes:
        mean: Mean over the images where the metric is defined; None if it is defined on none.
        standard_error: Standard error of that mean; None below two images.
        images: Images where the metric is defined.
        undefined: Images where it is not.
    """

    mean: float | None
    standard_error: float | None
    images: int
    undefined: int


@dataclass(frozen=True, slots=True)
class Difference:
    """How much higher a first method is than a second one, over the images where both are defined.

    Attributes:
        mean: Mean of the paired differences; None without such an image.
        low: Lower end of the paired bootstrap interval; None below two images.
        high: Upper end.
        images: Number of such images.
    """

    mean: float | None
    low: float | None
    high: float | None
    images: int

    @property
    def distinct(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def mean_of_defined(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """Mean over one axis, ignoring undefined values; NaN where nothing is defined."""
    defined = ~np.isnan(values)
    count = defined.sum(axis=axis)
    total = np.where(defined, values, 0).sum(axis=axis)
    return np.asarray(np.divide(total, count, out=np.full_like(total, math.nan), where=count > 0))


def summarize(values: NDArray[np.float64]) -> Summary:
    """Summarize the values of one method, (images,)."""
    defined = values[~np.isnan(values)]
    count = len(defined)
    return Summary(
        float(np.mean(defined)) if count else None,
        float(np.std(defined, ddof=1)) / math.sqrt(count) if count > 1 else None,
        count,
        len(values) - count,
    )


def difference(first: NDArray[np.float64], second: NDArray[np.float64]) -> Difference:
    """Compare two methods on the same images.

    The interval is the percentile bootstrap: images are drawn with replacement, the same for both methods, with a
    fixed seed, so that the same values always give the same interval.

    Args:
        first: (images,), NaN where undefined.
        second: The same images.
    """
    paired = first - second
    paired = paired[~np.isnan(paired)]
    if len(paired) < 2:
        return Difference(float(paired[0]) if len(paired) else None, None, None, len(paired))
    return Difference(float(np.mean(paired)), *interval(resampling(len(paired)) @ paired), len(paired))


def ranks(values: NDArray[np.float64], *, higher_is_better: bool) -> list[int | None]:
    """Rank methods by their means over the images, 1 for the best; equal means share the better rank.

    A method without a value on an image where another one has it comes last: its mean is over other images, and blank results
    would win otherwise.

    Args:
        values: (methods, images), NaN where undefined.
        higher_is_better: Direction of the metric.

    Returns:
        A rank for each method; None for all if no value is defined.
    """
    comparable = values[:, ~np.isnan(values).all(axis=0)]
    if not comparable.size:
        return [None] * len(values)
    means = comparable.mean(axis=1) * (1 if higher_is_better else -1)
    oriented = np.where(np.isnan(means), -np.inf, means)
    return [1 + int((oriented > own).sum()) for own in oriented]


def image_quality(values: NDArray[np.float64], higher_is_better: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Rate the images of one method from worst to best.

    Args:
        values: (images, metrics), NaN where undefined.
        higher_is_better: (metrics,).

    Returns:
        (images,) in [0, 1]: the share of the other images that an image beats, averaged over the metrics; undefined
        beats nothing.
    """
    oriented = np.where(higher_is_better, values, -values)
    oriented = np.where(np.isnan(oriented), -np.inf, oriented)
    beaten = (oriented[:, None, :] > oriented[None, :, :]).sum(axis=1)
    return np.asarray(beaten.mean(axis=1) / max(len(values) - 1, 1))
