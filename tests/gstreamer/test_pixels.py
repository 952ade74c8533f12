"""Formats of video as arrays and back, against equations of their own."""

from __future__ import annotations

import numpy as np
import pytest

from refusion_edge.arrays import Array
from refusion_edge.errors import InputError
from refusion_edge.gstreamer.pixels import COLOR_FORMATS, SINK_FORMATS, Layout, default_layout, to_array
from tests.gstreamer.conftest import make_pixels
from tests.raising import raises

SIZES = [(64, 48), (45, 35), (46, 35), (45, 36)]
# Weights of red, green and blue in luma.
LUMA = {"bt601": (0.299, 0.587, 0.114), "bt709": (0.2126, 0.7152, 0.0722), "bt2020": (0.2627, 0.678, 0.0593)}


def scattered(rng: np.random.Generator, layout: Layout) -> bytes:
    return rng.integers(0, 256, layout.nbytes + 7, np.uint8).tobytes()


def bgr_of(y: float, u: float, v: float, matrix: str, full_range: bool) -> Array:
    """One pixel by the equations of ITU-R BT.601, 709 and 2020."""
    red, green, blue = LUMA[matrix]
    luma = y / 255 if full_range else (y - 16) / 219
    cb, cr = ((part - 128) / (255 if full_range else 224) for part in (u, v))
    r, b = luma + 2 * (1 - red) * cr, luma + 2 * (1 - blue) * cb
    g = (luma - red * r - blue * b) / green
    return 255 * np.clip([b, g, r], 0, 1)


@pytest.mark.parametrize("size_wh", SIZES)
@pytest.mark.parametrize("format_name", ["GRAY8", "GRAY16_LE"])
def test_gray_is_viewed_where_it_lies(format_name: str, size_wh: tuple[int, int], rng: np.random.Generator) -> None:
    width, height = size_wh
    number = np.dtype("<u2" if format_name == "GRAY16_LE" else "u1")
    for stride in (default_layout(format_name, size_wh).strides[0], width * number.itemsize + 3):
        layout = Layout(format_name, size_wh, (5,), (stride,))
        data = scattered(rng, layout)
        rows = [np.frombuffer(data, number, width, 5 + stride * row) for row in range(height)]
        assert np.array_equal(to_array(data, layout), np.stack(rows))
    plain = default_layout(format_name, (64, 48))
    data = scattered(rng, plain)
    assert np.shares_memory(to_array(data, plain), np.frombuffer(data, np.uint8))


@pytest.mark.parametrize("size_wh", SIZES)
@pytest.mark.parametrize(("format_name", "channels"), [("BGRx", 4), ("BGR", 3)])
def test_color_loses_its_padding(format_name: str, channels: int, size_wh: tuple[int, int], rng: np.random.Generator) -> None:
    layout = default_layout(format_name, size_wh)
    data = scattered(rng, layout)
    width, height = size_wh
    rows = [np.frombuffer(data, np.uint8, width * channels, layout.strides[0] * row) for row in range(height)]
    assert np.array_equal(to_array(data, layout), np.stack(rows).reshape(height, width, channels)[..., :3])


@pytest.mark.parametrize("size_wh", SIZES)
@pytest.mark.parametrize("matrix", LUMA)
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("format_name", ["NV12", "I420"])
def test_yuv_follows_its_matrix_and_range(
    format_name: str, matrix: str, full_range: bool, size_wh: tuple[int, int], rng: np.random.Generator
) -> None:
    plain = default_layout(format_name, size_wh)
    layout = Layout(format_name, size_wh, plain.offsets, plain.strides, matrix, full_range)
    data = scattered(rng, layout)
    image = to_array(data, layout)
    assert image.shape == (size_wh[1], size_wh[0], 3)
    for row, column in ((0, 0), (1, 1), (7, 30), (size_wh[1] - 1, size_wh[0] - 1)):
        y = data[plain.strides[0] * row + column]
        if format_name == "NV12":
            u, v = (data[plain.offsets[1] + plain.strides[1] * (row // 2) + column // 2 * 2 + part] for part in (0, 1))
        else:
            u, v = (data[plain.offsets[part] + plain.strides[part] * (row // 2) + column // 2] for part in (1, 2))
        assert np.abs(image[row, column] - bgr_of(y, u, v, matrix, full_range)).max() <= 1.5


@pytest.mark.parametrize("size_wh", SIZES)
@pytest.mark.parametrize("format_name", COLOR_FORMATS)
@pytest.mark.parametrize("is_color", [False, True])
def test_what_is_made_is_read_as_it_was(
    format_name: str, size_wh: tuple[int, int], is_color: bool, rng: np.random.Generator
) -> None:
    width, height = size_wh
    coarse = rng.integers(40, 200, ((height + 1) // 2, (width + 1) // 2, 3) if is_color else (height, width), np.uint8)
    image = coarse.repeat(2, 0).repeat(2, 1)[:height, :width] if is_color else coarse
    data = make_pixels(image, format_name)
    layout = default_layout(format_name, size_wh)
    read = to_array(data, layout).astype(int)
    expected = image if image.ndim == 3 or format_name == "GRAY8" else np.dstack([image] * 3)
    if is_color and format_name == "GRAY8":
        expected = np.rint(image @ np.array([0.114, 0.587, 0.299]))
    # 220 levels of video, and sums that are rounded.
    assert np.abs(read - expected).max() <= (3 if format_name in {"NV12", "I420"} else 1)
    if format_name not in {"NV12", "I420", "GRAY8"}:
        assert np.array_equal(read, expected)


@pytest.mark.parametrize("format_name", SINK_FORMATS)
def test_a_buffer_that_is_too_short_is_refused(format_name: str) -> None:
    layout = default_layout(format_name, (64, 48))
    with raises(InputError, format_name):
        to_array(bytes(layout.nbytes - 1), layout)
    # Rows that overlap would be read beyond the end.
    overlapping = Layout(format_name, (64, 48), layout.offsets, (1,) * len(layout.strides))
    with raises(InputError, format_name):
        to_array(bytes(layout.nbytes), overlapping)


@pytest.mark.parametrize("format_name", SINK_FORMATS)
def test_the_last_row_may_lack_its_padding(format_name: str, rng: np.random.Generator) -> None:
    plain = default_layout(format_name, (64, 48))
    # Every other row of a picture, as of a view into a larger one.
    strides = tuple(2 * stride for stride in plain.strides)
    offsets = tuple(2 * offset for offset in plain.offsets)
    wide = Layout(format_name, (64, 48), offsets, strides)
    data = rng.integers(0, 256, wide.nbytes, np.uint8).tobytes()
    assert np.array_equal(to_array(data[: wide.nbytes - plain.strides[-1]], wide), to_array(data, wide))
