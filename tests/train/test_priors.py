"""Where the loss starts: what each prior prefers, and the gradient it looks at."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from refusion_edge.tasks import TASKS
from refusion_edge.train.losses import LossWeights, gradient_magnitude, sobel
from refusion_edge.train.priors import PRIORS
from refusion_edge.train.settings import resolve


def weights_of(prior: str, a: torch.Tensor, b: torch.Tensor) -> LossWeights:
    """Weights of source a before anything is learned."""
    return LossWeights.from_logits(PRIORS[prior](a, b, 4.0))


def test_sobel_is_unnormalised_and_zero_padded() -> None:
    ramp = torch.arange(5.0).expand(1, 1, 4, 5)
    horizontal, vertical = sobel(ramp)[0]
    assert (horizontal[1:-1, 1:-1] == 8).all()
    assert (vertical[1:-1, 1:-1] == 0).all()
    assert horizontal[1, 0] == 4  # the pixel outside the border counts as 0
    assert gradient_magnitude(ramp)[0, 0, 1, 1] == 8


def test_every_prior_prefers_what_it_is_named_after() -> None:
    detail = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    flat = torch.full_like(detail, 0.5)
    dark, bright = torch.full_like(detail, 0.1), torch.full_like(detail, 0.9)
    assert weights_of("brighter", bright, dark).intensity.min() > 0.99
    assert weights_of("focused", detail, flat).intensity.mean() > 0.99
    assert weights_of("focused", flat, detail).gradient.mean() < 0.01
    assert weights_of("exposed", flat, dark).intensity.min() > 0.85
    assert weights_of("stronger", detail, flat).gradient.mean() > 0.9
    assert (weights_of("stronger", bright, dark).intensity == 0.5).all()
    assert (weights_of("none", detail, dark).gradient == 0.5).all()


@pytest.mark.parametrize("prior", PRIORS)
def test_no_prior_prefers_a_slot(prior: str) -> None:
    a, b = torch.rand(2, 1, 1, 24, 20, generator=torch.Generator().manual_seed(1))
    one, other = weights_of(prior, a, b), weights_of(prior, b, a)
    assert torch.allclose(one.intensity, 1 - other.intensity, atol=1e-6)
    assert torch.allclose(one.gradient, 1 - other.gradient, atol=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_prior_of_its_own(task: str) -> None:
    assert resolve("default", task, device="cpu").proposal.prior in set(PRIORS) - {"none"}
