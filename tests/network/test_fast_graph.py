"""The ONNX graph of the network ``fast``, run by ONNX Runtime, against its definition."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from refusion_edge.backends.onnxruntime import OrtBackend
from refusion_edge.errors import CheckpointError, ShapeError, UsageError
from refusion_edge.network.fast import FastLayout, reference
from refusion_edge.network.fast_graph import make_fast_graph
from refusion_edge.network.graph import form_name
from tests.raising import raises

LAYOUTS = (FastLayout(), FastLayout(channels=16, convolutions=3, factor=4))


def random_state(layout: FastLayout) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in layout.shapes.items()}


def fused_by(model: onnx.ModelProto, a: np.ndarray, b: np.ndarray, *, optimized: bool) -> np.ndarray:
    with OrtBackend(model.SerializeToString(), threads=1, optimized=optimized) as engine:
        result: np.ndarray = engine.fuse(a, b)[0, 0]
        return result


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size_hw", [(8, 8), (9, 14), (33, 50)])
@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("optimized", [True, False])
def test_it_computes_the_definition(layout: FastLayout, size_hw: tuple[int, int], fixed: bool, optimized: bool) -> None:
    state = random_state(layout)
    a, b = np.random.default_rng(1).random((2, 1, 1, *size_hw), dtype=np.float32)
    fused = fused_by(make_fast_graph(state, size_hw if fixed else None), a, b, optimized=optimized)
    assert np.abs(fused - reference(state, a[0, 0], b[0, 0])).max() < 2e-5
    assert fused.shape == size_hw


def test_it_is_valid_onnx_and_says_what_it_is() -> None:
    model = make_fast_graph(random_state(FastLayout()))
    onnx.checker.check_model(model, full_check=True)
    assert form_name(model) == "fast"
    assert [value.name for value in model.graph.input] == ["a", "b"]
    assert model.SerializeToString(deterministic=True) == make_fast_graph(random_state(FastLayout())).SerializeToString(
        deterministic=True
    )


def test_statistics_are_summed_row_by_row() -> None:
    """Engines that add up one by one would lose digits in a sum over all pixels: see ``benchmarks.size_accuracy``."""
    graph = make_fast_graph(random_state(FastLayout())).graph
    axes = {tensor.name: onnx.numpy_helper.to_array(tensor).tolist() for tensor in graph.initializer}
    makers = {node.output[0]: node.op_type for node in graph.node}
    means = [node for node in graph.node if node.op_type == "ReduceMean"]
    assert [axes[node.input[1]] for node in means] == [[3]] * 4
    assert "ReduceMean" not in {makers[node.input[0]] for node in means}  # OpenVINO would merge the two


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size_hw", [(8, 8), (33, 50)])
@pytest.mark.parametrize("fixed", [True, False])
def test_half_precision_is_half_precision_only_where_it_may_be(
    layout: FastLayout, size_hw: tuple[int, int], fixed: bool
) -> None:
    state = random_state(layout)
    model = make_fast_graph(state, size_hw if fixed else None, "fp16")
    onnx.checker.check_model(model, full_check=True)
    # Bright planes, whose mean alone takes the statistics far from what half precision resolves.
    a, b = 0.9 + 0.1 * np.random.default_rng(1).random((2, 1, 1, *size_hw), dtype=np.float32)
    error = fused_by(model, a, b, optimized=False) - reference(state, a[0, 0], b[0, 0])
    assert 1e-6 < np.abs(error).max() < 2e-3
    assert abs(error.mean()) < 4e-4
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    half = {name for name, kind in kinds.items() if kind == onnx.TensorProto.FLOAT16}
    assert half == {name for name in state if name.startswith("layers.")}


def test_weights_beyond_half_precision_are_refused() -> None:
    state = random_state(LAYOUTS[0])
    state["layers.2.weight"] = state["layers.2.weight"] * np.float32(1e6)
    with raises(CheckpointError, "layers.2.weight", "float16", remedy="--precision fp32"):
        make_fast_graph(state, None, "fp16")


def test_nan_reaches_the_result() -> None:
    state = random_state(FastLayout())
    state["layers.5.bias"][:] = np.nan
    a, b = np.random.default_rng(1).random((2, 1, 1, 8, 8), dtype=np.float32)
    assert np.isnan(fused_by(make_fast_graph(state), a, b, optimized=True)).any()


def test_a_fixed_size_is_kept() -> None:
    planes = np.zeros((2, 1, 1, 12, 12), np.float32)
    with (
        OrtBackend(make_fast_graph(random_state(FastLayout()), (16, 16)).SerializeToString()) as engine,
        pytest.raises(ShapeError),
    ):
        engine.fuse(*planes)
    with pytest.raises(UsageError):
        make_fast_graph(random_state(FastLayout()), (4, 16))
