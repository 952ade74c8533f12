"""``--network``: every verb runs the network of the weights, and says so where another one was requested."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

from refusion_edge.backends.registry import BACKENDS, choose_builder, choose_runner, status
from refusion_edge.bundle.folder import read_bundle
from refusion_edge.errors import CheckpointError, InputError, ShapeError, UsageError
from refusion_edge.fuser import load
from refusion_edge.images.luma import to_planes
from refusion_edge.images.pairs import read_pair
from refusion_edge.images.samples import sample_paths
from refusion_edge.network import NETWORK_NAMES
from refusion_edge.network.checkpoint import Checkpoint, read_checkpoint, write_safetensors
from refusion_edge.network.fast import FastLayout, reference
from refusion_edge.network.weights import weights_path
from refusion_edge.tasks import TASKS, find_task
from tests.conftest import one_sentence
from tests.raising import raises

RunCli = Callable[..., tuple[int, str, str]]
PAIR = sample_paths("ir_vis")[0]


@pytest.fixture
def weights() -> Path:
    rng = np.random.default_rng(0)
    state = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in FastLayout(8, 3).shapes.items()}
    write_safetensors("fast.safetensors", Checkpoint("ir_vis", state))
    return Path("fast.safetensors")


@pytest.fixture
def bundle(weights: Path, run_cli: RunCli) -> Path:
    code, _, err = run_cli("build", "--weights", weights, "--backend", "onnxruntime", "--no-cache", "-o", "bundle")
    assert code == 0, err
    return Path("bundle")


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino", "eager"])
def test_back_ends_compute_the_definition(weights: Path, backend: str) -> None:
    pytest.importorskip({"eager": "torch"}.get(backend, backend), reason=f"the back end {backend} is not installed")
    pair = read_pair(PAIR)
    planes = to_planes(pair.a, pair.b, find_task("ir_vis"))
    with load(weights, backend=backend, threads=1) as fuser:
        fused = fuser.backend.fuse(planes.a, planes.b)[0, 0]
    rng = np.random.default_rng(0)
    state = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in FastLayout(8, 3).shapes.items()}
    assert np.abs(fused - reference(state, planes.a[0, 0], planes.b[0, 0])).max() < 1e-5


def test_a_bundle_holds_its_network(bundle: Path, run_cli: RunCli) -> None:
    manifest = read_bundle(bundle).manifest
    assert (manifest.spec.network, manifest.precision, manifest.form) == ("fast", "fp32", "fast")
    assert "--network fast" in read_bundle(bundle).rebuild_command()
    assert run_cli("verify", bundle, "--network", "fast")[0] == 0
    assert run_cli("fuse", PAIR.a, PAIR.b, "-o", "fused.png", "--bundle", bundle)[0] == 0
    code, out, _ = run_cli("inspect", bundle, "--json", "-")
    assert (code, json.loads(out)["network"]) == (0, "fast")


def test_bundles_without_a_network_are_the_paper_s(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    del manifest["spec"]["network"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(Exception, match="graph form") as caught:
        read_bundle(bundle)
    assert type(caught.value).__name__ == "BundleError"


def test_weights_can_be_converted(weights: Path, run_cli: RunCli) -> None:
    assert run_cli("export", "--weights", weights, "-o", "copy.safetensors")[0] == 0
    code, out, _ = run_cli("inspect", "copy.safetensors", "--json", "-")
    assert (code, json.loads(out)["network"]) == (0, "fast")
    assert run_cli("export", "--weights", weights, "-o", "copy.pth")[0] == UsageError.exit_code


def test_a_graph_is_exported_after_comparison_with_torch(weights: Path, run_cli: RunCli) -> None:
    pytest.importorskip("torch", reason="the comparison needs torch")
    code, _, err = run_cli("export", "--weights", weights, "-o", "fast.onnx")
    assert code == 0, err
    assert Path("fast.onnx").stat().st_size > 1000
    assert run_cli("export", "--weights", weights, "-o", "half.onnx", "--precision", "fp16")[0] == 0
    kinds = {tensor.data_type for tensor in onnx.load("half.onnx").graph.initializer if tensor.name.startswith("layers.")}
    assert kinds == {onnx.TensorProto.FLOAT16}
    assert run_cli("export", "--weights", weights, "-o", "x.onnx", "--form", "cpu")[0] == UsageError.exit_code
    assert not Path("x.onnx").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("fuse", PAIR.a, PAIR.b, "-o", "fused.png", "--weights", "fast.safetensors"),
        ("build", "--weights", "fast.safetensors", "--precision", "fp32"),
        ("export", "--weights", "fast.safetensors", "-o", "copy.safetensors"),
        ("bench", "fast.safetensors"),
    ],
)
def test_another_network_than_that_of_the_weights_is_refused(weights: Path, run_cli: RunCli, words: tuple[object, ...]) -> None:
    code, _, err = run_cli(*words, "--network", "refusion")
    assert code == CheckpointError.exit_code
    assert "fast" in err
    assert len(err.strip().splitlines()) == 1


def test_another_network_than_that_of_the_bundle_is_refused(bundle: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(bundle, network="refusion")
    assert (caught.value.expected, caught.value.got) == ("refusion", "fast")


def test_back_ends_that_do_not_run_a_network_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError) as caught:
        choose_builder("onnxruntime", "bf16", "fast")
    assert (caught.value.expected, caught.value.got) == (("fp32", "fp16"), "bf16")
    monkeypatch.setitem(BACKENDS, "eager", dataclasses.replace(BACKENDS["eager"], fast=()))
    with pytest.raises(UsageError) as caught:
        choose_runner("eager", "fast")
    assert caught.value.got == "eager"


def test_bench_measures_it_against_its_own_cost(weights: Path) -> None:
    from refusion_edge.bench.subjects import Wanted, find_subjects

    (subject,) = find_subjects(str(weights), Wanted(backend="onnxruntime"))
    assert subject.identity.network == "fast"
    assert subject.work.flops == 2 * FastLayout(8, 3).multiplications
    (paper,) = find_subjects("ir_vis", Wanted(backend="onnxruntime"))
    assert paper.work.flops > 100_000


def test_tasks_without_weights_of_a_network_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from refusion_edge.network import weights as module

    assert module.shipped_tasks() == tuple(TASKS)
    empty = Path("empty")
    empty.mkdir()
    monkeypatch.setattr(module.resources, "files", lambda _: empty.resolve())
    assert module.shipped_tasks("fast") == ()
    with pytest.raises(UsageError) as caught:
        module.weights_path("medical", "fast")
    assert "--network fast --teacher medical" in caught.value.remedy


NATIVE = pytest.param("native", marks=pytest.mark.skipif(not status("native").usable, reason="needs the native module"))


@pytest.mark.parametrize("backend", [NATIVE, "onnxruntime"])
@pytest.mark.parametrize("size_hw", [(8, 8), (9, 8), (8, 11), (13, 27)])
def test_odd_sizes_are_fused_whole(weights: Path, backend: str, size_hw: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.integers(0, 256, size_hw).astype(np.uint8) for _ in "ab")
    with load(weights, backend=backend, threads=1, output_range="fixed") as fuser:
        fused = fuser.fuse(a, b)
    state = read_checkpoint(weights).state
    expected = 255 * reference(state, *(plane.astype(np.float64) / 255 for plane in (a, b)))
    assert fused.shape == size_hw
    assert np.abs(fused - expected).max() < 0.51


@pytest.mark.parametrize(
    ("a", "b", "kind"),
    [
        (np.zeros((7, 20), np.uint8), np.zeros((7, 20), np.uint8), ShapeError),
        (np.zeros((20, 7), np.uint8), np.zeros((20, 7), np.uint8), ShapeError),
        (np.full((12, 12), 90, np.uint8), np.arange(144, dtype=np.uint8).reshape(12, 12), InputError),
        (np.full((12, 12), np.nan, np.float32), np.arange(144, dtype=np.uint8).reshape(12, 12), InputError),
    ],
)
def test_images_that_cannot_be_fused_are_refused(weights: Path, a: np.ndarray, b: np.ndarray, kind: type[InputError]) -> None:
    with load(weights, backend="onnxruntime", threads=1) as fuser, raises(kind):
        fuser.fuse(a, b)


def test_pixels_that_are_nan_show_the_other_source(weights: Path) -> None:
    rng = np.random.default_rng(4)
    a = (20 + rng.random((16, 20))).astype(np.float32)
    b = rng.integers(0, 256, (16, 20)).astype(np.uint8)
    a[3, 4] = np.nan
    with load(weights, backend="onnxruntime", threads=1, output_range="fixed") as fuser:
        assert fuser.fuse(a, b)[3, 4] == b[3, 4]


@pytest.mark.parametrize(("given", "network"), [("ir_vis", "fast"), ("fast.safetensors", "refusion")])
def test_swapped_weights_name_both_networks(weights: Path, given: str, network: str, run_cli: RunCli) -> None:
    other = {"fast": "refusion", "refusion": "fast"}[network]
    path = weights_path(given) if given == "ir_vis" else Path(given)
    with raises(CheckpointError, path, expected=network, got=other):
        load(path, network=network)
    files = ("--ir", "test://ir?width=16&height=16&live=0&frames=2", "--vis", "test://vis?width=16&height=16&live=0&frames=2")
    code, out, err = run_cli("stream", *files, "--weights", path, "--network", network, "-o", "out.mkv")
    assert (code, out, len(err.strip().splitlines())) == (CheckpointError.exit_code, "", 1)
    assert not Path("out.mkv").exists()


def test_a_bundle_of_release_0_1_runs_the_paper_s_network(run_cli: RunCli, small_samples: None) -> None:
    code, _, err = run_cli("build", "--task", "ir_vis", "--backend", "onnxruntime", "--precision", "fp32", "-o", "old")
    assert code == 0, err
    manifest = json.loads(Path("old/manifest.json").read_text())
    manifest["spec"].pop("network", None)
    Path("old/manifest.json").write_text(json.dumps(manifest))
    with load("old") as fuser:
        assert fuser.network == "refusion"
    with raises(CheckpointError, "old", expected="fast", got="refusion"):
        load("old", network="fast")


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("network", [None, *NETWORK_NAMES])
def test_the_weights_of_the_package_are_described(
    run_cli: Callable[..., tuple[int, str, str]], task: str, network: str | None
) -> None:
    code, out, _ = run_cli("inspect", task, *(() if network is None else ("--network", network)), "--json", "-")
    assert code == 0
    document = json.loads(out)
    assert (document["task"], document["network"]) == (task, network or "refusion")


def test_a_file_has_one_network(run_cli: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = run_cli("inspect", str(weights_path("ir_vis")), "--network", "fast")
    assert code == 2
    assert one_sentence(err)
