"""Noise of a frame, told from texture by its smoothest places."""

from __future__ import annotations

import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.images.ranges import Mask

_BLOCK = 8
_SAMPLED_BLOCKS = 600
# The smoothest tenth of the blocks has the noise and little else; of pure noise, it has this share of the standard deviation.
_SMOOTHEST, _SHARE_OF_NOISE = 10, 0.83
# The difference of a pixel from the mean of its four neighbors has sqrt(1.25) times the standard deviation.
_OF_DIFFERENCE = 1.25**-0.5
# In units of the noise. Of 330 infrared images with a scene, the range is at least 46 times the noise, and of noise alone, 9.
_MIN_RANGE = 40.0


def noise_of(plane: Array, invalid: Mask | None = None) -> float:
    """Standard deviation of the noise.

    Args:
        plane: (H, W), of whole or float numbers; places with values that are not finite do not count.
        invalid: (H, W), True where there is no value; such places do not count, either.

    Returns:
        In units of the plane; 0 below 10x10 pixels. Texture everywhere, without any smooth place, counts as noise.
    """
    rows, columns = ((side - 2) // _BLOCK for side in plane.shape)
    if rows < 1 or columns < 1:
        return 0.0
    step = max(1, round((rows * columns / _SAMPLED_BLOCKS) ** 0.5))
    tops, lefts = (1 + _BLOCK * np.arange(step // 2, count, step) for count in (rows, columns))
    offsets = np.arange(-1, _BLOCK + 1)
    places = (tops[:, None] + offsets)[:, None, :, None], (lefts[:, None] + offsets)[None, :, None, :]
    blocks = plane[places]
    # Large counts need more than the 24 bits of float32.
    blocks = blocks if blocks.dtype == np.float32 else blocks.astype(np.float64)
    if invalid is not None:
        blocks[invalid[places]] = np.nan
    middle = blocks[..., 1:-1, 1:-1]
    with np.errstate(invalid="ignore", over="ignore"):
        neighbors = blocks[..., :-2, 1:-1] + blocks[..., 2:, 1:-1] + blocks[..., 1:-1, :-2] + blocks[..., 1:-1, 2:]
        squares = np.square(middle - neighbors / 4).mean(axis=(-2, -1))
    squares = squares[np.isfinite(squares)]
    return float(np.percentile(squares, _SMOOTHEST) ** 0.5) * _OF_DIFFERENCE / _SHARE_OF_NOISE if squares.size else 0.0


def noise_limited(low: float, high: float, plane: Array, invalid: Mask | None = None) -> tuple[float, float]:
    """Widen a range, around its middle, until noise is a fortieth of it: a covered camera is gray, not grainy.

    Args:
        low: Lower end.
        high: Upper end.
        plane: The frame, as for ``noise_of``.
        invalid: As for ``noise_of``.
    """
    lacking = max(0.0, _MIN_RANGE * noise_of(plane, invalid) - (high - low))
    return low - lacking / 2, high + lacking / 2
