"""Priors of the loss: logits of the preference for source a over source b before anything is learned.

They are added to the logits of the loss proposal network: learning starts from them, and a control run stays at them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from refusion_edge.train.losses import Logits, gradient_magnitude

# Logits per unit of intensity: close to a hard choice of the brighter source.
_INTENSITY_SHARPNESS = 20.0
# Width of the bell curve of well-exposedness around mid-gray (Mertens et al., 2007).
_EXPOSURE_SIGMA = 0.2
_FOCUS_WINDOW = 9
# Mean gradients in focus and out of it differ by a few hundredths: a small factor would average texture.
_FOCUS_SHARPNESS = 200.0


def neutral(a: Tensor, _b: Tensor, _sharpness: float) -> Logits:
    """No preference."""
    return torch.zeros_like(a), torch.zeros_like(a)


def stronger(a: Tensor, b: Tensor, sharpness: float) -> Logits:
    """The stronger gradient; no preference in intensity."""
    return torch.zeros_like(a), sharpness * (gradient_magnitude(a) - gradient_magnitude(b))


def brighter(a: Tensor, b: Tensor, sharpness: float) -> Logits:
    """The brighter source, the stronger gradient."""
    return _INTENSITY_SHARPNESS * (a - b), stronger(a, b, sharpness)[1]


def focused(a: Tensor, b: Tensor, _sharpness: float) -> Logits:
    """The source with the larger mean gradient in a 9x9 window, for both."""
    difference = gradient_magnitude(a) - gradient_magnitude(b)
    sharper = F.avg_pool2d(difference, _FOCUS_WINDOW, stride=1, padding=_FOCUS_WINDOW // 2)
    return _FOCUS_SHARPNESS * sharper, _FOCUS_SHARPNESS * sharper


def exposed(a: Tensor, b: Tensor, sharpness: float) -> Logits:
    """The source closer to mid-gray, the stronger gradient."""
    exposedness = ((b - 0.5).square() - (a - 0.5).square()) / (2 * _EXPOSURE_SIGMA**2)
    return exposedness, stronger(a, b, sharpness)[1]


PRIORS: dict[str, Callable[[Tensor, Tensor, float], Logits]] = {
    "none": neutral,
    "stronger": stronger,
    "brighter": brighter,
    "focused": focused,
    "exposed": exposed,
}
"""Priors by their name in settings: from source a, source b and the logits per unit of gradient magnitude."""
