"""The kernels of the network ``fast``: right with every instruction set, the same for any number of threads and any tiles."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from refusion_edge.arrays import Array, Float32Array, State
from refusion_edge.backends import native
from refusion_edge.backends.registry import status
from refusion_edge.images.io import read_image
from refusion_edge.images.samples import sample_paths
from refusion_edge.network.fast import STATISTICS, FastLayout, reference, statistics
from tests.oracles.fast import random_state

if not status("native").usable:
    pytest.skip(f"native: {status('native').reason}; {status('native').fix}", allow_module_level=True)

MODULE = native.load_module()
ISAS = native.instruction_sets()
# Blocks of outputs that fill the registers and such that do not, the most of everything, and cells of 4x4 pixels.
LAYOUTS = [
    FastLayout(),
    FastLayout(channels=8, convolutions=2),
    FastLayout(channels=16, convolutions=5),
    FastLayout(channels=40, convolutions=16),
    FastLayout(channels=64, convolutions=3, factor=4),
]
# Smaller than a vector or than four rows of cells, odd, and of several blocks of columns.
SIZES = [(8, 8), (9, 11), (45, 8), (8, 150), (33, 203), (61, 70)]
TOLERANCE = 5e-6


def planes(height: int, width: int, seed: int = 1) -> tuple[Float32Array, Float32Array]:
    a, b = np.random.default_rng(seed).random((2, height, width), np.float32)
    return a, b


def open_network(state: State, layout: FastLayout, threads: int = 1, isa: str = "") -> Any:
    return MODULE.FastNetwork(native.flat_parameters(state), layout.channels, layout.convolutions, layout.factor, threads, isa)


def fuse(network: Any, a: Array, b: Array, *figures: Any) -> Float32Array:
    fused = np.full(a.shape, np.nan, np.float32)
    network.fuse(a, b, fused, *figures)
    return fused


@pytest.fixture
def default() -> tuple[State, Any]:
    state = random_state(FastLayout())
    return state, open_network(state, FastLayout(), threads=2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_parameters_are_those_of_the_definition(layout: FastLayout) -> None:
    rows = MODULE.fast_parameters(layout.channels, layout.convolutions, layout.factor)
    assert [(name, tuple(shape)) for name, shape in rows] == list(layout.shapes.items())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_instruction_set_agrees_with_double_precision(layout: FastLayout, isa: str) -> None:
    state = random_state(layout)
    network = open_network(state, layout, isa=isa)
    assert network.isa == isa
    for size_hw in SIZES:
        a, b = planes(*size_hw)
        expected = reference(state, a, b)
        assert ((expected > 0) & (expected < 1)).mean() > 0.4  # a saturated output would agree with anything
        assert np.abs(expected - np.maximum(a, b)).mean() > 0.05
        assert np.abs(fuse(network, a, b) - expected).max() <= TOLERANCE, size_hw


def test_real_pairs_agree_with_double_precision(default: tuple[State, Any]) -> None:
    state, network = default
    for pair in sample_paths("ir_vis"):
        a, b = (np.atleast_3d(read_image(path))[..., 0].astype(np.float32) / np.float32(255) for path in (pair.a, pair.b))
        assert np.abs(fuse(network, a, b) - reference(state, a, b)).max() <= TOLERANCE


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_constant_planes_agree_with_double_precision(default: tuple[State, Any], level: float) -> None:
    state, network = default
    a = np.full((26, 37), level, np.float32)
    assert np.abs(fuse(network, a, a) - reference(state, a, a)).max() <= TOLERANCE


@pytest.mark.parametrize("isa", ISAS)
def test_the_number_of_threads_does_not_change_a_bit(isa: str) -> None:
    for layout in (FastLayout(), FastLayout(channels=16, convolutions=5), FastLayout(channels=32, convolutions=3, factor=4)):
        state = random_state(layout)
        for size_hw in ((8, 8), (301, 90), (70, 401)):
            a, b = planes(*size_hw)
            results = []
            for threads in (1, 2, 3, 8):
                network = open_network(state, layout, threads, isa)
                results += [fuse(network, a, b), fuse(network, a, b)]
                assert network.threads == threads
            assert all(np.array_equal(results[0], other) for other in results[1:]), size_hw


def test_strips_of_a_wide_image_leave_no_seam(default: tuple[State, Any]) -> None:
    """More columns than the scratch of one strip takes, against crops that are far narrower."""
    state, _ = default
    a, b = planes(16, 4000)
    figures = statistics(a, b)
    network = open_network(state, FastLayout())
    whole = fuse(network, a, b, figures.tolist())
    margin = 2 * FastLayout().convolutions
    for left in range(0, 4000, 160):
        first, last = max(0, left - margin), min(4000, left + 160 + margin)
        crop = fuse(network, a[:, first:last], b[:, first:last], figures.tolist())
        assert np.array_equal(crop[:, left - first : left - first + 160], whole[:, left : left + 160]), left


@pytest.mark.parametrize("size_hw", [(8, 8), (9, 8), (64, 130), (81, 300)])
@pytest.mark.parametrize("isa", ISAS)
def test_statistics_are_those_of_the_definition(isa: str, size_hw: tuple[int, int]) -> None:
    network = open_network(random_state(LAYOUTS[1]), LAYOUTS[1], threads=3, isa=isa)
    a, b = planes(*size_hw)
    assert np.allclose(network.statistics(a, b), statistics(a, b), rtol=0, atol=1e-12)
    assert np.allclose(network.statistics(b[::-1, ::-1], a.T.copy().T), statistics(b[::-1, ::-1], a), rtol=0, atol=1e-12)
    constant = np.full(size_hw, 0.7, np.float32)
    assert np.allclose(network.statistics(constant, constant), statistics(constant, constant), rtol=0, atol=1e-7)


def test_given_statistics_are_used_instead_of_those_of_the_pair(default: tuple[State, Any]) -> None:
    state, network = default
    a, b = planes(40, 52)
    before = statistics(*(plane * np.float32(0.3) for plane in (a, b)))
    adapted = fuse(network, a, b, before.tolist())
    assert np.abs(adapted - reference(state, a, b, before)).max() <= TOLERANCE
    assert np.abs(adapted - fuse(network, a, b)).max() > 0.01
    assert np.array_equal(fuse(network, a, b, network.statistics(a, b)), fuse(network, a, b))


def test_what_was_fused_before_does_not_matter(default: tuple[State, Any]) -> None:
    _, network = default
    a, b = planes(40, 52)
    first = fuse(network, a, b)
    fuse(network, *planes(64, 90, seed=2))
    fuse(network, *(np.full((40, 52), np.float32(3e38)),) * 2)
    fuse(network, a * np.float32(np.nan), b)
    assert np.array_equal(fuse(network, a, b), first)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (29, 40), (13, 39)])
@pytest.mark.parametrize("figures", [(), ([0.5] * STATISTICS,)], ids=["own", "given"])
def test_a_pixel_that_is_no_number_makes_none(
    default: tuple[State, Any], poison: float, place: tuple[int, int], figures: tuple[list[float], ...]
) -> None:
    for source in range(2):
        sources = planes(30, 41)
        sources[source][place] = poison
        assert np.isnan(fuse(default[1], *sources, *figures)).all()


def misaligned(plane: Array) -> Array:
    shifted = np.zeros(plane.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(plane.shape)
    shifted[...] = plane
    return shifted


def as_every_third(plane: Array) -> Array:
    wide = np.full((plane.shape[0] * 2, plane.shape[1] * 3), np.nan, np.float32)
    wide[1::2, 2::3] = plane
    return wide[1::2, 2::3]


@pytest.mark.parametrize(
    "laid_out",
    [
        misaligned,
        as_every_third,
        np.asfortranarray,
        lambda plane: np.ascontiguousarray(plane[::-1, ::-1])[::-1, ::-1],
        lambda plane: np.lib.stride_tricks.as_strided(plane, plane.shape, plane.strides, writeable=False),
    ],
    ids=["misaligned", "every third", "columns first", "backwards", "read-only"],
)
@pytest.mark.parametrize("layout", [FastLayout(), FastLayout(channels=8, convolutions=2, factor=4)])
def test_layouts_do_not_matter(layout: FastLayout, laid_out: Callable[[Array], Array]) -> None:
    network = open_network(random_state(layout), layout, threads=2)
    a, b = planes(37, 53)
    assert np.array_equal(fuse(network, laid_out(a), laid_out(b)), fuse(network, a, b))


def test_nothing_is_written_beside_the_target(default: tuple[State, Any]) -> None:
    a, b = planes(37, 53)
    expected = fuse(default[1], a, b)
    for step in (1, -1):
        memory = np.full((41, 70), 7, np.float32)
        target = memory[2:39, 9:62][::step]
        default[1].fuse(a, b, target)
        assert np.array_equal(target, expected)
        target[...] = 7
        assert (memory == 7).all()


def test_one_instance_serves_several_threads(default: tuple[State, Any]) -> None:
    network = default[1]
    pairs = [planes(20 + 7 * i, 50 - 3 * i, seed=i) for i in range(4)]
    expected = [fuse(network, *pair) for pair in pairs]
    wrong: list[int] = []

    def work(index: int) -> None:
        for turn in range(12):
            i = (index + turn) % len(pairs)
            if not np.array_equal(fuse(network, *pairs[i]), expected[i]):
                wrong.append(i)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=120)
    assert not any(worker.is_alive() for worker in workers)
    assert wrong == []


def test_wrong_settings_are_refused(default: tuple[State, Any]) -> None:
    state, network = default
    flat = native.flat_parameters(state)
    for sizes, message in (
        ((12, 6, 2), "the channels 12"),
        ((72, 6, 2), "the channels 72"),
        ((24, 1, 2), "the convolutions 1"),
        ((24, 17, 2), "the convolutions 17"),
        ((24, 6, 3), "the factor 3"),
        ((16, 6, 2), f"there are {flat.size} parameters"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            MODULE.FastNetwork(flat, *sizes, 1)
    for threads in (0, 257):
        with pytest.raises(ValueError, match=f"^{threads} threads"):
            MODULE.FastNetwork(flat, 24, 6, 2, threads)
    with pytest.raises(ValueError, match="abacus"):
        MODULE.FastNetwork(flat, 24, 6, 2, 1, "abacus")
    a, b = planes(16, 20)
    with pytest.raises(ValueError, match="statistics contain NaN"):
        network.fuse(a, b, a.copy(), [0.5] * 7 + [np.nan])
    with pytest.raises(TypeError):
        network.fuse(a, b, a.copy(), [0.5] * 7)
    with pytest.raises(ValueError, match="20x7 "):
        network.fuse(a[:7], b[:7], a[:7].copy())
    with pytest.raises(ValueError, match="7x16 "):
        network.statistics(a[:, :7], b[:, :7])
    with pytest.raises(ValueError, match="size"):
        network.statistics(a, b[:-1])
