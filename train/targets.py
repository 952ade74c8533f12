"""What training compares the result with: the sources and a teacher's result, with their visible faults removed.

A loss that uses the sources as they are rewards faults: clipped pixels are the brightest but show no detail; infrared sensor
noise is the strongest gradient in a clear sky; cold gaps between leaves become black dots on a bright tree. A teacher trained
with such a loss has the same faults. ``targets_of`` replaces these parts of the sources and of the teacher's result by what the
other source shows there.

Planes are (B, 1, H, W) floating in [0, 1]; source a is the infrared image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from refusion_edge.train.losses import gradient_magnitude

# Where a source counts as clipped: not below the first level, entirely from the second.
_CLIPPED = (0.955, 0.98)
# Window of the largest value and of the mean within a clipped area, in pixels: what a network of 12 pixels' reach can see.
_WINDOW_PX = 21
# Contrasts there are compressed smoothly to this.
_LARGEST_CONTRAST = 0.35
# A teacher is corrected fully if it keeps less than the second share of the contrast there, plus a small constant, and not
# at all if it keeps the first.
_KEPT, _TRIFLE, _CONTOUR_PX = (0.8, 0.5), 0.005, 5
# Where the visible image is bright, and flat: no gradient magnitude (the sum of both Sobel responses) above the first nearby.
_LIT = (0.25, 0.35)
_FLAT, _FLAT_WINDOW_PX = (0.1, 0.07), 11
# Detail is the difference from the mean of a mean of this width; from twice the limit on it is an object, and not grain.
_GRAIN_PX, _GRAIN_WINDOW_PX = 7, 9
# Fine detail, which is amplified: narrower, so that edges get no wide rims; not where its RMS value is that of noise.
_FINE_PX, _NOISE = 3, (0.006, 0.018)
# A gap is narrower than this; the visible image has to be this much brighter.
_GAP_PX, _BRIGHTER = 5, (0.0, 0.1)
# A hot object exceeds the mean of a box of this width by these differences.
_HOT_BOX_PX, _HOT = 63, (0.1, 0.2)


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """How far the targets depart from the sources and from the teacher's result; with zeros, not at all.

    Attributes:
        clipped: Share to which clipped pixels show the contrast of the other source instead, [0, 1].
        grain: Infrared detail with a smaller RMS value than this is removed where the visible image is flat and bright but
            not clipped, [0, 1] of full scale.
        gaps: Share to which narrow dark gaps of the infrared image are filled where the visible image is bright and brighter
            than the infrared image, [0, 1].
        hot: Share to which hot compact objects are as bright in the teacher's result as in the brighter source, [0, 1].
        detail: Share by which the fine detail of the teacher's result is amplified, except in flat areas: a network that
            regresses towards a teacher comes out softer than it.
        emphasis: How much more clipped pixels and pixels of hot compact objects count than others.
    """

    clipped: float = 0.0
    grain: float = 0.0
    gaps: float = 0.0
    hot: float = 0.0
    detail: float = 0.0
    emphasis: float = 0.0

    @property
    def depart(self) -> bool:
        """Whether any of them has an effect."""
        return any((self.clipped, self.grain, self.gaps, self.hot, self.detail, self.emphasis))


@dataclass(frozen=True, slots=True)
class Targets:
    """What training compares the result with.

    Attributes:
        a: Target of source a, (B, 1, H, W), [0, 1].
        b: Target of source b, same shape.
        taught: Target of a teacher, same shape; None without one.
        weight: How much a pixel counts, same shape, at least 1.
    """

    a: Tensor
    b: Tensor
    taught: Tensor | None
    weight: Tensor


def targets_of(a: Tensor, b: Tensor, settings: TargetSettings, taught: Tensor | None = None) -> Targets:
    """Find the targets of a batch of pairs.

    Args:
        a: Infrared image, (B, 1, H, W), [0, 1].
        b: Visible image, same shape.
        settings: How far the targets depart from the sources and from the teacher's result.
        taught: What a teacher makes of the pairs, same shape; None without one.
    """
    target_a, target_b = a, b
    if settings.gaps:
        fillable = settings.gaps * _ramp(b, *_LIT) * _ramp(b - a, *_BRIGHTER)
        depth = _closed(a) - a
        target_a = a + fillable * depth
        if taught is not None:
            # Not more than the infrared image lacks: other dark dots are the visible image's own.
            taught = taught + fillable * torch.minimum(_closed(taught) - taught, depth)
    if settings.grain:
        detail = _detail(target_a)
        # A clipped image is flat because it shows nothing, not because there is nothing.
        flat = _flat_and_lit(b) * (1 - _ramp(b, *_CLIPPED))
        grainy = flat * _ramp(_strength(detail), 2 * settings.grain, settings.grain)
        target_a = target_a - grainy * detail
        if taught is not None:
            taught = taught - grainy * (_detail(taught) - _detail(b))
    hot = hot_objects(a) if settings.hot or settings.emphasis else torch.zeros_like(a)
    if taught is not None:
        taught = torch.lerp(taught, torch.maximum(taught, torch.maximum(a, b)), settings.hot * hot)
    clipped_a, clipped_b = clipped_pixels(a), clipped_pixels(b)
    if settings.clipped:
        shown_a, shown_b = settings.clipped * clipped_a, settings.clipped * clipped_b
        if taught is not None:
            taught = _revealed(taught, shown_b * _lack(taught, target_a, shown_b), target_a, taught)
            taught = _revealed(taught, shown_a * (1 - shown_b) * _lack(taught, target_b, shown_a), target_b, taught)
        # White, because a lamp is bright. Both from what the other one was before.
        white = torch.ones_like(a)
        target_a, target_b = _revealed(target_a, shown_a, target_b, white), _revealed(target_b, shown_b, target_a, white)
    if taught is not None and settings.detail:
        fine = _detail(taught, _FINE_PX)
        taught = (taught + settings.detail * _ramp(_strength(fine), *_NOISE) * fine).clamp(0, 1)
    # Where both are clipped there is nothing to see.
    hidden = (clipped_a - clipped_b).abs()
    return Targets(target_a, target_b, taught, 1 + settings.emphasis * torch.maximum(hot, hidden))


def _revealed(plane: Tensor, clipped: Tensor, other: Tensor, level: Tensor) -> Tensor:
    """A plane whose clipped pixels show the contrast of the other source, around a level and not above white.

    Args:
        plane: (B, 1, H, W).
        clipped: Where it is clipped, same shape, [0, 1].
        other: The other source, same shape.
        level: Brightness that the clipped pixels have on average, as far as white is not exceeded, same shape.
    """
    if not clipped.any():
        return plane
    inside = (clipped > 0).to(plane.dtype)
    covered = _mean(inside, _WINDOW_PX).clamp(min=1e-3)

    def mean(x: Tensor) -> Tensor:
        return _mean(inside * x, _WINDOW_PX) / covered

    # A contrast of half the scale would leave a dark halo in the sky around a warm roof.
    shown = mean(level) + _LARGEST_CONTRAST * torch.tanh((other - mean(other)) / _LARGEST_CONTRAST)
    # Outside the clipped area 0 is below everything that could exceed white.
    excess = mean(_spread(inside * shown, _WINDOW_PX) - 1).clamp(min=0)
    return torch.lerp(plane, (shown - excess).clamp(0, 1), clipped)


def _lack(taught: Tensor, other: Tensor, clipped: Tensor) -> Tensor:
    """Where a teacher has lost the contrast of the other source in the clipped area, [0, 1]."""
    if not clipped.any():
        return clipped
    # The contour of the clipped area itself is no contrast of the other source.
    inner = -_spread(-clipped, _CONTOUR_PX)
    has, wanted = (_mean(inner * gradient_magnitude(plane), _WINDOW_PX) for plane in (taught, other))
    return _ramp((has + _TRIFLE) / (wanted + _TRIFLE), *_KEPT)


def _detail(x: Tensor, window_px: int = _GRAIN_PX) -> Tensor:
    return x - _mean(_mean(x, window_px), window_px)


def _strength(detail: Tensor) -> Tensor:
    """Root mean square nearby."""
    return _mean(detail.square(), _GRAIN_WINDOW_PX).clamp(min=1e-12).sqrt()


def _flat_and_lit(b: Tensor) -> Tensor:
    return _ramp(_spread(gradient_magnitude(b), _FLAT_WINDOW_PX), *_FLAT) * _ramp(b, *_LIT)


def _closed(x: Tensor) -> Tensor:
    """Narrow dark gaps filled: the morphological closing."""
    return -_spread(-_spread(x, _GAP_PX), _GAP_PX)


def local_contrast(x: Tensor) -> Tensor:
    """Difference from the mean of the surroundings, (B, 1, H, W): a box of 63 pixels, or of the image if that is smaller."""
    box = min(_HOT_BOX_PX, 2 * (min(x.shape[-2:]) // 2) - 1)
    return x - _mean(x, box)


def hot_objects(a: Tensor) -> Tensor:
    """Where the infrared image exceeds its surroundings, [0, 1], same shape."""
    return _ramp(local_contrast(a), *_HOT)


def clipped_pixels(plane: Tensor) -> Tensor:
    """Where a source is clipped, [0, 1], same shape."""
    return _ramp(plane, *_CLIPPED)


def _ramp(x: Tensor, low: float, high: float) -> Tensor:
    """From 0 at ``low`` to 1 at ``high``, which may be below it."""
    return ((x - low) / (high - low)).clamp(0, 1)


def _mean(x: Tensor, window_px: int) -> Tensor:
    """Mean over a square window of odd side, inside the image."""
    return _by_rows_and_columns(partial(F.avg_pool2d, count_include_pad=False), x, window_px)


def _spread(x: Tensor, window_px: int) -> Tensor:
    """Largest value in a square window of odd side."""
    return _by_rows_and_columns(F.max_pool2d, x, window_px)


def _by_rows_and_columns(pool: Callable[..., Tensor], x: Tensor, window_px: int) -> Tensor:
    """Pool by rows and then by columns: a square window of 21 pixels takes 42 operations instead of 441."""
    reach = window_px // 2
    rows = pool(x, (1, window_px), stride=1, padding=(0, reach))
    return pool(rows, (window_px, 1), stride=1, padding=(reach, 0))
