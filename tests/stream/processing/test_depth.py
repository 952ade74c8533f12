"""The full scale of a visible camera with more than 8 bits."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.images.luma import to_luma
from refusion_edge.stream.processing.depth import FullScale
from refusion_edge.tasks import DISPLAY

Picture = Callable[..., Array]


def shown(scale: FullScale, image: Array, white: float | None = None) -> Array:
    return scale.to_levels(image, white, image)[0]


@pytest.mark.parametrize("bits", [8, 9, 10, 12, 14, 16])
def test_a_single_frame_is_judged_as_a_single_image(bits: int, picture: Picture) -> None:
    image = np.rint(picture(30, 40) / 255 * (2**bits - 1)).astype(np.uint16)
    image[0, 0] = 2**bits - 1
    expected = to_luma(image, DISPLAY).values * 255
    assert np.abs(shown(FullScale(), image) - expected).max() <= 0.51


def test_the_depth_grows_with_the_data_and_each_step_is_said() -> None:
    said: list[str] = []
    scale = FullScale(said.append)
    frames = [(700, 1023), (300, 1023), (3000, 4095), (500, 4095), (60_000, 65_535), (200, 65_535)]
    for most, white in frames:
        image = np.full((8, 8), most, np.uint16)
        assert shown(scale, image)[0, 0] == round(most * 255 / white)
    assert [text.split()[0] for text in said] == ["10", "12", "16"]


def test_what_the_source_states_counts_unless_the_data_contradict_it() -> None:
    said: list[str] = []
    scale = FullScale(said.append)
    assert shown(scale, np.full((8, 8), 100, np.uint16), 4095.0)[0, 0] == round(100 * 255 / 4095)
    assert said == []
    assert shown(scale, np.full((8, 8), 5000, np.uint16), 4095.0)[0, 0] == round(5000 * 255 / 16_383)
    assert len(said) == 1


def test_a_stated_scale_that_was_exceeded_once_counts_no_more() -> None:
    scale = FullScale()
    levels = [shown(scale, np.full((8, 8), most, np.uint16), 1023.0)[0, 0] for most in (500, 1100, 500, 1100, 500)]
    assert levels == [round(500 * 255 / 1023), *[round(most * 255 / 4095) for most in (1100, 500, 1100, 500)]]


def test_only_the_part_that_is_shown_is_judged() -> None:
    image = np.full((10, 8), 1000, np.uint16)
    image[8:] = 65_535  # telemetry
    levels, _ = FullScale().to_levels(image, None, image[:8])
    assert levels[0, 0] == round(1000 * 255 / 1023)
    assert levels[9, 0] == 255
