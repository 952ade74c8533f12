"""Every Triton kernel against its float64 reference, in Triton's interpreter on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton", reason="the GPU kernels are written in Triton: pip install 'refusion-edge[triton]'")
torch = pytest.importorskip("torch", reason="Triton's interpreter takes torch tensors")

from refusion_edge.arrays import Array
from refusion_edge.kernels.catalogue import SOURCES
from refusion_edge.kernels.folding import FoldedWeights
from refusion_edge.kernels.network import compile_constants
from refusion_edge.kernels.plan import make_plan
from tests.kernels.conftest import TILE, Case, comparable, make_case

KERNELS = tuple(make_plan().kernels)
# Below a tile; an odd size over several tiles; a single row.
SIZES = ((3, 5), (5, 19), (1, 2))
GUARD = 64

# Relative to the largest value of a result: fp32 sums of some hundred terms, and some roundings to fp16 on the way.
RELATIVE = {"float32": 2e-6, "float16": 2.5e-3}


def launch(case: Case) -> dict[str, Array]:
    """Run a kernel on poisoned memory: NaN around every operand and in every output, checked after."""
    memory: dict[str, Any] = {}
    arguments = []
    for parameter in case.kernel.parameters:
        operand = case.operands[parameter.name]
        if isinstance(operand, int):
            arguments.append(operand)
            continue
        poison = np.nan if operand.dtype.kind == "f" else 7
        guarded = np.full(operand.size + 2 * GUARD, poison, operand.dtype)
        if not parameter.written:
            guarded[GUARD:-GUARD] = operand
        memory[parameter.name] = torch.from_numpy(guarded)
        arguments.append(memory[parameter.name][GUARD:])
    grid = case.kernel.launch_grid(TILE, case.size_hw)
    function = SOURCES[case.kernel.source].function
    function[grid](*arguments, **compile_constants(case.kernel.constants, case.kernel.grid, TILE))
    results = {}
    for name, tensor in memory.items():
        array = tensor.numpy()
        edges = np.concatenate([array[:GUARD], array[-GUARD:]])
        assert (np.isnan(edges) if array.dtype.kind == "f" else edges == 7).all(), f"{name}: written outside"
        if name in case.written:
            results[name] = array[GUARD:-GUARD]
        else:
            assert np.array_equal(array[GUARD:-GUARD], case.operands[name]), f"{name}: changed"
    return results


def assert_close(case: Case, results: dict[str, Array], dtype: str) -> None:
    for name, expected in case.reference().items():
        got, wanted = (comparable(case.kernel, name, values).astype(np.float64) for values in (results[name], expected))
        assert np.isfinite(wanted).all()
        # A level of 8 bits may fall on either side of a half.
        limit = 1.0 if name == "levels_ptr" else RELATIVE[dtype] * np.abs(wanted).max()
        assert np.abs(got - wanted).max() <= limit, name


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("name", KERNELS)
def test_kernel_matches_its_float64_reference(folded: FoldedWeights, name: str, dtype: str) -> None:
    for seed, size_hw in enumerate(SIZES if dtype == "float32" else SIZES[1:2]):
        case = make_case(name, size_hw, dtype, folded, seed=seed)
        assert_close(case, launch(case), dtype)


@pytest.mark.parametrize("name", KERNELS)
def test_large_activations_stay_finite_and_right_and_a_repeat_gives_the_same_bits(folded: FoldedWeights, name: str) -> None:
    case = make_case(name, (4, 17), "float16", folded, scale=20.0, seed=7)
    first, second = launch(case), launch(case)
    assert all(np.array_equal(first[key], second[key]) for key in first)
    assert_close(case, first, "float16")


def test_black_features_give_even_mixing_weights_and_no_nan(folded: FoldedWeights) -> None:
    case = make_case("encoder_mixing", (4, 4), "float32", folded)
    case.operands["partial_ptr"][:] = 0
    taps = launch(case)["taps_ptr"]
    assert np.isfinite(taps).all()
    assert_close(case, {"taps_ptr": taps}, "float32")


def test_a_constant_plane_stretches_to_zero(folded: FoldedWeights) -> None:
    case = make_case("stretch", (3, 5), "float32", folded)
    case.operands["fused_ptr"][:] = 0.25
    case.operands["extremes_ptr"][:] = 0.25
    assert not launch(case)["levels_ptr"].any()
