"""The update rules: every meta-gradient engine against its definition, in float64 on a tiny case with all terms on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import get_args

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from refusion_edge.errors import UsageError
from refusion_edge.tasks import TASKS
from refusion_edge.train.layers import Parameters
from refusion_edge.train.losses import GradientTerm, reconstruction_loss
from refusion_edge.train.meta import (
    Batch,
    Engine,
    FusionObjective,
    MetaGradient,
    MetaRule,
    Networks,
    difference_product,
    forward_product,
    fusion_gradient,
    inner_step,
    meta_gradient,
    reconstruction_gradient,
)
from refusion_edge.train.networks import (
    ProposalSettings,
    fuse,
    initial_fusion,
    initial_proposal,
    initial_reconstruction,
    propose,
    reconstruct,
)
from refusion_edge.train.settings import resolve
from tests.raising import raises

SETTINGS = ProposalSettings(dim=8, blocks=1, symmetric=False, zero=False, prior="brighter")
NETWORKS = Networks(fuse, partial(propose, SETTINGS), reconstruct, fuse)
SIDE = 14


class Case:
    """Parameters and two batches."""

    def __init__(self, dtype: torch.dtype = torch.float64, pairs: int = 1, side: int = SIDE) -> None:
        generator = torch.Generator().manual_seed(0)

        def cast(parameters: Parameters) -> Parameters:
            return {name: tensor.to(dtype) for name, tensor in parameters.items()}

        self.theta = cast(initial_fusion(generator))
        self.phi = cast(initial_proposal(SETTINGS, generator))
        self.rho = cast(initial_reconstruction(generator))
        noise = torch.rand(4, pairs, 1, side, side, generator=generator, dtype=torch.float64)
        # Smoothed: the Sobel responses of noise are nothing like those of a image.
        smooth = torch.nn.functional.avg_pool2d(noise.flatten(0, 1), 5, stride=1, padding=2, count_include_pad=False)
        planes = list((2 * smooth - 0.5).clamp(0, 1).view_as(noise).to(dtype))
        self.train, self.test = Batch.in_both_orders(*planes[:2]), Batch.in_both_orders(*planes[2:])

    def gradient(self, rule: MetaRule, objective: FusionObjective, networks: Networks = NETWORKS) -> MetaGradient:
        phi = {name: tensor.detach().requires_grad_() for name, tensor in self.phi.items()}
        pairs = len(self.train.a) // 2
        weights = networks.propose(phi, self.train.a[:pairs], self.train.b[:pairs])
        inner = fusion_gradient(networks, self.theta, self.train, weights, objective)
        return meta_gradient(networks, self.theta, phi, self.rho, self.train, self.test, weights, inner, objective, rule)


def flat(parameters: Parameters) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten().double() for tensor in parameters.values()])


def cosine(one: Parameters, other: Parameters) -> float:
    return torch.nn.functional.cosine_similarity(flat(one), flat(other), dim=0).item()


@pytest.mark.slow
@pytest.mark.parametrize("term", ["signed", "magnitude"])
@pytest.mark.parametrize("adapted", [False, True])
def test_forward_mode_equals_double_backward(term: str, adapted: bool) -> None:
    case, objective = Case(), FusionObjective(term, 0.7)
    exact = flat(case.gradient(MetaRule("exact", 1e-2, adapted), objective).gradient)
    double = flat(case.gradient(MetaRule("double", 1e-2, adapted), objective).gradient)
    assert double.norm() > 0
    assert ((exact - double).norm() / double.norm()).item() < 1e-12


def directional(case: Case, value: Callable[[Parameters], float], direction: Parameters, step: float = 1e-6) -> float:
    above = value({name: tensor + step * direction[name] for name, tensor in case.phi.items()})
    below = value({name: tensor - step * direction[name] for name, tensor in case.phi.items()})
    return (above - below) / (2 * step)


def two_level_loss(
    case: Case, rule: MetaRule, objective: FusionObjective, phi: Parameters, networks: Networks = NETWORKS
) -> float:
    """Reconstruction loss after the inner update, by its definition; divided by the inner rate as the gradient is."""
    pairs = len(case.train.a) // 2
    weights = networks.propose(phi, case.train.a[:pairs], case.train.b[:pairs])
    inner = fusion_gradient(networks, case.theta, case.train, weights, objective)
    if rule.engine == "pixel":
        fused = inner.fused.clone().requires_grad_()
        (slope,) = torch.autograd.grad(objective(fused, case.train, weights.detach()), fused)
        reconstructed = reconstruct(case.rho, fused.detach() - rule.inner_rate * slope)
        return reconstruction_loss(*reconstructed, case.train.a, case.train.b).total.item() / rule.inner_rate
    ahead = inner_step(case.theta, inner.gradient, rule.inner_rate)
    rho = case.rho
    if rule.adapt_reconstruction:
        judged = reconstruction_gradient(networks, rho, inner.fused, case.train)
        rho = inner_step(rho, judged.gradient, rule.inner_rate)
    reconstructed = reconstruct(rho, fuse(ahead, case.test.first, case.test.second))
    return reconstruction_loss(*reconstructed, case.test.a, case.test.b).total.item() / rule.inner_rate


@pytest.mark.slow
@pytest.mark.parametrize(("engine", "rate"), [("exact", 1.0), ("exact-fd", 1.0), ("double", 1.0), ("pixel", 1e3)])
@pytest.mark.parametrize("term", ["signed", "magnitude"])
def test_engines_equal_central_differences_of_the_two_level_loss(engine: Engine, rate: float, term: str) -> None:
    # Inner rates far above the usual ones, so that the difference of two losses stands clear of rounding.
    case, objective, rule = Case(), FusionObjective(term, 0.7), MetaRule(engine, rate)
    analytic = case.gradient(rule, objective).gradient
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        direction = {
            name: torch.randn(tensor.shape, generator=generator, dtype=torch.float64) for name, tensor in case.phi.items()
        }
        expected = directional(case, partial(two_level_loss, case, rule, objective), direction)
        found = sum((analytic[name] * direction[name]).sum().item() for name in direction)
        assert found == pytest.approx(expected, rel=2e-5, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_what_a_task_trains_with_equals_central_differences(task: str) -> None:
    """The proposal of the presets: symmetric, on top of a prior, clipped; and R taking a step of its own."""
    settings = resolve("default", task, device="cpu")
    proposal = replace(settings.proposal, zero=False)
    networks = Networks(fuse, partial(propose, proposal), reconstruct, fuse)
    case, rule = Case(pairs=2), MetaRule("exact", 0.5, adapt_reconstruction=True)
    generator = torch.Generator().manual_seed(2)
    case.phi = {name: tensor.double() for name, tensor in initial_proposal(proposal, generator).items()}
    objective = FusionObjective(settings.loss.gradient, settings.loss.coefficient, settings.loss.intensity)
    analytic = case.gradient(rule, objective, networks).gradient
    direction = {name: torch.randn(tensor.shape, generator=generator, dtype=torch.float64) for name, tensor in case.phi.items()}
    expected = directional(case, lambda phi: two_level_loss(case, rule, objective, phi, networks), direction)
    found = sum((analytic[name] * direction[name]).sum().item() for name in direction)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-12)


def test_max_term_leaves_the_gradient_weights_without_effect() -> None:
    gradient = Case().gradient(MetaRule("exact", 1e-2), FusionObjective("signed-max", 1.0)).gradient
    assert all(not tensor.any() for name, tensor in gradient.items() if name.startswith("gradient."))
    assert any(tensor.any() for name, tensor in gradient.items() if name.startswith("intensity."))


@pytest.mark.slow
def test_single_precision_and_central_difference_are_close_to_double() -> None:
    objective = FusionObjective("signed", 0.7)
    wide = Case(side=32).gradient(MetaRule("exact", 1e-2), objective).gradient
    single = Case(torch.float32, side=32).gradient(MetaRule("exact", 1e-2), objective).gradient
    difference = Case(torch.float32, side=32).gradient(MetaRule("exact-fd", 1e-2), objective).gradient
    assert cosine(wide, single) > 1 - 1e-6
    assert cosine(wide, difference) > 0.999


@pytest.mark.slow
def test_bf16_autocast_keeps_the_direction() -> None:
    objective = FusionObjective("signed", 0.7)
    case = Case(torch.float32, side=32)
    single = case.gradient(MetaRule("exact", 1e-2), objective).gradient
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        half = case.gradient(MetaRule("exact", 1e-2), objective).gradient
    assert all(tensor.dtype == torch.float32 for tensor in half.values())
    assert 0.97 < cosine(single, half) < 1 - 1e-9


def test_pixel_engine_is_another_objective() -> None:
    objective = FusionObjective("signed", 0.7)
    exact = Case().gradient(MetaRule("exact", 1e-2), objective).gradient
    pixel = Case().gradient(MetaRule("pixel", 1e-2), objective).gradient
    assert abs(cosine(exact, pixel)) < 0.9


def test_centring_takes_the_brightness_shift_out() -> None:
    case, objective = Case(), FusionObjective("signed", 0.7)
    plain, centered = (case.gradient(MetaRule("exact", 1e-2, centered=flag), objective) for flag in (False, True))
    assert 0 < plain.constant_share <= 1
    assert cosine(plain.gradient, centered.gradient) < 1 - 1e-6


def test_no_gradient_without_an_engine() -> None:
    with raises(UsageError, "'off'"):
        Case().gradient(MetaRule("off", 1e-2), FusionObjective("signed", 1.0))


def test_nothing_is_changed_in_place() -> None:
    case = Case()
    before = [tensor.clone() for part in (case.theta, case.phi, case.rho) for tensor in part.values()]
    case.gradient(MetaRule("exact", 1e-2, adapt_reconstruction=True), FusionObjective("signed", 1.0))
    after = [tensor for part in (case.theta, case.phi, case.rho) for tensor in part.values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert not any(tensor.requires_grad for tensor in after)


def test_products_along_nothing_are_nothing() -> None:
    case = Case()
    zero = {name: torch.zeros_like(tensor) for name, tensor in case.theta.items()}
    assert not forward_product(NETWORKS, case.theta, zero, case.train).any()
    assert not difference_product(NETWORKS, case.theta, zero, case.train).any()


def test_targets_stay_by_modality_while_inputs_follow_the_order() -> None:
    a, b = torch.full((2, 1, 4, 4), 0.2), torch.full((2, 1, 4, 4), 0.7)
    batch = Batch.in_both_orders(a, b)
    assert torch.equal(batch.first, torch.cat((a, b)))
    assert torch.equal(batch.second, torch.cat((b, a)))
    assert torch.equal(batch.a, torch.cat((a, a)))
    assert torch.equal(batch.b, torch.cat((b, b)))


def test_a_shifted_source_is_seen_and_the_aligned_one_compared() -> None:
    a, b, seen = (torch.full((2, 1, 4, 4), level) for level in (0.2, 0.7, 0.3))
    batch = Batch.in_both_orders(a, b, seen_a=seen)
    assert torch.equal(batch.first, torch.cat((seen, b)))
    assert torch.equal(batch.second, torch.cat((b, seen)))
    assert all(map(torch.equal, batch.compared, (a, b)))
    assert torch.equal(batch.a, torch.cat((a, a)))


def test_reconstruction_is_judged_by_modality_in_every_step() -> None:
    """An R that returns source a and b themselves must be perfect in both orders, wherever R is judged."""
    case = Case()

    def perfect(_rho: Parameters, fused: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batch = case.train if torch.equal(fused.detach(), seen["train"]) else case.test
        # Multiplying by a parameter keeps the graph.
        return batch.a + 0 * fused, batch.b + 0 * fused

    objective = FusionObjective("signed", 0.7)
    phi = {name: tensor.detach().requires_grad_() for name, tensor in case.phi.items()}
    weights = NETWORKS.propose(phi, case.train.a[:1], case.train.b[:1])
    inner = fusion_gradient(NETWORKS, case.theta, case.train, weights, objective)
    seen = {"train": inner.fused}
    networks = Networks(fuse, NETWORKS.propose, perfect, fuse)
    outer = meta_gradient(
        networks, case.theta, phi, case.rho, case.train, case.test, weights, inner, objective, MetaRule("exact", 1e-2)
    )
    assert outer.loss.item() == 0


def test_weights_follow_the_order_of_the_inputs() -> None:
    case = Case(pairs=2)
    weights = NETWORKS.propose(case.phi, case.train.a[:2], case.train.b[:2])
    swapped = NETWORKS.propose(case.phi, case.train.b[:2], case.train.a[:2])
    assert torch.equal(weights.intensity[:2], swapped.intensity[2:])
    assert torch.equal(weights.gradient[2:], swapped.gradient[:2])


def test_fused_plane_is_detached_for_the_update_of_reconstruction() -> None:
    case = Case()
    fused = fuse({name: tensor.requires_grad_() for name, tensor in case.theta.items()}, case.train.first, case.train.second)
    step = reconstruction_gradient(NETWORKS, case.rho, fused, case.train)
    assert set(step.gradient) == set(case.rho)
    assert not step.loss.total.requires_grad
    assert all(tensor.grad is None for tensor in case.theta.values())


@pytest.mark.parametrize("term", get_args(GradientTerm))
def test_one_small_step_lowers_the_fusion_loss(term: str) -> None:
    case, objective = Case(), FusionObjective(term, 0.5)
    weights = NETWORKS.propose(case.phi, case.train.a[:1], case.train.b[:1])
    step = fusion_gradient(NETWORKS, case.theta, case.train, weights, objective)
    moved = inner_step(case.theta, step.gradient, 1e-3)
    assert fusion_gradient(NETWORKS, moved, case.train, weights, objective).loss < step.loss
