"""Closeness to the teacher: what is outside clipped areas, and that nothing else counts there."""

from __future__ import annotations

import math

import numpy as np

from benchmarks.closeness import closeness, outside_clipped


def test_a_clipped_pixel_of_either_source_excludes_what_can_see_it() -> None:
    a, b = np.zeros((2, 40, 60), np.float32)
    a[20, 15] = 0.96
    b[20, 59] = 1
    outside = outside_clipped(a, b)
    assert not outside[8:33, 3:28].any()
    assert not outside[8:33, 47:].any()
    assert outside.sum() == outside.size - 25 * 25 - 25 * 13


def test_only_pixels_in_the_mask_count() -> None:
    expected = np.full((40, 60), 0.5, np.float32)
    fused = expected.copy()
    fused[:, :30] += 0.1
    mask = np.zeros(fused.shape, bool)
    mask[:, 30:] = True
    assert closeness(fused, expected, mask)[0] > 100
    assert math.isclose(closeness(fused, expected, ~mask)[0], 20, abs_tol=1e-3)
    assert np.isnan(closeness(fused, expected, np.zeros_like(mask))).all()
