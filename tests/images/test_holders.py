"""What comes in is what goes out: libraries, types, devices, axes and batches."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from refusion_edge.arrays import Array
from refusion_edge.errors import ShapeError
from refusion_edge.images.conversion import to_array
from refusion_edge.images.holders import Holder, take_out
from tests.raising import raises

H, W = 12, 15
GRAY, COLOR = np.zeros((H, W), np.uint8), np.zeros((H, W, 3), np.uint8)


def shape(*sides: int) -> Array:
    return np.zeros(sides, np.uint8)


@pytest.mark.parametrize(
    ("a", "b", "count", "gray", "color"),
    [
        (GRAY, GRAY, 1, (H, W), (H, W, 3)),
        (GRAY, COLOR, 1, (H, W), (H, W, 3)),
        (GRAY, shape(H, W, 1), 1, (H, W), (H, W, 3)),
        (GRAY, shape(1, H, W), 1, (1, H, W), (3, H, W)),
        (GRAY, shape(3, H, W), 1, (1, H, W), (3, H, W)),
        (shape(5, H, W), shape(5, H, W), 5, (5, H, W), (5, H, W, 3)),
        (shape(5, H, W), shape(5, H, W, 3), 5, (5, H, W), (5, H, W, 3)),
        (shape(3, H, W), shape(3, H, W, 3), 3, (3, H, W), (3, H, W, 3)),
        (shape(3, 1, H, W), shape(3, H, W), 3, (3, H, W), (3, H, W, 3)),
        (shape(2, 1, H, W), shape(2, 3, H, W), 2, (2, 1, H, W), (2, 3, H, W)),
        (shape(1, H, W), shape(1, H, W, 3), 1, (1, H, W), (1, H, W, 3)),
    ],
)
def test_axes_and_batches(a: Array, b: Array, count: int, gray: tuple[int, ...], color: tuple[int, ...]) -> None:
    first, second, holder = take_out(a, b)
    assert len(first) == len(second) == count
    assert holder.give_back([GRAY] * count).shape == gray
    assert holder.give_back([COLOR] * count).shape == color
    assert holder.give_back([GRAY] * (count - 1) + [COLOR]).shape == color


def test_three_planes_are_not_guessed_to_be_colors_or_a_batch() -> None:
    both = shape(3, H, W)
    with raises(ShapeError, remedy="batch=True", got=(3, H, W)):
        take_out(both, both)
    assert len(take_out(both, both, batch=True)[0]) == 3
    assert len(take_out(both, both, batch=False)[0]) == 1
    torch = pytest.importorskip("torch")
    # By the convention of tensors, the channels come first.
    assert len(take_out(torch.zeros(3, H, W), torch.zeros(3, H, W))[0]) == 1


def test_batches_have_as_many_images() -> None:
    with raises(ShapeError, expected=4, got=5):
        take_out(shape(4, H, W), shape(5, H, W))
    with raises(ShapeError, expected=1, got=5):
        take_out(GRAY, shape(5, H, W, 3))
    with raises(ShapeError, got=0):
        take_out(shape(0, H, W), shape(0, H, W))


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32", "float64"])
def test_types_are_kept(dtype: str) -> None:
    assert take_out(GRAY, GRAY.astype(dtype))[2].dtype == dtype
    torch = pytest.importorskip("torch")
    tensor = torch.zeros((H, W), dtype=getattr(torch, dtype))
    holder = take_out(GRAY, tensor)[2]
    back = holder.give_back([np.zeros((H, W), holder.dtype)])
    assert (back.dtype, back.device, back.shape) == (tensor.dtype, tensor.device, tensor.shape)


def test_types_that_hold_no_image_become_bytes() -> None:
    for other in (np.int16, np.int32, np.int64):
        assert take_out(GRAY, GRAY.astype(other))[2].dtype == np.uint8
    torch = pytest.importorskip("torch")
    assert take_out(GRAY, torch.zeros((H, W), dtype=torch.int64))[2].give_back([GRAY]).dtype == torch.uint8
    half = take_out(GRAY, torch.zeros((H, W), dtype=torch.bfloat16))[2]
    assert half.give_back([np.zeros((H, W), half.dtype)]).dtype == torch.bfloat16


@pytest.mark.parametrize("b", ["b.png", GRAY.tolist(), [row.tolist() for row in COLOR]])
def test_paths_and_lists_give_arrays(b: object) -> None:
    assert isinstance(take_out(GRAY, b)[2].give_back([GRAY]), np.ndarray)


def test_pillow_images_give_pillow_images() -> None:
    holder = take_out("a.png", Image.fromarray(COLOR))[2]
    assert [holder.give_back([image]).mode for image in (GRAY, COLOR)] == ["L", "RGB"]


def test_no_copy_is_made_on_the_way_in_or_out() -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.zeros((H, W), dtype=torch.uint8)
    taken, _, holder = take_out(tensor, tensor)
    assert taken[0].ctypes.data == tensor.data_ptr()  # type: ignore[attr-defined]
    image = GRAY.copy()
    assert holder.give_back([image]).data_ptr() == image.ctypes.data
    batch = np.zeros((4, H, W, 3), np.float32)
    assert all(np.shares_memory(one, batch) for one in take_out(batch, batch)[0])
    assert Holder().give_back([image]) is image


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Stand-ins for libraries that need a GPU, or are not installed: they record where a result was put."""

    def make(name: str) -> Any:
        module: Any = ModuleType(name)

        class Tensor:
            def __init__(self, array: Array, device: object) -> None:
                self.array, self.device, self.dtype, self.shape = array, device, array.dtype, array.shape

            def get(self) -> Array:
                return self.array

            def devices(self) -> set[object]:
                return {self.device}

            def __array__(self, dtype: object = None, copy: object = None) -> Array:
                assert name == "jax", "CuPy refuses this"
                return self.array

        Tensor.__module__ = f"{name}._core" if name == "cupy" else "jaxlib._jax"
        module.Tensor, module.current = Tensor, None
        module.asarray = lambda array: Tensor(array, module.current)
        module.device_put = Tensor
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return make


def test_tensors_on_a_device_go_back_there(library: Callable[[str], Any]) -> None:
    cupy, jax = library("cupy"), library("jax")

    class Device:
        def __enter__(self) -> None:
            cupy.current = self

        def __exit__(self, *exc: object) -> None:
            cupy.current = None

    device, image = Device(), np.ones((H, W), np.float32)
    for module in (cupy, jax):
        tensor = module.Tensor(image, device)
        assert to_array(tensor, "source a") is image
        back = take_out(GRAY, tensor)[2].give_back([image])
        assert isinstance(back, module.Tensor)
        assert (back.device, back.dtype) == (device, np.float32)
