"""The network ``fast`` from its kernels: by the references in float64, and by Triton in its interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from refusion_edge.accuracy.gate import compare
from refusion_edge.arrays import Array, State
from refusion_edge.cuda.program import Tile, lay_out
from refusion_edge.errors import UsageError
from refusion_edge.kernels.gpu.fast_schedule import CONVOLUTIONS, STATISTICS_KERNEL, STRETCH, fold_fast, make_fast_schedule
from refusion_edge.kernels.gpu.fast_statistics import figures_reference
from refusion_edge.kernels.gpu.kernel_sets import REFUSION, fast_kernels, kernel_set
from refusion_edge.kernels.gpu.language import TRITON_INSTALLED
from refusion_edge.kernels.gpu.schedule import FUSED, LEVELS, fuse_reference
from refusion_edge.machine import ARCHITECTURES
from refusion_edge.network.checkpoint import read_checkpoint
from refusion_edge.network.fast import FastLayout, layout_of, reference, statistics
from refusion_edge.network.weights import weights_path
from tests.raising import raises

needs_triton = pytest.mark.skipif(not TRITON_INSTALLED, reason="needs Triton: pip install 'refusion-edge[triton]'")

LAYOUTS = (FastLayout(), FastLayout(16, 3, 4), FastLayout(8, 2, 2), FastLayout(32, 4, 2))
# Height and width: the smallest, odd, and several strips in one direction.
SIZES = ((8, 8), (9, 37), (131, 13))
# Half precision against the definition in float64.
LEAST_DB = 60.0


def random_state(layout: FastLayout, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in layout.shapes.items()}


def random_planes(size_hw: tuple[int, int], seed: int = 1) -> Array:
    return np.random.default_rng(seed).random((2, *size_hw), np.float32)


def small_tiles(layout: FastLayout, window: int = 16, rows: int = 3) -> dict[str, Tile]:
    """Tiles that cut small images into several strips, each with the halo of its layout."""
    columns = (window - 2 * (layout.convolutions - 1)) * layout.factor
    return {
        STATISTICS_KERNEL: Tile(16, 8, 1),
        CONVOLUTIONS: Tile(columns, rows * layout.factor, 1),
        STRETCH: Tile(16, 4, 1),
    }


def on_host(state: State, planes: Array, dtype: str) -> dict[str, Array]:
    kernels = kernel_set(state)
    return fuse_reference(kernels.schedule(dtype), kernels.fold(state).rounded(np.dtype(dtype)), planes)


def by_triton(state: State, planes: Array, dtype: str, tiles: dict[str, Tile]) -> Any:
    torch = pytest.importorskip("torch", reason="Triton's interpreter takes torch tensors")
    from refusion_edge.kernels.gpu.triton_frame import fuse

    weights = fold_fast(state).rounded(np.dtype(dtype))
    schedule = make_fast_schedule(layout_of({name: array.shape for name, array in state.items()}), dtype)
    a, b = (torch.from_numpy(plane)[None, None] for plane in planes)
    return fuse(schedule, weights, tiles, a, b, fill=float("nan"))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size_hw", SIZES)
def test_references_of_the_kernels_make_the_network(layout: FastLayout, size_hw: tuple[int, int]) -> None:
    state, planes = random_state(layout), random_planes(size_hw)
    expected = reference(state, *planes)
    assert expected.std() > 0.05
    assert np.abs(on_host(state, planes.astype(np.float64), "float64")[FUSED] - expected).max() <= 1e-12
    assert np.abs(on_host(state, planes, "float32")[FUSED] - expected).max() <= 5e-6
    half = on_host(state, planes, "float16")
    assert LEAST_DB <= compare(half[FUSED], expected).psnr_db < 110
    stretched = (half[FUSED] - half[FUSED].min()) / (half[FUSED].max() - half[FUSED].min()) * 255
    assert np.abs(half[LEVELS] - stretched).max() <= 0.51


@needs_triton
def test_triton_kernels_make_the_network_at_the_smallest_size() -> None:
    state, planes = random_state(FastLayout(8, 3)), random_planes((9, 11))
    fused = by_triton(state, planes, "float32", small_tiles(FastLayout(8, 3)))
    assert np.abs(fused.plane.numpy() - reference(state, *planes)).max() <= 5e-6


@pytest.mark.slow
@needs_triton
@pytest.mark.parametrize(
    ("layout", "size_hw"),
    [(LAYOUTS[0], (8, 8)), (LAYOUTS[0], (37, 9)), (LAYOUTS[1], (131, 13)), (LAYOUTS[2], (131, 13)), (LAYOUTS[3], (9, 37))],
)
def test_triton_kernels_make_the_network(layout: FastLayout, size_hw: tuple[int, int]) -> None:
    state, planes = random_state(layout), random_planes(size_hw)
    fused = by_triton(state, planes, "float16", small_tiles(layout, window=32))
    expected = reference(state, *planes)
    assert compare(fused.plane.numpy(), expected).psnr_db >= LEAST_DB
    # The reference kernels that the accuracy gate runs round at the same places.
    assert np.abs(fused.plane.numpy() - on_host(state, planes, "float16")[FUSED]).max() <= 2e-3
    plane = fused.plane.numpy()
    stretched = (plane - plane.min()) / (plane.max() - plane.min()) * 255
    assert np.abs(fused.levels.numpy() - stretched).max() <= 0.51


@pytest.mark.slow
@needs_triton
def test_real_weights_in_the_tiles_of_a_device() -> None:
    state = read_checkpoint(weights_path("ir_vis", "fast")).state
    planes = random_planes((59, 123))
    fused = by_triton(state, planes, "float16", fast_kernels(FastLayout()).tiles(87))
    assert compare(fused.plane.numpy(), reference(state, *planes)).psnr_db >= LEAST_DB


@needs_triton
@pytest.mark.parametrize("name", [STATISTICS_KERNEL, pytest.param(CONVOLUTIONS, marks=pytest.mark.slow), STRETCH])
def test_a_kernel_matches_its_float64_reference_and_writes_nowhere_else(name: str) -> None:
    pytest.importorskip("torch", reason="Triton's interpreter takes torch tensors")
    from benchmarks.gpu_cases import RELATIVE_ERROR, largest_error, launch, make_case

    layout = FastLayout(8, 3)
    kernels = fast_kernels(layout)
    folded = fold_fast(random_state(layout))
    case = make_case(name, (13, 29), "float32", folded, small_tiles(layout), seed=3, kernels=kernels)
    first, second = launch(case), launch(case)
    assert all(np.array_equal(first[key], second[key], equal_nan=True) for key in first)
    assert largest_error(case, first) <= RELATIVE_ERROR["float32"]


@needs_triton
def test_statistics_of_a_nearly_flat_image_are_exact_to_a_millionth() -> None:
    torch = pytest.importorskip("torch", reason="Triton's interpreter takes torch tensors")
    from refusion_edge.kernels.gpu.triton_frame import prepare

    layout, size_hw = FastLayout(8, 2), (51, 70)
    # The squares alone would lose the deviation, a ten-thousandth of the mean, in their rounding.
    planes = (0.75 + 1e-4 * np.random.default_rng(2).standard_normal((2, *size_hw))).astype(np.float32)
    weights = fold_fast(random_state(layout)).rounded(np.dtype(np.float32))
    frame = prepare(make_fast_schedule(layout, "float32"), weights, small_tiles(layout), size_hw, torch.device("cpu"),
                    fill=float("nan"))  # fmt: skip
    frame.buffers["planes"].copy_(torch.from_numpy(planes.ravel()))
    frame.start(frame.schedule.launches[0])
    partial = frame.buffers["partial"].numpy().reshape(9, -1)
    assert partial.shape[1] == 5 * 7
    assert np.abs(figures_reference(partial) - statistics(*planes)).max() <= 1e-7
    assert partial[0].sum() == 26 * 35


@needs_triton
@pytest.mark.parametrize("place", [(0, 4, 4), (1, 5, 7)])
def test_nan_reaches_the_result(place: tuple[int, int, int]) -> None:
    state, planes = random_state(FastLayout(8, 2)), random_planes((10, 12))
    planes[place] = np.nan
    expected = reference(state, *planes)
    # The levels of a result that is not finite are refused before anybody sees them; the interpreter of Triton 3.6 warns.
    with np.errstate(invalid="ignore"):
        fused = by_triton(state, planes, "float32", small_tiles(FastLayout(8, 2))).plane.numpy()
    assert np.isnan(expected).any()
    assert np.array_equal(np.isnan(fused), np.isnan(expected))


def test_a_frame_is_three_launches_and_little_memory() -> None:
    schedule = make_fast_schedule(FastLayout())
    assert [launch.kernel for launch in schedule.launches] == [STATISTICS_KERNEL, CONVOLUTIONS, STRETCH]
    for architecture in ARCHITECTURES:
        assert lay_out(schedule.buffers.values(), (480, 640), fast_kernels(FastLayout()).tiles(architecture)).size <= 42e6


@pytest.mark.parametrize("layout", [*LAYOUTS, FastLayout(32, 16, 2), FastLayout(32, 16, 4)])
def test_every_tile_fits_its_window_and_the_memory_of_its_strips(layout: FastLayout) -> None:
    kernels = fast_kernels(layout)
    buffer = kernels.schedule("float16").buffers["scratch"]
    around = 2 * (layout.convolutions - 1)
    for architecture in ARCHITECTURES:
        tile = kernels.tiles(architecture)[CONVOLUTIONS]
        window, depth = tile.columns // layout.factor + around, tile.rows // layout.factor + around
        assert (tile.columns % layout.factor, tile.rows % layout.factor) == (0, 0)
        assert window & (window - 1) == 0
        assert 2 * window * depth * max(16, 1 << (layout.channels - 1).bit_length()) <= buffer.per_strip
        assert 16 <= tile.columns <= 256
        height, width = kernels.self_test_hw
        assert tile.rows < height <= 255
        assert tile.columns < width <= 255


def test_kernels_are_found_by_the_parameters(random_state: State) -> None:
    assert kernel_set(random_state) is REFUSION
    layout = FastLayout(16, 3)
    state = {name: np.zeros(shape, np.float32) for name, shape in layout.shapes.items()}
    assert kernel_set(state).tiles(87) == fast_kernels(layout).tiles(87)
    wide = {name: np.zeros(shape, np.float32) for name, shape in FastLayout(channels=40).shapes.items()}
    with raises(UsageError, "fused", remedy="tensorrt", expected=32, got=40):
        kernel_set(wide)
