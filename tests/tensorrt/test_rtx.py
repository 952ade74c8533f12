"""Engines that TensorRT-RTX really builds, on a machine without a device; what needs one is not shown here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("tensorrt_rtx", reason="building needs the extra 'rtx' (pip install 'refusion-edge[rtx]')")

from refusion_edge import cuda
from refusion_edge.backends import status
from refusion_edge.bundle import MODEL, PLAN, GateNotRun, GateResult, read_bundle
from refusion_edge.errors import BackendError, BundleError, UsageError
from refusion_edge.export.build import build
from refusion_edge.export.spec import BuildSpec
from refusion_edge.sizes import SizeRange
from refusion_edge.tensorrt.flavour import TENSORRT_RTX, installed_version
from refusion_edge.tensorrt.mismatch import plan_version
from refusion_edge.tensorrt.settings import PlanSettings
from tests.conftest import ROOT, files_below, one_sentence

Run = Callable[..., tuple[int, str, str]]
SMALL = (64, 96)
ONLY_WITHOUT_DEVICE = pytest.mark.skipif(cuda.problem() is None, reason="shows what happens without a device, and there is one")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_engine_is_built_and_the_manifest_says_what_was_not_done(precision: str) -> None:
    report = build(BuildSpec("ir_vis", precision, backend="tensorrt-rtx", size_hw=SMALL))
    bundle = read_bundle(report.bundle.path)
    manifest = bundle.manifest
    assert bundle.path == Path(f"bundles/ir_vis-{precision}-tensorrt-rtx-64x96")
    assert sorted(manifest.files) == [PLAN, MODEL, "weights.safetensors"]
    assert manifest.engine == PLAN
    assert plan_version(bundle.read(PLAN), TENSORRT_RTX) == installed_version(TENSORRT_RTX)
    assert manifest.tools["tensorrt_rtx"] == installed_version(TENSORRT_RTX)
    assert manifest.compiled is not None
    assert 1e6 < (manifest.compiled.scratch_bytes or 0) < 1e8
    assert manifest.compiled.command == "tensorrt_rtx --onnx=model.onnx --saveEngine=engine.plan --skipInference"
    if status("tensorrt-rtx").usable:
        assert isinstance(manifest.gate, GateResult)
    else:
        assert isinstance(manifest.gate, GateNotRun)
        assert status("tensorrt-rtx").reason == manifest.gate.not_run
        assert manifest.gate.simulated.pairs == 2


def test_settings_and_a_range_of_sizes_reach_the_manifest_and_the_command_that_rebuilds() -> None:
    sizes_hw = SizeRange((16, 16), SMALL, (96, 128))
    settings = PlanSettings(workspace_mib=2000, level=2, compute_capabilities=("8.6", "8.9"))
    report = build(BuildSpec("medical", "fp16", backend="tensorrt-rtx", sizes_hw=sizes_hw, settings=settings))
    manifest = read_bundle(report.bundle.path).manifest
    assert manifest.size_text == "16x16:64x96:96x128"
    assert manifest.gate_hw == SMALL
    assert manifest.inputs[0].shape == (1, 1, None, None)
    assert manifest.compiled is not None
    assert manifest.compiled.compute_capabilities == ("8.6", "8.9")
    command = manifest.rebuild_command(Path("x"))
    assert "--size 16x16:64x96:96x128" in command
    assert command.endswith("--compute-capability 8.6,8.9 --opt-level 2 --workspace 2000")
    assert "--workspace" not in manifest.rebuild_command(Path("x"), "onnxruntime")


def test_engines_are_cached_by_all_that_they_depend_on() -> None:
    plain = BuildSpec("medical", "fp32", backend="tensorrt-rtx", size_hw=SMALL, output=Path("x"))
    assert [build(plain).cached for _ in range(2)] == [False, True]
    other = BuildSpec(
        "medical", "fp32", backend="tensorrt-rtx", size_hw=SMALL, output=Path("x"), settings=PlanSettings(level=1)
    )
    assert [build(other).cached for _ in range(2)] == [False, True]


def test_what_it_cannot_build_is_told(run_cli: Run) -> None:
    small = ("build", "--backend", "tensorrt-rtx", "--size", "64x96")
    for words, code, hint in (
        (("--workspace", "1"), 3, "with a limit of 1 MiB on the workspace"),
        (("--compute-capability", "8.7"), 2, "builds for (7.5, 8.0, "),
        (("--opt-level", "9"), 2, "from 0 to 5"),
    ):
        assert run_cli(*small, *words)[0] == code
        _, _, err = run_cli(*small, *words)
        assert hint in err
        assert one_sentence(err)
    assert [name for name in files_below(Path("..")) if name != "work"] == []


def test_settings_of_a_compiler_are_refused_where_nothing_is_compiled() -> None:
    with pytest.raises(UsageError, match="only for tensorrt and tensorrt-rtx, got them for onnxruntime"):
        build(BuildSpec("medical", backend="onnxruntime", settings=PlanSettings(level=1)))


@ONLY_WITHOUT_DEVICE
def test_without_a_device_the_engine_is_built_but_not_run(run_cli: Run) -> None:
    code, out, _ = run_cli("build", "--task", "medical", "--backend", "tensorrt-rtx", "--size", "64x96", "-o", "x")
    assert code == 0
    assert "The engine itself was not run: tensorrt_rtx" in out
    assert "The same by hand, in x: tensorrt_rtx --onnx=model.onnx" in out
    for verb in (("verify", "x"), ("fuse", "a.png", "b.png", "-o", "c.png", "--bundle", "x")):
        code, _, err = run_cli(*verb)
        assert code in (3, 4)
        assert one_sentence(err)
    code, out, _ = run_cli("inspect", "x", "--json", "-")
    assert json.loads(out)["gate"]["not_run"].endswith("(libcuda.so.1 cannot be loaded)")
    code, out, _ = run_cli("doctor")
    assert "builds only" in out
    with pytest.raises(BackendError, match="expected a CUDA device, got none"):
        cuda.open_driver()


def test_a_plan_with_flipped_bytes_is_refused() -> None:
    build(BuildSpec("medical", "fp32", backend="tensorrt-rtx", size_hw=SMALL, output=Path("x")))
    data = bytearray(Path("x", PLAN).read_bytes())
    data[5000] ^= 0xFF
    Path("x", PLAN).write_bytes(data)
    with pytest.raises(BundleError, match="SHA-256"):
        read_bundle("x")


def test_an_interrupted_build_ends_quickly_and_leaves_nothing() -> None:
    """A real compiler, a real signal; sent when the compiler has reported its first phase."""
    script = (
        "import sys\n"
        "from refusion_edge.cli import progress, main\n"
        "told = progress.BuildProgress.started\n"
        "def tell(self, *phase):\n"
        "    print('begun', flush=True)\n"
        "    told(self, *phase)\n"
        "progress.BuildProgress.started = tell\n"
        "sys.exit(main(['build', '--backend', 'tensorrt-rtx', '--no-cache', '-o', 'x']))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    started = time.perf_counter()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; nothing half-written was left behind" in err
    assert time.perf_counter() - started < 30
    assert files_below(Path("..")) == ["work"]
