"""Ranges: every count of a scene survives, outliers do not decide, and pixels without a value are found."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.errors import InputError
from refusion_edge.images.color import to_display_range
from refusion_edge.images.ranges import find_invalid, own_range, significant_bits, to_display
from refusion_edge.images.still import Encoding
from refusion_edge.tasks import DISPLAY, SENSOR, Role

Picture = Callable[..., Array]


def scene(rng: np.random.Generator, shape: tuple[int, int] = (240, 320)) -> Array:
    """A smooth scene, float64, from 0 to 1."""
    coarse = cv2.GaussianBlur(rng.random(shape), (0, 0), 9) + 0.02 * rng.random(shape)
    return (coarse - coarse.min()) / np.ptp(coarse)


def test_sixteen_bit_thermal_is_ranged_not_truncated() -> None:
    """A thermal picture uses a few hundred of 65536 counts; each of them must survive."""
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


def test_sixteen_bit_pictures_use_their_full_scale(picture: Picture) -> None:
    image = picture(20, 30, 3, np.uint16)
    assert np.allclose(to_display_range(image, sensor=True), image / 257.0, atol=1e-3)
    assert np.allclose(to_display_range(image[..., 0], sensor=False), image[..., 0] / 257.0, atol=1e-3)


def test_sensor_data_in_three_equal_channels_is_ranged_like_grey(picture: Picture) -> None:
    counts = (21_000 + picture(30, 40).astype(np.uint16)).astype(np.uint16)
    colour = np.repeat(counts[..., None], 3, axis=2)
    assert np.array_equal(to_display_range(colour, sensor=True)[..., 1], to_display_range(counts, sensor=True))


def test_sensor_data_with_one_hot_pixel_keeps_it() -> None:
    counts = np.full((100, 100), 300, np.uint16)
    counts[50, 50] = 310
    assert to_display_range(counts, sensor=True)[50, 50] == 255


def test_float_pictures_on_another_scale_are_refused(picture: Picture) -> None:
    with pytest.raises(InputError, match=r"0 to 255; .*\[0, 1\]"):
        to_display_range(picture(20, 30, 1, np.float32) * np.float32(255), sensor=False)
    assert to_display_range(picture(20, 30, 1, np.float32) * np.float32(255), sensor=True).max() == 255


def test_float_pictures_run_from_zero_to_one(picture: Picture) -> None:
    image = picture(20, 30, 1, np.float32)
    assert np.allclose(to_display_range(image, sensor=False), image * 255, atol=1e-3)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.int32, np.uint32, np.float32, np.float64])
def test_the_own_range_of_a_scene_is_all_of_it(rng: np.random.Generator, dtype: type) -> None:
    values = (scene(rng) * 940 + 21_000).astype(dtype)
    shown = to_display(values, SENSOR)
    assert (shown.scale.low, shown.scale.high) == (values.min(), values.max())
    expected = (values.astype(np.float64) - values.min()) / np.ptp(values.astype(np.float64)) * 255
    assert np.abs(shown.pixels - expected).max() < 0.01
    assert shown.invalid is None


@pytest.mark.parametrize("share", [0.0002, 0.0009, 0.0011, 0.002, 0.005])
@pytest.mark.parametrize("value", [60_000, 3_000])
def test_outliers_do_not_change_the_scene_whatever_their_number(rng: np.random.Generator, share: float, value: int) -> None:
    """A cliff at 0.1 % of the pixels used to leave 5 levels to the scene."""
    values = (scene(rng) * 940 + 21_000).astype(np.uint16)
    clean = to_display(values, SENSOR).pixels
    count = round(share * values.size)
    values.ravel()[rng.choice(values.size, count, replace=False)] = value
    others = values != value
    shown = to_display(values, SENSOR).pixels
    assert np.abs(shown - clean)[others].max() < 2
    assert (shown[~others] == (255 if value > 22_000 else 0)).all()


def test_hot_objects_are_no_outliers(rng: np.random.Generator) -> None:
    """People at night, 2 % of the image and far brighter than all else, keep their values."""
    values = np.rint(scene(rng) * 30 + 10).astype(np.uint16)
    values[100:150, 100:130] = np.rint(200 + 55 * scene(rng, (50, 30)))
    assert to_display(values + np.uint16(1000), SENSOR).scale.high == values.max() + 1000


@pytest.mark.parametrize("missing", [0, 65_535])
@pytest.mark.parametrize("where", ["border", "dead row", "dead pixels"])
def test_plateaus_are_no_values(rng: np.random.Generator, missing: int, where: str) -> None:
    values = (scene(rng) * 940 + 51_241).astype(np.uint16)
    clean = to_display(values, SENSOR)
    mask = np.zeros(values.shape, np.bool_)
    if where == "border":
        mask[:, :100] = mask[200:] = True
    elif where == "dead row":
        mask[77] = True
    else:
        mask.ravel()[rng.choice(values.size, 580, replace=False)] = True
    values[mask] = missing
    shown = to_display(values, SENSOR)
    assert shown.invalid is not None
    assert np.array_equal(shown.invalid, mask)
    assert [remark.pixels for remark in shown.remarks] == [np.count_nonzero(mask)]
    left = values[~mask].astype(np.float64)
    assert np.abs(shown.pixels[~mask] - (left - left.min()) / np.ptp(left) * 255).max() < 0.01
    assert shown.scale.low >= clean.scale.low


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.uint32, np.int32])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("beside", ["nothing", "dead row", "dead pixels"])
def test_what_is_too_hot_for_the_sensor_is_white(rng: np.random.Generator, dtype: type, soft: bool, beside: str) -> None:
    top = np.iinfo(dtype).max
    scene_part = scene(rng) * 0.02 * top + 0.3 * top
    fire = np.zeros(scene_part.shape)
    fire[60:95, 100:160] = fire[200:, 40:60] = 1  # the second one reaches the lower border
    glow = cv2.GaussianBlur(fire, (0, 0), 3) if soft else fire
    values = np.minimum(scene_part + 1.2 * top * glow, top).astype(dtype)
    values[fire > 0] = top
    dead = np.zeros(fire.shape, np.bool_)
    if beside == "dead row":
        dead[80] = True
    elif beside == "dead pixels":
        dead[5::20, 205::20] = True
    values[dead] = top
    shown = to_display(values, SENSOR)
    hot = (fire > 0) & ~dead
    assert (shown.pixels[hot] == 255).all()
    invalid = np.zeros(fire.shape, np.bool_) if shown.invalid is None else shown.invalid
    assert not invalid[hot].any()
    # The part of a dead row inside the fire cannot be told from it.
    assert invalid[dead & (glow < 1e-3)].all()
    cold = (glow < 1e-3) & ~dead
    assert not invalid[cold].any()
    assert np.ptp(shown.pixels[cold]) > (5 if soft else 250)


def test_the_edge_that_a_warp_interpolates_is_invalid_too(rng: np.random.Generator) -> None:
    values = (scene(rng) * 940 + 21_000).astype(np.uint16)
    turn = cv2.getRotationMatrix2D((160, 120), 7, 1.0)
    warped = cv2.warpAffine(values, turn, (320, 240), flags=cv2.INTER_LINEAR)
    share = cv2.warpAffine(np.ones_like(values, np.float32), turn, (320, 240), flags=cv2.INTER_LINEAR)
    shown = to_display(warped, SENSOR)
    assert shown.invalid is not None
    assert shown.invalid[share < 0.9].mean() > 0.99
    assert not shown.invalid[share == 1].any()
    assert shown.scale.low > 20_000


def test_black_that_belongs_to_the_scene_is_a_value(rng: np.random.Generator) -> None:
    values = np.rint(scene(rng) * 255).astype(np.uint16) * np.uint16(257)
    values[:40] = 0  # a letter box, as 8-bit images have it
    assert find_invalid(values, isolated=True) is None
    values[100:140] = 65_535
    assert find_invalid(values, isolated=True) is None


@pytest.mark.parametrize("missing", [np.nan, np.inf, -np.inf, 0.0, -9999.0])
def test_missing_values_of_float_data(rng: np.random.Generator, missing: float) -> None:
    kelvin = (scene(rng) * 12 + 290).astype(np.float32)
    kelvin[50:60, 70:90] = missing
    shown = to_display(kelvin, SENSOR)
    assert shown.invalid is not None
    assert np.count_nonzero(shown.invalid) == 200
    assert shown.scale.low >= 290
    assert shown.scale.high == kelvin[~shown.invalid].max()


def test_a_reserved_value_of_the_file_is_no_value(rng: np.random.Generator) -> None:
    image = scene(rng).astype(np.float32)
    image[3:5, 7:9] = 0.5
    shown = to_display(image, DISPLAY, encoding=Encoding(white=1.0, no_data=0.5))
    assert shown.invalid is not None
    assert shown.invalid[3:5, 7:9].all()


def test_nothing_but_missing_values_is_refused() -> None:
    with pytest.raises(InputError):
        to_display(np.full((9, 9), np.nan, np.float32), SENSOR)


@pytest.mark.parametrize(("most", "bits"), [(200, 8), (900, 10), (1500, 12), (4095, 12), (4096, 14), (16383, 14), (20000, 16)])
def test_the_bit_depth_of_an_image_is_judged_by_its_largest_value(rng: np.random.Generator, most: int, bits: int) -> None:
    image = np.rint(scene(rng) * most).astype(np.uint16)
    shown = to_display(image, DISPLAY)
    assert significant_bits(most) == bits
    assert np.abs(shown.pixels - image * (255 / (2**bits - 1))).max() < 0.01
    assert len(shown.remarks) == (bits < 16)


def test_what_the_file_states_comes_before_a_guess(rng: np.random.Generator) -> None:
    image = np.rint(scene(rng) * 900).astype(np.uint16)
    shown = to_display(image, DISPLAY, encoding=Encoding(white=4095, white_from="sBIT"))
    assert shown.scale.high == 4095
    assert not any("judged" in remark.text for remark in shown.remarks)


@pytest.mark.parametrize("role", [DISPLAY, SENSOR])
def test_a_range_that_is_given_is_used(rng: np.random.Generator, role: Role) -> None:
    image = np.rint(scene(rng) * 4000).astype(np.uint16)
    assert np.abs(to_display(image, role, span=(500, 3000)).pixels - np.clip((image - 500.0) / 2500, 0, 1) * 255).max() < 0.01
    assert to_display(image, role, span="full").scale.high == 65_535
    assert to_display(image, role, span="auto").scale.high == image.max()
    assert to_display(image.astype(np.uint8), role, span="auto").scale.origin == "own range"


@pytest.mark.parametrize(
    ("image", "doubtful"),
    [
        (np.arange(256, dtype=np.uint8).reshape(16, 16) // 9, True),
        (np.arange(256, dtype=np.uint8).reshape(16, 16) // 2, False),
        (np.linspace(0, 0.1, 256, dtype=np.float32).reshape(16, 16), True),
        (np.linspace(0, 0.2, 256, dtype=np.float32).reshape(16, 16), False),
    ],
)
def test_an_image_that_fills_little_of_its_scale_is_doubtful(image: Array, doubtful: bool) -> None:
    assert bool(to_display(image, DISPLAY).remarks) == doubtful
    assert not to_display(image, Role("under", ranged=False, dark=True)).remarks


def test_negative_values_mean_nothing_in_an_image_made_to_be_shown() -> None:
    image = np.arange(-50, 50, dtype=np.int16).reshape(10, 10)
    with pytest.raises(InputError) as caught:
        to_display(image, DISPLAY)
    assert caught.value.got == (-50, 49)
    assert to_display(image, SENSOR).pixels.max() == 255


def test_large_counts_keep_their_differences() -> None:
    """Beyond 24 bits, float32 would merge neighboring counts."""
    counts = (2**31 + np.arange(256).reshape(16, 16)).astype(np.uint32)
    assert np.unique(to_display(counts, SENSOR).pixels).size == 256


def test_the_own_range_is_found_without_a_scene() -> None:
    assert own_range(np.array([5, 5, 5, 5, 9])) == (5, 9)
    assert own_range(np.array([7.0])) == (7, 7)
