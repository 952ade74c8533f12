"""Bundles from strangers, and caches that somebody wrote to: nothing is run that was not made from the weights beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from refusion_edge.backends import onnxruntime as ort_backend
from refusion_edge.backends.registry import status
from refusion_edge.bundle.folder import EngineBundle, cache_folder, read_bundle, sha256
from refusion_edge.bundle.manifest import CALIBRATION, MANIFEST, MODEL, WEIGHTS
from refusion_edge.bundle.spec import BuildSpec, EngineSpec
from refusion_edge.errors import MisfitError
from refusion_edge.export import build as export_build
from refusion_edge.export.build import build, model_of, rebuild
from refusion_edge.fuser import load
from refusion_edge.network.checkpoint import Checkpoint, read_checkpoint, safetensors_bytes
from tests.raising import raises

pytestmark = pytest.mark.usefixtures("small_samples")

SMALL = (16, 24)
Run = Callable[..., tuple[int, str, str]]


def put(folder: Path, name: str, data: bytes) -> None:
    """Change a file of a bundle, and every hash of it in the manifest."""
    (folder / name).write_bytes(data)
    fields = json.loads((folder / MANIFEST).read_text())
    fields["files"][name] = sha256(data)
    fields["weights_sha256"] = fields["files"][WEIGHTS]
    (folder / MANIFEST).write_text(json.dumps(fields))


def external_file(model: onnx.ModelProto) -> None:
    """Read the parameters from any file of the reader's machine."""
    tensor = model.graph.initializer[0]
    shape = list(tensor.dims)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")
    assert shape


def external_memory(model: onnx.ModelProto) -> None:
    """Read the parameters from any address of the reader's process."""
    external_file(model)
    model.graph.initializer[0].external_data[0].value = "*/_ORT_MEM_ADDR_/*"


def external_constant(model: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "more")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="secret.bin")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["more"], value=tensor))


def endless_loop(model: onnx.ModelProto) -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["on"], ["still_on"])],
        "body",
        [helper.make_tensor_value_info(name, kind, []) for name, kind in (("i", TensorProto.INT64), ("on", TensorProto.BOOL))],
        [helper.make_tensor_value_info("still_on", TensorProto.BOOL, [])],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "forever"))
    model.graph.node.append(helper.make_node("Loop", ["", "forever"], [], body=body))


def other_weights(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[3]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))


def other_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.UINT8


def custom_domain(model: onnx.ModelProto) -> None:
    model.graph.node[0].domain = "stranger.org"


def training_part(model: onnx.ModelProto) -> None:
    model.training_info.add()


MODELS = [
    external_file, external_memory, external_constant, endless_loop, other_weights, other_output, custom_domain, training_part,
]  # fmt: skip


@pytest.fixture
def bundle() -> EngineBundle:
    return build(BuildSpec("ir_vis", "fp32", "onnxruntime", SMALL, output=Path("bundle"))).bundle


@pytest.fixture
def no_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that is handed anything fails the test: it must be refused before."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model from a stranger reached the runtime")

    monkeypatch.setattr(ort_backend.ort, "InferenceSession", refuse)


@pytest.mark.parametrize("change", MODELS)
def test_a_model_from_a_stranger_never_reaches_a_runtime(
    bundle: EngineBundle, no_runtime: None, change: Callable[[onnx.ModelProto], None]
) -> None:
    model = onnx.load_from_string((bundle.path / MODEL).read_bytes())
    change(model)
    put(bundle.path, MODEL, model.SerializeToString())
    for opened in (lambda: load("bundle"), lambda: model_of(read_bundle("bundle"))):
        with raises(MisfitError, "bundle/model.onnx"):
            opened()


