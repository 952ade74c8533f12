"""Every Triton kernel against its float64 reference, in Triton's interpreter on the CPU."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton", reason="the GPU kernels are written in Triton: pip install 'refusion-edge[triton]'")
pytest.importorskip("torch", reason="Triton's interpreter takes torch tensors")

from benchmarks import gpu_cases
from benchmarks.gpu_cases import RELATIVE_ERROR, largest_error, launch, make_case
from refusion_edge.errors import BackendError
from refusion_edge.images.color import to_output_range
from refusion_edge.kernels.gpu.folding import FoldedWeights
from refusion_edge.kernels.gpu.schedule import SOURCES, make_schedule
from tests.kernels.conftest import TILES
from tests.raising import raises

KERNELS = tuple(make_schedule().kernels)
# Below a tile; an odd size over several tiles; a single row.
SIZES = ((3, 5), (5, 19), (1, 2))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", KERNELS)
def test_kernel_matches_its_float64_reference(folded: FoldedWeights, name: str, dtype: str) -> None:
    for seed, size_hw in enumerate(SIZES if dtype == "float32" else SIZES[1:2]):
        case = make_case(name, size_hw, dtype, folded, TILES, seed=seed)
        assert largest_error(case, launch(case)) <= RELATIVE_ERROR[dtype]


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_large_activations_stay_finite_and_right_and_a_repeat_gives_the_same_bits(folded: FoldedWeights, name: str) -> None:
    case = make_case(name, (4, 17), "float16", folded, TILES, scale=20.0, seed=7)
    first, second = launch(case), launch(case)
    assert all(np.array_equal(first[key], second[key]) for key in first)
    assert largest_error(case, first) <= RELATIVE_ERROR["float16"]


def test_black_features_give_even_mixing_weights_and_no_nan(folded: FoldedWeights) -> None:
    case = make_case("encoder_mixing", (4, 4), "float32", folded, TILES)
    case.operands["partial_ptr"][:] = 0
    taps = launch(case)
    assert np.isfinite(taps["taps_ptr"]).all()
    assert largest_error(case, taps) <= RELATIVE_ERROR["float32"]


@pytest.mark.parametrize("ends", [(0.25, 0.25), (0.0, 0.1), (0.9, 1.0), (0.4, 0.6), (0.1, 0.9)])
def test_contrast_is_raised_four_times_at_most(folded: FoldedWeights, ends: tuple[float, float]) -> None:
    case = make_case("stretch", (3, 5), "float32", folded, TILES)
    plane = np.linspace(*ends, 15, dtype=np.float32)
    case.operands["fused_ptr"][:] = plane
    case.operands["extremes_ptr"].reshape(-1, 2)[:] = ends
    expected = to_output_range(plane[None], "stretch")[0]
    assert np.abs(launch(case)["levels_ptr"].ravel() - expected).max() <= 0.5 + 1e-3


@pytest.mark.parametrize(("place", "message"), [(-1, "around fused_ptr"), (0, "in z_ptr")])
def test_a_kernel_that_writes_elsewhere_is_caught(
    folded: FoldedWeights, monkeypatch: pytest.MonkeyPatch, place: int, message: str
) -> None:
    case = make_case("to_plane", (3, 5), "float32", folded, TILES)

    class Wrong:
        def __getitem__(self, grid: Any) -> Any:
            def run(z: Any, weights: Any, fused: Any, extremes: Any, *_: Any, **__: Any) -> None:
                (fused if place else z)[place] = 1.0

            return run

    source = dataclasses.replace(SOURCES["to_plane"], function=Wrong())
    monkeypatch.setitem(gpu_cases.SOURCES, "to_plane", source)
    with raises(BackendError, message):
        launch(case)


def test_an_error_that_is_no_number_is_not_lost(folded: FoldedWeights) -> None:
    case = make_case("to_plane", (3, 5), "float32", folded, TILES)
    results = launch(case)
    results["fused_ptr"][2] = np.nan
    assert not largest_error(case, results) <= 1
