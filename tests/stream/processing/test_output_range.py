"""The range of the fused video."""

from __future__ import annotations

import numpy as np
import pytest

from refusion_edge.arrays import Array, Float32Array
from refusion_edge.errors import UsageError
from refusion_edge.stream.frames import SECOND
from refusion_edge.stream.processing.output_range import OutputStretch, VideoRange
from tests.raising import raises


def test_output_ranges() -> None:
    fused = np.random.default_rng(0).random((40, 50)).astype(np.float32) * np.float32(0.5) + np.float32(0.2)
    stretched = OutputStretch("stretch").apply(fused, 0)
    assert (stretched.min(), stretched.max()) == (0, 255)
    # The nearest level; a half may go either way.
    assert np.abs(OutputStretch("fixed").apply(fused, 0) - fused.astype(np.float64) * 255).max() <= 0.5 + 1e-4
    beyond = np.array([[-0.5, -0.001, 0.0, 1.0, 1.001, 2.0]], np.float32)
    assert OutputStretch("fixed").apply(beyond, 0).tolist() == [[0, 0, 0, 255, 255, 255]]
    assert np.ptp(OutputStretch("stretch").apply(fused / 10, 0)) == pytest.approx(4 * 255 * np.ptp(fused) / 10, abs=1)
    with raises(UsageError, expected=("smooth", "stretch", "fixed"), got="smoth"):
        OutputStretch("smoth")


def _clip(contrast: float, noise: float, frames: int = 8, level: float = 0.4) -> list[Float32Array]:
    rng = np.random.default_rng(3)
    scene = level + contrast * (np.sin(np.linspace(0, 20, 160)) / 2)[None, :] * np.ones((120, 1))
    return [(scene + noise * rng.standard_normal(scene.shape)).astype(np.float32) for _ in range(frames)]


def _shown(kind: VideoRange, clip: list[Float32Array]) -> Array:
    stretch = OutputStretch(kind)
    return np.stack([stretch.apply(frame, number * SECOND // 25) for number, frame in enumerate(clip)]).astype(np.float64)


def _grain(shown: Array) -> float:
    return float(np.diff(shown, axis=0).std() / np.sqrt(2))


@pytest.mark.parametrize(("contrast", "noise"), [(0.02, 0.01), (0.08, 0.008), (0.15, 0.02), (0.0, 0.004)])
def test_a_noisy_scene_of_low_contrast_keeps_its_grain(contrast: float, noise: float) -> None:
    clip = _clip(contrast, noise)
    assert _grain(_shown("smooth", clip)) <= 1.2 * _grain(_shown("fixed", clip))


def test_contrast_is_raised_where_noise_allows_it() -> None:
    fixed, smooth = (_shown(kind, _clip(0.2, 0.0)) for kind in ("fixed", "smooth"))
    assert np.ptp(smooth) == pytest.approx(4 * np.ptp(fixed), rel=0.03)  # not the full range
    fixed, smooth = (_shown(kind, _clip(0.6, 0.002)) for kind in ("fixed", "smooth"))
    assert np.ptp(smooth) == pytest.approx(255, abs=3)


def test_a_dark_scene_stays_dark() -> None:
    dark, bright = (_shown("smooth", _clip(0.05, 0.02, level=level)) for level in (0.05, 0.95))
    assert dark.mean() < 0.05 * 255 * 1.25
    assert bright.mean() > 255 - 0.05 * 255 * 1.25


def test_a_constant_frame_has_no_noise_to_amplify() -> None:
    shown = _shown("smooth", [np.full((40, 50), 0.3, np.float32)] * 3)
    assert (shown == shown[0, 0, 0]).all()
