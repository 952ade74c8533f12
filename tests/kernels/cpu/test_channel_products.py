"""The products behind channel attention: values, both derivatives and the forward mode, against plain operations."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="this kernel is torch operations")

from refusion_edge.kernels.cpu.batch_products import channel_products


def plain(q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return q.transpose(1, 2) @ k, q.square().sum(dim=1), k.square().sum(dim=1)


@pytest.fixture
def features() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(2, 7, 3, generator=draw, dtype=torch.float64, requires_grad=True) for _ in range(4)]


# The first use of the forward mode in a process makes torch compile scripts of its own, of which it warns.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated:DeprecationWarning")
def test_values_and_forward_mode_equal_plain_operations(features: list[torch.Tensor]) -> None:
    points, directions = tuple(features[:2]), tuple(tensor.detach() for tensor in features[2:])
    found, expected = (torch.func.jvp(form, points, directions) for form in (channel_products, plain))
    for one, other in zip((*found[0], *found[1]), (*expected[0], *expected[1]), strict=True):
        assert torch.allclose(one, other, rtol=1e-13, atol=1e-13)


def test_derivatives_pass_finite_differences_twice(features: list[torch.Tensor]) -> None:
    assert torch.autograd.gradcheck(channel_products, tuple(features[:2]))
    assert torch.autograd.gradgradcheck(channel_products, tuple(features[:2]))


def test_gradients_stay_wide_under_autocast() -> None:
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 400, 4, generator=draw, requires_grad=True) for _ in range(2))
    expected = torch.autograd.grad(sum(part.sum() for part in plain(q, k)), (q, k))
    gram, of_q, of_k = channel_products(q, k)
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.autograd.grad(gram.sum() + of_q.sum() + of_k.sum(), (q, k))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)
