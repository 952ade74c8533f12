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
    assert np.array_equal(OutputStretch("fixed").apply(fused, 0), np.floor(fused * 255 + 0.5).astype(np.uint8))
    assert not OutputStretch("stretch").apply(np.full((8, 8), 0.3, np.float32), 0).any()
    with raises(UsageError, expected=("smooth", "stretch", "fixed"), got="smoth"):
        OutputStretch("smoth")
