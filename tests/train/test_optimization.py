"""The optimizers of a run."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from refusion_edge.train.optimization import adamw, apply, clipped, without_frozen


def test_the_layout_of_a_gradient_does_not_matter() -> None:
    """AdamW's first step moves every entry against the sign of its gradient; its fused kernel ignores strides."""
    gradient = torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    parameters = {"weight": torch.zeros(4, 8, 3, 3)}
    optimizer = adamw(parameters)
    apply(optimizer, parameters, {"weight": gradient.contiguous(memory_format=torch.channels_last)}, 0.5)
    assert torch.allclose(parameters["weight"], -0.5 * gradient.sign(), atol=1e-4)


@pytest.mark.parametrize(("limit", "norm"), [(0.0, 13.0), (20.0, 13.0), (13.0, 13.0), (1.0, 1.0), (1e-6, 1e-6)])
def test_a_gradient_is_shortened_as_a_whole(limit: float, norm: float) -> None:
    # 3, 4 and 12 in the only entries that are not 0: their root of squares is 13.
    gradient = {"one": torch.tensor([[3.0, 0.0], [0.0, -4.0]]), "other": torch.tensor([0.0, 12.0])}
    found = clipped(gradient, limit)
    assert found.keys() == gradient.keys()
    for name, tensor in gradient.items():
        torch.testing.assert_close(found[name], tensor * (norm / 13))
    assert gradient["other"].tolist() == [0, 12]


def test_frozen_parameters_get_no_gradient() -> None:
    gradient = {"statistics.0.bias": torch.ones(2), "layers.0.bias": torch.ones(3)}
    assert without_frozen(gradient, ()).keys() == gradient.keys()
    found = without_frozen(gradient, ("statistics.",))
    assert [tensor.sum().item() for tensor in found.values()] == [0, 3]
    assert gradient["statistics.0.bias"].tolist() == [1, 1]
