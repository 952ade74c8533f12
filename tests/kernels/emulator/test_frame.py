"""Whole frames through the back end ``fused``, its driver layer, its argument packing and its arena, in the emulator."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton", reason="the GPU kernels are compiled by Triton: pip install 'refusion-edge[triton]'")
pytest.importorskip("torch", reason="the operands come from a module that imports torch")

from refusion_edge.arrays import Float32Array, State
from refusion_edge.backends import fused as fused_module
from refusion_edge.backends.fused import FusedBackend
from refusion_edge.cuda.program import Program, SelfTest, Target
from refusion_edge.cuda.program_file import program_bytes
from refusion_edge.errors import BackendError, MisfitError
from refusion_edge.export.targets import ptx as ptx_module
from refusion_edge.export.targets.cubins import assemble, compile_targets
from refusion_edge.export.targets.ptx import with_ptx
from refusion_edge.images.color import to_output_range
from refusion_edge.kernels.emulator.compiled import is_built
from refusion_edge.kernels.emulator.counters import CLASSES, Counters, by_kernel, count
from refusion_edge.kernels.emulator.device import EmulatedDevice
from refusion_edge.kernels.emulator.findings import faults
from refusion_edge.kernels.gpu.folding import FoldedWeights, fold
from refusion_edge.kernels.gpu.kernel_sets import REFUSION, KernelSet
from refusion_edge.kernels.gpu.schedule import fuse_reference, make_schedule
from refusion_edge.kernels.gpu.simulated_device import DeviceMisuseError, SimulatedProgramDevice
from refusion_edge.network.checkpoint import read_checkpoint
from refusion_edge.network.family import NETWORKS
from refusion_edge.network.weights import weights_path
from refusion_edge.tasks import TASKS
from tests.fakes.programs import hollow_program
from tests.kernels.emulator.launches import CHOSEN, FAST_LAYOUT, SMALL, fast_state, kernels_of, ptx_target, why_not
from tests.raising import raises

if not is_built():
    pytest.skip("the PTX emulator was not built", allow_module_level=True)


def program_for(state: State, architecture: int) -> Program:
    """A program of PTX for either network; the self-test of the paper's is small, as it runs whenever an engine is opened."""
    program, kernels = hollow_program(state, architecture), kernels_of(state)
    program = dataclasses.replace(program, targets={architecture: ptx_target(architecture, kernels)})
    if kernels is not REFUSION:
        return program
    planes = planes_of(9, 70)
    weights = fold(state).rounded(np.dtype(np.float64))
    exact = fuse_reference(make_schedule("float64"), weights, planes.astype(np.float64))["fused"]
    test = SelfTest(planes, exact.astype(np.float32), program.self_test.tolerance)
    return dataclasses.replace(program, self_test=test)


def planes_of(height: int, width: int) -> Float32Array:
    return np.random.default_rng(height).random((2, height, width), np.float32)


def errors(kernels: KernelSet, folded: FoldedWeights, planes: Float32Array, fused: Float32Array) -> tuple[float, float]:
    """Largest difference from float64, of what was fused and of the reference in half precision."""
    wide = folded.rounded(np.dtype(np.float64))
    exact = fuse_reference(kernels.schedule("float64"), wide, planes.astype(np.float64))["fused"]
    half = fuse_reference(kernels.schedule("float16"), folded.rounded(np.dtype(np.float16)), planes)["fused"]
    return float(np.abs(fused - exact).max()), float(np.abs(half - exact).max())


def check_frames(state: State, architecture: int, sizes: tuple[tuple[int, int], ...], **options: Any) -> EmulatedDevice:
    if reason := why_not(architecture):
        pytest.skip(reason)
    kernels = kernels_of(state)
    program, folded = program_for(state, architecture), kernels.fold(state)
    device = EmulatedDevice(program, architecture, **options)
    with FusedBackend(program_bytes(program), driver=device) as engine:
        for size_hw in sizes:
            planes = planes_of(*size_hw)
            fused = engine.fuse(planes[:1, None], planes[1:, None])[0, 0].copy()
            error, of_half = errors(kernels, folded, planes, fused)
            # Sums in another order round differently, by about as much as half precision rounds at all.
            assert error <= 2 * of_half
            levels = engine.fuse_uint8(planes[:1, None], planes[1:, None])
            assert np.abs(levels - to_output_range(fused.copy(), "stretch")).max() <= 0.5 + 1e-3
    assert not faults(device.findings), [str(finding) for finding in faults(device.findings)]
    assert not device.held
    return device


