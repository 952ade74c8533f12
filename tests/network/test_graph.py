"""Graph templates: complete, filled by name, and equal to the network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from refusion_edge.arrays import State
from refusion_edge.backends.onnxruntime import OrtBackend
from refusion_edge.errors import UsageError
from refusion_edge.network.checkpoint import read_checkpoint
from refusion_edge.network.forms import FORMS, REFERENCE, GraphPrecision, parameter_shapes
from refusion_edge.network.graph import fill, form_name, read_template, template_name
from refusion_edge.network.parameters import PARAMETERS
from refusion_edge.sizes import parse_size
from tests.conftest import ROOT, TEMPLATES, TOLERANCE
from tests.network.test_model import GOLDEN, TASKS
from tests.raising import raises

HALF = [form for form, precision in TEMPLATES if precision == "fp16"]


@pytest.mark.parametrize(("form", "precision"), TEMPLATES)
def test_template_has_every_parameter_as_input_and_no_weights(form: str, precision: GraphPrecision) -> None:
    template = read_template(form, precision)
    assert form_name(template) == form
    graph, expected = template.graph, parameter_shapes(FORMS[form])
    inputs = {value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim) for value in graph.input}
    assert list(inputs)[:2] == ["a", "b"]
    assert {name: inputs[name] for name in expected} == expected
    assert len(inputs) == 2 + len(expected)
    constants = sum(int(np.prod(tensor.dims)) for tensor in graph.initializer)
    assert constants < 2000  # shapes, masks and axes only


def test_every_shipped_template_belongs_to_a_form_and_the_reference_takes_the_official_parameters() -> None:
    shipped = {path.name for path in (ROOT / "refusion_edge" / "network" / "graphs").iterdir()}
    assert shipped == {template_name(form, precision) for form, precision in TEMPLATES}
    assert parameter_shapes(FORMS[REFERENCE]).items() == PARAMETERS.items()


@pytest.mark.parametrize(("form", "precision"), TEMPLATES)
def test_filled_graph_passes_the_checker(random_state: State, form: str, precision: GraphPrecision) -> None:
    model = fill(read_template(form, precision), random_state, (64, 96))
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == ["a", "b"]
    assert {tensor.name for tensor in model.graph.initializer} >= parameter_shapes(FORMS[form]).keys()


@pytest.mark.parametrize(("form", "precision"), TEMPLATES)
def test_norms_are_summed_row_by_row(form: str, precision: GraphPrecision) -> None:
    """Engines that add up one by one would lose digits in a sum over all pixels: see ``benchmarks.size_accuracy``."""
    model = onnx.shape_inference.infer_shapes(read_template(form, precision), strict_mode=True)
    shapes = {value.name: value.type.tensor_type.shape.dim for value in model.graph.value_info}
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    sums = [node for node in model.graph.node if node.op_type == "ReduceSum"]
    ranks = [(len(shapes[node.input[0]]), constants[node.input[1]].tolist()) for node in sums]
    assert sorted(ranks) == [(3, [-1])] * 16 + [(4, [-1])] * 16


@pytest.mark.parametrize("form", HALF)
def test_strongly_typed_half_precision_keeps_sums_in_fp32(random_state: State, form: str) -> None:
    """Every operator that sums over a image or over channels, and softmax, works on float32."""
    model = onnx.shape_inference.infer_shapes(fill(read_template(form, "fp16"), random_state, (64, 96)), strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.value_info, *model.graph.input)}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    float32, float16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
    sums = [node for node in model.graph.node if node.op_type in {"ReduceMean", "ReduceSum", "ReduceL2", "Softmax", "Sqrt"}]
    assert len(sums) == 92
    assert {types[node.input[0]] for node in sums} == {float32}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == (37 if FORMS[form].dense else 54)
    assert {types[name] for node in convolutions for name in node.input} == {float16}
    # Per attention one product of queries and keys, in fp32 or a mean, and one of attention and values in fp16.
    products = [types[node.input[0]] for node in model.graph.node if node.op_type == "MatMul"]
    assert sorted(products) == [float16 if FORMS[form].means else float32] * 8 + [float16] * 8


@pytest.mark.parametrize("form", HALF)
def test_half_precision_survives_large_activations(random_state: State, rng: np.random.Generator, form: str) -> None:
    """Channels whose squares sum to millions, where half precision ends at 65504."""
    loud = {name: array * 8 if "project_in" in name and "ffn" not in name else array for name, array in random_state.items()}
    a, b = (rng.random((1, 1, 120, 160), np.float32) for _ in range(2))
    with (
        OrtBackend(fill(read_template(REFERENCE, "fp32"), loud).SerializeToString()) as exact,
        OrtBackend(fill(read_template(form, "fp16"), loud).SerializeToString()) as half,
    ):
        reference, fused = exact.fuse(a, b), half.fuse(a, b)
    assert reference.std() > 0.05
    assert np.isfinite(fused).all()
    # Random weights amplify rounding far more than trained ones; an overflow would be an error of order one everywhere.
    assert np.abs(fused - reference).mean() <= 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN)
@pytest.mark.parametrize("form", FORMS)
def test_graph_equals_the_official_release(shared_data: Path, form: str, name: str) -> None:
    task = name.split("_", maxsplit=1)[0]
    assert task in TASKS
    state = read_checkpoint(shared_data / f"reference/checkpoints/ReFusion_{task}.pth").state
    golden = np.load(shared_data / f"reference/golden/{name}.npz")
    with OrtBackend(fill(read_template(form, "fp32"), state).SerializeToString(), threads=1) as backend:
        fused = backend.fuse(golden["input"][:, :1], golden["input"][:, 1:])
    assert np.abs(fused - golden["raw"]).max() <= TOLERANCE["golden"]


@pytest.mark.parametrize("form", FORMS)
def test_fixed_size_gives_the_same_numbers(random_state: State, rng: np.random.Generator, form: str) -> None:
    a, b = (rng.random((1, 1, 40, 56), np.float32) for _ in range(2))
    template = read_template(form, "fp32")
    with (
        OrtBackend(fill(template, random_state).SerializeToString()) as dynamic,
        OrtBackend(fill(template, random_state, (40, 56)).SerializeToString()) as fixed,
    ):
        assert np.abs(dynamic.fuse(a, b) - fixed.fuse(a, b)).max() <= TOLERANCE["fp32"]


@pytest.mark.parametrize("form", FORMS)
def test_filling_leaves_the_template_alone(random_state: State, form: str) -> None:
    template = read_template(form, "fp32")
    before = template.SerializeToString(deterministic=True)
    fill(template, random_state, (32, 32))
    assert template.SerializeToString(deterministic=True) == before


def test_sizes_are_read_as_height_and_width() -> None:
    assert parse_size("480x640") == parse_size("480X640") == (480, 640)
    assert parse_size("dynamic") is None


@pytest.mark.parametrize("text", ["480", "480x", "x640", "-480x640", "4x640", "480x99999", "wide", "\uff11\uff12x12"])
def test_sizes_that_make_no_sense_are_refused(text: str) -> None:
    with raises(UsageError, got=(4, 640) if text == "4x640" else (480, 99999) if text == "480x99999" else text):
        parse_size(text)
