"""8-bit sources of an engine: the network, given levels, gives what it gives for the planes that are made of them here."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from refusion_edge.arrays import Array, State
from refusion_edge.backends.onnxruntime import OrtBackend
from refusion_edge.backends.tensorrt.settings import PlanSettings
from refusion_edge.errors import BackendError
from refusion_edge.export.graph.int8 import quantize
from refusion_edge.export.graph.uint8 import add_uint8, add_uint8_input, add_uint8_output
from refusion_edge.export.targets.plugins import make_plugin_model
from refusion_edge.images.color import split
from refusion_edge.kernels.gpu.folding import fold
from refusion_edge.network.graph import UINT8_INPUTS, fill, read_template
from refusion_edge.network.parameters import PARAMETERS
from refusion_edge.network.quantization import CalibrationTable, quantizable_layers
from tests.raising import raises

HW = (13, 22)


def run(model: onnx.ModelProto, **given: Array) -> list[Array]:
    zeros = {
        name: np.zeros((1, 1, *HW), np.float32 if len(name) == 1 else np.uint8) for name in ("a", "b", *UINT8_INPUTS.values())
    }
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    results: list[Array] = session.run(None, {**zeros, **given})
    return results


@pytest.fixture
def levels(rng: np.random.Generator) -> list[Array]:
    """Every level, in two sources."""
    every = np.arange(256, dtype=np.uint8)
    return [rng.permutation(np.concatenate((every, every)))[: HW[0] * HW[1]].reshape(1, 1, *HW) for _ in range(2)]


@pytest.mark.parametrize("form", ["tensorrt-folded-fp16", "tensorrt-folded-fp32", "tensorrt-literal-fp16"])
@pytest.mark.parametrize("size_hw", [None, HW])
def test_levels_and_planes_give_the_same_to_the_last_bit(
    random_state: State, levels: list[Array], form: str, size_hw: tuple[int, int] | None
) -> None:
    name, _, precision = form.rpartition("-")
    plain = fill(read_template(name, "fp16" if precision == "fp16" else "fp32"), random_state, size_hw)
    before = plain.SerializeToString(deterministic=True)
    model = add_uint8_input(plain)
    onnx.checker.check_model(model)
    assert plain.SerializeToString(deterministic=True) == before
    assert [value.name for value in model.graph.input] == ["a", "b", "a_pixels", "b_pixels"]
    a, b = (split(one[0, 0].astype(np.float32))[0][None, None] for one in levels)
    with OrtBackend(before) as engine:
        expected = engine.fuse(a, b)
    assert expected.std() > 0.05
    for given in (
        {"a": a, "b": b},
        {"a_pixels": levels[0], "b_pixels": levels[1]},
        {"a_pixels": levels[0], "b": b},
        {"a": a, "b_pixels": levels[1]},
    ):
        assert np.array_equal(run(model, **given)[0], expected), list(given)


def test_what_runs_planes_on_the_processor_runs_such_a_model(random_state: State, levels: list[Array]) -> None:
    plain = fill(read_template("tensorrt-folded", "fp32"), random_state)
    a, b = (one / np.float32(255) for one in levels)
    with OrtBackend(add_uint8_input(plain).SerializeToString()) as engine, OrtBackend(plain.SerializeToString()) as reference:
        assert np.array_equal(engine.fuse(a, b), reference.fuse(a, b))
    half = add_uint8_input(plain)
    del half.graph.input[-1]
    with raises(BackendError, "ONNX Runtime"):
        OrtBackend(half.SerializeToString())


def test_it_goes_with_our_kernels(random_state: State) -> None:
    weights = fold(random_state).rounded(np.dtype(np.float16))
    settings = PlanSettings(uint8_input=True, uint8_output="stretch", plugins=True)
    model = add_uint8(make_plugin_model(weights, None), settings)
    onnx.checker.check_model(model)
    (joined,) = (node for node in model.graph.node if node.op_type == "Concat")
    assert list(joined.input) == ["a.plane", "b.plane"]


def test_it_goes_with_levels_and_with_int8(random_state: State, levels: list[Array]) -> None:
    plain = fill(read_template("tensorrt-folded", "fp16"), random_state)
    table = CalibrationTable("min-max", dict.fromkeys(quantizable_layers(PARAMETERS), 4.0), 1, "0" * 64, random=True)
    model = quantize(add_uint8_output(add_uint8_input(plain), "fixed"), table)
    fused, shown, mean = run(model, a_pixels=levels[0], b_pixels=levels[1])
    assert np.array_equal(shown, np.ceil(fused.clip(0, 1) * np.float32(255) - np.float32(0.5)).astype(np.uint8))
    assert mean == pytest.approx(fused.mean(), abs=1e-3)
