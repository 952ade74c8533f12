"""Building: the gate, the cache, and builds that are killed or run out of room."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from refusion_edge.accuracy.gate import LIMITS, Limits
from refusion_edge.arrays import State
from refusion_edge.backends.onnxruntime import OrtBackend
from refusion_edge.backends.registry import BACKENDS
from refusion_edge.bundle.folder import cache_folder, read_bundle
from refusion_edge.bundle.manifest import MODEL, WEIGHTS
from refusion_edge.bundle.spec import BuildSpec
from refusion_edge.errors import BackendError, CheckpointError, GateError, OutputError
from refusion_edge.export.build import build
from refusion_edge.network.checkpoint import Checkpoint, read_checkpoint, safetensors_bytes, write_safetensors
from refusion_edge.network.forms import Precision
from refusion_edge.network.graph import form_name
from refusion_edge.network.weights import weights_path
from refusion_edge.tasks import TASKS
from tests.conftest import ROOT, files_below, one_sentence
from tests.raising import raises

SMALL = (64, 96)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("task", TASKS)
def test_every_task_and_precision_passes_its_gate(task: str, precision: Precision) -> None:
    report = build(BuildSpec(task, precision, "onnxruntime", size_hw=SMALL))
    bundle = read_bundle(report.bundle.path)
    assert not report.cached
    assert bool(report.remarks) == (precision == "fp16")
    assert list(report.stages_s) == ["weights", "graph", "engine", "gate", "install"]
    assert bundle.path == Path(f"bundles/{task}-{precision}-onnxruntime-64x96")
    assert bundle.manifest.form == BACKENDS["onnxruntime"].forms[precision] == form_name(onnx.load(str(bundle.path / MODEL)))
    assert bundle.manifest.gate.pairs == len(report.gate) >= 1
    assert bundle.manifest.inputs[0].shape == (1, 1, 64, 96)
    assert np.array_equal(
        read_checkpoint(bundle.path / WEIGHTS).state["FM.qkv1.weight"],
        read_checkpoint(weights_path(task)).state["FM.qkv1.weight"],
    )
    model = onnx.load(str(bundle.path / MODEL))
    assert [value.name for value in model.graph.input] == ["a", "b"]


def test_the_engine_is_really_half_precision() -> None:
    """A gate that compared the reference with itself would print equal images."""
    report = build(BuildSpec("ir_vis", "fp16", size_hw=SMALL))
    assert all(40 < result.fidelity.psnr_db < 120 for result in report.gate)


def test_a_failed_gate_installs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LIMITS, "fp16", Limits(psnr_db=300, ssim=0.999, max_error=4))
    with raises(GateError, "fp16", remedy="--precision fp32", expected=LIMITS["fp16"]):
        build(BuildSpec("ir_vis", "fp16", size_hw=SMALL))
    assert files_below(Path("..")) == ["work"]


def test_an_engine_that_gives_nan_fails_its_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = OrtBackend.fuse
    calls = iter(range(100))
    # The engine is asked first for every pair, the reference second.
    monkeypatch.setattr(OrtBackend, "fuse", lambda self, a, b: honest(self, a, b) * (np.nan if next(calls) % 2 == 0 else 1))
    with raises(GateError, "fp32", remedy="'refusion-edge inspect'", expected=LIMITS["fp32"]):
        build(BuildSpec("ir_vis", "fp32", "onnxruntime", size_hw=SMALL))
    assert files_below(Path("..")) == ["work"]


def test_the_cache_answers_only_for_the_same_thing() -> None:
    spec = BuildSpec("medical", "fp32", size_hw=SMALL, output=Path("one"))
    first = build(spec)
    again = build(BuildSpec("medical", "fp32", size_hw=SMALL, output=Path("two")))
    assert (first.cached, again.cached) == (False, True)
    assert read_bundle("one").manifest == read_bundle("two").manifest
    assert not build(BuildSpec("medical", "fp32", size_hw=(64, 80), output=Path("three"))).cached
    assert not build(BuildSpec("medical", "fp32", size_hw=SMALL, output=Path("four"), use_cache=False)).cached


def test_a_damaged_cache_entry_is_built_anew_and_said() -> None:
    spec = BuildSpec("medical", "fp32", size_hw=SMALL, output=Path("one"))
    build(spec)
    (entry,) = (cache_folder() / "bundles").iterdir()
    (entry / MODEL).write_bytes(b"rot")
    report = build(spec)
    assert not report.cached
    assert "SHA-256" in report.remarks[0]
    assert build(spec).cached


def test_without_cache_nothing_is_stored() -> None:
    build(BuildSpec("medical", "fp32", size_hw=SMALL, use_cache=False))
    assert not cache_folder().exists()


def test_a_cache_that_cannot_be_written_does_not_stop_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("in_the_way").write_text("x")
    monkeypatch.setenv("REFUSION_EDGE_CACHE", "in_the_way")
    report = build(BuildSpec("medical", "fp32", size_hw=SMALL, output=Path("one")))
    assert "could not be cached" in report.remarks[0]
    assert read_bundle("one").manifest.task == "medical"


def test_own_weights_are_built_and_foreign_ones_refused(random_state: State) -> None:
    write_safetensors("own.safetensors", Checkpoint("medical", random_state))
    report = build(BuildSpec("medical", "fp32", size_hw=SMALL, weights=Path("own.safetensors")))
    packed = read_checkpoint(report.bundle.path / WEIGHTS)
    assert np.array_equal(packed.state["FM.qkv1.weight"], random_state["FM.qkv1.weight"])
    with raises(CheckpointError, "own.safetensors", remedy="--task medical", expected="ir_vis", got="medical"):
        build(BuildSpec("ir_vis", "fp32", weights=Path("own.safetensors")))
    with raises(BackendError, "tensorrt"):
        build(BuildSpec("ir_vis", "fp16", backend="tensorrt"))


def test_a_taken_name_is_refused_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("taken").write_text("x")
    monkeypatch.setattr("refusion_edge.export.build.read_checkpoint", lambda _: pytest.fail("worked for nothing"))
    with raises(OutputError, "taken", remedy="--output"):
        build(BuildSpec("ir_vis", "fp32", output=Path("taken")))


def start(*words: str, limit_kib: int | None = None) -> subprocess.Popen[str]:
    command = shlex.join([sys.executable, "-m", "refusion_edge", *words])
    limit = "" if limit_kib is None else f"ulimit -f {limit_kib}; "
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        ["bash", "-c", f"{limit}exec {command}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def wait_for_handler(pid: int) -> None:
    """Wait until the program has begun: until it catches SIGTERM, before which no code of ours runs."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        status = Path(f"/proc/{pid}/status").read_text()
        (caught,) = (line.split()[1] for line in status.splitlines() if line.startswith("SigCgt"))
        if int(caught, 16) >> (signal.SIGTERM - 1) & 1:
            return
        time.sleep(0.005)
    pytest.fail("the program never began")


