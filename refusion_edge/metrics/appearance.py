"""Metrics of visible faults that other metrics miss: lost detail in glare, faint hot objects, noise, rims, double contours.

Source a is the infrared image, source b the visible one. The fused image is the one displayed, with its range stretched. Each
metric covers only certain areas, and is undefined for a pair without them.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from refusion_edge.metrics.planes import Plane, defined, mean, sobel

Mask: TypeAlias = NDArray[np.bool_]

# Levels from which a pixel is clipped; the sources are JPEG in part.
_CLIPPED = 250
_LEAST_CLIPPED_SHARE = 0.005
_STRONGEST, _DETAIL = 75, 8
# A target stands out of its surroundings, a box of this share of the shorter side, and of the whole image.
_BOX_SHARE, _PROMINENCE, _HOT_PERCENTILE = 0.2, 35, 92
_LEAST_TARGET_PX, _LARGEST_TARGET_SHARE = 25, 0.02
_RING = (5, 15)
_VISIBLE_CONTRAST = 8
# Flat and bright: within these levels, and without a gradient above this many levels per pixel nearby.
_LIT, _FLAT_GRADIENT, _FLAT_WINDOW = (80, 245), 2.0, 11
_LEAST_FLAT_SHARE = 0.01
_HIGH_PASS_SIGMA = 2.0
# A strong edge, in levels per pixel, and distances from it in pixels.
_STRONG_EDGE, _NEAR, _FAR = 20.0, (2, 4), (9, 14)
_LEAST_RIM_PX = 100
# A contour of both sources: gradients in levels per pixel. Distance in pixels within which a second one is a double.
_CONTOUR, _BESIDE_PX = 10.0, 6
_LEAST_CONTOUR_PX = 100
_SOBEL_SCALE = 8


def kept_infrared(a: Plane, b: Plane, fused: Plane) -> float:
    """Infrared detail kept in glare: sum |grad F| / sum |grad A|, where B is clipped and A has detail.

    Clipped: at least 250 levels, eroded by 5x5 pixels. Detail: the quarter of these pixels with the largest Sobel magnitudes
    of A.

    Args:
        a: Infrared image, (H, W).
        b: Visible image, (H, W).
        fused: (H, W).

    Returns:
        At least 0, higher is better; 1 where the detail is as strong as in A. Undefined (NaN) where at most 0.5 % of B is
        clipped, or A is constant there. Convention ``appearance``.

    Source:
        Defined here.
    """
    return _kept(a, b, fused)


def kept_visible(a: Plane, b: Plane, fused: Plane) -> float:
    """Visible detail kept where the infrared image is clipped; see ``kept_infrared``, with A and B exchanged.

    Args:
        a: Infrared image, (H, W).
        b: Visible image, (H, W).
        fused: (H, W).

    Returns:
        At least 0, higher is better; undefined (NaN) where at most 0.5 % of A is clipped, or B is constant there. Convention
        ``appearance``.

    Source:
        Defined here.
    """
    return _kept(b, a, fused)


def target_contrast(a: Plane, _b: Plane, fused: Plane) -> float:
    """Contrast of hot compact objects: mean of F inside the object minus mean of F in a ring around it, mean over the objects.

    Objects: components of pixels where A is more than 35 levels above its mean in a box of a fifth of the shorter side, and
    above its 92nd percentile, of 25 pixels to 2 % of the image. Ring: 15x15 dilation without the 5x5 dilation.

    Args:
        a: Infrared image, (H, W).
        fused: (H, W).

    Returns:
        [-255, 255] gray levels, higher is better; undefined (NaN) without such an object. Convention ``appearance``.

    Source:
        Defined here.
    """
    contrasts = target_contrasts(a, fused)
    return float(contrasts.mean()) if contrasts.size else math.nan


def lost_targets(a: Plane, _b: Plane, fused: Plane) -> float:
    """Number of hot compact objects with a contrast below 8 levels; see ``target_contrast``.

    Args:
        a: Infrared image, (H, W).
        fused: (H, W).

    Returns:
        Number of objects, lower is better; 0 without any object. Convention ``appearance``.

    Source:
        Defined here.
    """
    return float(np.sum(target_contrasts(a, fused) < _VISIBLE_CONTRAST))


def target_contrasts(a: Plane, fused: Plane) -> NDArray[np.float64]:
    """Contrast of every hot compact object, see ``target_contrast``, in gray levels."""
    side = int(_BOX_SHARE * min(a.shape)) | 1
    hot = (a > _box_mean(a, side) + _PROMINENCE) & (a > np.percentile(defined(a), _HOT_PERCENTILE))
    count, labels, boxes, _ = cv2.connectedComponentsWithStats(hot.astype(np.uint8), connectivity=8)
    contrasts = []
    for label in range(1, count):
        left, top, width, height, area = boxes[label]
        if not _LEAST_TARGET_PX <= area <= _LARGEST_TARGET_SHARE * a.size:
            continue
        reach = _RING[1] // 2
        part = np.s_[max(0, top - reach) : top + height + reach, max(0, left - reach) : left + width + reach]
        inside = labels[part] == label
        near, far = (cv2.dilate(inside.astype(np.uint8), np.ones((size, size), np.uint8)) > 0 for size in _RING)
        if (ring := far & ~near).any():
            contrasts.append(mean(fused[part][inside]) - mean(fused[part][ring]))
    return np.array(contrasts, np.float64)


def added_noise(_a: Plane, b: Plane, fused: Plane) -> float:
    """Noise in flat, bright areas beyond that of the visible image: RMS of the high-pass of F minus that of B.

    Flat and bright: 80 to 245 levels in B, without a gradient of more than 2 levels per pixel in a window of 11x11. High-pass:
    the image minus its Gaussian mean, sigma 2 pixels.

    Args:
        b: Visible image, (H, W).
        fused: (H, W).

    Returns:
        [-255, 255] gray levels, lower is better; below 0 where F is smoother than B. Undefined (NaN) where at most 1 % of B is
        flat and bright. Convention ``appearance``.

    Source:
        Defined here.
    """
    area = _flat_and_lit(b)
    if area.mean() <= _LEAST_FLAT_SHARE:
        return math.nan
    return _high_pass_rms(fused, area) - _high_pass_rms(b, area)


def rims(_a: Plane, b: Plane, fused: Plane) -> float:
    """Bright rims: how much more F exceeds B at 2 to 4 pixels from a strong edge than at 9 to 14 pixels, in flat, bright areas.

    Strong edge: a gradient of B of more than 20 levels per pixel. Flat and bright: 80 to 245 levels in B, without a gradient of
    more than 2 levels per pixel at the pixel itself.

    Args:
        b: Visible image, (H, W).
        fused: (H, W).

    Returns:
        [-510, 510] gray levels, lower is better, 0 without rims; below 0 where they are dark. Undefined (NaN) with fewer than
        100 pixels at either distance. Convention ``appearance``.

    Source:
        Defined here.
    """
    strength = _gradient(b)
    elsewhere = ~(strength > _STRONG_EDGE)  # a pixel without a value is no edge
    distance = cv2.distanceTransform(elsewhere.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    flat = (b >= _LIT[0]) & (b <= _LIT[1]) & (strength <= _FLAT_GRADIENT)
    near, far = (flat & (distance >= low) & (distance <= high) for low, high in (_NEAR, _FAR))
    if min(near.sum(), far.sum()) < _LEAST_RIM_PX:
        return math.nan
    excess = fused - b
    return mean(excess[near]) - mean(excess[far])


def ghost_contours(a: Plane, b: Plane, fused: Plane) -> float:
    """Double contours: share of the gradients of F around contours of both sources that lies where neither source has them.

    With S = max(|grad A|, |grad B|), and |grad F| scaled to the sum of S over the area: sum max(0, |grad F| - S) / sum S. The
    area extends to 6 pixels around the contours, which are where both |grad A| and |grad B| are above 10 levels per pixel. If
    the cameras are not aligned, F shows such contours twice; A and B are then the aligned sources, as in
    ``refusion_edge.metrics.sweep_fusion``.

    Args:
        a: Infrared image, (H, W).
        b: Visible image, (H, W).
        fused: (H, W).

    Returns:
        [0, 1], lower is better; 0.5 if a step in both sources appears twice, each time at half its height. Undefined (NaN) with
        fewer than 100 pixels of contours, or if F is constant around them. Convention ``appearance``.

    Source:
        Defined here.
    """
    of_a, of_b, of_fused = (np.nan_to_num(_gradient(plane)) for plane in (a, b, fused))
    contour = (of_a > _CONTOUR) & (of_b > _CONTOUR)
    if contour.sum() < _LEAST_CONTOUR_PX:
        return math.nan
    distance = cv2.distanceTransform((~contour).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    around = distance <= _BESIDE_PX
    shown, expected = of_fused[around], np.maximum(of_a, of_b)[around]
    if not shown.any():
        return math.nan
    scaled = shown * (expected.sum() / shown.sum())
    return float(np.maximum(scaled - expected, 0).sum() / expected.sum())


def _kept(source: Plane, clipped: Plane, fused: Plane) -> float:
    area = cv2.erode((clipped >= _CLIPPED).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    if area.mean() <= _LEAST_CLIPPED_SHARE:
        return math.nan
    of_source, of_fused = (np.hypot(*sobel(plane, cv2.BORDER_REPLICATE))[area] for plane in (source, fused))
    strongest = of_source >= max(np.percentile(of_source, _STRONGEST), _DETAIL)
    total = float(of_source[strongest].sum())
    return float(of_fused[strongest].sum()) / total if total > 0 else math.nan


def _flat_and_lit(b: Plane) -> Mask:
    window = np.ones((_FLAT_WINDOW, _FLAT_WINDOW), np.uint8)
    steepest = cv2.dilate(np.nan_to_num(_gradient(b), nan=np.inf), window)
    flat: Mask = steepest <= _FLAT_GRADIENT
    return flat & (b >= _LIT[0]) & (b <= _LIT[1])


def _gradient(plane: Plane) -> Plane:
    """Gradient magnitude in levels per pixel."""
    return np.asarray(np.hypot(*sobel(plane, cv2.BORDER_REPLICATE)) / _SOBEL_SCALE)


def _high_pass_rms(plane: Plane, area: Mask) -> float:
    high = plane - cv2.GaussianBlur(plane, (0, 0), _HIGH_PASS_SIGMA)
    return math.sqrt(mean(np.square(high[area])))


def _box_mean(plane: Plane, side: int) -> Plane:
    """Mean of the pixels in a square window that have a value."""
    present = ~np.isnan(plane)
    if present.all():
        return np.asarray(cv2.blur(plane, (side, side)))
    total, share = (cv2.blur(each, (side, side)) for each in (np.where(present, plane, 0), present.astype(np.float64)))
    return np.asarray(total / np.maximum(share, 1 / side**2))
