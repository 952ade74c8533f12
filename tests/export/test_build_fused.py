"""Building for the back end ``fused`` where there is no GPU: the file itself goes through the gate."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from refusion_edge import cuda
from refusion_edge.accuracy.gate import LIMITS, compare
from refusion_edge.arrays import Array, State
from refusion_edge.backends import fused
from refusion_edge.backends.registry import Status, open_weights
from refusion_edge.bundle.folder import read_bundle
from refusion_edge.bundle.manifest import MODEL, PROGRAM, WEIGHTS
from refusion_edge.bundle.spec import BuildSpec
from refusion_edge.cuda.driver import Device
from refusion_edge.cuda.program import Target
from refusion_edge.cuda.program_file import parse_program
from refusion_edge.errors import BackendError, CheckpointError, GateError, UsageError
from refusion_edge.export.build import build
from refusion_edge.export.targets import cubins as program_module
from refusion_edge.fuser import Fuser, load
from refusion_edge.kernels.gpu.kernel_sets import KernelSet
from refusion_edge.kernels.gpu.simulated_device import DeviceMisuseError, SimulatedDevice, SimulatedProgramDevice
from refusion_edge.machine import ARCHITECTURES
from refusion_edge.network.checkpoint import Checkpoint, write_safetensors
from refusion_edge.network.fast import FastLayout
from refusion_edge.tasks import TASKS
from tests.conftest import files_below, one_sentence
from tests.fakes.programs import hollow_target
from tests.raising import raises

SMALL = (32, 48)


@pytest.fixture(autouse=True)
def _without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that are no machine code: what compiles them has tests of its own."""

    def compile_hollow(architectures: Iterable[int], *, jobs: int, kernels: KernelSet) -> dict[int, Target]:
        assert jobs >= 1
        return {architecture: hollow_target(architecture, kernels=kernels) for architecture in architectures}

    monkeypatch.setattr(program_module, "compile_targets", compile_hollow)
    monkeypatch.setattr(program_module.importlib.metadata, "version", lambda _: "3.9.0")
    monkeypatch.setattr(fused, "probe_build", lambda: Status(usable=True, reason="Triton 3.9.0"))
    monkeypatch.setattr(fused, "probe", lambda: Status(usable=False, reason="no NVIDIA device"))


def spec(task: str = "medical", **more: Any) -> BuildSpec:
    # The modules above are nothing that an emulator could execute; `test_gate_proxies.py` is about those that are.
    return BuildSpec(task, backend="fused", **{"size_hw": SMALL, "architectures": (87, 110), "proxy": "reference", **more})


@pytest.mark.parametrize("task", TASKS)
def test_every_task_passes_its_gate_with_room(task: str) -> None:
    report = build(spec(task))
    bundle = read_bundle(report.bundle.path)
    assert {MODEL, WEIGHTS, PROGRAM} == bundle.manifest.files.keys()
    assert (bundle.manifest.backend, bundle.manifest.engine) == ("fused", PROGRAM)
    assert "This machine has no GPU" in report.remarks[0]
    program = parse_program(bundle.read(PROGRAM))
    assert list(program.targets) == [87, 110]
    assert program.model["weights_sha256"] == bundle.manifest.weights_sha256
    assert all(result.fidelity.psnr_db >= 70 for result in report.gate)
    # Not equal either: the gate evaluates half precision, not the reference against itself.
    assert all(result.fidelity.psnr_db < 110 for result in report.gate)


def test_a_bundle_fuses_images_on_its_device(monkeypatch: pytest.MonkeyPatch, picture: Callable[..., Array]) -> None:
    report = build(spec())
    data = report.bundle.read(PROGRAM)
    monkeypatch.setattr(fused, "probe", lambda: Status(usable=True, reason="pretended"))
    monkeypatch.setattr(cuda, "open_driver", lambda: SimulatedProgramDevice(parse_program(data), 87, integrated=True))
    a, b = picture(33, 47), picture(33, 47)
    with load(report.bundle.path) as fuser, load("medical") as reference:
        assert isinstance(fuser, Fuser)
        assert fuser.backend.name == "fused"
        error = np.abs(fuser.fuse(a, b).astype(int) - reference.fuse(a, b).astype(int))
    assert error.max() <= 2


def test_verify_can_evaluate_the_launches_without_a_device(run_cli: Callable[..., tuple[int, str, str]]) -> None:
    path = build(spec()).bundle.path
    code, _, err = run_cli("verify", path)
    assert (code, one_sentence(err)) == (3, True)
    code, out, _ = run_cli("verify", path, "--proxy", "--json", "-")
    document = json.loads(out)
    assert (code, document["proxy"], document["backend"]) == (0, True, "fused")
    # Half precision on the plain references: neither the reference itself nor the engine.
    assert all(70 <= pair["psnr_db"] < 110 for pair in document["pairs"].values())
    assert "fp16 on its launches on the CPU against fp32" in run_cli("verify", path, "--proxy")[1]


def test_a_bundle_is_refused_where_there_is_no_device() -> None:
    report = build(spec())
    with raises(BackendError, "fused", "NVIDIA"):
        load(report.bundle.path)


def test_the_architectures_are_part_of_the_key_of_the_cache() -> None:
    assert not build(spec(output=Path("one"))).cached
    assert build(spec(output=Path("two"))).cached
    assert not build(spec(output=Path("three"), architectures=(87,))).cached