@pytest.mark.parametrize("data", [b"", b"\x08", b"\xff" * 100, b"MZ" + bytes(1000)])
def test_bytes_that_are_no_model_are_refused(bundle: EngineBundle, no_runtime: None, data: bytes) -> None:
    put(bundle.path, MODEL, data)
    with raises(MisfitError, "bundle/model.onnx"):
        load("bundle")


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_model_of_the_first_release_is_taken(bundle: EngineBundle, name: str) -> None:
    """It called the layout for CPUs by the names of two runtimes, in the metadata and in the name of the graph."""
    model = onnx.load_from_string((bundle.path / MODEL).read_bytes())
    model.graph.name = f"refusion-{name}-fp32"
    model.metadata_props[0].value = name
    put(bundle.path, MODEL, model.SerializeToString())
    with load("bundle") as fuser:
        assert fuser.backend.name == "onnxruntime"


def halved(data: bytes) -> bytes:
    """The same weights with one tensor halved."""
    Path("weights.safetensors").write_bytes(data)
    checkpoint = read_checkpoint("weights.safetensors")
    state = {**checkpoint.state, "project_out_0.weight": checkpoint.state["project_out_0.weight"] * np.float32(0.5)}
    return safetensors_bytes(Checkpoint(checkpoint.task, state, checkpoint.notes))


def test_a_poisoned_cache_entry_is_not_installed(bundle: EngineBundle) -> None:
    (entry,) = (cache_folder() / "bundles").iterdir()
    put(entry, WEIGHTS, halved(bundle.read(WEIGHTS)))
    report = build(BuildSpec("ir_vis", "fp32", "onnxruntime", SMALL, output=Path("again")))
    assert not report.cached
    assert report.bundle.read(WEIGHTS) == bundle.read(WEIGHTS)
    assert len(report.remarks) == 1
    assert build(BuildSpec("ir_vis", "fp32", "onnxruntime", SMALL, output=Path("third"))).cached


def test_verify_notices_weights_that_were_damaged_together_with_their_engine(run_cli: Run) -> None:
    """The engine of ``native`` is its weights: whatever happens to them, it agrees with them."""
    if not status("native").usable:
        pytest.skip("needs the native kernels")
    sound = build(BuildSpec("ir_vis", "fp32", "native", output=Path("bundle"))).bundle.read(WEIGHTS)
    code, out, _ = run_cli("verify", "bundle", "--json", "-")
    assert (code, json.loads(out)["weights_changed"]) == (0, False)
    put(Path("bundle"), WEIGHTS, halved(sound))
    code, out, _ = run_cli("verify", "bundle", "--json", "-")
    assert (code, json.loads(out)["passed"], json.loads(out)["weights_changed"]) == (1, False, True)
    Path("mine.safetensors").write_bytes(sound)
    code, out, _ = run_cli("verify", "bundle", "--weights", "mine.safetensors", "--json", "-")
    assert (code, json.loads(out)["passed"]) == (1, False)


def test_rebuilding_asks_for_the_very_same_engine(bundle: EngineBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Form, architectures and settings were lost on the way through a shell command."""
    asked: list[BuildSpec] = []
    monkeypatch.setattr(export_build, "build", lambda spec, *_: asked.append(spec))
    spec = EngineSpec("ir_vis", "fp16", "fused", SMALL, form="tensorrt-literal", architectures=(87, 110))
    fields = json.loads((bundle.path / MANIFEST).read_text())
    fields |= {"spec": spec.to_fields(), "form": "tensorrt-literal"}
    (bundle.path / MANIFEST).write_text(json.dumps(fields))
    rebuild(read_bundle("bundle"))
    assert [(one.engine, one.weights, one.output) for one in asked] == [(spec, bundle.path / WEIGHTS, bundle.path)]
    assert CALIBRATION not in fields["files"]


def test_a_folder_named_like_a_task_does_not_change_what_the_task_means(bundle: EngineBundle) -> None:
    bundle.path.rename("medical")
    with load("medical") as fuser:
        assert fuser.task.name == "medical"
        assert fuser.choice is not None
    with load("./medical") as fuser:
        assert fuser.task.name == "ir_vis"
