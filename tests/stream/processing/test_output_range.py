"""The range of the fused video."""

from __future__ import annotations

import numpy as np

from refusion_edge.errors import UsageError
from refusion_edge.stream.processing.output_range import OutputStretch
from tests.raising import raises


def test_output_ranges() -> None:
    fused = np.random.default_rng(0).random((40, 50)).astype(np.float32) * np.float32(0.5) + np.float32(0.2)
    stretched = OutputStretch("stretch").apply(fused, 0)
    assert (stretched.min(), stretched.max()) == (0, 255)
    # The nearest level; a half may go either way.
    assert np.abs(OutputStretch("fixed").apply(fused, 0) - fused.astype(np.float64) * 255).max() <= 0.5 + 1e-4
    beyond = np.array([[-0.5, -0.001, 0.0, 1.0, 1.001, 2.0]], np.float32)
    assert OutputStretch("fixed").apply(beyond, 0).tolist() == [[0, 0, 0, 255, 255, 255]]
    assert not OutputStretch("stretch").apply(np.full((8, 8), 0.3, np.float32), 0).any()
    with raises(UsageError, expected=("smooth", "stretch", "fixed"), got="smoth"):
        OutputStretch("smoth")
