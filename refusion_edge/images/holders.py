"""Holders of images: taking single images out of them, and returning a result in the same kind of holder.

A holder is a path, an array of any library, a Pillow image or nested lists, with one image or a batch.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.errors import ShapeError
from refusion_edge.images.conversion import TENSORS, is_pillow, library_of, to_array
from refusion_edge.images.still import Still

# Types that an image can be returned in; all others become uint8.
_RETURNED = ("uint8", "uint16", "float16", "float32", "float64")

Channels = Literal["none", "first", "last"]


@dataclass(frozen=True, slots=True)
class Holder:
    """The kind of object that an image came in.

    Attributes:
        framework: ``numpy``, ``PIL``, or one of ``refusion_edge.images.conversion.TENSORS``.
        dtype: Type of the pixels of a result, as NumPy has it.
        native: Type and device of a tensor, as its library has them; None elsewhere.
        channels: Where its axis of channels is.
        batched: Whether it has an axis of images in front.
    """

    framework: str = "numpy"
    dtype: np.dtype[Any] = np.dtype(np.uint8)  # noqa: RUF009 - types of NumPy never change
    native: tuple[Any, Any] | None = None
    channels: Channels = "last"
    batched: bool = False

    def give_back(self, images: Sequence[Array]) -> Any:
        """Put images into an object of this kind.

        Args:
            images: One for each image that was taken out, (H, W) or (H, W, 3) of type ``dtype``; whole numbers in the full
                scale of their type, floats in [0, 1].

        Returns:
            An object of the library, type and device. Its shape is that of the images; with the channels first, a gray image
            has one channel; in a batch, all have three if one has.
        """
        colored = any(image.ndim == 3 for image in images)
        shaped = [self._shaped(image, colored=colored) for image in images]
        array = np.stack(shaped) if self.batched else shaped[0]
        if self.framework == "PIL":
            return importlib.import_module("PIL.Image").fromarray(array)
        return array if self.native is None else TENSORS[self.framework].put(np.ascontiguousarray(array), *self.native)

    def _shaped(self, image: Array, *, colored: bool) -> Array:
        if colored and image.ndim == 2:
            image = np.repeat(image[..., None], 3, axis=2)
        if self.channels != "first":
            return image
        return np.moveaxis(image, -1, 0) if image.ndim == 3 else image[None]


def take_out(a: object, b: object, *, batch: bool | None = None) -> tuple[list[object], list[object], Holder]:
    """Take the single images out of two holders.

    Args:
        a: Source a.
        b: Source b; a batch of as many images.
        batch: Whether an array of three axes, (N, H, W), is a batch of gray images; None if its shape tells.

    Returns:
        The images of both, each as ``refusion_edge.images.conversion.to_still`` takes them, and the kind of source b.

    Raises:
        ShapeError: The numbers of images differ, or it is unclear whether three planes are a batch or colors.
        InputError: See ``to_array``.
    """
    arrays = [None if _is_single(image) else to_array(image, name) for image, name in ((a, "source a"), (b, "source b"))]
    counts = [None if array is None else _count(array, batch) for array in arrays]
    for number, name in enumerate(("source a", "source b")):
        array, other = arrays[number], arrays[1 - number]
        if array is not None and batch is None and _is_ambiguous(array):
            if counts[1 - number] == 3 and other is not None and not _is_ambiguous(other):
                counts[number] = 3
            elif other is not None and _is_ambiguous(other) and library_of(b) != "torch":
                raise ShapeError(
                    f"{name} has the shape {array.shape}, which can be one color image or three gray ones",
                    "add batch=False or batch=True",
                    got=array.shape,
                )
    if 0 in counts:
        raise ShapeError("the batch is empty", "give at least one image", got=0)
    if len({count or 1 for count in counts}) > 1:
        raise ShapeError(
            f"source a holds {counts[0] or 1} images and source b {counts[1] or 1}",
            "give the same number of both",
            expected=counts[0] or 1,
            got=counts[1] or 1,
        )
    singles = [
        [image if array is None else array] if array is None or count is None else list(array)
        for image, array, count in zip((a, b), arrays, counts, strict=True)
    ]
    return singles[0], singles[1], _holder(b, arrays[1], counts[1])


def _is_single(image: object) -> bool:
    return image is None or isinstance(image, str | os.PathLike | Still) or is_pillow(image)


def _is_ambiguous(array: Array) -> bool:
    return array.ndim == 3 and array.shape[0] == 3 and array.shape[2] not in (1, 3)


def _count(array: Array, batch: bool | None) -> int | None:
    """Number of images of a batch, or None for a single image."""
    if array.ndim == 4:
        return int(array.shape[0])
    if array.ndim != 3 or array.shape[2] in (1, 3) or batch is False:
        return None
    return int(array.shape[0]) if batch or array.shape[0] not in (1, 3) else None


def _holder(image: object, array: Array | None, count: int | None) -> Holder:
    if is_pillow(image):
        return Holder("PIL")
    if array is None or isinstance(image, list | tuple):
        return Holder(batched=count is not None)
    dtype = array.dtype if array.dtype.name in _RETURNED else np.dtype(np.uint8)
    single = array.shape[1:] if count is not None else array.shape
    channels: Channels = "none" if len(single) == 2 else "last" if single[2] in (1, 3) else "first"
    library = library_of(image)
    native = TENSORS[library].describe(image, dtype) if library in TENSORS else None
    return Holder(library if native else "numpy", dtype, native, channels, count is not None)
