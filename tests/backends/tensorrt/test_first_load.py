"""Bundles of TensorRT from end to end, on a fake device: evaluated where they are built, or on the first load."""

from __future__ import annotations

from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest

from refusion_edge.accuracy.gate import LIMITS
from refusion_edge.accuracy.vectors import TASK, read_vectors
from refusion_edge.arrays import Float32Array
from refusion_edge.backends.onnxruntime import OrtBackend
from refusion_edge.bundle.folder import EngineBundle, install_bundle, read_bundle
from refusion_edge.bundle.manifest import MODEL, PLAN, GateNotRun, GateResult
from refusion_edge.cli.selftest import build as build_for_selftest
from refusion_edge.errors import GateError, MisfitError, OutputError
from refusion_edge.export.build import build
from refusion_edge.fuser import open_bundle
from refusion_edge.machine import Target, this_machine
from refusion_edge.network.checkpoint import read_checkpoint
from refusion_edge.network.family import make_model
from refusion_edge.network.weights import weights_path
from refusion_edge.selftest.checks import check_backend, describe_device, timing_sizes
from tests.backends.tensorrt.conftest import SPEC
from tests.conftest import files_below, one_sentence
from tests.fakes.tensorrt import FakeTensorRT, refuse_to_record
from tests.raising import raises


def built(**changes: object) -> EngineBundle:
    return build(replace(SPEC, **changes)).bundle


def test_an_engine_is_built_evaluated_on_its_device_and_run(device: FakeTensorRT) -> None:
    manifest = built().manifest
    assert isinstance(manifest.gate, GateResult)
    assert manifest.engine == PLAN
    assert manifest.target == this_machine()
    assert manifest.tools["tensorrt"] == device.__version__
    assert manifest.compiled is not None
    assert manifest.compiled.compute_capabilities == ("8.6",)
    assert manifest.compiled.scratch_bytes == 4096
    a, b = (np.random.default_rng(1).random((1, 1, 20, 40), np.float32) for _ in range(2))
    with open_bundle(read_bundle("x")) as engine:
        assert engine.name == "tensorrt"
        assert np.array_equal(engine.fuse(a, b), device.compute(a, b))


def test_an_engine_that_is_wrong_on_its_device_is_not_installed(device: FakeTensorRT) -> None:
    honest = device.compute
    device.compute = lambda a, b: honest(a, b) + np.float32(0.05)
    with raises(GateError, "fp16", expected=LIMITS["fp16"]):
        built()
    assert not Path("x").exists()
    assert [name for name in files_below(Path("../cache")) if "bundles" in name] == []


def unevaluated() -> EngineBundle:
    bundle = built()
    gate = bundle.manifest.gate
    assert isinstance(gate, GateResult)
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    return install_bundle(Path("x"), replace(bundle.manifest, gate=GateNotRun("no device there", gate)), files)


def test_the_first_load_evaluates_and_the_second_does_not(device: FakeTensorRT) -> None:
    unevaluated()
    runs: list[None] = []
    honest = device.compute

    def counted(a: Float32Array, b: Float32Array) -> Float32Array:
        runs.append(None)
        return honest(a, b)

    device.compute = counted
    for expected in (1, 1):
        with open_bundle(read_bundle("x")):
            assert len(runs) == expected
    assert isinstance(read_bundle("x").manifest.gate, GateResult)


def test_what_measures_the_engine_itself_is_not_stopped_by_the_gate(device: FakeTensorRT) -> None:
    bundle = unevaluated()
    device.compute = lambda a, b: np.full_like(a, np.nan)
    with open_bundle(bundle, run_gate=False) as engine:
        assert engine.name == "tensorrt"
    assert isinstance(read_bundle("x").manifest.gate, GateNotRun)


@pytest.mark.slow
def test_a_wrong_engine_is_refused_at_its_first_load_and_at_every_later_one(device: FakeTensorRT) -> None:
    unevaluated()
    device.compute = lambda a, b: np.full_like(a, np.nan)
    for _ in range(2):
        with raises(GateError, "x", remedy="--precision fp32", expected=LIMITS["fp16"]):
            open_bundle(read_bundle("x"))
        assert not device.driver.held
        assert isinstance(read_bundle("x").manifest.gate, GateNotRun)


def test_a_verdict_that_cannot_be_kept_does_not_stop_the_engine(device: FakeTensorRT, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = unevaluated()

    def refuse(*_: object) -> None:
        raise OutputError("cannot write x: the place is read-only")

    monkeypatch.setattr("refusion_edge.bundle.folder.write_atomically", refuse)
    with open_bundle(bundle) as engine:
        assert engine.name == "tensorrt"
    assert isinstance(read_bundle("x").manifest.gate, GateNotRun)


def test_a_bundle_of_another_device_says_how_to_rebuild_it(device: FakeTensorRT) -> None:
    bundle = built()
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    orin = Target("linux", "aarch64", "NVIDIA Jetson Orin Nano")
    moved = install_bundle(Path("x"), replace(bundle.manifest, target=orin), files)
    with raises(MisfitError, remedy="--backend tensorrt --size 16x16:24x32:64x96", expected=orin, got=this_machine()):
        open_bundle(moved)
    here = install_bundle(Path("x"), bundle.manifest, files)
    device.troubles["load"] = "Serialization assertion failed"
    with raises(MisfitError, remedy="refusion-edge build --task medical"):
        open_bundle(here)


@pytest.mark.slow
def test_the_model_of_a_bundle_is_pure_onnx(device: FakeTensorRT) -> None:
    bundle = built()
    a, b = (np.random.default_rng(1).random((1, 1, 24, 32), np.float32) for _ in range(2))
    with OrtBackend(bundle.read(MODEL), threads=1) as portable:
        assert np.array_equal(portable.fuse(a, b), device.compute(a, b))


@pytest.mark.slow
def test_the_self_test_of_a_device_owner_passes_or_says_what_is_wrong(
    device: FakeTensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = read_vectors()
    state = read_checkpoint(weights_path(TASK)).state
    device.shape = (1, 1, *vectors.size_hw)
    with OrtBackend(make_model("tensorrt-folded", "fp16", state).SerializeToString(), threads=1) as network:
        device.compute = network.fuse
        monkeypatch.setattr(device.driver, "capture", refuse_to_record)
        good = check_backend("tensorrt", timing_sizes(None), build_for_selftest, tmp_path)
        assert (good.outcome, good.precision) == ("passed", "fp16"), good.reason
        assert good.build_s is not None
        assert good.latency is not None
        assert good.latency.graph_problem == "a graph cannot be recorded; go on"
        assert good.text.endswith(" without a CUDA graph")
        assert "without" not in replace(good, latency=replace(good.latency, graph_problem="")).text
        device.compute = lambda a, b: network.fuse(b, a)
        swapped = check_backend("tensorrt", timing_sizes(None), build_for_selftest, tmp_path)
        assert swapped.outcome == "failed"
        device.troubles["build"] = "Error Code 9: out of memory"
        failed = check_backend("tensorrt", timing_sizes(None), build_for_selftest, tmp_path)
        assert (failed.outcome, failed.trace) == ("failed", "")
        assert one_sentence(failed.reason)
        assert "480x640" in failed.reason
    # As on JetPack, whose package of the bindings has no metadata.
    monkeypatch.setattr(device, "__spec__", ModuleSpec("tensorrt", None), raising=False)
    facts = describe_device()
    assert (facts.compute_capability, facts.bindings["tensorrt"]) == ("8.6", device.__version__)
