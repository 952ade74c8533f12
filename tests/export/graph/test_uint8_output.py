"""The 8-bit levels of an engine: those that the processor would make of the plane, on the model run by ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from refusion_edge.arrays import Float32Array, State
from refusion_edge.backends.onnxruntime import OrtBackend
from refusion_edge.export.graph.uint8 import add_uint8_output
from refusion_edge.images.color import OutputRange, merge, to_output_range
from refusion_edge.network.graph import fill, read_template

RANGES: tuple[OutputRange, ...] = ("stretch", "fixed")


def passing_on() -> onnx.ModelProto:
    """A model whose fused plane is its first source."""
    shape = [1, 1, "height", "width"]
    a, b, fused = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("a", "b", "fused"))
    graph = helper.make_graph([helper.make_node("Identity", ["a"], ["fused"])], "plane", [a, b], [fused])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def run(model: onnx.ModelProto, plane: Float32Array) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    sources = {"a": plane[None, None], "b": np.zeros_like(plane)[None, None]}
    return dict(zip(names, session.run(names, sources), strict=True))


@pytest.mark.parametrize("levels", RANGES)
def test_levels_are_those_of_the_processor(levels: OutputRange, rng: np.random.Generator) -> None:
    model = add_uint8_output(passing_on(), levels)
    onnx.checker.check_model(model)
    planes = {
        "picture": rng.random((37, 53), np.float32),
        "dark": (rng.random((8, 9)) * 1e-3 + 0.2).astype(np.float32),
        "constant": np.full((8, 8), 0.3, np.float32),
        # Every level and every half between two, where rounding decides.
        "halves": (np.arange(511, dtype=np.float32) / 510)[None].repeat(8, 0),
        "outside": np.array([[-0.5, 0.0, 1.0, 1.5] * 2] * 8, np.float32),
    }
    for name, plane in planes.items():
        found = run(model, plane)
        assert list(found) == ["fused", f"levels_{levels}", "fused_mean"]
        expected = merge(to_output_range(plane, levels), None)
        assert found[f"levels_{levels}"].dtype == np.uint8
        # Products and quotients may differ in their last digit, which a value just at a half shows as one level.
        apart = np.abs(found[f"levels_{levels}"][0, 0].astype(int) - expected)
        assert apart.max() <= 1, name
        assert (apart > 0).mean() <= (0.6 if name == "halves" else 0.001), name
        assert found["fused_mean"].ravel() == pytest.approx(plane.mean(), rel=1e-5)


@pytest.mark.parametrize("ends", [(0.0, 0.25), (0.3, 0.9), (0.01, 1.0), (0.2, 1.0), (-0.7, 1.6)])
def test_a_plane_with_enough_contrast_is_black_at_exactly_its_least_value(ends: tuple[float, float]) -> None:
    model = add_uint8_output(passing_on(), "stretch")
    model.graph.output.append(helper.make_tensor_value_info("levels.black", TensorProto.FLOAT, None))
    plane = np.linspace(*ends, 64, dtype=np.float32).reshape(8, 8)
    assert run(model, plane)["levels.black"] == plane.min()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_mean_shows_what_levels_hide(value: float) -> None:
    plane = np.full((16, 16), 0.5, np.float32)
    plane[3, 4] = value
    assert not np.isfinite(run(add_uint8_output(passing_on(), "stretch"), plane)["fused_mean"]).all()


def test_the_plane_itself_stays_what_it_was(random_state: State, rng: np.random.Generator) -> None:
    model = fill(read_template("tensorrt-folded", "fp16"), random_state)
    a, b = (rng.random((1, 1, 16, 24), np.float32) for _ in range(2))
    with (
        OrtBackend(model.SerializeToString()) as plain,
        OrtBackend(add_uint8_output(model, "fixed").SerializeToString()) as more,
    ):
        assert np.array_equal(plain.fuse(a, b), more.fuse(a, b))
