"""Metrics over time, for fused sequences."""

from __future__ import annotations

import math

import cv2
import numpy as np

from refusion_edge.metrics.planes import Plane, defined, mean

Triple = tuple[Plane, Plane, Plane]
"""Source a, source b and the fused image of one moment, (H, W) each."""

# Brightness is what remains of an image at this share of the shorter side, grain what a mean over a few pixels takes away.
_BRIGHTNESS_SHARE, _GRAIN_SIGMA = 1 / 16, 2.0
# Of a normal distribution, the standard deviation over the median magnitude.
_SIGMA_OF_MEDIAN = 1.4826


def flicker(previous: Triple, current: Triple) -> float:
    """Flicker: mean over all pixels of max(0, |dF| - max(|dA|, |dB|)), d the change of luma from one frame to the next.

    The change of the fused sequence beyond that of either source at the same place: a brightness jump of the output range,
    a flipping mask, amplified noise. A moving scene is not flicker.

    Args:
        previous: Source a, source b and fused of one frame.
        current: The same of the next frame.

    Returns:
        [0, 255] gray levels per frame, lower is better; 0 for a fused sequence that changes no more than its sources.
        The flicker of a sequence is the mean over its transitions. Convention ``sequence``.

    Source:
        Defined here.
    """
    change_a, change_b, change_fused = (np.abs(after - before) for before, after in zip(previous, current, strict=True))
    return mean(np.maximum(change_fused - np.maximum(change_a, change_b), 0))


def pumping(previous: Triple, current: Triple) -> float:
    """Pumping: the flicker of brightness alone, after a Gaussian filter of all images, with sigma 1/16 of the shorter side.

    Such as from a range that follows a hot object, or a gain that oscillates. Noise and detail are averaged away.

    Args:
        previous: Source a, source b and fused of one frame.
        current: The same of the next frame.

    Returns:
        [0, 255] gray levels per frame, lower is better; 0 for a fused sequence whose brightness changes nowhere more than that
        of its sources. Convention ``sequence``.

    Source:
        Defined here.
    """
    missing = np.isnan(previous[0] + current[0])
    sigma = _BRIGHTNESS_SHARE * min(missing.shape)
    present = cv2.GaussianBlur(np.where(missing, 0.0, 1.0), (0, 0), sigma)

    def brightness(triple: Triple) -> Triple:
        means = (cv2.GaussianBlur(np.where(missing, 0.0, plane), (0, 0), sigma) / present.clip(1e-9) for plane in triple)
        a, b, fused = (np.where(missing, np.nan, mean_nearby) for mean_nearby in means)
        return a, b, fused

    return flicker(brightness(previous), brightness(current))


def grain(previous: Triple, current: Triple) -> float:
    """Grain: temporal noise of the fused sequence, 1.4826 median |dF - G dF| / sqrt(2), G a Gaussian mean with sigma 2 pixels.

    In a static scene, 0.97 times the standard deviation of white noise. The median ignores moving contours.

    Args:
        previous: Source a, source b and fused of one frame.
        current: The same of the next frame.

    Returns:
        [0, 255] gray levels, lower is better. Convention ``sequence``.

    Source:
        Defined here.
    """
    change = current[2] - previous[2]
    fine = defined(np.abs(change - cv2.GaussianBlur(change, (0, 0), _GRAIN_SIGMA)))
    return _SIGMA_OF_MEDIAN * float(np.median(fine)) / math.sqrt(2) if fine.size else math.nan
