"""Fidelity figures, by hand and by their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from refusion_edge.accuracy.gate import LIMITS, Fidelity, compare, measure, resized, worst
from refusion_edge.images.pairs import ImagePair
from refusion_edge.tasks import TASKS


def test_equal_planes(rng: np.random.Generator) -> None:
    plane = rng.random((20, 30)).astype(np.float32)
    assert compare(plane, plane) == Fidelity(math.inf, pytest.approx(1.0), 0.0)
    assert "equal" in str(compare(plane, plane))


def test_one_level_everywhere_is_48_db(rng: np.random.Generator) -> None:
    plane = rng.random((20, 30)).astype(np.float32) * np.float32(0.5)
    result = compare(plane + np.float32(1 / 255), plane)
    assert result.psnr_db == pytest.approx(48.1308, abs=1e-3)  # 20 log10(255)
    assert result.max_error == pytest.approx(1.0, abs=1e-4)


def test_ssim_follows_its_definition(rng: np.random.Generator) -> None:
    """The plain double loop over windows, inside the border, against the mean that is printed."""
    x, y = rng.random((11, 11)), rng.random((11, 11))
    offsets = np.arange(11) - 5
    kernel = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    kernel /= kernel.sum()

    def at(row: int, column: int) -> float:
        rows = np.abs(np.arange(row - 5, row + 6))
        columns = np.abs(np.arange(column - 5, column + 6))
        rows, columns = np.where(rows > 10, 20 - rows, rows), np.where(columns > 10, 20 - columns, columns)
        p, q = 255 * x[np.ix_(rows, columns)], 255 * y[np.ix_(rows, columns)]
        mp, mq = (kernel * p).sum(), (kernel * q).sum()
        vp, vq = (kernel * p * p).sum() - mp**2, (kernel * q * q).sum() - mq**2
        cov = (kernel * p * q).sum() - mp * mq
        return (2 * mp * mq + 6.5025) * (2 * cov + 58.5225) / ((mp**2 + mq**2 + 6.5025) * (vp + vq + 58.5225))

    expected = np.mean([at(row, column) for row in range(11) for column in range(11)])
    assert compare(x.astype(np.float32), y.astype(np.float32)).ssim == pytest.approx(expected, abs=1e-6)


def test_nan_keeps_no_limit(rng: np.random.Generator) -> None:
    plane = rng.random((20, 30)).astype(np.float32)
    broken = plane.copy()
    broken[3, 3] = np.nan
    assert not any(limits.hold(compare(broken, plane)) for limits in LIMITS.values())


def test_broken_images_are_not_called_equal() -> None:
    assert "equal" not in str(Fidelity(-math.inf, math.nan, math.nan))


def test_worst_takes_each_figure_on_its_own() -> None:
    assert worst([Fidelity(50, 0.9, 3), Fidelity(40, 0.99, 1)]) == Fidelity(40, 0.9, 3)


class Shifted:
    """A back end that adds a constant to the mean of its sources."""

    name = "shifted"

    def __init__(self, shift: float) -> None:
        self.shift = np.float32(shift)

    def __enter__(self):
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def fuse(self, a, b):
        return (a + b) / 2 + self.shift


def test_gate_measures_the_fused_image(rng: np.random.Generator) -> None:
    pairs = [ImagePair(str(i), *(rng.integers(0, 200, (20, 30)).astype(np.uint8) for _ in range(2))) for i in range(3)]
    results = list(measure(Shifted(2 / 255), Shifted(0), pairs, TASKS["ir_vis"]))
    assert [result.name for result in results] == ["0", "1", "2"]
    assert all(result.fidelity.max_error == pytest.approx(2, abs=1e-3) for result in results)


def test_pairs_are_scaled_to_height_and_width(rng: np.random.Generator) -> None:
    pair = ImagePair("x", rng.integers(0, 255, (20, 30)).astype(np.uint8), rng.integers(0, 255, (20, 30, 3)).astype(np.uint8))
    scaled = resized(pair, (10, 40))
    assert (scaled.a.shape, scaled.b.shape) == ((10, 40), (10, 40, 3))
