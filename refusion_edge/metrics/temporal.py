"""Metrics over time, for fused sequences."""

from __future__ import annotations

import numpy as np

from refusion_edge.metrics.planes import Plane, mean

Triple = tuple[Plane, Plane, Plane]
"""Source a, source b and the fused image of one moment, (H, W) each."""


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
