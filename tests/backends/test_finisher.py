"""What is made of an engine's output, for single images and for video alike."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from benchmarks.mean_engine import MeanEngine
from refusion_edge.arrays import Array, Float32Array, Uint8Array
from refusion_edge.backends.finisher import Finisher
from refusion_edge.errors import GateError
from refusion_edge.images.color import merge, merge_uint8, split, split_uint8, to_output_range
from tests.raising import raises


class LevelsEngine(MeanEngine):
    """Finishes planes of the fixed range on its device, and takes 8-bit ones."""

    uint8_range, takes_uint8 = "fixed", True

    def fuse_uint8(self, a: Array, b: Array) -> Uint8Array:
        return np.full(a.shape[2:], 7, np.uint8)


@pytest.fixture
def planes(rng: np.random.Generator) -> tuple[Float32Array, Float32Array]:
    a, b = rng.random((2, 1, 1, 12, 16)).astype(np.float32)
    return a, b


@pytest.mark.parametrize(("kind", "finished", "levels"), [("fixed", True, 1), ("fixed", False, 0), ("smooth", True, 0)])
def test_the_device_finishes_only_what_is_wanted(
    planes: tuple[Float32Array, Float32Array], kind: str, finished: bool, levels: bool
) -> None:
    finisher = Finisher(LevelsEngine(), kind, "bgr")
    output = finisher.infer(*planes, finished=finished)
    assert (output.dtype == np.uint8) == levels
    assert finisher.takes_uint8
    assert not Finisher(MeanEngine(), kind, "bgr").takes_uint8
    if levels:
        assert finisher.finish(output, None, lambda _plane: pytest.fail("it is finished")) is output


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_is_refused(planes: tuple[Float32Array, Float32Array], bad: float) -> None:
    planes[0][0, 0, 3, 4] = bad
    finisher = Finisher(MeanEngine(), "fixed", "rgb")
    with pytest.raises(GateError):
        finisher.finish(finisher.infer(*planes), None, partial(to_output_range, output_range="fixed"))


def test_both_orders_are_one_image(rng: np.random.Generator) -> None:
    picture = rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)
    mirrored = np.ascontiguousarray(picture[..., ::-1])
    luma, chroma = split(picture.astype(np.float32))
    plane = luma[None, None]
    rgb, bgr = (
        Finisher(MeanEngine(), "fixed", order).finish(plane, chroma, lambda fused: fused * 255) for order in ("rgb", "bgr")
    )
    assert np.array_equal(rgb, bgr[..., ::-1])
    assert np.array_equal(rgb, merge(luma * 255, chroma))
    for order, image in (("rgb", picture), ("bgr", mirrored)):
        levels, colored = split_uint8(image, order)
        joined = Finisher(MeanEngine(), "fixed", order).finish(levels.copy(), colored, pytest.fail)
        assert np.array_equal(joined, merge_uint8(levels, colored))
        assert np.array_equal(merge_uint8(levels, colored), image)


@pytest.mark.parametrize("on_device", [False, True])
def test_what_lies_beside_the_common_view_replaces_the_fused_luma(
    planes: tuple[Float32Array, Float32Array], on_device: bool
) -> None:
    finisher = Finisher(LevelsEngine(), "fixed" if on_device else "smooth", "bgr")
    beside = np.full((12, 16), 99, np.uint8), np.arange(16)[None, :] >= np.full((12, 1), 10)
    image = finisher.finish(finisher.infer(*planes), None, lambda fused: np.full(fused.shape, 3, np.uint8), beside=beside)
    assert (image[:, 10:] == 99).all()
    assert (image[:, :10] == (7 if on_device else 3)).all()


class OtherEngine(MeanEngine):
    """Returns what it was made with."""

    def __init__(self, output: Array) -> None:
        super().__init__()
        self._output = output

    def fuse(self, a: Float32Array, b: Float32Array) -> Float32Array:
        return self._output


@pytest.mark.parametrize(
    "output",
    [
        np.zeros((12, 16), np.float32),
        np.zeros((1, 3, 12, 16), np.float32),
        np.zeros((1, 1, 16, 12), np.float32),
        np.zeros((1, 1, 0, 0), np.float32),
        np.zeros((1, 1, 12, 16), np.uint8),
        np.zeros((1, 1, 12, 16), np.float64),
    ],
    ids=lambda output: f"{output.shape}-{output.dtype}",
)
def test_an_output_of_another_kind_is_refused(planes: tuple[Float32Array, Float32Array], output: Array) -> None:
    with raises(GateError, expected=(1, 1, 12, 16), got=output.shape):
        Finisher(OtherEngine(output), "fixed", "rgb").infer(*planes)


@pytest.mark.parametrize(("value", "fits"), [(1e30, False), (-1.0, False), (1.5, False), (1.005, True), (-0.005, True)])
def test_values_that_no_network_returns_are_refused(value: float, fits: bool) -> None:
    output = np.full((1, 1, 12, 16), 0.5, np.float32)
    output[0, 0, 11, 15] = value
    finisher, stretch = Finisher(MeanEngine(), "fixed", "rgb"), partial(to_output_range, output_range="fixed")
    if fits:
        assert finisher.finish(output, None, stretch)[11, 15] == np.clip(np.rint(value * 255), 0, 255)
    else:
        with raises(GateError, expected=(0, 1)):
            finisher.finish(output, None, stretch)
