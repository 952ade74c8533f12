"""Engines that TensorRT-RTX really builds, on a machine without a device; what needs one is not shown here."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

pytest.importorskip("tensorrt_rtx", reason="building needs the extra 'rtx' (pip install 'refusion-edge[rtx]')")

from refusion_edge import cuda
from refusion_edge.arrays import Array
from refusion_edge.backends.registry import status
from refusion_edge.backends.tensorrt.product import TENSORRT_RTX, installed_version, plan_version
from refusion_edge.backends.tensorrt.settings import PlanSettings
from refusion_edge.bundle.folder import read_bundle
from refusion_edge.bundle.manifest import CALIBRATION, MODEL, PLAN, GateNotRun, GateResult
from refusion_edge.bundle.spec import BuildSpec
from refusion_edge.errors import BackendError, UsageError
from refusion_edge.export.build import build
from refusion_edge.images.color import OutputRange
from refusion_edge.images.io import write_image
from refusion_edge.sizes import SizeRange
from tests.conftest import ROOT, files_below, one_sentence
from tests.raising import raises

Run = Callable[..., tuple[int, str, str]]
SMALL = (64, 96)
ONLY_WITHOUT_DEVICE = pytest.mark.skipif(cuda.problem() is None, reason="shows what happens without a device, and there is one")


@pytest.mark.slow
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
    assert manifest.compiled.command == "tensorrt_rtx --onnx=model.onnx --saveEngine=engine.plan --skipInference --noTF32"
    if status("tensorrt-rtx").usable:
        assert isinstance(manifest.gate, GateResult)
    else:
        assert isinstance(manifest.gate, GateNotRun)
        assert status("tensorrt-rtx").reason == manifest.gate.not_run
        assert manifest.gate.proxy.pairs == 2


@pytest.mark.slow
def test_settings_and_a_range_of_sizes_reach_the_manifest_and_the_command_that_rebuilds() -> None:
    sizes_hw = SizeRange((16, 16), SMALL, (96, 128))
    settings = PlanSettings(workspace_mib=2000, optimization_level=2, compute_capabilities=("8.6", "8.9"))
    report = build(BuildSpec("medical", "fp16", backend="tensorrt-rtx", sizes_hw=sizes_hw, settings=settings))
    manifest = read_bundle(report.bundle.path).manifest
    assert manifest.size_text == "16x16:64x96:96x128"
    assert manifest.gate_hw == SMALL
    assert manifest.inputs[0].shape == (1, 1, None, None)
    assert manifest.compiled is not None
    assert manifest.compiled.compute_capabilities == ("8.6", "8.9")
    assert manifest.spec == BuildSpec("medical", "fp16", "tensorrt-rtx", sizes_hw=sizes_hw, settings=settings).engine
    command = report.bundle.rebuild_command()
    assert "--size 16x16:64x96:96x128" in command
    assert command.endswith("--workspace 2000 --opt-level 2 --compute-capability 8.6,8.9")
    assert "--workspace" not in report.bundle.rebuild_command("onnxruntime")


@pytest.mark.slow
def test_engines_are_cached_by_all_that_they_depend_on() -> None:
    plain = BuildSpec("medical", "fp32", backend="tensorrt-rtx", size_hw=SMALL, output=Path("x"))
    assert [build(plain).cached for _ in range(2)] == [False, True]
    other = BuildSpec(
        "medical", "fp32", backend="tensorrt-rtx", size_hw=SMALL, output=Path("x"), settings=PlanSettings(optimization_level=1)
    )
    assert [build(other).cached for _ in range(2)] == [False, True]


@pytest.mark.slow
def test_what_it_cannot_build_is_told(run_cli: Run) -> None:
    small = ("build", "--backend", "tensorrt-rtx", "--size", "64x96")
    for words, code, hint in (
        (("--workspace", "1"), 3, "1 MiB"),
        (("--compute-capability", "8.7"), 2, "7.5, 8.0, "),
        (("--opt-level", "9"), 2, " 5"),
    ):
        assert run_cli(*small, *words)[0] == code
        _, _, err = run_cli(*small, *words)
        assert hint in err
        assert one_sentence(err)
    assert [name for name in files_below(Path("..")) if name != "work"] == []


def test_settings_of_a_compiler_are_refused_where_nothing_is_compiled() -> None:
    with raises(UsageError, "--opt-level", got="onnxruntime"):
        build(BuildSpec("medical", backend="onnxruntime", settings=PlanSettings(optimization_level=1)))


@pytest.mark.slow
@ONLY_WITHOUT_DEVICE
def test_without_a_device_the_engine_is_built_but_not_run(run_cli: Run) -> None:
    code, out, _ = run_cli("build", "--task", "medical", "--backend", "tensorrt-rtx", "--size", "64x96", "-o", "x")
    assert code == 0
    assert "The engine itself was not run: tensorrt_rtx" in out
    assert "in x: tensorrt_rtx --onnx=model.onnx" in out
    for verb in (("verify", "x"), ("fuse", "a.png", "b.png", "-o", "c.png", "--bundle", "x")):
        code, _, err = run_cli(*verb)
        assert code in (3, 4)
        assert one_sentence(err)
    code, out, _ = run_cli("inspect", "x", "--json", "-")
    assert json.loads(out)["gate"]["not_run"].endswith("(libcuda.so.1 cannot be loaded)")
    code, out, _ = run_cli("doctor")
    assert "builds only" in out
    with raises(BackendError, "CUDA device"):
        cuda.open_driver()


@pytest.mark.slow
def test_an_interrupted_build_ends_quickly_and_leaves_nothing() -> None:
    """A real compiler, a real signal; sent when the compiler has reported its first phase."""
    script = (
        "import sys\n"
        "from refusion_edge.cli import console, main\n"
        "told = console.BuildProgress.started\n"
        "def tell(self, *phase):\n"
        "    print('begun', flush=True)\n"
        "    told(self, *phase)\n"
        "console.BuildProgress.started = tell\n"
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
    assert one_sentence(err)
    assert time.perf_counter() - started < 30
    assert files_below(Path("..")) == ["work"]


def calibration_folder(picture: Callable[..., Array], count: int) -> None:
    for index in range(count):
        write_image(f"data/ir/{index}.png", picture(24, 32))
        write_image(f"data/vis/{index}.png", picture(24, 32, 3))


INT8 = ("build", "--task", "ir_vis", "--precision", "int8", "--backend", "tensorrt-rtx", "--size", "24x32", "-o", "x")


@pytest.mark.slow
def test_an_int8_engine_is_built_from_a_folder_and_again_from_its_own_table(
    run_cli: Run, picture: Callable[..., Array]
) -> None:
    calibration_folder(picture, 20)
    write_image("data/ir/alone.png", picture(24, 32))
    code, out, err = run_cli(*INT8, "--calib-data", "data")
    assert code == 0, err
    assert "no counterpart: 1 (data/ir/alone.png)" in err
    assert "RANDOM" not in out
    manifest = read_bundle("x").manifest
    assert manifest.quantized is not None
    assert manifest.quantized.pairs == 16
    assert not manifest.quantized.random
    gate = manifest.gate.proxy if isinstance(manifest.gate, GateNotRun) else manifest.gate
    assert gate.pairs == 2 + 4
    assert f"INT8 in {len(manifest.quantized.int8)} of 17 layers" in out
    assert read_bundle("x").rebuild_command().endswith("--weights x/weights.safetensors --calib-data x/calibration.json")

    code, out, err = run_cli(*INT8[:-1], "y", "--calib-data", f"x/{CALIBRATION}")
    assert code == 0, err
    assert read_bundle("y").read(CALIBRATION) == read_bundle("x").read(CALIBRATION)
    code, out, _ = run_cli("inspect", "x")
    assert "quantized.method" in out


@pytest.mark.slow
def test_noise_is_never_silent(run_cli: Run) -> None:
    code, out, err = run_cli(*INT8, "--calib-data", "random")
    # Ranges of noise may or may not pass the gate on images; either way nobody is told that it is a good engine.
    assert (code, "RANDOM DATA" in out) in ((0, True), (1, False)), err
    if code == 0:
        quantised = read_bundle("x").manifest.quantized
        assert quantised is not None
        assert quantised.random


@pytest.mark.slow
def test_calibration_data_that_cannot_be_used_is_told(run_cli: Run, picture: Callable[..., Array]) -> None:
    calibration_folder(picture, 15)
    Path("empty/ir").mkdir(parents=True)
    Path("empty/vis").mkdir()
    Path("table.json").write_text("{}")
    write_image("flat/ir/0.png", np.full((24, 32), 7, np.uint8))
    for index in range(20):
        write_image(f"flat/ir/{index}.png", picture(24, 32) if index else np.full((24, 32), 7, np.uint8))
        write_image(f"flat/vis/{index}.png", picture(24, 32))
    shutil.copytree("flat", "hollow")
    for index in range(20):
        Path(f"hollow/ir/{index}.png").write_bytes(b"")
        write_image(f"strangers/ir/{index}.png", picture(24, 32))
        write_image(f"strangers/vis/x{index}.png", picture(24, 32))
        write_image(f"uneven/ir/{index}.png", picture(24, 32))
        write_image(f"uneven/vis/{index}.png", picture(24, 40))
    for words, code, hint in (
        ((), 2, "--calib-data"),
        (("--calib-data", "data"), 4, "15"),
        (("--calib-data", "nowhere"), 4, "nowhere"),
        (("--calib-data", "empty"), 4, "empty/ir"),
        (("--calib-data", "table.json"), 4, "table.json"),
        (("--calib-data", "hollow"), 4, "zero bytes"),
        (("--calib-data", "flat"), 4, "pair 0: "),
        (("--calib-data", "strangers"), 4, "strangers/ir"),
        (("--calib-data", "uneven"), 4, "24x40"),
        (("--calib-data", "data", "--precision", "fp16"), 2, "fp16"),
        (("--calib-data", "data", "--backend", "onnxruntime"), 2, "onnxruntime"),
        (("--calib-data", "random", "--form", "literal"), 2, "tensorrt-folded"),
    ):
        got, _, err = run_cli(*INT8, *words)
        assert (got, hint in err) == (code, True), err
        assert one_sentence(err)
    assert not Path("x").exists()


@pytest.mark.slow
def test_the_literal_form_is_one_option_apart() -> None:
    forms = []
    for form in ("tensorrt-folded", "tensorrt-literal"):
        report = build(BuildSpec("medical", "fp16", backend="tensorrt-rtx", size_hw=(24, 32), output=Path(form), form=form))
        forms.append(report.bundle.manifest.form)
        assert report.bundle.manifest.compiled is not None
    assert forms == ["tensorrt-folded", "tensorrt-literal"]
    with raises(UsageError, "onnxruntime", got="tensorrt-folded"):
        build(BuildSpec("medical", "fp16", backend="onnxruntime", form="tensorrt-folded"))


@pytest.mark.slow
@pytest.mark.parametrize(("levels", "pixels"), [("stretch", False), ("fixed", True)])
def test_an_engine_can_take_8_bit_sources_and_give_levels_besides(levels: OutputRange, pixels: bool) -> None:
    settings = PlanSettings(uint8_output=levels, uint8_input=pixels)
    sizes_hw = SizeRange((16, 16), SMALL, (96, 128))
    bundle = build(BuildSpec("ir_vis", "fp16", backend="tensorrt-rtx", sizes_hw=sizes_hw, settings=settings)).bundle
    graph = onnx.load_from_string(bundle.read(MODEL)).graph
    assert [value.name for value in graph.input] == ["a", "b", *(["a_pixels", "b_pixels"] if pixels else [])]
    assert [value.name for value in graph.output] == ["fused", f"levels_{levels}", "fused_mean"]
    assert bundle.manifest.compiled is not None
    assert bundle.manifest.compiled.command.startswith("tensorrt_rtx --onnx=model.onnx")
    assert ("a_pixels:1x1x96x128" in bundle.manifest.compiled.command) == pixels
    rebuilt = bundle.rebuild_command()
    assert f" --uint8-output {levels}" in rebuilt
    assert (" --uint8-input" in rebuilt) == pixels


@pytest.mark.slow
def test_layers_are_evaluated_one_by_one(run_cli: Run) -> None:
    assert run_cli(*INT8, "--calib-data", "random")[0] in (0, 1)
    if not Path("x").exists():
        pytest.skip("ranges of noise did not pass the gate, so there is no int8 bundle")
    code, out, _ = run_cli("verify", "x", "--per-layer", "--json", "-")
    assert code == 0
    assert len(json.loads(out)["layers"]) == 17
    code, out, _ = run_cli("verify", "x", "--proxy")
    assert (code, "int8 on its model on the CPU against fp32" in out) == (0, True)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize(
    ("size_hw", "sizes_hw"), [((33, 50), None), ((64, 96), None), (None, SizeRange((16, 16), SMALL, (97, 131)))]
)
def test_the_network_fast_is_built(precision: str, size_hw: tuple[int, int] | None, sizes_hw: SizeRange | None) -> None:
    spec = BuildSpec("ir_vis", precision, "tensorrt-rtx", size_hw, sizes_hw, network="fast", output=Path("x"))
    report = build(spec)
    bundle = read_bundle(report.bundle.path)
    assert (bundle.manifest.spec.network, bundle.manifest.form) == ("fast", "fast")
    assert plan_version(bundle.read(PLAN), TENSORRT_RTX) == installed_version(TENSORRT_RTX)
    assert "--network fast" in bundle.rebuild_command()
    # The proxy of fp16 rounds; the statistics that it does not round would cost some 20 dB.
    assert all(result.fidelity.psnr_db >= (80 if precision == "fp16" else 110) for result in report.gate)


@pytest.mark.slow
def test_the_network_fast_is_built_in_int8(run_cli: Run, picture: Callable[..., Array]) -> None:
    calibration_folder(picture, 20)
    code, out, err = run_cli(*INT8, "--network", "fast", "--calib-data", "data")
    assert code == 0, err
    quantized = read_bundle("x").manifest.quantized
    assert quantized is not None
    assert sorted((*quantized.int8, *quantized.kept)) == [f"layers.{index}" for index in range(1, 6)]
    assert f"INT8 in {len(quantized.int8)} of 5 layers" in out
    code, out, _ = run_cli("verify", "x", "--per-layer", "--json", "-")
    assert (code, len(json.loads(out)["layers"])) == (0, 5)
    code, out, err = run_cli(*INT8[:-1], "y", "--network", "fast", "--calib-data", f"x/{CALIBRATION}")
    assert code == 0, err
    # Ranges of one network say nothing about the other.
    code, _, err = run_cli(*INT8[:-1], "z", "--calib-data", f"x/{CALIBRATION}")
    assert (code, one_sentence(err)) == (4, True)
    assert not Path("z").exists()


@pytest.mark.parametrize(
    ("more", "got"),
    [
        ({"form": "tensorrt-literal"}, "tensorrt-literal"),
        ({"precision": "bf16"}, "bf16"),
        ({"precision": "int8"}, None),
        ({"backend": "tensorrt-rtx", "settings": PlanSettings(plugins=True)}, "fast"),
    ],
)
def test_what_the_network_fast_does_not_have_is_refused(more: dict[str, Any], got: str | None) -> None:
    spec = {"task": "ir_vis", "precision": "fp16", "backend": "tensorrt-rtx", "network": "fast", **more}
    with raises(UsageError, got=got):
        build(BuildSpec(**spec))
    assert not Path("bundles").exists()