@pytest.mark.parametrize(
    ("options", "remedy", "expected", "got"),
    [
        ({"precision": "fp32"}, "--precision fp16", ("fp16",), "fp32"),
        ({"architectures": None}, "--arch sm_87", None, None),
        ({"backend": "onnxruntime"}, "", "fused", "onnxruntime"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_any_work(
    options: dict[str, Any], remedy: str, expected: object, got: object
) -> None:
    with raises(UsageError, remedy=remedy, expected=expected, got=got):
        build(BuildSpec(**{"task": "medical", "backend": "fused", "architectures": (87,), **options}))
    assert files_below(Path("..")) == ["work"]


@pytest.mark.parametrize(("capability", "architecture"), [("7.5", None), ("10.3", None), ("8.8", 87), ("9.0", 90)])
def test_kernels_are_compiled_for_the_device_that_is_here(
    monkeypatch: pytest.MonkeyPatch, capability: str, architecture: int | None
) -> None:
    device = Device("GPU of the tests", capability, integrated=False, maps_host_memory=True, driver="12.6")
    monkeypatch.setattr(fused, "probe", lambda: Status(usable=True, reason="pretended"))
    monkeypatch.setattr(cuda, "open_driver", lambda: SimulatedDevice(device))
    asked: list[int] = []
    compile_hollow = program_module.compile_targets
    monkeypatch.setattr(
        program_module, "compile_targets", lambda some, **how: asked.extend(some) or compile_hollow(some, **how)
    )
    if architecture is None:
        with raises(BackendError, "GPU of the tests", expected=ARCHITECTURES, got=int(capability.replace(".", ""))):
            build(spec(architectures=None, proxy=None))
    else:
        # What follows opens the program on this device, which knows nothing of its kernels.
        with pytest.raises(DeviceMisuseError):
            build(spec(architectures=None, proxy=None))
    assert asked == ([] if architecture is None else [architecture])


def test_weights_beyond_half_precision_are_refused(random_state: State) -> None:
    state = {**random_state, "encoder1.0.attn.qkv.weight": random_state["encoder1.0.attn.qkv.weight"] * 1e6}
    write_safetensors("large.safetensors", Checkpoint("medical", state))
    # The graph of the bundle is in half precision, too, and is the first to say so.
    with raises(CheckpointError, "encoder1.0.attn.qkv.weight", "float16", remedy="--precision fp32"):
        build(spec(weights=Path("large.safetensors")))
    assert not Path("bundles").exists()


def test_a_kernel_that_computes_wrongly_does_not_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = fused.FusedBackend.fuse
    monkeypatch.setattr(fused.FusedBackend, "fuse", lambda self, a, b: honest(self, a, b) + 0.019 * (a.shape[2] == SMALL[0]))
    with raises(GateError, "fp16", remedy="--precision fp32", expected=LIMITS["fp16"]):
        build(spec())
    assert files_below(Path("..")) == ["work"]


def test_the_network_fast_passes_its_gate_with_room(run_cli: Callable[..., tuple[int, str, str]]) -> None:
    report = build(spec("ir_vis", network="fast"))
    assert all(75 <= result.fidelity.psnr_db < 110 for result in report.gate)
    bundle = read_bundle(report.bundle.path)
    assert (bundle.manifest.spec.network, bundle.manifest.form) == ("fast", "fast")
    assert "--network fast" in bundle.rebuild_command()
    program = parse_program(bundle.read(PROGRAM))
    assert [launch.kernel for launch in program.schedule.launches] == ["fast_statistics", "fast_convolutions", "stretch"]
    code, out, _ = run_cli("inspect", bundle.path / PROGRAM, "--json", "-")
    facts = json.loads(out)
    assert (code, facts["network"], facts["launches"], facts["task"]) == (0, "fast", 3, "ir_vis")
    code, out, _ = run_cli("verify", bundle.path, "--proxy", "--json", "-")
    assert (code, json.loads(out)["network"]) == (0, "fast")


def test_a_layout_without_kernels_is_refused_before_any_work() -> None:
    draw = np.random.default_rng(0)
    layout = FastLayout(channels=48, convolutions=3, factor=4)
    state = {name: draw.normal(0, 0.05, shape).astype(np.float32) for name, shape in layout.shapes.items()}
    write_safetensors("wide.safetensors", Checkpoint("ir_vis", state))
    with raises(UsageError, "fused", remedy="tensorrt", expected=32, got=48):
        build(spec("ir_vis", network="fast", weights=Path("wide.safetensors")))
    assert not Path("bundles").exists()


def test_weights_of_fast_beyond_half_precision_are_refused() -> None:
    layout = FastLayout(8, 3)
    state = {name: np.full(shape, 1e5, np.float32) for name, shape in layout.shapes.items()}
    write_safetensors("large.safetensors", Checkpoint("ir_vis", state))
    with raises(CheckpointError, "layers.0.weight", "float16", remedy="--precision fp32"):
        build(spec("ir_vis", network="fast", weights=Path("large.safetensors")))


@pytest.mark.parametrize("task", ["IVIF", "MIF", "MFIF", "MEIF"])
def test_half_precision_keeps_70_db_on_real_pairs_with_official_weights(shared_data: Path, task: str) -> None:
    from refusion_edge.kernels.gpu.folding import fold
    from refusion_edge.kernels.gpu.schedule import FUSED, fuse_reference, make_schedule
    from refusion_edge.network.checkpoint import read_checkpoint

    state = read_checkpoint(shared_data / f"reference/checkpoints/ReFusion_{task}.pth").state
    golden = np.load(shared_data / f"reference/golden/{task}_crop_97x131.npz")
    weights = fold(state).rounded(np.dtype(np.float16))
    emulated = fuse_reference(make_schedule(), weights, golden["input"][0])[FUSED]
    assert compare(emulated, golden["raw"][0, 0]).psnr_db >= 70
    with open_weights(state) as engine:
        exact = engine.fuse(golden["input"][:, :1], golden["input"][:, 1:])[0, 0]
    assert 70 <= compare(emulated, exact).psnr_db < 110
