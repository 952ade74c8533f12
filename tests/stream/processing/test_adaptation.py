"""Statistics over time: what the network ``fast`` adapts to in a stream, and when it starts anew."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from refusion_edge.arrays import Float32Array, Float64Array
from refusion_edge.backends import native
from refusion_edge.backends.registry import AdaptedBackend, RunOptions, open_weights, status
from refusion_edge.errors import UsageError
from refusion_edge.network.fast import FastLayout, reference
from refusion_edge.stream.frames import MS, SECOND, Frame, Pair
from refusion_edge.stream.processing.adaptation import MOST_CHANGE, Adaptation
from refusion_edge.stream.processing.processor import Processor
from tests.raising import raises
from tests.stream.conftest import MeanBackend

FIRST, NEXT = np.full(8, 0.25), np.linspace(0.25, 0.3, 8)


def test_a_change_is_followed_by_the_exponential_share_of_the_time() -> None:
    adaptation = Adaptation(2.0)
    assert np.array_equal(adaptation.update(FIRST, 0), FIRST)
    got = adaptation.update(NEXT, 3 * SECOND)
    assert np.allclose(got, FIRST + (1 - math.exp(-1.5)) * (NEXT - FIRST), rtol=0, atol=1e-15)
    assert np.array_equal(adaptation.update(NEXT, SECOND), got)  # a step back in time is none
    assert adaptation.cuts == 0


def test_another_scene_is_taken_at_once() -> None:
    adaptation = Adaptation()
    adaptation.update(FIRST, 0)
    near, far = FIRST.copy(), FIRST.copy()
    near[5] += 0.99 * MOST_CHANGE
    far[3] -= 1.01 * MOST_CHANGE
    assert np.abs(adaptation.update(near, 40 * MS) - FIRST).max() < 0.1 * MOST_CHANGE
    assert np.array_equal(adaptation.update(far, 80 * MS), far)
    assert adaptation.cuts == 1


def test_a_reset_is_no_cut() -> None:
    adaptation = Adaptation()
    adaptation.update(FIRST, 0)
    adaptation.reset()
    assert np.array_equal(adaptation.update(NEXT, 40 * MS), NEXT)
    assert adaptation.cuts == 0


def test_without_a_time_constant_every_frame_has_its_own() -> None:
    adaptation = Adaptation(0.0)
    for figures in (FIRST, NEXT):
        assert np.array_equal(adaptation.update(figures, 0), figures)


@pytest.mark.parametrize("seconds", [-1.0, math.nan])
def test_a_time_constant_out_of_range_is_refused(seconds: float) -> None:
    with raises(UsageError):
        Adaptation(seconds)


class Adapting(MeanBackend):
    """Statistics are the means of both planes; keeps those that it was adapted to."""

    adapts = True

    def __init__(self) -> None:
        super().__init__()
        self.adapted_to: list[Float64Array] = []
        self.measured: list[Float64Array] = []

    def statistics(self, a: Float32Array, b: Float32Array) -> Float64Array:
        self.measured.append(np.repeat([a.mean(dtype=np.float64), b.mean(dtype=np.float64)], 4))
        return self.measured[-1]

    def fuse_adapted(self, a: Float32Array, b: Float32Array, figures: Float64Array) -> Float32Array:
        self.adapted_to.append(figures)
        return self.fuse(a, b)

    def own(self) -> list[bool]:
        """Which frames were adapted to their own statistics."""
        return [np.array_equal(got, measured) for got, measured in zip(self.adapted_to, self.measured, strict=True)]


def pairs(count: int, **changes: Any) -> list[Pair]:
    """Pairs whose levels differ a little from frame to frame, 40 ms apart; ``changes`` of both frames."""
    found = []
    for number in range(count):
        time_ns = 40 * MS * number
        ir, vis = (np.full((12, 16), level + number, np.uint8) for level in (40, 90))
        frames = (Frame("ir", ir, number, time_ns, 0, time_ns), Frame("vis", vis, number, time_ns, 0, time_ns))
        found.append(Pair(number, *(replace(frame, **changes) for frame in frames)))
    return found


def test_a_stream_adapts_to_what_is_smoothed() -> None:
    backend = Adapting()
    assert isinstance(backend, AdaptedBackend)
    processor = Processor(backend)
    for pair in pairs(6):
        processor.process(pair)
    assert backend.own() == [True, False, False, False, False, False]
    means = [figures[0] for figures in backend.adapted_to]
    assert means == sorted(means)
    assert 40 / 255 <= means[0] < means[-1] < 41 / 255


def test_statistics_are_those_of_the_part_that_both_cameras_see() -> None:
    ir = np.full((24, 32), np.nan, np.float32)
    ir[6:18, 8:24] = np.linspace(280, 300, 12 * 16, dtype=np.float32).reshape(12, 16)
    vis = np.full((24, 32), 200, np.uint8)
    vis[6:18, 8:24] = 90
    backend = Adapting()
    Processor(backend).process(Pair(0, Frame("ir", ir, 0, 0, 0, 0), Frame("vis", vis, 0, 0, 0, 0)))
    assert backend.measured[0][4] == pytest.approx(90 / 255)


def test_a_part_that_is_too_small_for_statistics_is_not_used_alone() -> None:
    ir = np.full((24, 32), np.nan, np.float32)
    ir[6:13, 8:24] = np.linspace(280, 300, 7 * 16, dtype=np.float32).reshape(7, 16)
    vis = np.full((24, 32), 200, np.uint8)
    backend = Adapting()
    Processor(backend).process(Pair(0, Frame("ir", ir, 0, 0, 0, 0), Frame("vis", vis, 0, 0, 0, 0)))
    assert backend.measured[0][4] == pytest.approx(200 / 255)


def without_infrared(before: Pair) -> Pair:
    return replace(before, ir=None)


def of_another_size(before: Pair) -> Pair:
    assert before.ir is not None
    return replace(before, ir=replace(before.ir, image=before.ir.image.repeat(2, axis=0).repeat(2, axis=1)))


@pytest.mark.parametrize(
    ("change", "own"),
    [
        (without_infrared, [True, False, True, False]),
        (of_another_size, [True, False, True, True, False]),
    ],
)
def test_it_starts_anew_after_a_loss_and_for_another_size(change: Callable[[Pair], Pair], own: list[bool]) -> None:
    backend = Adapting()
    processor = Processor(backend)
    for number, pair in enumerate(pairs(5)):
        processor.process(change(pair) if number == 2 else pair)
    assert backend.own() == own


def test_it_starts_anew_with_another_network() -> None:
    first, second = Adapting(), Adapting()
    processor = Processor(first)
    frames = pairs(4)
    for pair in frames[:2]:
        processor.process(pair)
    processor.use_backend(second)
    for pair in frames[2:]:
        processor.process(pair)
    assert (first.own(), second.own()) == ([True, False], [True, False])


def test_networks_that_do_not_adapt_are_run_as_they_are() -> None:
    backend = Adapting()
    backend.adapts = False
    Processor(backend).process(pairs(1)[0])
    assert not backend.measured


needs_native = pytest.mark.skipif(not status("native").usable, reason="needs the native module")


@needs_native
@pytest.mark.parametrize("size_hw", [(8, 8), (9, 13), (48, 64)])
def test_native_fuses_with_the_smoothed_statistics(size_hw: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    state = {name: rng.normal(0, 0.15, shape).astype(np.float32) for name, shape in FastLayout(8, 3).shapes.items()}
    planes = [rng.random((1, 1, *size_hw), np.float32) for _ in "ab"]
    frames = [[plane * np.float32(scale) for plane in planes] for scale in (0.9, 1.0)]
    with open_weights(state, "native", RunOptions(threads=1)) as backend:
        assert isinstance(backend, AdaptedBackend)
        assert backend.adapts
        adaptation = Adaptation()
        for number, (a, b) in enumerate(frames):
            figures = adaptation.update(backend.statistics(a, b), number * SECOND // 30)
            fused = backend.fuse_adapted(a, b, figures)
        expected = reference(state, a[0, 0], b[0, 0], figures)
        assert np.abs(fused[0, 0] - expected).max() < 1e-5
        assert np.abs(fused[0, 0] - reference(state, a[0, 0], b[0, 0])).max() > 1e-5


@needs_native
def test_native_adapts_only_the_network_that_does(random_state: dict[str, Any]) -> None:
    with native.NativeBackend(random_state, threads=1) as backend:
        assert not backend.adapts
