"""Random crops of pairs, drawn by counter.

Crop n depends only on the seed and on n, so a run can be repeated, resumed or spread over several machines exactly,
without generator state.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from refusion_edge.arrays import Array, Float32Array
from refusion_edge.train.augmentation import ToneSettings, defocused_pair, toned

PLAIN = ToneSettings(share=0.0, gamma=1.0, least_gain=1.0, alike=True)
"""No tone curves: validation, and training on unmodified images."""


class CropSource(Protocol):
    """A source of crops."""

    def __len__(self) -> int:
        """Number of pairs."""

    def planes(self, which: int) -> tuple[Array, Array]:
        """Luma of source a and source b of a pair, each (H, W) uint8."""

    def is_sharp(self, which: int) -> bool:
        """Tell whether the pair is a single sharp image, from which a multi-focus pair is made."""


def crop_batch(
    pairs: CropSource,
    step: int,
    *,
    batch: int,
    crop_px: int,
    seed: int,
    stream: int = 0,
    start: int = 0,
    tone: ToneSettings = PLAIN,
) -> tuple[Tensor, Tensor]:
    """Draw the crops of one step, flipped and transposed at random, both sources in the same way.

    Args:
        pairs: Planes to draw from; every pair is equally likely.
        step: Counter; the same step gives the same crops.
        batch: Number of crops B.
        crop_px: Side S of a crop.
        seed: Seed of the run.
        stream: Second counter, which separates meta-train, meta-test and validation.
        start: Number of the first crop within the step; several ranks draw parts of one joint batch.
        tone: Tone curves to apply; none by default.

    Returns:
        Source a and source b, each (B, 1, S, S) float32, [0, 1].
    """
    crops_a: list[Float32Array] = []
    crops_b: list[Float32Array] = []
    for index in range(start, start + batch):
        draw = np.random.Generator(np.random.Philox(key=seed, counter=(0, stream, step, index)))
        which = int(draw.integers(len(pairs)))
        a, b = pairs.planes(which)
        y = int(draw.integers(a.shape[0] - crop_px + 1))
        x = int(draw.integers(a.shape[1] - crop_px + 1))
        turns, mirrored = int(draw.integers(4)), bool(draw.integers(2))
        turned = [np.rot90(plane[y : y + crop_px, x : x + crop_px], turns) for plane in (a, b)]
        crop_a, crop_b = (np.fliplr(crop) if mirrored else crop for crop in turned)
        if pairs.is_sharp(which):
            crop_a, crop_b = defocused_pair(crop_a, draw)
        plane_a, plane_b = toned(crop_a, crop_b, tone, draw)
        crops_a.append(plane_a)
        crops_b.append(plane_b)
    return _to_tensor(crops_a), _to_tensor(crops_b)


def _to_tensor(crops: list[Float32Array]) -> Tensor:
    return torch.from_numpy(np.stack(crops)[:, None])
