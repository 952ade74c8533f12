"""What goes through the accuracy gate where there is no GPU: the PTX of the kernels, in the emulator, or their references."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton", reason="the GPU kernels are compiled by Triton: pip install 'refusion-edge[triton]'")
pytest.importorskip("torch", reason="the operands come from a module that imports torch")

from refusion_edge.accuracy.gate import worst_gate
from refusion_edge.arrays import State
from refusion_edge.backends import fused
from refusion_edge.backends.registry import Status
from refusion_edge.bundle.folder import read_bundle
from refusion_edge.bundle.manifest import GateNotRun, GateResult
from refusion_edge.bundle.spec import BuildSpec
from refusion_edge.cuda.program import Target
from refusion_edge.errors import BackendError, GateError, UsageError
from refusion_edge.export.build import build
from refusion_edge.export.targets import cubins as program_module
from refusion_edge.kernels.emulator import compiled
from refusion_edge.kernels.emulator.compiled import is_built
from refusion_edge.kernels.gpu.kernel_sets import KernelSet
from refusion_edge.network.checkpoint import Checkpoint, write_safetensors
from tests.conftest import files_below, one_sentence
from tests.fakes.programs import hollow_target
from tests.kernels.emulator.launches import SMALL, SMALL_LAYOUT, ptx_target, why_not
from tests.raising import raises

if not is_built():
    pytest.skip("the PTX emulator was not built", allow_module_level=True)

SIZE = (32, 48)
ARCHITECTURES = (87,)


@pytest.fixture(autouse=True)
def _without_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "probe", lambda: Status(usable=False, reason="no NVIDIA device"))


@pytest.fixture
def _of_ptx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that hold PTX, compiled once, in place of machine code."""

    def compile_ptx(architectures: Iterable[int], *, jobs: int, kernels: KernelSet) -> dict[int, Target]:
        return {architecture: ptx_target(architecture, SMALL) for architecture in architectures}

    monkeypatch.setattr(program_module, "compile_targets", compile_ptx)


@pytest.fixture
def weights() -> Path:
    """Weights of a small layout of ``fast`` that fuse: a little of everything."""
    draw = np.random.default_rng(5)
    state = {name: draw.normal(0, 0.02, shape).astype(np.float32) for name, shape in SMALL_LAYOUT.shapes.items()}
    write_safetensors("small.safetensors", Checkpoint("medical", state))
    return Path("small.safetensors")


def spec(weights: Path, **more: Any) -> BuildSpec:
    chosen = {"size_hw": SIZE, "architectures": ARCHITECTURES, "network": "fast", "weights": weights, **more}
    return BuildSpec("medical", backend="fused", **chosen)


def not_run(path: Path) -> GateNotRun:
    gate = read_bundle(path).manifest.gate
    assert isinstance(gate, GateNotRun)
    return gate


@pytest.mark.usefixtures("_of_ptx")
def test_the_gate_executes_the_ptx_of_small_frames_unless_told_otherwise(weights: Path) -> None:
    by_default = build(spec(weights))
    asked = build(spec(weights, proxy="ptx", output=Path("asked")))
    references = build(spec(weights, proxy="reference", output=Path("references")))
    gates = [not_run(report.bundle.path) for report in (by_default, asked, references)]
    assert [gate.proxy_name for gate in gates] == ["its PTX for sm_87", "its PTX for sm_87", "its launches on the CPU"]
    assert {gate.not_run for gate in gates} == {"no NVIDIA device"}
    # Sums in another order: the same to rounding, and not the same.
    assert gates[0].proxy == gates[1].proxy
    assert gates[0].proxy != gates[2].proxy
    assert all(70 <= result.fidelity.psnr_db < 110 for result in by_default.gate)
    # What the gate ran is part of what a cached engine is known by.
    assert [report.cached for report in (by_default, asked, references)] == [False, True, False]


@pytest.mark.usefixtures("_of_ptx")
def test_what_the_gate_ran_is_printed_and_in_the_json(weights: Path, run_cli: Callable[..., tuple[int, str, str]]) -> None:
    words = ["build", "--task", "medical", "--network", "fast", "--precision", "fp16", "--backend", "fused", "--arch", "sm_87"]
    words += ["--size", "32x48", "--weights", weights, "-o", "x", "--overwrite", "--no-cache", "--proxy"]
    code, out, _ = run_cli(*words, "ptx")
    assert code == 0
    assert "its PTX for sm_87" in out
    code, out, _ = run_cli(*words, "reference", "--json", "-")
    assert (code, json.loads(out)["gate"]["proxy_name"]) == (0, "its launches on the CPU")
    code, out, err = run_cli(*words, "ptx", "--proxy-limit-s", "0.001")
    assert (code, out, one_sentence(err)) == (2, "", True)
    assert "--proxy-limit-s" in err


