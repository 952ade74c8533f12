"""Tables of gray levels, and tiles of them."""

from __future__ import annotations

import numpy as np
import pytest

from refusion_edge.stream.processing.equalization import Equalizer, limited


def test_tables_rise_everywhere_and_nowhere_too_fast() -> None:
    shares = np.random.default_rng(4).gamma(0.2, size=(5, 64)).astype(np.float32)
    shares /= shares.sum(axis=1, keepdims=True)
    bounded = limited(shares, 2.5)
    assert bounded.sum(axis=1) == pytest.approx(1, abs=1e-5)
    assert bounded.min() > 0
    assert bounded.max() <= 2.5 / 64 + 1e-6
    np.testing.assert_allclose(limited(shares, 1.0), 1 / 64, rtol=1e-5)


def test_tiles_blend_as_four_tables_weighted_by_hand() -> None:
    rng = np.random.default_rng(5)
    luma = (rng.random((50, 67)) ** np.linspace(0.3, 3, 67)).astype(np.float32)
    tiles = Equalizer(8, 0.0)
    tiles.update(luma, (0.0, 1.0), 0, contrast=3.0, jumped=True)
    got = tiles.apply(luma)
    rows, columns = (np.arange(side) * 8 // side for side in luma.shape)
    tables = np.empty((8, 8, 129))
    for row in range(8):
        for column in range(8):
            inside = luma[np.ix_(rows == row, columns == column)]
            shares = np.histogram(inside, np.linspace(0, 1, 129))[0].astype(np.float32) + np.float32(1e-3)
            tables[row, column] = np.concatenate(([0], np.cumsum(limited(shares / shares.sum(), 3.0))))
    for y, x in rng.integers(0, luma.shape, (200, 2)):
        at_y, at_x = ((place + 0.5) * 8 / side - 0.5 for place, side in zip((y, x), luma.shape, strict=True))
        expected = 0.0
        for row in range(8):
            for column in range(8):
                share = max(0, 1 - abs(np.clip(at_y, 0, 7) - row)) * max(0, 1 - abs(np.clip(at_x, 0, 7) - column))
                expected += share * np.interp(luma[y, x] * 128, np.arange(129), tables[row, column])
        assert got[y, x] == pytest.approx(expected, abs=3e-3)