def check_counters(device: EmulatedDevice, kernels: KernelSet) -> dict[str, Counters]:
    """Hold the counters of the last frame against each other."""
    launches = [launch.kernel for launch in kernels.schedule("float16").launches]
    # The self-test at opening, and two frames.
    assert [name for name, _ in device.results] == 3 * launches
    frame = count(result for _, result in device.results[-len(launches) :])
    assert frame.launches == len(launches)
    assert sum(frame.by_class.values()) == frame.warp_instructions
    assert frame.by_class.keys() == set(CLASSES)
    assert frame.shared_wavefronts >= frame.shared_wavefronts_least > 0
    assert frame.sectors_read >= frame.sectors_read_once_per_cta >= frame.sectors_read_once > 0
    parts = by_kernel(device.results[-len(launches) :])
    assert sum(part.warp_instructions for part in parts.values()) == frame.warp_instructions
    return parts


def test_a_frame_is_right_and_nothing_is_found() -> None:
    parts = check_counters(check_frames(fast_state(), 87, ((13, 37),)), SMALL)
    # Every pixel of the output once.
    assert parts["stretch"].global_bytes_written == 13 * 37


@pytest.mark.slow
def test_a_frame_of_the_papers_network_is_right_and_nothing_is_found(random_state: State) -> None:
    parts = check_counters(check_frames(random_state, 87, ((13, 37),)), REFUSION)
    # Every kernel writes its outputs once.
    assert parts["stem"].global_bytes_written == 13 * 37 * 2 * 16 * 2


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"backward": True}, {"integrated": True}])
def test_frames_of_odd_sizes_and_below_a_strip_are_right(random_state: State, options: dict[str, bool]) -> None:
    check_frames(random_state, 87, ((8, 8), (131, 13), (37, 9), (48, 64), (64, 17)), **options)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [one for one in CHOSEN if one != 87])
def test_a_frame_of_every_architecture_is_right(random_state: State, architecture: int) -> None:
    check_frames(random_state, architecture, ((19, 37), (48, 64)))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", CHOSEN)
def test_a_frame_of_the_network_fast_is_right_on_every_architecture(architecture: int) -> None:
    # Below a cell's window, and several strips in both directions.
    check_frames(fast_state(FAST_LAYOUT), architecture, ((8, 8), (61, 131), (131, 13)))


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_frame_with_the_weights_of_the_package_is_right(network: str, task: str) -> None:
    check_frames(read_checkpoint(weights_path(task, network)).state, 87, ((33, 47),))


# ---- what a wrong host would do; the device that runs the references sees most of it, and the checker the rest


