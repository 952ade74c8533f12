"""What programs hold as images: paths, lists, Pillow images, tensors, OpenCV's arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from refusion_edge.arrays import Array
from refusion_edge.errors import InputError, ShapeError, UsageError
from refusion_edge.images.conversion import to_still
from refusion_edge.images.io import read_still, write_image
from tests.raising import raises

Picture = Callable[..., Array]


class _Device:
    """Stands for a tensor in the memory of a GPU."""

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0


class _Wrapped:
    def __init__(self, array: Array) -> None:
        self.array = array

    def __array__(self, dtype: object = None, copy: object = None) -> Array:
        return self.array


class _Capsule:
    def __init__(self, array: Array) -> None:
        self.array = array

    def __dlpack__(self, **options: object) -> object:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0


def test_paths_and_stills(picture: Picture) -> None:
    image = picture(12, 15, 3, np.uint16)
    write_image("x.png", image)
    for given in ("x.png", Path("x.png"), read_still("x.png")):
        assert np.array_equal(to_still(given, "source a").pixels, image)


def test_lists_take_the_smallest_type_that_holds_them(picture: Picture) -> None:
    image = picture(12, 15)
    assert to_still(image.tolist(), "source a").pixels.dtype == np.uint8
    assert to_still((image.astype(int) + 300).tolist(), "source a").pixels.dtype == np.uint16
    assert to_still((image / 255).tolist(), "source a").pixels.dtype == np.float64
    with raises(InputError, "source a"):
        to_still([[1, 2], [3]], "source a")


@pytest.mark.parametrize("wrapper", [_Wrapped, _Capsule])
def test_arrays_of_other_libraries(picture: Picture, wrapper: Callable[[Array], object]) -> None:
    image = picture(12, 15, 3)
    assert np.array_equal(to_still(wrapper(image), "source a").pixels, image)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "LA", "I;16"])
def test_pillow_images(picture: Picture, mode: str) -> None:
    image = (
        Image.fromarray(picture(12, 15, 1, np.uint16)) if mode == "I;16" else Image.fromarray(picture(12, 15, 3)).convert(mode)
    )
    pixels = to_still(image, "source a").pixels
    gray = mode in ("1", "L", "LA", "I;16")
    expected = np.array(image if mode == "I;16" else image.convert("L" if gray else "RGB"))
    assert np.array_equal(pixels, expected)


def test_tensors_with_channels_first(picture: Picture) -> None:
    torch = pytest.importorskip("torch")
    image = picture(12, 15, 3)
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    assert np.array_equal(to_still(tensor, "source a").pixels, image)
    assert np.array_equal(to_still(tensor[None], "source a").pixels, image)
    assert np.array_equal(to_still(tensor[:1][None].float().requires_grad_(), "source a").pixels, image[..., 0])


def test_the_color_order_of_opencv(picture: Picture) -> None:
    image = picture(12, 15, 3)
    assert np.array_equal(to_still(image[..., ::-1], "source a", color_order="bgr").pixels, image)
    write_image("x.png", image)
    assert np.array_equal(to_still("x.png", "source a", color_order="bgr").pixels, image)
    with raises(UsageError, "gbr"):
        to_still(image, "source a", color_order="gbr")  # type: ignore[arg-type]


def test_what_holds_no_image_is_named() -> None:
    with raises(InputError, "source b", "cv2.imread"):
        to_still(None, "source b")
    with raises(InputError, "source b", "GPU", remedy=".cpu()"):
        to_still(_Device(), "source b")
    torch = pytest.importorskip("torch")
    for unreadable in (torch.empty((9, 9), device="meta"), torch.eye(9).to_sparse()):
        with raises(InputError, "source b", "tensor", remedy="CPU"):
            to_still(unreadable, "source b")
    with raises(InputError, "source b", "DLPack capsule", remedy="array"):
        to_still(np.eye(9).__dlpack__(), "source b")
    with raises(InputError, "source b", "int"):
        to_still(3, "source b")
    with raises(InputError, "bool"):
        to_still(np.zeros((9, 9), np.bool_), "source b")
    with raises(ShapeError, got=(9,)):
        to_still(np.zeros(9, np.uint8), "source b")
