"""The gelu that features in half precision get, against the exact one."""

from __future__ import annotations

import numpy as np

from refusion_edge.kernels.gpu.gating import REACH, add_gated_reference, gelu_reference, half_gelu_reference


def test_the_gelu_of_half_precision_is_closer_than_its_rounding() -> None:
    x = np.linspace(-30.0, 30.0, 60_001)
    error = np.abs(half_gelu_reference(x.astype(np.float32)) - gelu_reference(x))
    assert 1e-4 < error.max() <= 1.8e-4
    small = np.abs(x) < 0.05
    # Relative, where it is small: it begins as the exact one does.
    assert (error[small] <= 6e-3 * np.abs(x[small])).all()
    assert np.array_equal(half_gelu_reference(np.float32([0.0, REACH + 1]))[:1], [0.0])


def test_what_is_no_number_stays_none_and_infinity_stays_itself() -> None:
    values = half_gelu_reference(np.float32([np.nan, np.inf, -np.inf]))
    assert np.isnan(values[0])
    assert values[1] == np.inf
    assert abs(values[2]) <= 1.8e-4


def test_half_precision_takes_it_and_others_do_not() -> None:
    gate, update = np.full((1, 1, 1), 1.5), np.full((1, 1, 1), 1.0)
    exact = gelu_reference(gate).item()
    for dtype, bound in ((np.float64, 1e-15), (np.float32, 1e-7), (np.float16, 1e-3)):
        base, project = np.zeros((1, 1, 1), dtype), np.ones((1, 1), dtype)
        wide = np.float64 if dtype == np.float64 else np.float32
        y = add_gated_reference(base, gate.astype(wide), update.astype(wide), project)
        assert y.dtype == dtype
        assert abs(y.item() - exact) <= bound
