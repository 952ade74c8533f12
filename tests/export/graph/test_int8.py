"""INT8: what is written into the graph, which layers are chosen, and that a quantized layer computes what it should."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper
from scipy.signal import correlate

from refusion_edge.accuracy.gate import LIMITS, Fidelity, gate_pairs
from refusion_edge.arrays import Array, State
from refusion_edge.errors import GateError
from refusion_edge.export.graph.int8 import SPARE_DB, Evaluator, quantize, scan_layers, select_layers
from refusion_edge.network.checkpoint import read_checkpoint
from refusion_edge.network.fast import FastLayout
from refusion_edge.network.fast_graph import make_fast_graph
from refusion_edge.network.graph import fill, read_template
from refusion_edge.network.parameters import PARAMETERS
from refusion_edge.network.quantization import CalibrationTable, layer_nodes, quantizable_layers
from refusion_edge.network.weights import weights_path
from refusion_edge.tasks import find_task
from tests.raising import raises

LAYERS = quantizable_layers(PARAMETERS)
# Layer norm outputs are near 3, what the fusion module sees is near 1.5: a little more than any image gives.
TABLE = CalibrationTable("min-max", {layer: 2.0 if layer.startswith("FM") else 4.0 for layer in LAYERS}, 16, "0")
HW = (21, 34)


def folded(state: State, precision: str) -> onnx.ModelProto:
    return fill(read_template("tensorrt-folded", precision), state)


def observe(model: onnx.ModelProto, names: Iterable[str], planes: Mapping[str, Array]) -> list[Array]:
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    values: list[Array] = ort.InferenceSession(watched.SerializeToString(), options).run(list(names), dict(planes))
    return values


@pytest.mark.parametrize("layer", ["encoder1.0.attn.qkv", "decoder.1.ffn.project_in", "FM.project_E"])
def test_a_quantized_layer_computes_in_steps_of_its_scales(random_state: State, layer: str) -> None:
    """Against a convolution in float64 of rounded input and rounded weights, formulated without ONNX."""
    model = folded(random_state, "fp32")
    quantized = quantize(model, TABLE, keep=set(LAYERS) - {layer})
    draw = np.random.default_rng(3)
    planes = {name: draw.random((1, 1, *HW), np.float32) for name in "ab"}
    node = layer_nodes(model)[layer]
    seen, result = observe(quantized, [node.input[0], node.output[0]], planes)

    weight = next(numpy_helper.to_array(one) for one in model.graph.initializer if one.name == f"{layer}.weight")
    step = TABLE.ranges[layer] / 127
    # Inputs may use -128 where they are clipped; weights never do.
    rounded = np.clip(np.rint(seen[0] / step), -128, 127) * step
    steps = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 127
    kernels = np.rint(weight / steps) * steps
    padded = np.pad(rounded, ((0, 0), (1, 1), (1, 1)))
    expected = np.stack([correlate(padded, kernel.astype(np.float64), mode="valid")[0] for kernel in kernels])
    # A value that lies on the edge between two steps may fall to either side: one step of one tap.
    assert np.abs(result[0] - expected).max() <= np.abs(kernels).max() * step + 1e-4
    assert np.median(np.abs(result[0] - expected)) <= 1e-5


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_only_folded_convolutions_are_quantized_and_no_bias_is(random_state: State, precision: str) -> None:
    model = folded(random_state, precision)
    before = model.SerializeToString(deterministic=True)
    kept = ("FM.qkv1", "decoder.0.attn.qkv")
    quantized = quantize(model, TABLE, keep=kept)
    assert model.SerializeToString(deterministic=True) == before
    onnx.checker.check_model(quantized, full_check=True)
    weights = {tensor.name: tensor for tensor in quantized.graph.initializer}
    in_int8 = {name.removesuffix(".weight") for name, tensor in weights.items() if tensor.data_type == TensorProto.INT8}
    assert {name for name in in_int8 if not name.endswith(".zero")} == set(LAYERS) - set(kept)
    # TensorRT-RTX refuses a bias that is dequantized from int32.
    assert not [tensor for tensor in weights.values() if tensor.data_type == TensorProto.INT32]
    kind = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
    assert {tensor.data_type for name, tensor in weights.items() if name.endswith(".scale")} == {kind}
    for name, tensor in weights.items():
        if name.endswith(".weight") and tensor.data_type == TensorProto.INT8:
            values = numpy_helper.to_array(tensor)
            assert values.min() >= -127
            # Each channel uses its range; in half precision its scale is rounded up by at most one part in a thousand.
            assert np.abs(values).reshape(len(values), -1).max(axis=1).min() >= 126


def test_weights_below_the_range_of_half_precision_become_zeros_not_nan(random_state: State) -> None:
    state = {**random_state, "FM.qkv1.weight": random_state["FM.qkv1.weight"] * np.float32(1e-9)}
    quantized = quantize(folded(state, "fp16"), TABLE)
    scale = next(numpy_helper.to_array(one) for one in quantized.graph.initializer if one.name == "FM.qkv1.weight.scale")
    assert (scale > 0).all()
    planes = {name: np.random.default_rng(1).random((1, 1, *HW), np.float32) for name in "ab"}
    (fused,) = observe(quantized, ["fused"], planes)
    assert np.isfinite(fused).all()


class FakeEvaluator(Evaluator):
    """Judges by a loss in dB that each quantized layer costs, which add up."""

    def __init__(self, costs: Mapping[str, float]) -> None:
        self.costs = costs
        self.evaluated = 0

    def evaluate(self, model: onnx.ModelProto, pairs: int | None = None) -> Fidelity:
        self.evaluated += 1
        int8 = {
            tensor.name.removesuffix(".weight") for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT8
        }
        return Fidelity(80.0 - sum(cost for layer, cost in self.costs.items() if layer in int8), 1.0, 0.0)


@pytest.mark.parametrize("needed", [0, 1, 2, 5, 16])
def test_as_few_layers_as_possible_stay_in_half_precision(random_state: State, needed: int) -> None:
    ranked = LAYERS[::-1]
    costs = {layer: 40.0 - 0.1 * index if index < needed else 0.1 / (index + 1) for index, layer in enumerate(ranked)}
    evaluator = FakeEvaluator(costs)
    selection = select_layers(folded(random_state, "fp16"), TABLE, evaluator, LIMITS["int8"])
    assert selection.kept == ranked[:needed]
    assert set(selection.int8) | set(selection.kept) == set(LAYERS)
    assert selection.int8 == tuple(layer for layer in LAYERS if layer not in selection.kept)
    assert LIMITS["int8"].hold(evaluator.evaluate(selection.model))
    assert evaluator.evaluated <= 1 + (len(LAYERS) + 5 + 1 if needed else 1)


def test_layers_are_chosen_with_something_to_spare_where_that_can_be_had(random_state: State) -> None:
    limit, model = LIMITS["int8"].psnr_db, folded(random_state, "fp16")
    one = {**dict.fromkeys(LAYERS, 0.0), LAYERS[3]: 80.0 - limit - SPARE_DB + 0.1}
    assert select_layers(model, TABLE, FakeEvaluator(one), LIMITS["int8"]).kept == (LAYERS[3],)
    all_alike = dict.fromkeys(LAYERS, 80.0 - limit - SPARE_DB + 0.1)
    assert len(select_layers(model, TABLE, FakeEvaluator(all_alike), LIMITS["int8"]).int8) == 1


def test_where_no_layer_can_be_int8_the_build_fails(random_state: State) -> None:
    evaluator = FakeEvaluator(dict.fromkeys(LAYERS, 40.0))
    with raises(GateError, "int8", remedy="--precision fp16", expected=LIMITS["int8"]):
        select_layers(folded(random_state, "fp16"), TABLE, evaluator, LIMITS["int8"])


def test_the_scan_ranks_layers_by_what_each_alone_costs(random_state: State) -> None:
    evaluator = FakeEvaluator({layer: float(index * 7 % 17) for index, layer in enumerate(LAYERS)})
    told: list[Any] = []
    scan = scan_layers(folded(random_state, "fp16"), TABLE, evaluator, lambda: told.append(None))
    assert [fidelity.psnr_db for fidelity in scan.values()] == [80.0 - cost for cost in range(16, -1, -1)]
    assert set(scan) == set(LAYERS)
    assert len(told) == len(LAYERS)


def test_real_weights_pass_the_gate_on_images() -> None:
    state = read_checkpoint(weights_path("ir_vis")).state
    task = find_task("ir_vis")
    evaluator = Evaluator(state, gate_pairs(task, (48, 64))[:1], task)
    model = folded(state, "fp16")
    selection = select_layers(model, TABLE, evaluator, LIMITS["int8"])
    assert LIMITS["int8"].hold(evaluator.evaluate(selection.model))
    assert len(selection.int8) >= 12
    # It is really coarser than fp16, which is above 60 dB here.
    assert evaluator.evaluate(selection.model).psnr_db < 60 < evaluator.evaluate(model).psnr_db


FAST_LAYERS = tuple(f"layers.{index}" for index in range(1, 6))


def test_every_convolution_of_the_network_fast_but_the_first_is_quantized() -> None:
    layout = FastLayout()
    draw = np.random.default_rng(0)
    state = {name: draw.normal(0, 0.1, shape).astype(np.float32) for name, shape in layout.shapes.items()}
    assert quantizable_layers(state) == FAST_LAYERS
    model = make_fast_graph(state, precision="fp16")
    table = CalibrationTable("min-max", dict.fromkeys(FAST_LAYERS, 3.0), 16, "0")
    quantized = quantize(model, table, keep=("layers.3",))
    onnx.checker.check_model(quantized, full_check=True)
    weights = {tensor.name: tensor for tensor in quantized.graph.initializer}
    kinds = {name: tensor.data_type for name, tensor in weights.items() if name.endswith(".weight")}
    in_int8 = {name for name, kind in kinds.items() if kind == TensorProto.INT8}
    assert in_int8 == {f"{layer}.weight" for layer in FAST_LAYERS if layer != "layers.3"}
    assert (kinds["layers.0.weight"], kinds["layers.3.weight"]) == (TensorProto.FLOAT16, TensorProto.FLOAT16)
    assert (kinds["statistics.0.weight"], kinds["statistics.1.weight"]) == (TensorProto.FLOAT, TensorProto.FLOAT)

    planes = {name: draw.random((1, 1, *HW), np.float32) for name in "ab"}
    node = layer_nodes(model)["layers.5"]
    seen, result = observe(quantized, [node.input[0], node.output[0]], planes)
    step = float(numpy_helper.to_array(weights["layers.5.input.scale"]))
    assert step == pytest.approx(3.0 / 127, rel=1e-3)
    rounded = np.clip(np.rint(seen[0].astype(np.float64) / step), -128, 127) * step
    scales = numpy_helper.to_array(weights["layers.5.weight.scale"]).astype(np.float64)
    kernels = numpy_helper.to_array(weights["layers.5.weight"]) * scales[:, None, None, None]
    bias = numpy_helper.to_array(weights["layers.5.bias"]).astype(np.float64)
    padded = np.pad(rounded, ((0, 0), (1, 1), (1, 1)))
    expected = np.stack([correlate(padded, kernel, mode="valid")[0] for kernel in kernels]) + bias[:, None, None]
    # Input, kernels and sum are rounded to half precision; a value between two steps may fall to either side.
    assert np.abs(result[0] - expected).max() <= np.abs(kernels).max() * step + 4e-3


def test_real_weights_of_the_network_fast_pass_the_gate_on_images() -> None:
    state, task = read_checkpoint(weights_path("ir_vis", "fast")).state, find_task("ir_vis")
    evaluator = Evaluator(state, gate_pairs(task, (48, 64))[:1], task)
    model = make_fast_graph(state, precision="fp16")
    # Three times what 32 training pairs give at most: 1.1 to 2.6.
    table = CalibrationTable("min-max", dict.fromkeys(FAST_LAYERS, 2.5), 16, "0")
    selection = select_layers(model, table, evaluator, LIMITS["int8"])
    found = evaluator.evaluate(selection.model)
    assert LIMITS["int8"].hold(found)
    assert len(selection.int8) >= 1
    assert found.psnr_db < 70 < 80 < evaluator.evaluate(model).psnr_db
