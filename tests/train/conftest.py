"""What the tests of training share: small folders of pairs, and settings for runs of seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from refusion_edge.arrays import Array
from refusion_edge.images.io import write_image

SMALL = (
    "run.batch=1", "run.crop_px=16", "run.late_crop_px=16", "meta.every=2", "meta.accumulate=2", "meta.warm_up=0.2",
    "optimizer.warm_up_steps=2", "validation.crops=2", "validation.images=1", "validation.every=1000",
    "checkpoint.every=1000",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PlanePairs:
    """Pairs of planes in memory. Implements ``CropSource``.

    Attributes:
        pairs: Source a and source b of each pair, (H, W) uint8.
    """

    pairs: tuple[tuple[Array, Array], ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def planes(self, which: int) -> tuple[Array, Array]:
        return self.pairs[which]

    def is_sharp(self, which: int) -> bool:
        return False


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums in one order, so that runs repeat exactly."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def folder_of_pairs(picture: Callable[..., Array]) -> Callable[..., Path]:
    """Write pairs: ``folder_of_pairs("data", count=3, side=24)`` makes ``data/ir`` and ``data/vis``."""

    def make(name: str, count: int = 3, side: int = 24, folders: tuple[str, ...] = ("ir", "vis")) -> Path:
        for index in range(count):
            for folder in folders:
                write_image(Path(name) / folder / f"{index:02d}.png", picture(side, side + 3))
        return Path(name)

    return make
