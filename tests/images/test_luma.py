"""From a pair to luma: one meaning for every encoding of the same scene, and masks that go all the way."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.errors import InputError
from refusion_edge.images.luma import CONTRAST, to_luma8, to_planes
from refusion_edge.tasks import SENSOR, find_task
from tests.raising import raises

Picture = Callable[..., Array]
IR_VIS, MEDICAL, EXPOSURE = (find_task(name) for name in ("ir_vis", "medical", "multi_exposure"))


def test_planes_follow_opencv_on_eight_bit_pictures(picture: Picture) -> None:
    a, b = picture(10, 12, 1), picture(10, 12, 3)
    planes = to_planes(a, b, IR_VIS)
    ycrcb = cv2.cvtColor(b.astype(np.float32), cv2.COLOR_RGB2YCrCb)
    assert planes.a.shape == planes.b.shape == (1, 1, 10, 12)
    assert np.array_equal(planes.a[0, 0], a.astype(np.float32) / np.float32(255))
    assert np.array_equal(planes.b[0, 0], ycrcb[..., 0] / np.float32(255))
    assert planes.chroma is not None
    assert np.array_equal(planes.chroma, ycrcb[..., 1:])


def encodings_of(levels: Array) -> dict[str, Array]:
    """The same thermal scene, given as whole levels of 0 to 255, as cameras deliver it."""
    kelvin = 285 + levels.astype(np.float64) * 0.05
    return {
        "8 bits": levels,
        "counts": (51_241 + levels.astype(np.uint16) * 4).astype(np.uint16),
        "few counts": (8_000 + levels.astype(np.uint16)).astype(np.uint16),
        "centikelvin": np.rint(kelvin * 100).astype(np.uint16),
        "kelvin": kelvin.astype(np.float32),
        "kelvin in float64": kelvin,
        "celsius": (kelvin - 273.15).astype(np.float32),
        "unit float": (levels / 255).astype(np.float32),
        "signed": (levels.astype(np.int16) * 9 - 1000).astype(np.int16),
    }


def levels_of(picture: Picture) -> Array:
    levels = cv2.GaussianBlur(picture(48, 64), (0, 0), 2).astype(np.float64)
    return np.rint((levels - levels.min()) / np.ptp(levels) * 255).astype(np.uint8)


def test_every_encoding_of_a_thermal_scene_means_the_same(picture: Picture) -> None:
    levels, visible = levels_of(picture), picture(48, 64, 3)
    expected = to_planes(levels, visible, IR_VIS)
    for name, image in encodings_of(levels).items():
        planes = to_planes(image, visible, IR_VIS)
        assert np.abs(planes.a - expected.a).max() * 255 < 0.51, name
        assert np.array_equal(planes.b, expected.b)
        assert np.abs(to_luma8(image, SENSOR).astype(int) - levels).max() <= 1, name


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_a_visible_image_of_any_depth_means_the_same(picture: Picture, bits: int) -> None:
    levels, visible = levels_of(picture), picture(48, 64, 3)
    visible[0, 0] = 255
    deep = np.rint(visible.astype(np.float64) / 255 * (2**bits - 1)).astype(np.uint16)
    planes, expected = to_planes(levels, deep, IR_VIS), to_planes(levels, visible, IR_VIS)
    assert np.abs(planes.b - expected.b).max() * 255 < 0.6
    assert bool(planes.remarks) == (bits < 16)


def test_mri_is_ranged_as_ct_is(picture: Picture) -> None:
    levels = levels_of(picture)
    signal = (levels.astype(np.uint16) * 6 + 20).astype(np.uint16)
    planes = to_planes(levels, signal, MEDICAL)
    assert np.abs(planes.b[0, 0] * 255 - levels).max() < 0.51
    assert planes.remarks == ()


def test_an_underexposed_image_has_the_depth_of_its_overexposed_one(picture: Picture) -> None:
    under, over = (picture(30, 40).astype(np.uint16) for _ in range(2))
    planes = to_planes(under, over * np.uint16(64), EXPOSURE)
    assert planes.a.max() < 0.02
    assert planes.b.max() == pytest.approx(255 * 64 / (2**14 - 1), rel=1e-5)
    assert planes.remarks == ()


@pytest.mark.parametrize("keep_uint8", [False, True])
def test_the_result_shows_the_other_source_where_one_has_no_value(picture: Picture, keep_uint8: bool) -> None:
    levels, visible = levels_of(picture), picture(48, 64)
    counts = (51_241 + levels.astype(np.uint16) * 4).astype(np.uint16)
    counts[:9] = 0
    planes = to_planes(counts, visible, IR_VIS, keep_uint8=keep_uint8)
    assert planes.only_b is not None
    assert planes.only_b[:9].all()
    assert not planes.only_b[9:].any()
    assert np.abs(planes.a[0, 0, :9] * 255 - visible[:9]).max() < 1e-3
    for dtype in (np.uint8, np.float32):
        beside = planes.beside(np.dtype(dtype))
        assert beside is not None
        shown, where = beside
        assert shown.dtype == dtype
        assert np.array_equal(where, planes.only_b)
        assert np.abs(shown[where].astype(np.float64) - visible[where]).max() < 1e-3


def test_color_is_taken_from_no_pixel_without_a_value(picture: Picture) -> None:
    visible = picture(48, 64, 3, np.float32)
    visible[:9] = np.nan
    planes = to_planes(levels_of(picture), visible, IR_VIS)
    assert planes.only_a is not None
    assert planes.only_a[:9].all()
    assert planes.chroma is not None
    assert (planes.chroma[:9] == 0.5).all()
    assert np.array_equal(planes.b[0, 0, :9], planes.a[0, 0, :9])
    assert [(remark.text.split(":")[0], remark.pixels) for remark in planes.remarks] == [("source b", 9 * 64)]


def test_without_masks_the_result_stays_as_it_is(picture: Picture) -> None:
    assert to_planes(picture(20, 30), picture(20, 30), IR_VIS).beside(np.dtype(np.uint8)) is None


@pytest.mark.parametrize("color", [cv2.COLORMAP_JET, cv2.COLORMAP_RAINBOW, cv2.COLORMAP_INFERNO])
def test_a_palette_as_infrared_is_said(picture: Picture, color: int) -> None:
    levels = levels_of(picture)
    painted = cv2.applyColorMap(levels, color)[..., ::-1]
    texts = [remark.text for remark in to_planes(painted, picture(48, 64, 3), IR_VIS).remarks]
    assert len(texts) == 1
    assert "palette" in texts[0]
    texts = [remark.text for remark in to_planes(painted, levels, IR_VIS).remarks]
    assert "swapped" in texts[-1]
    assert to_planes(np.dstack([levels] * 3), picture(48, 64, 3), IR_VIS).remarks == ()


def test_a_range_that_holds_no_value_is_refused(picture: Picture) -> None:
    counts = (21_000 + levels_of(picture).astype(np.uint16)).astype(np.uint16)
    with pytest.raises(InputError) as caught:
        to_planes(counts, picture(48, 64), IR_VIS, spans=((0, 1000), None))
    assert caught.value.expected == (0, 1000)


def test_constant_sources_are_refused(picture: Picture) -> None:
    good = picture(20, 30)
    with raises(InputError, "source b", expected=CONTRAST, got=12):
        to_planes(good, np.full((20, 30), 12, np.uint8), IR_VIS)
    counts = np.full((20, 30), 300, np.uint16)
    counts[:4] = 0
    with raises(InputError, "source a", expected=CONTRAST, got=300):
        to_planes(np.where(counts == 0, np.nan, counts).astype(np.float32), good, IR_VIS)
