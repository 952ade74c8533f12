"""Luma, chroma and ranges: as the official script does them, and never a image that wraps round."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from refusion_edge.arrays import Array, Float32Array
from refusion_edge.errors import InputError, ShapeError
from refusion_edge.images.color import check_pair, fuse_chroma, merge, split, to_display_range, to_output_range, to_planes
from tests.raising import raises

Picture = Callable[..., Array]
colors = hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)))


@given(colors)
def test_luma_is_full_range_bt601(image: Array) -> None:
    luma, _ = split(image.astype(np.float32))
    expected = (image.astype(np.float64) @ [0.299, 0.587, 0.114]) / 255
    assert np.abs(luma - expected).max() <= 1e-6


@given(colors)
def test_color_there_and_back_within_one_level(image: Array) -> None:
    luma, chroma = split(image.astype(np.float32))
    back = merge(luma * np.float32(255), chroma)
    if chroma is None:
        back = np.repeat(back[..., None], 3, axis=2)
    assert np.abs(back.astype(int) - image).max() <= 1


@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_gray_stored_with_three_channels_is_gray(image: Array) -> None:
    luma, chroma = split(np.repeat(image[..., None], 3, axis=2).astype(np.float32))
    assert chroma is None
    assert np.abs(luma - split(image.astype(np.float32))[0]).max() <= 1e-6


planes = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 8), st.integers(1, 8)), elements=st.floats(0, 1, width=32, allow_subnormal=False)
)


@given(planes)
def test_stretch_uses_the_whole_range_and_keeps_order(fused: Float32Array) -> None:
    stretched = to_output_range(fused, "stretch")
    if fused.min() == fused.max():
        assert not stretched.any()
        return
    assert stretched.min() == 0
    assert stretched.max() == pytest.approx(255, rel=1e-6)
    order = np.argsort(fused, axis=None, kind="stable")
    assert (np.diff(stretched.ravel()[order]) >= 0).all()


@given(planes)
def test_fixed_range_is_the_same_for_every_image(fused: Float32Array) -> None:
    assert np.allclose(to_output_range(fused, "fixed"), fused * 255, atol=1e-4)


def test_rounding_is_the_official_one() -> None:
    levels = np.array([[0.0, 0.4, 0.5, 0.6, 1.5, 254.5, 254.6, 255.0]], np.float32)
    assert merge(levels, None).tolist() == [[0, 0, 0, 1, 1, 254, 255, 255]]


def test_colors_outside_the_gamut_saturate() -> None:
    luma = np.array([[0.0, 255.0]], np.float32)
    chroma = np.array([[[120.0, -120.0], [120.0, 120.0]]], np.float32)
    assert merge(luma, chroma).tolist() == [[[168, 0, 0], [255, 129, 255]]]


def test_chroma_comes_from_the_one_colored_source(picture: Picture) -> None:
    _, chroma = split(picture(6, 7, 3).astype(np.float32))
    assert fuse_chroma(None, chroma) is chroma
    assert fuse_chroma(chroma, None) is chroma
    assert fuse_chroma(None, None) is None


def test_chroma_of_two_colored_sources_is_the_official_mean(picture: Picture) -> None:
    (_, a), (_, b) = (split(picture(6, 7, 3).astype(np.float32)) for _ in range(2))
    assert a is not None
    assert b is not None
    wa, wb = np.abs(a.astype(np.float64) - 0.5), np.abs(b.astype(np.float64) - 0.5)
    fused = fuse_chroma(a, b)
    assert fused is not None
    assert np.abs(fused - (a * wa + b * wb) / (wa + wb + 1e-4)).max() <= 1e-3


def test_sixteen_bit_thermal_is_ranged_not_truncated() -> None:
    """A thermal image uses a few hundred of 65536 counts; each of them must survive."""
    counts = (22_000 + np.arange(64 * 64).reshape(64, 64) // 16).astype(np.uint16)
    shown = to_display_range(counts, sensor=True)
    assert shown.min() == 0
    assert shown.max() == 255
    inside = np.unique(shown[(shown > 0) & (shown < 255)])
    assert inside.size >= 250  # 256 counts less those beyond the percentiles
    assert (np.diff(shown.ravel()) >= 0).all()


def test_dead_pixels_do_not_move_the_thermal_range(rng: np.random.Generator) -> None:
    counts = rng.integers(20_000, 21_000, (120, 160)).astype(np.uint16)
    clean = to_display_range(counts, sensor=True)
    counts[3, 5], counts[70, 8] = 0, 65_535
    assert np.abs(to_display_range(counts, sensor=True) - clean)[counts > 0].mean() < 1


def test_sixteen_bit_images_use_their_full_scale(picture: Picture) -> None:
    image = picture(20, 30, 3, np.uint16)
    assert np.allclose(to_display_range(image, sensor=True), image / 257.0, atol=1e-3)
    assert np.allclose(to_display_range(image[..., 0], sensor=False), image[..., 0] / 257.0, atol=1e-3)


def test_sensor_data_in_three_equal_channels_is_ranged_like_gray(picture: Picture) -> None:
    counts = (21_000 + picture(30, 40).astype(np.uint16)).astype(np.uint16)
    color = np.repeat(counts[..., None], 3, axis=2)
    assert np.array_equal(to_display_range(color, sensor=True)[..., 1], to_display_range(counts, sensor=True))


def test_sensor_data_with_one_hot_pixel_keeps_it() -> None:
    counts = np.full((100, 100), 300, np.uint16)
    counts[50, 50] = 310
    assert to_display_range(counts, sensor=True)[50, 50] == 255


def test_float_images_on_another_scale_are_refused(picture: Picture) -> None:
    with raises(InputError, expected=(0, 1), got=(0, 255)):
        to_display_range(picture(20, 30, 1, np.float32) * np.float32(255), sensor=False)
    assert to_display_range(picture(20, 30, 1, np.float32) * np.float32(255), sensor=True).max() == 255


def test_float_images_run_from_zero_to_one(picture: Picture) -> None:
    image = picture(20, 30, 1, np.float32)
    assert np.allclose(to_display_range(image, sensor=False), image * 255, atol=1e-3)


def test_planes_follow_opencv_on_eight_bit_images(picture: Picture) -> None:
    a, b = picture(10, 12, 1), picture(10, 12, 3)
    planes = to_planes(a, b, sensor_a=True)
    ycrcb = cv2.cvtColor(b.astype(np.float32), cv2.COLOR_RGB2YCrCb)
    assert planes.a.shape == planes.b.shape == (1, 1, 10, 12)
    assert np.array_equal(planes.a[0, 0], a.astype(np.float32) / np.float32(255))
    assert np.array_equal(planes.b[0, 0], ycrcb[..., 0] / np.float32(255))
    assert planes.chroma is not None
    assert np.array_equal(planes.chroma, ycrcb[..., 1:])


def test_nan_constant_and_misfits_are_refused(picture: Picture) -> None:
    good = picture(20, 30)
    broken = picture(20, 30, 1, np.float32)
    broken[3, 4] = np.nan
    with raises(InputError, "1 NaN"):
        to_planes(broken, good, sensor_a=True)
    with raises(InputError, "source b", "(12)"):
        to_planes(good, np.full((20, 30), 12, np.uint8), sensor_a=True)
    with raises(ShapeError, expected=(20, 30), got=(20, 31)):
        check_pair(good, picture(20, 31))
    with raises(ShapeError, "source a", expected=(8, 8), got=(7, 30)):
        check_pair(picture(7, 30), picture(7, 30))
    with raises(ShapeError, "source b", got="float64"):
        check_pair(good, good.astype(np.float64))
    with raises(ShapeError, "source b", got=(20, 30, 4)):
        check_pair(good, np.zeros((20, 30, 4), np.uint8))