def test_a_disk_that_fills_up_leaves_nothing_behind() -> None:
    """The model does not fit: the kernel itself refuses the write in the middle of the file."""
    process = start("build", "--precision", "fp32", "--backend", "onnxruntime", "--size", "64x96", limit_kib=100)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 4
    assert one_sentence(err)
    assert "bundles/ir_vis-fp32-onnxruntime-64x96" in err
    assert [name for name in files_below(Path("..")) if name not in ("work", "work/bundles")] == []


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("after_s", [0.1, 0.6, *(pytest.param(after_s, marks=pytest.mark.slow) for after_s in (0.0, 0.3, 1.2))])
def test_a_killed_build_leaves_nothing_half_written(signal_number: int, after_s: float) -> None:
    process = start("build", "--task", "ir_vis", "--precision", "fp16", "-o", "bundle")
    wait_for_handler(process.pid)
    time.sleep(after_s)
    process.send_signal(signal_number)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    if process.returncode == 0:  # it was faster
        read_bundle("bundle")
    else:
        # Python ends itself by SIGINT where the interrupt hit the import of a compiled module; a shell calls that 130 too.
        assert process.returncode in (130, -signal.SIGINT, -signal_number)
        assert files_below(Path("..")) == ["work"]


def test_a_build_killed_while_writing_leaves_no_bundle_and_the_next_one_cleans_up() -> None:
    """Stop a real build at the worst moment: all files are there but one, nothing is renamed yet."""
    script = (
        "import os, pathlib, signal\n"
        "from refusion_edge.cli import main\n"
        "write = pathlib.Path.write_text\n"
        "def die(self, *args, **options):\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if self.name == 'manifest.json' else None\n"
        "    return write(self, *args, **options)\n"
        "pathlib.Path.write_text = die\n"
        "main(['build', '--task', 'medical', '--precision', 'fp32', '--size', '64x96', '-o', 'bundle'])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    assert not Path("bundle").exists()
    assert len(files_below(Path())) > 0
    build(BuildSpec("medical", "fp32", size_hw=SMALL, output=Path("bundle")))
    assert sorted(entry.name for entry in Path().iterdir()) == ["bundle"]


def test_weights_in_a_bundle_do_not_change_from_build_to_build() -> None:
    checkpoint = read_checkpoint(weights_path("ir_vis"))
    assert safetensors_bytes(checkpoint) == weights_path("ir_vis").read_bytes()
