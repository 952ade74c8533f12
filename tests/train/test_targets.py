"""What the loss compares the result with, on pairs whose right answer is plain."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from torch import Tensor

from refusion_edge.errors import UsageError
from refusion_edge.train.losses import LossWeights, TeacherSettings, fusion_loss, teacher_loss
from refusion_edge.train.meta import Batch, FusionObjective
from refusion_edge.train.settings import resolve
from refusion_edge.train.targets import Targets, TargetSettings, targets_of
from tests.raising import raises

NONE = TargetSettings()


def _flat(value: float, size: int = 64) -> Tensor:
    return torch.full((1, 1, size, size), value, dtype=torch.float64)


@pytest.fixture
def glare() -> tuple[Tensor, Tensor]:
    """A cyclist of 0.3 behind a lamp that clips the visible image, in front of 0.2."""
    a, b = _flat(0.2), _flat(0.4)
    a[..., 24:40, 28:36] = 0.5
    b[..., 16:48, 16:48] = 1.0
    return a, b


def test_without_settings_the_targets_are_the_sources(glare: tuple[Tensor, Tensor]) -> None:
    a, b = glare
    taught = (a + b) / 2
    found = targets_of(a, b, NONE, taught)
    assert not NONE.depart
    assert all(map(torch.equal, (found.a, found.b, found.taught, found.weight), (a, b, taught, torch.ones_like(a))))
    assert targets_of(a, b, NONE).taught is None


def test_a_clipped_source_shows_the_contrast_of_the_other(glare: tuple[Tensor, Tensor]) -> None:
    a, b = glare
    found = targets_of(a, b, replace(NONE, clipped=1.0))
    assert torch.equal(found.a, a)
    outside = b < 1
    assert torch.equal(found.b[outside], b[outside])
    cyclist, road = found.b[..., 28:36, 28:36], found.b[..., 28:36, 24:28]
    assert cyclist.min() > 0.9  # nearly white, and the road is darker by most of what it is colder
    assert 0.75 * 0.3 < cyclist.mean() - road.mean() < 0.3


def test_a_teacher_that_lost_the_contrast_shows_it(glare: tuple[Tensor, Tensor]) -> None:
    a, b = glare
    lost, clipped = torch.maximum(a, b), replace(NONE, clipped=1.0)
    shown = targets_of(a, b, clipped, lost).taught
    assert shown[..., 28:36, 28:36].mean() - shown[..., 28:36, 24:28].mean() > 0.75 * 0.3
    assert torch.equal(shown[b < 1], lost[b < 1])
    kept = 0.5 * b + a  # which has all of it
    assert torch.equal(targets_of(a, b, clipped, kept).taught, kept)


def test_the_other_direction_is_the_same(glare: tuple[Tensor, Tensor]) -> None:
    a, b = glare
    clipped, taught = replace(NONE, clipped=1.0), torch.maximum(a, b)
    there, back = targets_of(a, b, clipped, taught), targets_of(b, a, clipped, taught)
    assert all(map(torch.equal, (there.a, there.b, there.taught), (back.b, back.a, back.taught)))


def test_two_clipped_sources_stay_white() -> None:
    found = targets_of(_flat(1.0), _flat(1.0), replace(NONE, clipped=1.0, emphasis=1.0), _flat(1.0))
    assert found.a.min() == found.b.min() == found.taught.min() == pytest.approx(1)
    assert found.weight.max() == 1


def test_the_share_mixes(glare: tuple[Tensor, Tensor]) -> None:
    a, b = glare
    full, half = (targets_of(a, b, replace(NONE, clipped=share)).b for share in (1.0, 0.5))
    assert torch.allclose(half, (b + full) / 2)


def test_grain_goes_where_the_visible_image_is_flat_and_lit() -> None:
    generator = torch.Generator().manual_seed(0)
    grain = 0.01 * torch.randn((1, 1, 64, 64), generator=generator, dtype=torch.float64)
    settings = replace(NONE, grain=0.02)
    found = targets_of(0.3 + grain, _flat(0.8), settings, 0.7 + grain)
    inner = (..., slice(8, 56), slice(8, 56))
    for plane in (found.a, found.taught):
        assert plane[inner].std() < 0.3 * grain[inner].std()
    for b in (_flat(0.2), torch.rand((1, 1, 64, 64), generator=generator, dtype=torch.float64)):  # dark, or textured
        untouched = targets_of(0.3 + grain, b, settings)
        assert torch.equal(untouched.a[inner], (0.3 + grain)[inner])
    strong = targets_of(0.3 + 8 * grain, _flat(0.8), settings)  # no grain, but texture
    assert torch.equal(strong.a[inner], (0.3 + 8 * grain)[inner])


def test_a_clipped_sky_is_no_reason_to_remove_what_infrared_shows() -> None:
    a = 0.3 + 0.01 * torch.randn((1, 1, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = targets_of(a, _flat(1.0), replace(NONE, grain=0.02), a)
    assert torch.equal(found.a, a)
    assert torch.equal(found.taught, a)


def test_dark_gaps_are_filled_where_the_visible_image_is_brighter() -> None:
    a = _flat(0.4)
    a[..., 20:22, 20:22] = 0.05  # a gap between leaves
    a[..., 40:, :] = 0.05  # an edge, which stays
    settings = replace(NONE, gaps=0.5)
    taught = _flat(0.9)
    taught[..., 20:22, 20:22] = 0.7  # the gap
    taught[..., 10:12, 10:12] = 0.5  # a dark dot of the visible image, which stays
    found = targets_of(a, _flat(0.8), settings, taught)
    assert found.a[..., 20:22, 20:22].unique().item() == pytest.approx(0.05 + 0.5 * 0.35)
    assert torch.equal(found.a[..., 30:, :], a[..., 30:, :])
    assert found.taught[..., 20:22, 20:22].unique().item() == pytest.approx(0.7 + 0.5 * 0.2)
    assert torch.equal(found.taught[..., :16, :16], taught[..., :16, :16])
    warmer = a + 0.5
    assert torch.equal(targets_of(warmer, _flat(0.5), settings).a, warmer)


def test_hot_compact_objects_are_bright_and_count_more() -> None:
    a = _flat(0.3)
    a[..., 20:30, 20:26] = 0.8
    found = targets_of(a, _flat(0.5), replace(NONE, hot=0.5, emphasis=2.0), _flat(0.4))
    assert found.weight[..., 20:30, 20:26].min() == pytest.approx(3)
    assert found.weight[..., 40:, 40:].max() == 1
    assert found.taught[..., 20:30, 20:26].unique().item() == pytest.approx(0.6)
    assert found.taught[..., 40:, 40:].max() == pytest.approx(0.4)


def test_a_weight_of_one_changes_no_loss_and_others_are_factors() -> None:
    generator = torch.Generator().manual_seed(1)
    f, a, b, w, v, weight = (torch.rand((2, 1, 9, 11), generator=generator, dtype=torch.float64) for _ in range(6))
    weights = LossWeights(w, v)
    for term in ("signed", "magnitude"):
        plain = fusion_loss(f, a, b, weights, 0.3, term)
        assert fusion_loss(f, a, b, weights, 0.3, term, emphasis=torch.ones_like(f)).item() == pytest.approx(plain.item())
        one = torch.zeros_like(f)
        one[1, 0, 4, 5] = f.numel()  # the mean is then the distance at this pixel
        distances = torch.stack([fusion_loss(f, a, b, weights, 0.3, term, emphasis=torch.roll(one, (y, x), (2, 3)))
                                 for y in range(9) for x in range(11)])  # fmt: skip
        expected = (distances.view(9, 11).roll((4, 5), (0, 1)) * weight[1, 0]).sum() / f.numel()
        second = weight.clone()
        second[0] = 0
        assert fusion_loss(f, a, b, weights, 0.3, term, emphasis=second).item() == pytest.approx(expected.item())


def test_the_loss_kernels_have_no_emphasis() -> None:
    plane = _flat(0.5, 8)
    with raises(UsageError, expected="reference"):
        fusion_loss(plane, plane, plane, LossWeights(plane, plane), 1.0, engine="triton", emphasis=plane)


def test_teacher_and_loss_use_the_targets() -> None:
    a, b, fused = _flat(0.2, 8), _flat(0.6, 8), _flat(0.5, 8)
    half = torch.full((2, 1, 8, 8), 0.5, dtype=torch.float64)
    lesson = TeacherSettings(intensity=1.0, gradient=0.0, loss=0.1)
    objective = FusionObjective("signed", 0.0, "absolute", lesson)
    both = torch.cat((fused, fused))
    targets = Targets(_flat(0.4, 8), _flat(0.9, 8), _flat(0.7, 8), _flat(3.0, 8))
    batch = Batch.in_both_orders(a, b, taught=_flat(0.1, 8), targets=targets)
    # Distances 0.1 and 0.4 to the targets of the sources, 0.2 to that of the teacher; every pixel counts threefold.
    assert objective(both, batch, LossWeights(half, half)).item() == pytest.approx(3 * (0.2 + 0.1 * 0.25))
    assert torch.equal(batch.first, torch.cat((a, b)))
    plain = Batch.in_both_orders(a, b, taught=_flat(0.1, 8))
    assert objective(both, plain, LossWeights(half, half)).item() == pytest.approx(0.4 + 0.1 * 0.2)
    assert teacher_loss(fused, _flat(0.9, 8), lesson, _flat(0.25, 8)).item() == pytest.approx(0.1)


def test_p_weighs_what_the_loss_compares(glare: tuple[Tensor, Tensor]) -> None:
    a, b = glare
    assert all(map(torch.equal, Batch.in_both_orders(a, b).compared, (a, b)))
    targets = targets_of(a, b, replace(NONE, clipped=1.0))
    assert all(map(torch.equal, Batch.in_both_orders(a, b, targets=targets).compared, (targets.a, targets.b)))


@pytest.mark.parametrize("name", ["targets.clipped", "targets.grain", "targets.gaps", "targets.hot", "tone.glare"])
def test_shares_are_checked(name: str) -> None:
    with raises(UsageError, name, expected="from 0 to 1", got=1.5):
        resolve("default", "ir_vis", device="cpu", assignments=[f"{name}=1.5"])
    assert not resolve("default", "ir_vis", device="cpu").targets.depart


def test_detail_is_amplified_and_noise_is_not() -> None:
    a, b = _flat(0.2), _flat(0.4)
    taught = _flat(0.5)
    taught[..., 8:24:2] = 0.6  # stripes of one pixel
    taught[..., 40:56:2] = 0.502
    sharper = targets_of(a, b, replace(NONE, detail=0.1), taught).taught
    assert sharper is not None
    inner = sharper[0, 0, 8:56]
    assert (inner[:, 12:20].amax() - inner[:, 12:20].amin()).item() == pytest.approx(0.1 * (1 + 0.1 * 8 / 9), rel=0.02)
    assert torch.equal(sharper[..., 32:], taught[..., 32:])


def test_detail_stays_in_range() -> None:
    taught = torch.randint(0, 2, (1, 1, 32, 32), generator=torch.Generator().manual_seed(0)).double()
    sharper = targets_of(taught, taught, replace(NONE, detail=1.0), taught).taught
    assert sharper is not None
    assert (sharper.min(), sharper.max()) == (0, 1)
