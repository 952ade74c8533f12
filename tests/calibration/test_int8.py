"""Ranges: what is looked at, how a limit is chosen, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from refusion_edge.arrays import State
from refusion_edge.calibration.int8 import MAX_PAIRS, MIN_PAIRS, collect, random_pairs, spread
from refusion_edge.errors import GateError, InputError, RefusionError, ShapeError
from refusion_edge.images.luma import to_planes
from refusion_edge.images.pairs import ImagePair
from refusion_edge.network.fast import FastLayout
from refusion_edge.network.fast_graph import make_fast_graph
from refusion_edge.network.graph import fill, read_template
from refusion_edge.network.parameters import PARAMETERS
from refusion_edge.network.quantization import METHODS, CalibrationTable, Method, layer_nodes, quantizable_layers, read_table
from refusion_edge.tasks import find_task
from tests.conftest import one_sentence
from tests.raising import raises

TASK = find_task("ir_vis")
LAYERS = quantizable_layers(PARAMETERS)


@pytest.fixture(scope="module")
def model(random_state: State) -> onnx.ModelProto:
    return fill(read_template("tensorrt-folded", "fp32"), random_state)


def small_pairs(count: int) -> list[ImagePair]:
    draw = np.random.default_rng(5)
    return [ImagePair(str(index), *(draw.integers(0, 256, (20, 28), np.uint8) for _ in range(2))) for index in range(count)]


@pytest.mark.parametrize("method", METHODS)
def test_a_range_is_what_the_layer_sees(model: onnx.ModelProto, method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refusion_edge.calibration.int8._BINS", 256)
    pairs = small_pairs(MIN_PAIRS)
    told: list[None] = []
    table = collect(model, iter(pairs), TASK, method, on_pair=lambda: told.append(None))
    assert (table.method, table.pairs, table.random, len(told)) == (method, MIN_PAIRS, False, MIN_PAIRS)
    assert set(table.ranges) == set(LAYERS)

    layer = "decoder.1.ffn.project_in"
    name = layer_nodes(model)[layer].input[0]
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = ort.InferenceSession(watched.SerializeToString())
    values = []
    for pair in pairs:
        planes = to_planes(pair.a, pair.b, find_task("ir_vis"))
        values.append(np.abs(session.run([name], {"a": planes.a, "b": planes.b})[0]).ravel())
    seen = np.concatenate(values)
    if method == "min-max":
        assert table.ranges[layer] == pytest.approx(seen.max(), rel=1e-6)
    elif method == "percentile":
        # The limit is the edge of one of 256 bins, whose width is set by the first pair.
        assert table.ranges[layer] == pytest.approx(np.percentile(seen, 99.99), abs=2 * float(values[0].max()) / 256)
    else:
        assert 0.2 * seen.max() < table.ranges[layer] <= seen.max() * 1.01


def test_too_few_pairs_are_refused_and_too_many_are_not_looked_at(model: onnx.ModelProto) -> None:
    with raises(InputError, expected=MIN_PAIRS, got=MIN_PAIRS - 1):
        collect(model, small_pairs(MIN_PAIRS - 1), TASK, "min-max")
    assert collect(model, small_pairs(MAX_PAIRS + 3), TASK, "min-max").pairs == MAX_PAIRS


@pytest.mark.parametrize(
    ("pair", "kind", "named", "got"),
    [
        # Both are larger than what is looked at, so that their middles would have one size.
        (ImagePair("odd", np.eye(300, 400, dtype=np.uint8), np.eye(320, 420, dtype=np.uint8)), ShapeError, (), (320, 420)),
        (
            ImagePair("odd", np.full((20, 28), 7, np.uint8), np.eye(20, 28, dtype=np.uint8)),
            InputError,
            ("source a", "(7)"),
            None,
        ),
    ],
    ids=["sizes", "constant"],
)
def test_a_pair_that_cannot_be_fused_is_named(
    model: onnx.ModelProto, pair: ImagePair, kind: type[RefusionError], named: tuple[str, ...], got: object
) -> None:
    with raises(kind, "pair odd", *named, got=got):
        collect(model, [*small_pairs(1), pair], TASK, "min-max")


def test_noise_is_marked_as_noise(model: onnx.ModelProto) -> None:
    table = collect(model, random_pairs(TASK), TASK, "min-max", random=True)
    assert table.random
    assert table.pairs == MIN_PAIRS


def test_broken_weights_are_told(random_state: State) -> None:
    broken = {**random_state, "encoder1.0.norm1.body.weight": np.zeros(16, np.float32)}
    broken["encoder1.0.norm1.body.bias"] = np.zeros(16, np.float32)
    model = fill(read_template("tensorrt-folded", "fp32"), broken)
    with raises(GateError, "encoder1.0.attn.qkv"):
        collect(model, small_pairs(MIN_PAIRS), TASK, "min-max")


def test_pairs_are_spread_over_the_whole_folder() -> None:
    assert spread(range(10), 4) == [0, 3, 6, 9]
    assert spread(range(3), 4) == [0, 1, 2]
    assert spread(range(100), 1) == [0]


def test_a_table_is_read_back_and_a_wrong_one_refused() -> None:
    table = CalibrationTable("entropy", dict.fromkeys(LAYERS, 2.5), 16, "0" * 64)
    assert read_table(table.to_json(), "x", LAYERS) == table
    fields = json.loads(table.to_json())
    damaged = [
        "",
        "[]",
        "[" * 100_000,
        json.dumps({**fields, "schema": "refusion-edge/calibration/9"}),
        json.dumps({**fields, "method": "guess"}),
        json.dumps({**fields, "ranges": {"FM.qkv1": 1.0}}),
        json.dumps({**fields, "ranges": dict.fromkeys(LAYERS, -1.0)}),
        json.dumps({**fields, "ranges": dict.fromkeys(LAYERS, "wide")}),
        json.dumps({**fields, "ranges": 5}),
        json.dumps({**fields, "extra": 1}),
        json.dumps({**fields, "ranges": dict.fromkeys(LAYERS, float("inf"))}),
        json.dumps({**fields, "ranges": dict.fromkeys(LAYERS, 10**400)}),
        json.dumps({**fields, "pairs": "many"}),
        json.dumps({**fields, "data_sha256": ["a"]}),
        json.dumps({**fields, "method": ["entropy"]}),
        json.dumps({**fields, "random": 1}),
    ]
    for text in damaged:
        with pytest.raises(InputError) as caught:
            read_table(text, "x.json", LAYERS)
        assert one_sentence(str(caught.value))


def test_a_table_of_another_network_is_refused() -> None:
    others = quantizable_layers(FastLayout().shapes)
    table = CalibrationTable("min-max", dict.fromkeys(LAYERS, 2.5), 16, "0" * 64)
    with raises(InputError, "x.json", expected=others, got=tuple(sorted(LAYERS))):
        read_table(table.to_json(), "x.json", others)


def test_ranges_of_the_network_fast_are_those_of_its_activations() -> None:
    draw = np.random.default_rng(0)
    layout = FastLayout(8, 3)
    state = {name: draw.normal(0, 0.2, shape).astype(np.float32) for name, shape in layout.shapes.items()}
    model = make_fast_graph(state)
    table = collect(model, small_pairs(MIN_PAIRS), TASK, "min-max")
    assert tuple(table.ranges) == ("layers.1", "layers.2")
    # What precedes a layer is a leaky ReLU: raising the bias raises the range by as much.
    raised = {**state, "layers.1.bias": state["layers.1.bias"] + np.float32(10)}
    higher = collect(make_fast_graph(raised), small_pairs(MIN_PAIRS), TASK, "min-max")
    assert higher.ranges["layers.1"] == table.ranges["layers.1"]
    assert 8 < higher.ranges["layers.2"] - table.ranges["layers.2"] <= 10.001
