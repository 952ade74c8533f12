"""The optimizers of a run."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="training needs torch")

from refusion_edge.train.optimization import adamw, apply


def test_the_layout_of_a_gradient_does_not_matter() -> None:
    """AdamW's first step moves every entry against the sign of its gradient; its fused kernel ignores strides."""
    gradient = torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    parameters = {"weight": torch.zeros(4, 8, 3, 3)}
    optimizer = adamw(parameters)
    apply(optimizer, parameters, {"weight": gradient.contiguous(memory_format=torch.channels_last)}, 0.5)
    assert torch.allclose(parameters["weight"], -0.5 * gradient.sign(), atol=1e-4)