def test_a_frame_that_takes_too_long_is_refused_with_an_estimate_before_anything_is_compiled(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program_module, "compile_targets", lambda *_, **__: pytest.fail("compiled"))
    with raises(UsageError, remedy="--proxy-limit-s", expected=60.0) as caught:
        build(spec(weights, proxy="ptx", size_hw=(4096, 4096)))
    assert isinstance(caught.value.got, float)
    # Proportional to the pixels and to the architectures.
    with pytest.raises(UsageError) as several:
        build(spec(weights, proxy="ptx", size_hw=(4096, 2048), architectures=(80, 86, 87, 89)))
    assert several.value.got == pytest.approx(2 * caught.value.got)
    assert files_below(Path("..")) == ["work", "work/small.safetensors"]


def test_by_default_a_large_frame_goes_through_the_references_and_the_remark_says_why(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compile_hollow(architectures: Iterable[int], *, jobs: int, kernels: KernelSet) -> dict[int, Target]:
        return {architecture: hollow_target(architecture, kernels=kernels) for architecture in architectures}

    monkeypatch.setattr(program_module, "compile_targets", compile_hollow)
    report = build(spec(weights, proxy_limit_s=1e-3))
    assert not_run(report.bundle.path).proxy_name == "its launches on the CPU"
    assert "--proxy-limit-s" in report.remarks[0]
    monkeypatch.setattr(compiled, "MODULE", "refusion_edge.kernels.emulator._never_built")
    report = build(spec(weights, output=Path("without")))
    assert not_run(report.bundle.path).proxy_name == "its launches on the CPU"
    with raises(BackendError, remedy="wheel.cmake"):
        build(spec(weights, proxy="ptx", output=Path("refused")))
    assert not Path("refused").exists()


@pytest.mark.usefixtures("_of_ptx")
def test_ptx_with_a_race_does_not_pass_even_if_the_image_is_right(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Nobody compares what `stretch` writes.
    target = ptx_target(87, SMALL)
    binary = target.binaries["stretch"]
    barrier = b"bar.sync \t0;"
    assert barrier in binary.image
    faulty = dataclasses.replace(binary, image=binary.image.replace(barrier, b";"))
    target = dataclasses.replace(target, binaries={**target.binaries, "stretch": faulty})
    monkeypatch.setattr(program_module, "compile_targets", lambda *_, **__: {87: target})
    with raises(GateError, "sm_87", "stretch_kernel", "race"):
        build(spec(weights))
    assert not Path("bundles").exists()


def test_a_proxy_is_only_for_a_program_that_cannot_run_here(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with raises(UsageError, "--proxy", expected="fused", got="onnxruntime"):
        build(BuildSpec("medical", backend="onnxruntime", proxy="ptx"))
    monkeypatch.setattr(fused, "probe", lambda: Status(usable=True, reason="pretended"))
    with raises(UsageError, remedy="--proxy"):
        build(spec(weights, proxy="reference"))


def test_the_worst_of_several_gates_counts() -> None:
    gates = [GateResult(80.0, 0.99, 0.5, 1, ""), GateResult(None, 0.999, 0.1, 1, ""), GateResult(75.0, 1.0, 0.6, 1, "")]
    assert worst_gate(gates) == GateResult(75.0, 0.99, 0.6, 1, "")
    assert worst_gate(gates[1:2]).psnr_db is None
    assert math.isclose(worst_gate(gates[:2]).max_error, 0.5)


@pytest.mark.slow
def test_a_program_is_compiled_executed_and_installed(random_state: State) -> None:
    """Machine code and all, of the paper's network, for two architectures."""
    architectures = tuple(one for one in (87, 90) if not why_not(one))
    write_safetensors("random.safetensors", Checkpoint("medical", random_state))
    report = build(
        BuildSpec(
            "medical",
            backend="fused",
            size_hw=(8, 12),
            architectures=architectures,
            weights=Path("random.safetensors"),
            proxy="ptx",
        )
    )
    gate = not_run(report.bundle.path)
    assert gate.proxy_name == ", ".join(f"its PTX for sm_{one}" for one in architectures)
    assert len(report.gate) == len(architectures)
