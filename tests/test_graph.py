"""Graph templates: complete, filled by name, and equal to the network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from refusion_edge.arrays import State
from refusion_edge.backends.onnxruntime import OrtBackend
from refusion_edge.checkpoint import read_checkpoint
from refusion_edge.errors import UsageError
from refusion_edge.graph import PRECISIONS, Precision, fill, parse_size, read_template
from refusion_edge.parameters import PARAMETERS
from tests.conftest import TOLERANCE
from tests.test_model import GOLDEN, TASKS


@pytest.mark.parametrize("precision", PRECISIONS)
def test_template_has_every_parameter_as_input_and_no_weights(precision: Precision) -> None:
    graph = read_template(precision).graph
    inputs = {value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim) for value in graph.input}
    assert list(inputs)[:2] == ["a", "b"]
    assert {name: inputs[name] for name in PARAMETERS} == PARAMETERS
    assert len(inputs) == 2 + len(PARAMETERS)
    constants = sum(int(np.prod(tensor.dims)) for tensor in graph.initializer)
    assert constants < 2000  # shapes, masks and axes only


@pytest.mark.parametrize("precision", PRECISIONS)
def test_filled_graph_passes_the_checker(random_state: State, precision: Precision) -> None:
    model = fill(read_template(precision), random_state, (64, 96))
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == ["a", "b"]
    assert {tensor.name for tensor in model.graph.initializer} >= PARAMETERS.keys()


def test_strongly_typed_half_precision_keeps_sums_in_fp32(random_state: State) -> None:
    """Every operator that sums over a picture or over channels, and softmax, works on float32."""
    model = onnx.shape_inference.infer_shapes(fill(read_template("fp16"), random_state, (64, 96)), strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.value_info, *model.graph.input)}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    float32, float16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    sums = [node for node in model.graph.node if node.op_type in {"ReduceMean", "ReduceSum", "ReduceL2", "Softmax", "Sqrt"}]
    assert len(sums) == 76
    assert {types[node.input[0]] for node in sums} == {float32}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 54
    assert {types[name] for node in convolutions for name in node.input} == {float16}
    # Per attention one product of queries and keys in fp32, and one of attention and values in fp16.
    products = [types[node.input[0]] for node in model.graph.node if node.op_type == "MatMul"]
    assert sorted(products) == [float32] * 8 + [float16] * 8


def test_half_precision_survives_large_activations(random_state: State, rng: np.random.Generator) -> None:
    """Channels whose squares sum to millions, where half precision ends at 65504."""
    loud = {name: array * 8 if "project_in" in name and "ffn" not in name else array for name, array in random_state.items()}
    a, b = (rng.random((1, 1, 120, 160), np.float32) for _ in range(2))
    with (
        OrtBackend(fill(read_template("fp32"), loud).SerializeToString()) as exact,
        OrtBackend(fill(read_template("fp16"), loud).SerializeToString()) as half,
    ):
        reference, fused = exact.fuse(a, b), half.fuse(a, b)
    assert reference.std() > 0.05
    assert np.isfinite(fused).all()
    # Random weights amplify rounding far more than trained ones; an overflow would be an error of order one everywhere.
    assert np.abs(fused - reference).mean() <= 0.01


@pytest.mark.parametrize("name", GOLDEN)
def test_graph_equals_the_official_release(shared_data: Path, name: str) -> None:
    task = name.split("_", maxsplit=1)[0]
    assert task in TASKS
    state = read_checkpoint(shared_data / f"reference/checkpoints/ReFusion_{task}.pth").state
    golden = np.load(shared_data / f"reference/golden/{name}.npz")
    with OrtBackend(fill(read_template("fp32"), state).SerializeToString(), threads=1) as backend:
        fused = backend.fuse(golden["input"][:, :1], golden["input"][:, 1:])
    assert np.abs(fused - golden["raw"]).max() <= TOLERANCE["golden"]


def test_fixed_size_gives_the_same_numbers(random_state: State, rng: np.random.Generator) -> None:
    a, b = (rng.random((1, 1, 40, 56), np.float32) for _ in range(2))
    template = read_template("fp32")
    with (
        OrtBackend(fill(template, random_state).SerializeToString()) as dynamic,
        OrtBackend(fill(template, random_state, (40, 56)).SerializeToString()) as fixed,
    ):
        assert np.abs(dynamic.fuse(a, b) - fixed.fuse(a, b)).max() <= TOLERANCE["fp32"]


def test_filling_leaves_the_template_alone(random_state: State) -> None:
    template = read_template("fp32")
    before = template.SerializeToString(deterministic=True)
    fill(template, random_state, (32, 32))
    assert template.SerializeToString(deterministic=True) == before


def test_sizes_are_read_as_height_and_width() -> None:
    assert parse_size("480x640") == parse_size("480X640") == (480, 640)
    assert parse_size("dynamic") is None


@pytest.mark.parametrize("text", ["480", "480x", "x640", "-480x640", "4x640", "480x99999", "wide", "\uff11\uff12x12"])
def test_sizes_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected"):
        parse_size(text)
