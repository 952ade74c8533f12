"""Terms of the outer objective, on planes whose loss is known."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from torch import Tensor

from refusion_edge.arrays import Array
from refusion_edge.errors import UsageError
from refusion_edge.metrics.edges import edge_preservation
from refusion_edge.network.fast import FastLayout
from refusion_edge.network.fast_module import fuse, initial
from refusion_edge.train.layers import Parameters
from refusion_edge.train.meta import Batch, FusionObjective, MetaRule, Networks, fusion_gradient, meta_gradient
from refusion_edge.train.networks import ProposalSettings, initial_proposal, propose
from refusion_edge.train.outer import OuterSettings, detail_loss, edge_loss, similarity_loss, target_loss, visible_loss
from tests.raising import raises

SIDE = 48


@pytest.fixture
def plane(picture: Callable[..., Array]) -> Callable[[], Tensor]:
    return lambda: torch.from_numpy(picture(SIDE, SIDE)[None, None] / 255.0)


def test_a_fused_plane_that_equals_both_sources_loses_nothing(plane: Callable[[], Tensor]) -> None:
    same = plane()
    assert similarity_loss(same, same, same).item() == pytest.approx(0, abs=1e-9)
    # Qabf itself is at most 0.975.
    assert edge_loss(same, same, same).item() == pytest.approx(0.026, abs=0.005)
    assert detail_loss(same, same, same).item() == 0
    assert target_loss(same, same, same).item() == 0


def test_the_edge_term_is_close_to_the_metric(plane: Callable[[], Tensor]) -> None:
    # The metric counts the edges that zero padding makes at the rim; with a black frame there are none.
    a, b = (torch.nn.functional.pad(plane(), (4, 4, 4, 4)) for _ in range(2))
    for fused in ((a + b) / 2, torch.maximum(a, b), a):
        metric = edge_preservation(*(x[0, 0].numpy() * 255 for x in (a, b, fused)))
        assert 1 - edge_loss(fused, a, b).item() == pytest.approx(metric, abs=0.06)


def test_the_rim_of_a_crop_is_no_edge() -> None:
    a, b = torch.full((1, 1, SIDE, SIDE), 0.2), torch.full((1, 1, SIDE, SIDE), 0.9)
    a[..., 20:28, 20:28] = 0.6
    assert edge_loss(a, a, b).item() == pytest.approx(edge_loss(a, a, b / 2).item(), abs=1e-6)


def test_detail_counts_only_where_the_other_source_is_clipped() -> None:
    stripes = torch.zeros(1, 1, SIDE, SIDE)
    stripes[..., ::4] = 0.5
    flat = torch.full_like(stripes, 0.5)
    white = torch.ones_like(stripes)
    assert detail_loss(flat, stripes, flat).item() == 0
    assert detail_loss(white, stripes, white).item() > 0.1
    assert detail_loss(stripes, stripes, white).item() == 0
    # Either source may be the clipped one.
    assert detail_loss(white, white, stripes).item() == pytest.approx(detail_loss(white, stripes, white).item())


def test_a_target_counts_by_the_contrast_that_it_lacks() -> None:
    a = torch.zeros(1, 1, SIDE, SIDE)
    a[..., 20:26, 20:26] = 0.8
    lost = target_loss(torch.zeros_like(a), a, a).item()
    assert lost > 0
    assert target_loss(a / 2, a, a).item() == pytest.approx(lost / 2)
    assert target_loss(a + 0.1, a, a).item() == pytest.approx(0, abs=1e-7)


def test_the_factors_weigh_the_terms(plane: Callable[[], Tensor]) -> None:
    fused, a, b = plane(), plane(), plane()
    mixed = visible_loss(fused, a, b, OuterSettings(0.0, similarity=2.0, edges=3.0))
    assert mixed.item() == pytest.approx((2 * similarity_loss(fused, a, b) + 3 * edge_loss(fused, a, b)).item())
    assert visible_loss(fused, a, b, OuterSettings()).item() == 0


def test_an_objective_without_terms_is_refused() -> None:
    with raises(UsageError):
        OuterSettings(reconstruction=0.0)


@pytest.mark.parametrize("term", ["similarity", "edges", "detail", "targets"])
def test_the_meta_gradient_of_each_term_equals_double_backward(term: str, plane: Callable[[], Tensor]) -> None:
    settings = ProposalSettings(zero=False, prior="brighter", stride=2, temperature=4.0)
    generator = torch.Generator().manual_seed(0)

    def cast(parameters: Parameters) -> Parameters:
        return {name: tensor.double() for name, tensor in parameters.items()}

    theta, phi = cast(initial(FastLayout(channels=8, convolutions=3), generator)), cast(initial_proposal(settings, generator))
    a, b = plane(), plane()
    a[..., :12, :12], b[..., 20:26, 20:26] = 1.0, 1.0
    batch = Batch.in_both_orders(a, b)
    # R is not asked.
    networks = Networks(fuse, partial(propose, settings), None, fuse, reconstructs=False)  # type: ignore[arg-type]
    objective = FusionObjective("signed", 1.0)
    found = []
    for engine in ("exact", "double"):
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in phi.items()}
        weights = networks.propose(leaves, a, b)
        inner = fusion_gradient(networks, theta, batch, weights, objective)
        rule = MetaRule(engine, 1e-2, outer=OuterSettings(0.0, **{term: 1.0}))  # type: ignore[arg-type]
        gradient = meta_gradient(networks, theta, leaves, {}, batch, batch, weights, inner, objective, rule).gradient
        found.append(np.concatenate([tensor.numpy().ravel() for tensor in gradient.values()]))
    assert np.linalg.norm(found[1]) > 0
    assert np.linalg.norm(found[0] - found[1]) < 1e-10 * np.linalg.norm(found[1])