@pytest.mark.parametrize(
    "change",
    [
        lambda honest: lambda p, v, h: honest(p, v, h)[:-8],
        lambda honest: lambda p, v, h: honest(p, [v[0] + 256, *v[1:]], h),
        lambda honest: lambda p, v, h: honest(p, [*v[:-2], v[-1] % 1000, v[-2] % 1000], h),
    ],
    ids=["too short", "another buffer", "another order"],
)
def test_wrong_arguments_are_noticed(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    monkeypatch.setattr(fused_module, "pack", change(fused_module.pack))
    program = program_for(fast_state(), 87)
    with pytest.raises(DeviceMisuseError):
        FusedBackend(program_bytes(program), driver=EmulatedDevice(program, 87))


def test_a_column_of_strips_that_is_missing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # The device checks the grid; without that check, the bytes that nobody wrote are noticed where they are used.
    program = program_for(fast_state(), 87)
    honest = EmulatedDevice.compute

    def fewer(self: EmulatedDevice, call: Any) -> None:
        x, y, z = call.grid
        honest(self, dataclasses.replace(call, grid=(x - 1, y, z)) if call.kernel.name == "fast_convolutions" else call)

    monkeypatch.setattr(EmulatedDevice, "compute", fewer)
    device = EmulatedDevice(program, 87)
    with pytest.raises(BackendError):  # the self-test fails, too
        FusedBackend(program_bytes(program), driver=device)
    assert "undefined_store" in {finding.kind for finding in device.findings}


def test_an_output_that_is_not_complete_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    program = program_for(fast_state(), 87)
    honest = EmulatedDevice.compute

    def fewer(self: EmulatedDevice, call: Any) -> None:
        x, y, z = call.grid
        honest(self, dataclasses.replace(call, grid=(x - 1, y, z)) if call.kernel.name == "stretch" else call)

    monkeypatch.setattr(EmulatedDevice, "compute", fewer)
    device = EmulatedDevice(program, 87)
    FusedBackend(program_bytes(program), driver=device).__exit__()
    (finding,) = faults(device.findings)
    assert finding.kind == "undefined_output"
    assert finding.kernel == "stretch_kernel"
    assert finding.place.startswith("levels")


# ---- where the PTX comes from


@pytest.mark.slow
def test_a_program_of_machine_code_gets_the_ptx_that_it_was_assembled_from(random_state: State) -> None:
    program = assemble(fold(random_state), hollow_model(), compile_targets([87], jobs=2))
    found = with_ptx(program, 87)
    for name, binary in ptx_target(87).binaries.items():
        assert found.targets[87].binaries[name] == binary
    # PTX stays what it is.
    assert with_ptx(found, 87).targets[87] == found.targets[87]
    with raises(BackendError, "sm_90", expected=(87,), got=90):
        with_ptx(program, 90)
    older = dataclasses.replace(program, model={"triton": "3.6.0"})
    with raises(MisfitError, "3.6.0", got="3.6.0"):
        with_ptx(older, 87)
    with raises(MisfitError, "stem", remedy="build"):
        with_ptx(dataclasses.replace(program, targets={87: changed(program.targets[87], "stem")}), 87)


def hollow_model() -> dict[str, str]:
    import importlib.metadata

    return {"task": "medical", "triton": importlib.metadata.version("triton")}


def changed(target: Target, name: str) -> Target:
    binary = target.binaries[name]
    other = dataclasses.replace(binary, image=binary.image[:-1] + bytes([binary.image[-1] ^ 1]))
    return dataclasses.replace(target, binaries={**target.binaries, name: other})


def changed_text(program: Program, name: str, old: str, new: str) -> Program:
    """A program whose PTX of one kernel has every occurrence of a text replaced."""
    (target,) = program.targets.values()
    binary = target.binaries[name]
    assert old.encode() in binary.image
    other = dataclasses.replace(binary, image=binary.image.replace(old.encode(), new.encode()))
    return dataclasses.replace(
        program, targets={target.architecture: dataclasses.replace(target, binaries={**target.binaries, name: other})}
    )


def test_machine_code_without_its_ptx_needs_triton(random_state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    program = hollow_program(random_state, 87)
    first = dataclasses.replace(program.targets[87].binaries["stem"], image=b"\x7fELF")
    target = dataclasses.replace(program.targets[87], binaries={**program.targets[87].binaries, "stem": first})

    def absent(name: str) -> str:
        raise ptx_module.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(ptx_module.importlib.metadata, "version", absent)
    with raises(BackendError, "Triton", remedy="refusion-edge[triton]"):
        with_ptx(dataclasses.replace(program, targets={87: target}), 87)


def test_machine_code_is_not_executed() -> None:
    program = program_for(fast_state(), 87)
    cubin = dataclasses.replace(program.targets[87].binaries["stretch"], image=b"\x7fELF\x02\x01\x01\xff")
    target = dataclasses.replace(program.targets[87], binaries={**program.targets[87].binaries, "stretch": cubin})
    program = dataclasses.replace(program, targets={87: target})
    with raises(BackendError, "stretch_kernel", remedy="with_ptx"):
        FusedBackend(program_bytes(program), driver=EmulatedDevice(program, 87))


def test_the_kernel_in_a_module_has_to_be_the_one_that_is_asked_for() -> None:
    program = program_for(fast_state(), 87)
    stretch = dataclasses.replace(program.targets[87].binaries["stretch"], symbol="elsewhere")
    target = dataclasses.replace(program.targets[87], binaries={**program.targets[87].binaries, "stretch": stretch})
    program = dataclasses.replace(program, targets={87: target})
    with pytest.raises(DeviceMisuseError, match="elsewhere"):
        FusedBackend(program_bytes(program), driver=EmulatedDevice(program, 87))


@pytest.mark.slow
def test_without_the_hook_the_device_runs_the_references(random_state: State) -> None:
    program = program_for(random_state, 87)
    planes = planes_of(9, 17)
    results = []
    for device in (SimulatedProgramDevice(program, 87), EmulatedDevice(program, 87)):
        with FusedBackend(program_bytes(program), driver=device) as engine:
            results.append(engine.fuse(planes[:1, None], planes[1:, None]).copy())
    assert not np.array_equal(*results)
    assert np.abs(results[0] - results[1]).max() <= 1.6e-2
