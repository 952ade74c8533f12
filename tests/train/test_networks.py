"""The three networks in the layout of training: parity with the reference, sizes, and symmetry of the proposal."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from refusion_edge.arrays import State
from refusion_edge.errors import UsageError
from refusion_edge.network.model import FusionNetwork
from refusion_edge.network.parameters import PARAMETERS
from refusion_edge.train.networks import (
    ProposalSettings,
    fuse,
    initial_fusion,
    initial_proposal,
    initial_reconstruction,
    prior_weights,
    propose,
    reconstruct,
)
from tests.raising import raises


def planes(count: int, *shape: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(count)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-13)])
@pytest.mark.parametrize("size_hw", [(8, 8), (17, 30)])
def test_fusion_equals_the_reference(
    random_state: State, size_hw: tuple[int, int], dtype: torch.dtype, tolerance: float
) -> None:
    theta = {name: torch.from_numpy(array.copy()).to(dtype) for name, array in random_state.items()}
    network = FusionNetwork().double()
    network.load_state_dict(theta)
    a, b = planes(2, 2, 1, *size_hw, dtype=dtype)
    with torch.no_grad():
        assert (fuse(theta, a, b) - network(a.double(), b.double())).abs().max() <= tolerance


def test_fusion_has_the_gradients_of_the_reference(random_state: State) -> None:
    network = FusionNetwork().double()
    network.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in random_state.items()})
    a, b = planes(2, 1, 1, 12, 15, dtype=torch.float64)
    theta = dict(network.named_parameters())
    expected = torch.autograd.grad(network(a, b).square().sum(), tuple(theta.values()))
    found = torch.autograd.grad(fuse(theta, a, b).square().sum(), tuple(theta.values()))
    for name, one, other in zip(theta, expected, found, strict=True):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-12), name


# On first use torch 2.13 loads its own rules of forward mode through torch.jit, which it deprecates.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_single_precision_takes_other_products_and_has_the_same_derivatives() -> None:
    theta = initial_fusion(torch.Generator().manual_seed(0))
    v = initial_fusion(torch.Generator().manual_seed(1))

    def derivatives(dtype: torch.dtype) -> torch.Tensor:
        a, b = planes(2, 2, 1, 18, 23, dtype=dtype)
        point, along = ({name: tensor.to(dtype) for name, tensor in part.items()} for part in (theta, v))
        tangent = torch.func.jvp(lambda parameters: fuse(parameters, a, b), (point,), (along,))[1]
        leaves = {name: tensor.requires_grad_() for name, tensor in point.items()}
        first = torch.autograd.grad(fuse(leaves, a, b).square().sum(), tuple(leaves.values()), create_graph=True)
        twice = sum((one * other).sum() for one, other in zip(first, along.values(), strict=True))
        second = torch.autograd.grad(twice, tuple(leaves.values()))
        parts = (tangent, *first, *second)
        return torch.cat([part.detach().flatten().double() / part.detach().norm().double() for part in parts])

    wide, single = derivatives(torch.float64), derivatives(torch.float32)
    assert (wide - single).abs().max() < 1e-4


# As above.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_parameter_alone_can_be_transformed(dtype: torch.dtype) -> None:
    theta = {name: tensor.to(dtype) for name, tensor in initial_fusion(torch.Generator().manual_seed(0)).items()}
    v = {name: tensor.to(dtype) for name, tensor in initial_fusion(torch.Generator().manual_seed(1)).items()}
    a, b = planes(2, 1, 1, 8, 9, dtype=dtype)
    first = ("project_in_1", "FM.qkv1", "FM.project_mid1", "FM.project_E_d", "FM.project_out1", "FM.project_out2")
    names = [f"{name}.weight" for name in (*first, "decoder.0.norm1.body", "decoder.0.ffn.project_out")]
    for name in ("FM.temperature2", *names):

        def fused(own: torch.Tensor, name: str = name) -> torch.Tensor:
            return fuse({**theta, name: own}, a, b).sum()

        slope = (torch.func.grad(fused)(theta[name]) * v[name]).sum()
        along = torch.func.jvp(fused, (theta[name],), (v[name],))[1]
        assert torch.allclose(slope, along, rtol=1e-3, atol=1e-4), name


def test_residuals_take_no_copies_of_gradients_and_change_no_source() -> None:
    theta = {name: tensor.requires_grad_() for name, tensor in initial_fusion(torch.Generator().manual_seed(0)).items()}
    for dtype in (torch.float32, torch.float64):
        sources = planes(2, 1, 1, 9, 8, dtype=dtype)
        before = [source.clone() for source in sources]
        point = {name: tensor.to(dtype) for name, tensor in theta.items()}
        pending, seen = [fuse(point, *sources).grad_fn], set()
        while pending:
            node = pending.pop()
            if node is not None and node not in seen:
                seen.add(node)
                pending += [parent for parent, _ in node.next_functions]
        # What an addition in the memory of a view becomes.
        assert "CopySlices" not in {node.name() for node in seen}
        assert all(torch.equal(*pair) for pair in zip(sources, before, strict=True))


@pytest.mark.slow
def test_compilation_keeps_the_network_in_one_graph() -> None:
    theta = {name: tensor.requires_grad_() for name, tensor in initial_fusion(torch.Generator().manual_seed(0)).items()}
    sources = planes(2, 1, 1, 12, 16)

    def gradients(function: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(function(theta, *sources).square().sum(), tuple(theta.values()))

    # Traces the network and its gradient, without a compiler.
    compiled = torch.compile(fuse, backend="aot_eager", fullgraph=True)
    for one, other in zip(gradients(compiled), gradients(fuse), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-5)


def test_a_black_source_has_gradients() -> None:
    theta = {name: tensor.requires_grad_() for name, tensor in initial_fusion(torch.Generator().manual_seed(0)).items()}
    black = torch.zeros(1, 1, 12, 12)
    gradients = torch.autograd.grad(fuse(theta, black, black).sum(), tuple(theta.values()))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_networks_have_the_sizes_of_the_public_derivative() -> None:
    generator = torch.Generator().manual_seed(0)
    theta = initial_fusion(generator)
    assert {name: tuple(tensor.shape) for name, tensor in theta.items()} == PARAMETERS
    phi = initial_proposal(ProposalSettings(dim=16, blocks=2), generator)
    assert sum(tensor.numel() for tensor in phi.values()) == 89_058
    assert sum(tensor.numel() for tensor in initial_reconstruction(generator).values()) == 17_296


def test_proposal_starts_at_its_prior_exactly() -> None:
    settings = ProposalSettings(prior="brighter")
    phi = initial_proposal(settings, torch.Generator().manual_seed(0))
    bright, dark = torch.full((1, 1, 9, 9), 0.8), torch.full((1, 1, 9, 9), 0.3)
    weights = propose(settings, phi, bright, dark)
    assert torch.equal(weights.intensity[:1], torch.sigmoid(20 * (bright - dark)))
    assert torch.equal(weights.intensity[1:], torch.sigmoid(20 * (dark - bright)))


@pytest.mark.parametrize("symmetric", [True, False])
def test_symmetric_proposal_cannot_prefer_a_slot(symmetric: bool) -> None:
    settings = ProposalSettings(symmetric=symmetric, zero=False, prior="stronger")
    phi = initial_proposal(settings, torch.Generator().manual_seed(3))
    weights = propose(settings, phi, *planes(2, 2, 1, 10, 13))
    for both in (weights.intensity, weights.gradient):
        forth, back = both.chunk(2)
        assert torch.allclose(forth, 1 - back, atol=1e-6) == symmetric
        assert forth.std() > 1e-4


def test_clipping_limits_what_is_added_to_the_prior() -> None:
    settings = ProposalSettings(zero=False, clip=0.01)
    phi = {name: tensor * 10 for name, tensor in initial_proposal(settings, torch.Generator().manual_seed(0)).items()}
    weights = propose(settings, phi, *planes(2, 1, 1, 10, 10))
    assert (torch.logit(weights.intensity).abs() <= 0.01 + 1e-6).all()


def test_settings_of_the_proposal_are_checked() -> None:
    with raises(UsageError, "proposal.dim", got=12):
        ProposalSettings(dim=12)
    with raises(UsageError, got="brightest"):
        ProposalSettings(prior="brightest")


def test_reconstruction_has_two_branches_that_share_nothing() -> None:
    rho = initial_reconstruction(torch.Generator().manual_seed(0))
    (fused,) = planes(1, 2, 1, 9, 11)
    a, b = reconstruct(rho, fused)
    assert a.shape == b.shape == fused.shape
    changed = {name: tensor + 1 if name.startswith("b.") else tensor for name, tensor in rho.items()}
    assert torch.equal(reconstruct(changed, fused)[0], a)
    assert not torch.equal(reconstruct(changed, fused)[1], b)


def test_a_temperature_softens_the_prior() -> None:
    a, b = (plane / 4 for plane in planes(2, 1, 1, 8, 8, dtype=torch.float64))
    hard, soft = (prior_weights(ProposalSettings(prior="brighter", temperature=t), a, b) for t in (1.0, 4.0))
    assert torch.allclose(torch.logit(hard.intensity), 4 * torch.logit(soft.intensity))
    assert torch.allclose(torch.logit(hard.gradient), 4 * torch.logit(soft.gradient))


@pytest.mark.parametrize("size_hw", [(8, 8), (17, 30)])
def test_a_proposal_of_half_resolution_stays_symmetric_and_smooth(size_hw: tuple[int, int]) -> None:
    settings = ProposalSettings(zero=False, stride=2)
    phi = initial_proposal(settings, torch.Generator().manual_seed(0))
    a, b = planes(2, 1, 1, *size_hw)
    weights = propose(settings, phi, a, b)
    assert weights.intensity.shape == (2, 1, *size_hw)
    assert torch.allclose(weights.intensity[:1], 1 - weights.intensity[1:], atol=1e-6)
    # A checkerboard has the same means of squares, so P cannot tell it from a flat plane.
    board = (torch.arange(size_hw[0])[:, None] + torch.arange(size_hw[1])) % 2 * 0.2 - 0.1
    even = tuple(length // 2 * 2 for length in size_hw)
    a, b, board = a[..., : even[0], : even[1]], b[..., : even[0], : even[1]], board[: even[0], : even[1]]
    seen = propose(settings, phi, a + board, b).intensity
    assert torch.allclose(seen, propose(settings, phi, a, b).intensity, atol=1e-5)


@pytest.mark.parametrize("change", [{"temperature": 0.0}, {"stride": 0}])
def test_an_impossible_proposal_is_refused(change: dict[str, float]) -> None:
    with raises(UsageError):
        ProposalSettings(**change)  # type: ignore[arg-type]
