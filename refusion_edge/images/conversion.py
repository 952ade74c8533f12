"""Images as Python programs hold them - files, arrays, lists, Pillow images, tensors - turned into stills."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.documents import brief
from refusion_edge.errors import InputError, ShapeError, UsageError
from refusion_edge.images.color import ColorOrder
from refusion_edge.images.io import read_still
from refusion_edge.images.still import Still, default_encoding

_CPU = 1  # of DLPack


@dataclass(frozen=True, slots=True)
class Tensors:
    """How tensors of a library are copied to CPU memory and back.

    Attributes:
        take: Turns a tensor into an array, without a copy if it is in CPU memory.
        describe: Type, for results with pixels of a NumPy type, and device of a tensor.
        put: Turns an array into a tensor of such a type and device, without a copy on the CPU.
    """

    take: Callable[[Any], Array]
    describe: Callable[[Any, np.dtype[Any]], tuple[Any, Any]]
    put: Callable[[Array, Any, Any], Any]


def _take_torch(tensor: Any) -> Array:
    torch = importlib.import_module("torch")
    plain = tensor.detach().cpu()
    array: Array = (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    return array


def _describe_torch(tensor: Any, dtype: np.dtype[Any]) -> tuple[Any, Any]:
    kept = tensor.dtype.is_floating_point or str(tensor.dtype) == f"torch.{dtype.name}"
    return tensor.dtype if kept else importlib.import_module("torch").uint8, tensor.device


def _put_cupy(array: Array, _dtype: Any, device: Any) -> Any:
    with device:
        return importlib.import_module("cupy").asarray(array)


TENSORS: dict[str, Tensors] = {
    "torch": Tensors(
        _take_torch,
        _describe_torch,
        lambda array, dtype, device: importlib.import_module("torch").from_numpy(array).to(device=device, dtype=dtype),
    ),
    "cupy": Tensors(lambda array: array.get(), lambda array, dtype: (dtype, array.device), _put_cupy),
    "jax": Tensors(
        np.asarray,
        lambda array, dtype: (dtype, next(iter(array.devices()))),
        lambda array, _dtype, device: importlib.import_module("jax").device_put(array, device),
    ),
}
"""Libraries whose tensors are accepted on any device, and returned there."""
# What Pillow calls pixels that need no conversion.
_PLAIN_MODES = ("L", "RGB", "I;16", "I;16L", "I;16B", "I", "F")


def to_still(image: object, name: str, *, color_order: ColorOrder = "rgb") -> Still:
    """Turn anything that holds an image into a still.

    Args:
        image: A path, a ``Still``, a Pillow image, or what ``to_array`` takes: (H, W), (H, W, 1) or (H, W, 3), or with the
            channels first, as tensors have them, also behind a batch axis of 1.
        name: What to call it in messages, such as ``source a``.
        color_order: Channel order of arrays; files and Pillow images are RGB.

    Raises:
        InputError: It holds no image; a file cannot be read.
        ShapeError: It has another shape.
        UsageError: There is no such channel order.
    """
    if color_order not in ("rgb", "bgr"):
        raise UsageError(f"there is no color order '{color_order}'", "choose rgb or bgr")
    if image is None:
        raise InputError(f"{name} is None, which is what cv2.imread returns for a file that it cannot read", "check the path")
    if isinstance(image, Still):
        return image
    if isinstance(image, str | os.PathLike):
        return read_still(image)
    if is_pillow(image):
        return _from_pillow(image, name)
    pixels = _channels_last(_narrowed(to_array(image, name)), name)
    if color_order == "bgr" and pixels.ndim == 3:
        pixels = pixels[..., ::-1]
    return Still(np.ascontiguousarray(pixels), default_encoding(pixels))


def is_pillow(image: object) -> bool:
    """Whether an object is a Pillow image."""
    return library_of(image) == "PIL"


def library_of(image: object) -> str:
    """Name of the library that an object is of."""
    name = type(image).__module__.partition(".")[0]
    return "jax" if name == "jaxlib" else name


def _from_pillow(image: Any, name: str) -> Still:
    if getattr(image, "n_frames", 1) > 1:
        raise InputError(f"{name} is an animation of {image.n_frames} frames", "choose one with seek() and copy()")
    if image.mode not in _PLAIN_MODES:
        image = image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")
    pixels = np.array(image)
    pixels = pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    return Still(pixels, replace(default_encoding(pixels), format=image.format or ""))


def to_array(image: object, name: str) -> Array:
    """Turn an object with pixels into an array in CPU memory, without a copy if it is there already.

    Args:
        image: An array, nested lists, a tensor of ``TENSORS`` on any device, or anything with ``__array__`` or ``__dlpack__``
            in the memory of the CPU.
        name: What to call it in messages.

    Raises:
        InputError: It holds no numbers, or is on another device.
    """
    library = library_of(image)
    if isinstance(image, np.ndarray):
        array = image
    elif library in TENSORS:
        try:
            array = TENSORS[library].take(image)
        except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
            raise InputError(
                f"{name} is a tensor without readable pixels ({brief(error)})", "copy it to the CPU first"
            ) from error
    elif type(image).__name__ == "PyCapsule":
        raise InputError(f"{name} is a DLPack capsule, which can be read only once", "give the array that made it")
    elif hasattr(image, "__dlpack_device__") and int(image.__dlpack_device__()[0]) != _CPU:
        raise InputError(f"{name} is in the memory of a GPU", "copy it to the CPU first, for example with .cpu()")
    elif isinstance(image, list | tuple) or hasattr(image, "__array__"):
        try:
            array = np.asarray(image)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{name} is a {type(image).__name__} that is no image ({error})", "give rows of equal length"
            ) from error
    elif hasattr(image, "__dlpack__"):
        array = np.from_dlpack(image)
    else:
        raise InputError(f"{name} is a {type(image).__name__}, which holds no image", "give a path, an array or a Pillow image")
    if array.dtype.kind not in "iuf":
        raise InputError(f"{name} holds {array.dtype} instead of numbers", "convert it to uint8, uint16 or float32")
    return array


def _narrowed(array: Array) -> Array:
    """Bring types that no file has, such as the int64 of a list, to the smallest one of ours that holds the values."""
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype == np.float16:
        return array.astype(np.float32)
    if array.dtype.kind == "f" or array.dtype.itemsize < 8 or array.size == 0:
        return array.astype(np.int16) if array.dtype == np.int8 else array
    least, most = int(array.min()), int(array.max())
    for kind in (np.uint8, np.uint16, np.int16, np.int32, np.uint32):
        if np.iinfo(kind).min <= least and most <= np.iinfo(kind).max:
            return array.astype(kind)
    return array.astype(np.float64)


def _channels_last(array: Array, name: str) -> Array:
    while array.ndim == 4 and array.shape[0] == 1:
        array = array[0]
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise ShapeError(f"{name} has the shape {array.shape}", "give (H, W) gray or (H, W, 3) RGB", got=array.shape)
    return array
