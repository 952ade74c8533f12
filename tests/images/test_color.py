"""Luma, chroma and ranges: as the official script does them, and never a image that wraps round."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from refusion_edge.arrays import Array, Float32Array
from refusion_edge.errors import ShapeError
from refusion_edge.images.color import (
    ColorOrder,
    check_pair,
    fuse_chroma,
    is_limited,
    merge,
    merge_uint8,
    split,
    split_uint8,
    to_output_range,
)
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
@example(np.array([[1.2e-38, 1.0]], np.float32))
def test_stretch_keeps_order_and_uses_the_whole_range_up_to_a_gain_of_four(fused: Float32Array) -> None:
    stretched = to_output_range(fused, "stretch")
    assert is_limited(fused) == (np.ptp(fused) < 0.25)
    if is_limited(fused):
        assert np.ptp(stretched) == pytest.approx(4 * 255 * float(np.ptp(fused)), abs=1e-3)
        assert stretched.min() >= 0
        assert stretched.max() <= 255
    else:
        assert stretched.min() == 0
        assert stretched.max() == pytest.approx(255, rel=1e-6)
    order = np.argsort(fused, axis=None, kind="stable")
    assert (np.diff(stretched.ravel()[order]) >= 0).all()


@pytest.mark.parametrize(("level", "shown"), [(0.0, 0.0), (0.05, 0.2), (0.5, 0.5), (0.95, 0.8), (1.0, 1.0)])
def test_a_plane_without_contrast_is_neither_black_nor_white(level: float, shown: float) -> None:
    flat = to_output_range(np.full((8, 8), level, np.float32), "stretch")
    assert flat == pytest.approx(255 * shown, abs=1e-3)
    assert is_limited(merge(flat, None))


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


def test_misfits_are_refused(picture: Picture) -> None:
    good = picture(20, 30)
    with raises(ShapeError, expected=(20, 30), got=(20, 31)):
        check_pair(good, picture(20, 31))
    with raises(ShapeError, "source a", expected=(8, 8), got=(7, 30)):
        check_pair(picture(7, 30), picture(7, 30))
    with raises(ShapeError, "source b", got="int64"):
        check_pair(good, good.astype(np.int64))
    with raises(ShapeError, "source b", got=(20, 30, 4)):
        check_pair(good, np.zeros((20, 30, 4), np.uint8))


@pytest.mark.parametrize("order", ["rgb", "bgr"])
def test_another_luma_keeps_the_chroma_in_8_bits(rng: np.random.Generator, order: ColorOrder) -> None:
    image = rng.integers(0, 256, (31, 45, 3)).astype(np.uint8)
    before = image.copy()
    luma, color = split_uint8(image, order)
    weights = np.array([0.299, 0.587, 0.114])[:: 1 if order == "rgb" else -1]
    exact = image @ weights
    assert np.abs(luma - exact).max() < 0.51
    other = rng.integers(0, 256, luma.shape).astype(np.uint8)
    expected = (image + (other - exact)[..., None]).clip(0, 255)
    assert np.abs(merge_uint8(other, color) - expected).max() < 0.51  # that of the luma
    assert np.array_equal(image, before)
    gray, none = split_uint8(luma, order)
    assert none is None
    assert merge_uint8(gray, none) is gray is luma
