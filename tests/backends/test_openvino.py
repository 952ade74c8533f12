"""OpenVINO: the precision asked for or an error, bundles like those of any other back end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

openvino = pytest.importorskip("openvino", reason="needs pip install 'refusion-edge[openvino]'")

from refusion_edge.arrays import State
from refusion_edge.backends.onnxruntime import open_reference
from refusion_edge.backends.openvino import OpenVinoBackend
from refusion_edge.backends.registry import status
from refusion_edge.bundle.folder import read_bundle
from refusion_edge.bundle.spec import BuildSpec
from refusion_edge.errors import BackendError, ShapeError
from refusion_edge.export.build import build
from refusion_edge.fuser import load
from refusion_edge.network.checkpoint import read_checkpoint
from refusion_edge.network.forms import REFERENCE, Precision
from refusion_edge.network.graph import fill, read_template
from refusion_edge.tasks import TASKS
from tests.conftest import TOLERANCE
from tests.network.test_model import GOLDEN
from tests.raising import raises

HAS_BF16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="needs a processor with bf16 instructions")


def model(state: State, size_hw: tuple[int, int] | None = None, form: str = "cpu") -> bytes:
    data: bytes = fill(read_template(form, "fp32"), state, size_hw).SerializeToString()
    return data


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN)
def test_output_equals_the_official_release(shared_data: Path, name: str) -> None:
    state = read_checkpoint(shared_data / f"reference/checkpoints/ReFusion_{name.split('_', maxsplit=1)[0]}.pth").state
    golden = np.load(shared_data / f"reference/golden/{name}.npz")
    with OpenVinoBackend(model(state), threads=1) as engine:
        fused = engine.fuse(golden["input"][:, :1], golden["input"][:, 1:])
    assert np.abs(fused - golden["raw"]).max() <= TOLERANCE["golden"]


def test_results_are_new_memory_and_any_size_follows_any_other(random_state: State, rng: np.random.Generator) -> None:
    with OpenVinoBackend(model(random_state), threads=1) as engine, open_reference(random_state) as reference:
        kept = []
        for size_hw in [(8, 8), (33, 20), (9, 64), (8, 8)]:
            a, b = (rng.random((1, 1, *size_hw), np.float32) for _ in range(2))
            kept.append((engine.fuse(a, b), reference.fuse(a, b).copy()))
    for fused, expected in kept:
        assert np.abs(fused - expected).max() <= TOLERANCE["fp32"]


@needs_bf16
def test_half_the_bits_are_really_used_and_only_on_request(random_state: State, rng: np.random.Generator) -> None:
    a, b = (rng.random((1, 1, 48, 64), np.float32) for _ in range(2))
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    results = []
    for precision in precisions:
        with OpenVinoBackend(model(random_state, (48, 64)), precision=precision, threads=1) as engine:
            results.append(engine.fuse(a, b))
    difference = np.abs(results[0] - results[1])
    assert difference.max() > 1e-4
    assert difference.mean() < 0.05


def test_bf16_without_the_instructions_is_refused(random_state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    class Old(openvino.Core):
        def get_property(self, *_: object) -> list[str]:
            return ["FP32"]

    monkeypatch.setattr(openvino, "Core", Old)
    with raises(BackendError, "bf16", remedy="--precision fp32"):
        OpenVinoBackend(model(random_state), precision="bf16")


def test_bad_models_are_refused_in_words(random_state: State) -> None:
    for data, named in (
        (b"not a model", "OpenVINO"),
        (model(random_state)[:-1000], "OpenVINO"),
        (read_template(REFERENCE, "fp32").SerializeToString(), "88 inputs"),
    ):
        with raises(BackendError, named):
            OpenVinoBackend(data)


def test_fixed_size_engine_says_how_to_get_another(random_state: State, rng: np.random.Generator) -> None:
    with OpenVinoBackend(model(random_state, (16, 24)), threads=1) as engine:
        planes = rng.random((1, 1, 20, 30), np.float32)
        with raises(ShapeError, remedy="--size 20x30", expected=(16, 24), got=(20, 30)):
            engine.fuse(planes, planes)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=needs_bf16)])
@pytest.mark.parametrize("task", TASKS)
def test_every_task_and_precision_passes_its_gate(task: str, precision: Precision) -> None:
    report = build(BuildSpec(task, precision, "openvino", size_hw=(64, 96), output=Path("bundle")))
    manifest = read_bundle("bundle").manifest
    assert (manifest.backend, manifest.precision, manifest.form) == ("openvino", precision, "cpu")
    assert manifest.tools["openvino"] == openvino.__version__.split("-")[0]
    assert (report.gate[0].fidelity.psnr_db < 80) == (precision == "bf16")
    assert build(BuildSpec(task, precision, "openvino", size_hw=(64, 96), output=Path("again"))).cached
    a = np.arange(64 * 96, dtype=np.uint16).reshape(64, 96)
    with load("bundle", threads=1) as fuser:
        assert fuser.backend.name == "openvino"
        assert fuser.fuse(a.astype(np.uint8), (a // 96).astype(np.uint8)).shape == (64, 96)


@needs_bf16
def test_the_network_fast_is_built_in_bf16() -> None:
    report = build(BuildSpec("ir_vis", "bf16", "openvino", size_hw=(64, 96), output=Path("bundle"), network="fast"))
    manifest = read_bundle("bundle").manifest
    assert (manifest.spec.network, manifest.precision, manifest.form) == ("fast", "bf16", "fast")
    # Really bf16, and inside the limits with room.
    assert all(55 < result.fidelity.psnr_db < 80 for result in report.gate)


def test_the_cache_keeps_precisions_apart() -> None:
    if not HAS_BF16:
        pytest.skip("needs a processor with bf16 instructions")
    build(BuildSpec("medical", "fp32", "openvino", size_hw=(64, 96), output=Path("one")))
    assert not build(BuildSpec("medical", "bf16", "openvino", size_hw=(64, 96), output=Path("two"))).cached


def test_verbs_work_with_it(run_cli: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = run_cli("build", "--precision", "fp32", "--backend", "openvino", "--size", "64x96", "-o", "bundle")
    assert (code, "Accuracy gate passed" in out) == (0, True)
    code, out, _ = run_cli("verify", "bundle", "--threads", "1")
    assert (code, "PASSED: fp32 on openvino" in out) == (0, True)
    code, out, _ = run_cli("inspect", "bundle")
    facts = dict(line.split(maxsplit=1) for line in out.splitlines() if " " in line)
    assert (code, facts["form"], facts["backend"]) == (0, "cpu", "openvino")


def test_a_missing_package_names_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refusion_edge.backends.openvino.is_installed", lambda _: False)
    found = status("openvino")
    assert (found.usable, found.fix) == (False, "pip install 'refusion-edge[openvino]'")


def test_failures_are_told_apart(random_state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    planes = np.zeros((1, 1, 20, 30), np.float32)

    def fail(*_: object) -> None:
        raise RuntimeError("Exception from src/inference: no such primitive")

    with OpenVinoBackend(model(random_state), threads=1) as engine:
        # What OpenVINO 2026.4 returns if it cannot allocate its buffers.
        monkeypatch.setattr(engine, "_request", SimpleNamespace(infer=lambda _: [np.zeros((1, 1, 0, 0), np.float32)]))
        with raises(BackendError, "20x30", "memory", remedy="smaller"):
            engine.fuse(planes, planes)
        monkeypatch.setattr(engine, "_request", SimpleNamespace(infer=fail))
        with raises(BackendError, "20x30", "primitive", remedy="--backend"):
            engine.fuse(planes, planes)
