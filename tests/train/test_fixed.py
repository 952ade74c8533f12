"""Training with fixed weights: the loss by hand, crops by counter, and a run that learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from refusion_edge.checkpoint import read_checkpoint
from refusion_edge.errors import InputError
from refusion_edge.images import write_image
from refusion_edge.pairs import find_pairs
from refusion_edge.samples import sample_paths
from refusion_edge.tasks import TASKS
from refusion_edge.train.crops import crop_batch, load_luma_pairs
from refusion_edge.train.fixed import FixedRun, gradient_coefficient, learning_rate, main, train
from refusion_edge.train.losses import LossWeights, fixed_weights, fusion_loss
from refusion_edge.train.sobel import gradient_magnitude, sobel


def test_sobel_is_unnormalised_and_zero_padded() -> None:
    ramp = torch.arange(5.0).expand(1, 1, 4, 5)
    horizontal, vertical = sobel(ramp)[0]
    assert (horizontal[1:-1, 1:-1] == 8).all()
    assert (vertical[1:-1, 1:-1] == 0).all()
    assert horizontal[1, 0] == 4  # the pixel outside the border counts as 0
    assert gradient_magnitude(ramp)[0, 0, 1, 1] == 8


def test_loss_of_a_tiny_case_by_hand() -> None:
    a, b, fused = (torch.full((1, 1, 1, 1), value) for value in (0.8, 0.2, 0.5))
    weights = LossWeights(torch.full((1, 1, 1, 1), 0.75), torch.full((1, 1, 1, 1), 0.5))
    # One pixel: the Sobel response is its centre coefficient, 0.
    expected = (0.75 * 0.3) ** 2 + (0.25 * -0.3) ** 2
    assert fusion_loss(fused, a, b, weights, 7.0).item() == pytest.approx(expected, rel=1e-5)


def test_gradient_term_sees_an_inverted_edge() -> None:
    edge = torch.zeros(1, 1, 6, 6)
    edge[..., 3:] = 1
    weights = LossWeights(torch.ones_like(edge), torch.ones_like(edge))
    assert fusion_loss(edge, edge, edge, weights, 1.0).item() == 0
    inverted = fusion_loss(1 - edge, edge, edge, weights, 1.0) - fusion_loss(1 - edge, edge, edge, weights, 0.0)
    assert inverted.item() > 1


def test_weights_prefer_what_the_task_asks_for() -> None:
    generator = torch.Generator().manual_seed(0)
    detail = torch.rand(1, 1, 32, 32, generator=generator)
    flat = torch.full_like(detail, 0.5)
    dark, bright = torch.full_like(detail, 0.1), torch.full_like(detail, 0.9)
    assert fixed_weights("ir_vis", bright, dark).intensity.min() > 0.99
    assert fixed_weights("multi_focus", detail, flat).intensity.mean() > 0.99
    assert fixed_weights("multi_focus", flat, detail).gradient.mean() < 0.01
    assert fixed_weights("multi_exposure", flat, dark).intensity.min() > 0.85
    for task in TASKS:
        one, other = fixed_weights(task, detail, bright), fixed_weights(task, bright, detail)
        assert torch.allclose(one.intensity, 1 - other.intensity, atol=1e-6)
        assert torch.allclose(one.gradient, 1 - other.gradient, atol=1e-6)


def test_crops_are_drawn_by_counter_and_alike_for_both_sources(rng: np.random.Generator) -> None:
    plane = rng.integers(0, 256, (50, 60)).astype(np.uint8)
    write_image("a/x.png", plane)
    write_image("b/x.png", np.clip(plane.astype(int) + 3, 0, 255).astype(np.uint8))
    pairs = load_luma_pairs(find_pairs("a", "b").pairs, 16)
    a, b = crop_batch(pairs, 5, batch=4, crop_px=16, seed=1)
    assert a.shape == (4, 1, 16, 16)
    assert ((b - a) * 255).round().max() == 3
    again, _ = crop_batch(pairs, 5, batch=4, crop_px=16, seed=1)
    assert torch.equal(a, again)
    other, _ = crop_batch(pairs, 6, batch=4, crop_px=16, seed=1)
    assert not torch.equal(a, other)


def test_pairs_below_the_crop_are_left_out_and_misfits_refused(rng: np.random.Generator) -> None:
    for folder in ("a", "b"):
        write_image(f"{folder}/small.png", rng.integers(0, 256, (20, 20)).astype(np.uint8))
        write_image(f"{folder}/large.png", rng.integers(0, 256, (40, 40)).astype(np.uint8))
    assert load_luma_pairs(find_pairs("a", "b").pairs, 32).names == ("large",)
    with pytest.raises(InputError, match="got none"):
        load_luma_pairs(find_pairs("a", "b").pairs, 64)
    write_image("b/large.png", rng.integers(0, 256, (40, 41)).astype(np.uint8))
    with pytest.raises(InputError, match="pair large: .*40x40 and b = 41x40"):
        load_luma_pairs(find_pairs("a", "b").pairs, 32)


def test_schedule() -> None:
    run = FixedRun("ir_vis", steps=1000, warmup_steps=100, learning_rate=1.0)
    assert learning_rate(run, 0) == pytest.approx(0.01)
    assert learning_rate(run, 99) == learning_rate(run, 100) == pytest.approx(1.0)
    assert learning_rate(run, 1000) == pytest.approx(0.02)
    assert gradient_coefficient(run, 0) == pytest.approx(0.2)
    assert gradient_coefficient(run, 300) == gradient_coefficient(run, 999) == pytest.approx(1.0)


def test_a_short_run_learns_and_repeats_exactly() -> None:
    run = FixedRun("ir_vis", steps=40, batch=1, crop_px=40, warmup_steps=2, ema_decay=0.5)
    pairs = load_luma_pairs(sample_paths("ir_vis"), run.crop_px)
    torch.set_num_threads(1)
    first, second = train(run, pairs), train(run, pairs)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))

    a, b = crop_batch(pairs, 999, batch=8, crop_px=40, seed=3)
    weights = fixed_weights("ir_vis", a, b)
    torch.manual_seed(run.seed)
    from refusion_edge.model import FusionNetwork

    untrained = FusionNetwork()
    with torch.inference_mode():
        before, after = (fusion_loss(network(a, b), a, b, weights, 0.2).item() for network in (untrained, first))
    assert after < 0.9 * before


def test_command_writes_a_checkpoint_that_tells_its_story() -> None:
    street = sample_paths("ir_vis")[0]
    words = ["--task", "ir_vis", "--a", str(street.a.parent), "--b", str(street.b.parent), "--exclude", "night"]
    assert main([*words, "--steps", "2", "--crop", "16", "--output", "w.safetensors"]) == 0
    checkpoint = read_checkpoint(Path("w.safetensors"))
    assert checkpoint.task == "ir_vis"
    assert checkpoint.notes["pairs"] == "1"
    assert '"steps": 2' in checkpoint.notes["run"]
