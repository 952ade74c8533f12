"""Crops that know the image they were cut from: its statistics, and what a teacher makes of it.

The network ``fast`` adapts to statistics of the whole image, and a teacher fuses whole images, because its attention spans
them. So tone curves and synthetic defocus are applied to whole images here, in a few variants of each, which are then cut.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from refusion_edge.arrays import Float32Array
from refusion_edge.network.fast import statistics
from refusion_edge.train.augmentation import ShiftSettings, ToneSettings, defocused_pair, shifted, toned
from refusion_edge.train.crops import CropSource

# Counter stream of the variants, apart from those of the crops.
_DEFOCUS, _TONE = 11, 12
_SCALE = 65535

STILL = ShiftSettings()
"""No shifts."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """Trained weights whose result a network learns to reproduce.

    Attributes:
        name: Its name in messages and notes.
        task: Name of the task that it was trained for, or None if unknown.
        sha256: Hash of its weights file.
        fuse: Fuses two planes, (1, 1, H, W) float32 in [0, 1], to the plane before any stretch, of the same shape and range.
    """

    name: str
    task: str | None
    sha256: str
    fuse: Callable[[Float32Array, Float32Array], Float32Array]


@dataclass(frozen=True, slots=True)
class Crops:
    """A batch of crops.

    Attributes:
        a: Source a, (B, 1, S, S) float32, [0, 1].
        b: Source b, same shape.
        figures: Statistics of the images that they were cut from, (B, 8) float32.
        taught: Result of the teacher, or the sharp image that synthetic defocus was made from, same shape as the sources; None
            without a teacher.
        seen_a: Source a as the network sees it, shifted in some crops, same shape; None if in none.
    """

    a: Tensor
    b: Tensor
    figures: Tensor
    taught: Tensor | None
    seen_a: Tensor | None = None


@dataclass(frozen=True, slots=True)
class _View:
    """A variant of a pair: planes (H, W) uint16, of which 65535 is 1."""

    a: NDArray[np.uint16]
    b: NDArray[np.uint16]
    figures: Float32Array
    taught: NDArray[np.uint16] | None


@dataclass(slots=True)
class Views:
    """Variants of whole images, made when they are first drawn, and kept in memory as far as they fit.

    Attributes:
        pairs: Planes to draw from; every pair is equally likely.
        tone: Tone curves.
        seed: Seed of the run.
        variants: Variants of each pair.
        teacher: Who fuses them, or None.
        cache_bytes: Memory for them; what does not fit is made again when drawn.
        shift: Shifts of source a.
    """

    pairs: CropSource
    tone: ToneSettings
    seed: int
    variants: int = 1
    teacher: Teacher | None = None
    cache_bytes: int = 2 << 30
    shift: ShiftSettings = STILL
    _cache: dict[tuple[int, int], _View] = field(default_factory=dict)
    _cached_bytes: int = 0

    def draw(self, step: int, *, batch: int, crop_px: int, stream: int = 0, start: int = 0) -> Crops:
        """Draw the crops of one step, flipped and transposed at random, everything of a crop in the same way.

        Args:
            step: Counter; the same step gives the same crops.
            batch: Number of crops.
            crop_px: Side of a crop.
            stream: Second counter, which separates meta-train, meta-test and validation.
            start: Number of the first crop within the step; several ranks draw parts of one joint batch.
        """
        cut: list[list[Float32Array]] = []
        figures: list[Float32Array] = []
        for index in range(start, start + batch):
            draw = np.random.Generator(np.random.Philox(key=self.seed, counter=(0, stream, step, index)))
            view = self._view(int(draw.integers(len(self.pairs))), int(draw.integers(self.variants)))
            most_y, most_x = (side - crop_px for side in view.a.shape)
            at = int(draw.integers(most_y + 1)), int(draw.integers(most_x + 1))
            turns, mirrored = int(draw.integers(4)), bool(draw.integers(2))
            windows = [(view.a, at), (view.b, at)]
            if view.taught is not None:
                windows.append((view.taught, at))
            if self.shift.share:
                windows.append((view.a, shifted(*at, (most_y, most_x), self.shift, draw)))
            turned = [np.rot90(plane[y : y + crop_px, x : x + crop_px], turns) for plane, (y, x) in windows]
            cut.append([_unpacked(np.fliplr(crop) if mirrored else crop) for crop in turned])
            figures.append(view.figures)
        a, b, *rest = (torch.from_numpy(np.stack(crops)[:, None]) for crops in zip(*cut, strict=True))
        seen_a = rest.pop() if self.shift.share else None
        return Crops(a, b, torch.from_numpy(np.stack(figures)), rest[0] if rest else None, seen_a)

    def _view(self, which: int, variant: int) -> _View:
        # A pair that is drawn more often has as many more variants.
        key = which, variant
        if (kept := self._cache.get(key)) is not None:
            return kept
        a, b = self.pairs.planes(which)
        sharp = a if self.pairs.is_sharp(which) else None
        if sharp is not None:
            a, b = defocused_pair(sharp, self._generator(_DEFOCUS, key))
        plane_a, plane_b = toned(a, b, self.tone, self._generator(_TONE, key))
        taught = None
        if self.teacher is not None:
            if sharp is not None and (self.tone.alike or self.tone.share == 0):
                # The right result is known, and better than anybody's; with one curve for both, it is that of the curve.
                taught = _packed(toned(sharp, sharp, self.tone, self._generator(_TONE, key))[0])
            else:
                taught = _packed(self.teacher.fuse(plane_a[None, None], plane_b[None, None])[0, 0])
        view = _View(_packed(plane_a), _packed(plane_b), statistics(plane_a, plane_b).astype(np.float32), taught)
        size = view.a.nbytes * (2 if taught is None else 3)
        if self._cached_bytes + size <= self.cache_bytes:
            self._cache[key] = view
            self._cached_bytes += size
        return view

    def _generator(self, stream: int, key: tuple[int, int]) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=self.seed, counter=(0, stream, *key)))


def _packed(plane: Float32Array) -> NDArray[np.uint16]:
    packed: NDArray[np.uint16] = np.rint(plane * _SCALE).astype(np.uint16)
    return packed


def _unpacked(plane: NDArray[np.uint16]) -> Float32Array:
    return plane.astype(np.float32) / np.float32(_SCALE)
