"""Crops that know the image they were cut from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from refusion_edge.arrays import Array, Float32Array
from refusion_edge.network.fast import statistics
from refusion_edge.train.augmentation import ShiftSettings, ToneSettings
from refusion_edge.train.crops import PLAIN
from refusion_edge.train.views import Teacher, Views
from tests.train.conftest import PlanePairs

CURVES = ToneSettings(share=1.0, gamma=2.0, least_gain=0.2, alike=True)


@dataclass(frozen=True, slots=True)
class SharpImages(PlanePairs):
    def is_sharp(self, which: int) -> bool:
        return True


class Watching:
    """A teacher whose result is 0.25 a + 0.5, and who counts the images shown."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.teacher = Teacher("watching", None, "", self.fuse)

    def fuse(self, a: Float32Array, b: Float32Array) -> Float32Array:
        assert a.shape == b.shape
        self.shapes.append(a.shape)
        return a / 4 + np.float32(0.5)


def pairs(count: int = 2) -> tuple[tuple[Array, Array], ...]:
    rng = np.random.default_rng(0)
    return tuple((rng.integers(0, 256, (30, 41), np.uint8), rng.integers(0, 256, (30, 41), np.uint8)) for _ in range(count))


def test_crops_carry_the_statistics_of_their_whole_image() -> None:
    source = pairs(1)
    crops = Views(PlanePairs(source), PLAIN, seed=3).draw(0, batch=3, crop_px=16)
    expected = statistics(*(plane / 255 for plane in source[0]))
    assert crops.figures.shape == (3, 8)
    assert np.allclose(crops.figures.numpy(), expected, atol=1e-5)
    assert crops.taught is None
    assert crops.a.shape == crops.b.shape == (3, 1, 16, 16)


def test_a_crop_and_its_lesson_are_cut_and_turned_alike() -> None:
    watching = Watching()
    views = Views(PlanePairs(pairs()), CURVES, seed=1, variants=3, teacher=watching.teacher)
    crops = views.draw(5, batch=16, crop_px=16)
    assert crops.taught is not None
    assert torch.allclose(crops.taught, crops.a / 4 + 0.5, atol=3e-5)
    # Whole images are shown to the teacher, each variant once.
    assert set(watching.shapes) == {(1, 1, 30, 41)}
    again = views.draw(5, batch=16, crop_px=16)
    assert len(watching.shapes) <= 6
    assert torch.equal(crops.a, again.a)
    assert torch.equal(crops.figures, again.figures)


def test_variants_are_made_again_where_they_do_not_fit() -> None:
    watching = Watching()
    views = Views(PlanePairs(pairs(1)), PLAIN, seed=1, teacher=watching.teacher, cache_bytes=10)
    first, second = (views.draw(0, batch=1, crop_px=16) for _ in range(2))
    assert len(watching.shapes) == 2
    assert torch.equal(first.a, second.a)


def test_several_ranks_draw_parts_of_one_batch() -> None:
    views = Views(PlanePairs(pairs()), CURVES, seed=2, variants=2)
    whole = views.draw(4, batch=4, crop_px=16)
    parts = [views.draw(4, batch=2, crop_px=16, start=start) for start in (0, 2)]
    assert torch.equal(whole.a, torch.cat([part.a for part in parts]))
    assert not torch.equal(whole.a, views.draw(4, batch=4, crop_px=16, stream=1).a)


def test_the_sharp_image_itself_is_the_lesson_where_it_is_known() -> None:
    """Where defocus is synthetic, every pixel is sharp in one source, and the teacher need not be asked."""
    watching = Watching()
    ramp = np.tile(np.arange(0, 246, 6, dtype=np.uint8), (30, 1))
    views = Views(SharpImages(((ramp, ramp),)), CURVES, seed=0, teacher=watching.teacher)
    crops = views.draw(0, batch=4, crop_px=16)
    assert watching.shapes == []
    assert crops.taught is not None
    nearest = torch.minimum((crops.taught - crops.a).abs(), (crops.taught - crops.b).abs())
    assert nearest.median() < 1e-3
    assert (crops.a - crops.b).abs().max() > 1e-3


def test_a_shift_moves_what_the_network_sees_and_nothing_else() -> None:
    y, x = np.mgrid[:30, :41]
    # A shift changes all levels of a crop by the same number, from which it can be told, whichever way the crop is turned.
    ramp = (2 * x + 5 * y).astype(np.uint8)
    teacher = Watching().teacher
    plain, shifting = (
        Views(PlanePairs(((ramp, ramp),)), PLAIN, seed=0, teacher=teacher, shift=ShiftSettings(share, most_px=2))
        for share in (0.0, 0.5)
    )
    still, moved = (views.draw(3, batch=200, crop_px=16) for views in (plain, shifting))
    assert still.seen_a is None
    assert moved.seen_a is not None
    for one, other in ((still.a, moved.a), (still.b, moved.b), (still.taught, moved.taught), (still.figures, moved.figures)):
        assert torch.equal(one, other)
    change = ((moved.seen_a - moved.a) * 255).round().flatten(1)
    assert (change == change[:, :1]).all()
    found = {int(level) for level in change[:, 0]}
    assert found <= {2 * dx + 5 * dy for dx in range(-2, 3) for dy in range(-2, 3)}
    assert {-14, 0, 14} <= found
    assert 70 < (change[:, 0] != 0).sum() < 110
    again = shifting.draw(3, batch=200, crop_px=16)
    assert torch.equal(moved.seen_a, again.seen_a)


def test_a_shift_stays_within_an_image_as_small_as_the_crop() -> None:
    views = Views(PlanePairs(pairs(1)), PLAIN, seed=0, shift=ShiftSettings(share=1.0, most_px=9))
    crops = views.draw(0, batch=20, crop_px=30)
    assert crops.seen_a.shape == crops.a.shape
