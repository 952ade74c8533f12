"""Thermal gain and output range: depth, polarity, and flicker measured by the metric of ``eval``."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import cv2
import numpy as np
import pytest

from refusion_edge.arrays import Array, Uint8Array
from refusion_edge.errors import InputError, UsageError
from refusion_edge.images.luma import to_luma
from refusion_edge.metrics.temporal import flicker
from refusion_edge.rig.model import GAIN_METHODS, GainMethod, Polarity
from refusion_edge.stream.frames import MS, Frame, Pair
from refusion_edge.stream.processing.gain import ThermalGain
from refusion_edge.stream.processing.output_range import OutputStretch
from refusion_edge.stream.processing.processor import Processor
from refusion_edge.stream.sources.synthetic import Painter, Scene
from refusion_edge.tasks import SENSOR
from tests.raising import raises
from tests.stream.conftest import MeanBackend

PERIOD_NS = 40 * MS


# Static and noisy; a hot figure walks in after a second.
SCENE = Scene(width=96, height=72, noise=3, scene="texture", walker=60, seed=3)


def walk(frames: int = 80) -> Iterator[tuple[Array, Array, int]]:
    ir, vis = Painter(SCENE, "ir"), Painter(SCENE, "vis")
    for number in range(frames):
        time_ns = number * PERIOD_NS
        yield ir.paint(time_ns), vis.paint(time_ns), time_ns


def mean_flicker(shown: list[Uint8Array]) -> float:
    """Flicker beyond the changes of the sensors; infrared is on a fixed scale that shows its background at full contrast."""
    planes = []
    for (ir, vis, _), image in zip(walk(len(shown)), shown, strict=True):
        fixed = ((ir.astype(np.float64) - 20_950) * (255 / 700)).clip(0, 255)
        planes.append((fixed, vis[..., 1].astype(np.float64), image.astype(np.float64)))
    return float(np.mean([flicker(before, after) for before, after in itertools.pairwise(planes)]))


def video(gain: ThermalGain, stretch: OutputStretch) -> list[Uint8Array]:
    processor = Processor(MeanBackend(), gain=gain, stretch=stretch, color=False, marks=False)
    return [
        processor.process(Pair(0, Frame("ir", ir, 0, time_ns, 0, time_ns), Frame("vis", vis, 0, time_ns, 0, time_ns))).image
        for ir, vis, time_ns in walk(120)
    ]


@pytest.mark.parametrize("method", GAIN_METHODS)
def test_fused_video_flickers_at_most_a_quarter_of_the_per_frame_stretch(method: GainMethod) -> None:
    per_frame = video(ThermalGain("linear", time_constant_s=0), OutputStretch("stretch"))
    smooth = video(ThermalGain(method), OutputStretch())
    assert smooth[-1].std() > 15  # not by being gray: the noise of the scene limits the gain of the output range
    assert mean_flicker(smooth) <= 0.25 * mean_flicker(per_frame)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.float32, np.float64])
def test_percentile_gain_of_one_frame_is_that_of_single_images(dtype: type) -> None:
    field = cv2.GaussianBlur(np.random.default_rng(2).standard_normal((61, 83)), (0, 0), 3)
    image = (23_000 + 500 / field.std() * field).astype(dtype)
    image[0, :3] = 0, 32_767, 28_000  # dead, saturated in int16, hot
    gain = ThermalGain("percentile")
    gain.update(image, 0)
    expected = to_luma(image, SENSOR)
    assert np.abs(gain.apply(image) - expected.values).max() < 1e-4
    assert gain.invalid is not None
    assert expected.invalid is not None
    assert np.array_equal(gain.invalid, expected.invalid)


@pytest.mark.parametrize("method", GAIN_METHODS)
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_gain_keeps_order_depth_and_range(method: GainMethod, dtype: type) -> None:
    image = np.linspace(21_000, 24_000, 3001).astype(dtype)[: 54 * 55].reshape(54, 55)
    gain = ThermalGain(method)
    gain.update(image, 0)
    luma = gain.apply(image)
    assert luma.dtype == np.float32
    assert luma.min() >= 0
    assert luma.max() <= 1
    assert luma.max() - luma.min() > 0.9
    if method != "clahe":
        assert (np.diff(luma.ravel()) >= 0).all()
        assert len(np.unique(luma)) > 1000  # far more than eight bits


@pytest.mark.parametrize("method", ["plateau", "clahe"])
def test_equalization_adds_contrast_and_less_of_it_to_noise(method: GainMethod) -> None:
    def contrast(noise: float) -> float:
        # A ground of ridges 240 counts high, and something 5000 counts hotter in the corner.
        ridges = 40.0 * np.abs(np.arange(96) % 12 - 6)
        image = np.broadcast_to(21_000 + ridges, (480, 96)).copy()
        image[:60, :12] += 5000
        image += np.random.default_rng(1).normal(0, noise, image.shape)
        gain = ThermalGain(method)
        gain.update(image.astype(np.uint16), 0)
        ground = gain.apply(image.astype(np.uint16))[120:].mean(axis=0)
        return float(np.ptp(ground[24:72]) / (240 / np.ptp(image)))

    clean, noisy = contrast(0.0), contrast(60.0)
    assert 3.0 < clean <= 4.05
    assert 1.2 < noisy <= 1.6


@pytest.mark.parametrize("method", GAIN_METHODS)
def test_a_cut_to_another_scene_is_followed_at_once_and_a_small_change_slowly(method: GainMethod) -> None:
    ir = list(walk(30))[-1][0]
    upside_down = (44_500 - ir).astype(np.uint16)  # the same range with different levels
    gain, fresh = ThermalGain(method, time_constant_s=10), ThermalGain(method)
    for number in range(3):
        gain.update(ir, number * PERIOD_NS)
    gain.update(upside_down, 3 * PERIOD_NS)
    fresh.update(upside_down, 0)
    assert np.abs(gain.apply(upside_down) - fresh.apply(upside_down)).max() < 0.05
    later = list(walk(60))[-1][0]
    slow = ThermalGain(method, time_constant_s=1e3)
    slow.update(ir, 0)
    before = slow.apply(later)
    slow.update(later, PERIOD_NS)
    assert np.abs(slow.apply(later) - before).max() < 0.02


def test_eight_bit_images_are_left_as_they_are(picture: Callable[..., Array]) -> None:
    shown = picture(30, 40)
    for method in GAIN_METHODS:
        gain = ThermalGain(method)
        gain.update(shown, 0)
        assert np.array_equal(np.rint(gain.apply(shown) * 255), shown)


def test_polarity_is_inverted_or_detected() -> None:
    ir = list(walk(30))[-1][0]
    assert (ir > 23_000).any()  # the walker is in the image
    inverted = (65535 - ir).astype(np.uint16)
    white, black, auto, auto_inverted = (ThermalGain("percentile", polarity=p) for p in ("white", "black", "auto", "auto"))
    for gain, image in ((white, ir), (black, inverted), (auto, ir), (auto_inverted, inverted)):
        gain.update(image, 0)
    expected = white.apply(ir)
    assert np.abs(black.apply(inverted) - expected).max() < 1e-3
    assert np.abs(auto.apply(ir) - expected).max() < 1e-3
    assert np.abs(auto_inverted.apply(inverted) - expected).max() < 1e-3


def test_a_new_scene_is_shown_at_once() -> None:
    gain = ThermalGain("percentile", time_constant_s=10)
    ramp = np.linspace(0, 500, 64 * 64).reshape(64, 64)
    gain.update((21_000 + ramp).astype(np.uint16), 0)
    gain.update((30_000 + ramp).astype(np.uint16), PERIOD_NS)
    luma = gain.apply((30_000 + ramp).astype(np.uint16))
    assert 0.45 < luma.mean() < 0.55


def test_a_constant_or_noisy_wall_is_not_stretched_to_noise() -> None:
    wall = np.full((40, 40), 21_000, np.uint16)
    wall[::2] += 1
    for method in GAIN_METHODS:
        gain = ThermalGain(method)
        gain.update(wall, 0)
        assert np.isfinite(gain.apply(wall)).all()
    linear = ThermalGain("linear")
    linear.update(wall, 0)
    assert np.ptp(linear.apply(wall)) < 0.2


@pytest.mark.parametrize("method", GAIN_METHODS)
@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_the_noise_of_a_covered_camera_is_not_stretched(method: GainMethod, dtype: type) -> None:
    rng = np.random.default_rng(6)
    gain = ThermalGain(method)
    shown = []
    for number in range(10):
        covered = rng.normal(21_000, 20, (120, 160)).round().astype(dtype)
        gain.update(covered, number * PERIOD_NS)
        shown.append(gain.apply(covered))
    noise = np.std(np.stack(shown), axis=0).mean()
    # Equalization adds contrast to this.
    assert noise < {"linear": 1.1, "percentile": 1.1}.get(method, 1.6) / 40
    assert 0.4 < shown[-1].mean() < 0.6


def test_a_border_without_values_does_not_hide_the_noise_of_a_covered_camera() -> None:
    covered = np.random.default_rng(7).normal(21_000, 20, (120, 160)).round().astype(np.uint16)
    covered[:20] = covered[-20:] = 0
    gain = ThermalGain("percentile")
    gain.update(covered, 0)
    assert gain.apply(covered)[20:-20].std() < 1.1 / 40


def test_wrong_settings_and_images_are_refused() -> None:
    for bad in ({"method": "agc"}, {"polarity": "gray"}, {"time_constant_s": -1}):
        with raises(UsageError, got=next(iter(bad.values()))):
            ThermalGain(**bad)
    for empty in (np.full((9, 9), np.nan, np.float32), np.full((9, 9, 3), np.inf)):
        with raises(InputError, "infrared"):
            ThermalGain().update(empty, 0)


def spoiled(scene: Array, how: str) -> tuple[Array, Array]:
    """A thermal frame with pixels that have no value, or are too hot for the sensor, and where they are."""
    dead = np.zeros(scene.shape, np.bool_)
    if how == "row":
        dead[7] = True
    elif how == "border":
        dead[:9], dead[:, :5] = True, True
    elif how == "pixels":
        dead.flat[np.random.default_rng(3).choice(dead.size, 60, replace=False)] = True
    else:
        dead[20:26, 30:39] = True
    value = {"row": 0, "border": 0, "pixels": 0, "fire": 65535, "nan": np.nan}[how]
    image = scene.astype(np.float32) if how == "nan" else scene.copy()
    image[dead] = value
    return image, dead


@pytest.mark.parametrize("method", GAIN_METHODS)
@pytest.mark.parametrize("polarity", ["white", "black", "auto"])
@pytest.mark.parametrize("how", ["row", "border", "pixels", "fire", "nan"])
def test_pixels_without_a_value_do_not_change_the_others(method: GainMethod, polarity: Polarity, how: str) -> None:
    scene = Painter(SCENE, "ir").paint(29 * PERIOD_NS)
    image, dead = spoiled(scene, how)
    # The same range without them.
    scene[dead] = np.median(scene[~dead])
    gain, alone = ThermalGain(method, polarity=polarity), ThermalGain(method, polarity=polarity)
    for number in range(3):
        gain.update(image, number * PERIOD_NS)
        alone.update(scene, number * PERIOD_NS)
    got, expected = gain.apply(image), alone.apply(scene)
    if how == "fire":
        assert gain.invalid is None
        assert np.allclose(got[dead], 0 if polarity == "black" else 1, atol=1e-5)
    else:
        assert gain.invalid is not None
        assert np.array_equal(gain.invalid, dead)
        assert (got[dead] == 0).all()
    # Histograms differ by the pixels that take the place of the dead ones.
    assert np.abs(got - expected)[~dead].max() < (1e-4 if method in ("linear", "percentile") else 0.12)
    gain.update(scene, 3 * PERIOD_NS)
    assert gain.invalid is None


def test_a_few_more_hot_pixels_do_not_change_the_range() -> None:
    """There is no share of hot pixels at which the range jumps."""
    scene = np.random.default_rng(4).normal(21_000, 200, (120, 160)).astype(np.uint16)
    darkest = []
    for count in (0, 5, 15, 19, 20, 25, 40, 60, 90):
        image = scene.copy()
        image.flat[:count] = 60_000
        gain = ThermalGain()
        gain.update(image, 0)
        darkest.append(float(np.median(gain.apply(image))))
    assert np.abs(np.diff(darkest)).max() < 0.02
