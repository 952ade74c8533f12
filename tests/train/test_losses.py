"""The parameterised losses, by hand and by their properties."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from refusion_edge.train.losses import LossWeights, fusion_loss, gradient_magnitude, reconstruction_loss


@pytest.fixture
def case() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.rand(2, 1, 9, 11, generator=generator, dtype=torch.float64) for _ in range(5))


def test_magnitude_term_is_the_papers(case: tuple[torch.Tensor, ...]) -> None:
    fused, a, b, w, v = case
    magnitude = [gradient_magnitude(plane) for plane in (fused, a, b)]
    expected = (w * (a - fused)).square().mean() + ((1 - w) * (b - fused)).square().mean()
    expected += 0.3 * ((v * (magnitude[1] - magnitude[0])).square() + ((1 - v) * (magnitude[2] - magnitude[0])).square()).mean()
    assert fusion_loss(fused, a, b, LossWeights(w, v), 0.3, "magnitude").item() == pytest.approx(expected.item())


def test_magnitude_term_does_not_see_an_inverted_edge_and_the_signed_one_does() -> None:
    edge = torch.zeros(1, 1, 6, 6)
    edge[..., 3:] = 1
    inverted = 1 - edge
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))  # zero padding makes an edge of every border
    assert torch.equal(gradient_magnitude(edge)[inner], gradient_magnitude(inverted)[inner])
    weights = LossWeights(torch.zeros_like(edge), torch.ones_like(edge))
    terms = [fusion_loss(inverted, edge, edge, weights, coefficient, "signed") for coefficient in (0.0, 1.0)]
    assert terms[1] - terms[0] > 1


def test_signed_term_becomes_the_maximum_where_the_weights_are_hard(case: tuple[torch.Tensor, ...]) -> None:
    fused, a, b, w, _ = case
    hard = (gradient_magnitude(a) >= gradient_magnitude(b)).double()
    signed = fusion_loss(fused, a, b, LossWeights(w, hard), 1.0, "signed")
    largest = fusion_loss(fused, a, b, LossWeights(w, 0.5 * hard), 1.0, "signed-max")
    assert signed.item() == pytest.approx(largest.item(), rel=1e-12)


def test_reconstruction_counts_the_worse_served_source(case: tuple[torch.Tensor, ...]) -> None:
    a, b = case[:2]
    loss = reconstruction_loss(a + 0.1, b - 0.3, a, b)
    assert loss.intensity.item() == pytest.approx(0.09)
    assert loss.total.item() == pytest.approx(loss.intensity.item() + loss.gradient.item())
    assert reconstruction_loss(a, b, a, b).total.item() == 0


def test_loss_of_a_tiny_case_by_hand() -> None:
    a, b, fused = (torch.full((1, 1, 1, 1), value) for value in (0.8, 0.2, 0.5))
    weights = LossWeights(torch.full((1, 1, 1, 1), 0.75), torch.full((1, 1, 1, 1), 0.5))
    # One pixel: the Sobel response is its centre coefficient, 0.
    expected = (0.75 * 0.3) ** 2 + (0.25 * -0.3) ** 2
    assert fusion_loss(fused, a, b, weights, 7.0).item() == pytest.approx(expected, rel=1e-5)
