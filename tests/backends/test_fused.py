"""The back end ``fused`` on a device that checks everything and computes with the reference of every kernel."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from refusion_edge import cuda
from refusion_edge.accuracy.gate import compare
from refusion_edge.arrays import Float32Array, State
from refusion_edge.backends import fused as fused_module
from refusion_edge.backends.fused import FusedBackend, choose_target, probe
from refusion_edge.backends.registry import Status, Uint8OutputBackend, open_weights
from refusion_edge.cuda.driver import Device, HostBuffer
from refusion_edge.cuda.program import Parameter, Program, pack, unpack
from refusion_edge.cuda.program_file import parse_program, program_bytes
from refusion_edge.errors import BackendError, BundleError, GateError, MisfitError, ShapeError
from refusion_edge.fuser import Fuser
from refusion_edge.images.color import to_output_range
from refusion_edge.kernels.gpu.simulated_device import DeviceMisuseError, SimulatedProgramDevice
from refusion_edge.network.fast import FastLayout, reference
from refusion_edge.tasks import find_task
from tests.conftest import TOLERANCE
from tests.fakes.programs import hollow_program, hollow_target, stored_program
from tests.raising import raises


@pytest.fixture(scope="module")
def program(random_state: State) -> Program:
    return hollow_program(random_state, 87)


def pair(height: int, width: int, seed: int = 0) -> tuple[Float32Array, Float32Array]:
    draw = np.random.default_rng(seed)
    return draw.random((1, 1, height, width), np.float32), draw.random((1, 1, height, width), np.float32)


@pytest.mark.parametrize("integrated", [True, False])
def test_a_whole_frame_equals_the_network_at_any_size(random_state: State, program: Program, integrated: bool) -> None:
    device = SimulatedProgramDevice(program, 87, integrated=integrated)
    with FusedBackend(program_bytes(program), driver=device) as engine, open_weights(random_state) as reference:
        for size_hw in ((8, 8), (13, 131), (37, 9), (13, 131)):
            a, b = pair(*size_hw)
            expected = reference.fuse(a, b)
            fused = engine.fuse(a, b)
            assert expected.std() > 0.05
            assert fused.shape == expected.shape
            assert fused.dtype == np.float32
            assert np.abs(fused - expected).max() <= TOLERANCE["fp16"]
            stretched = to_output_range(fused[0, 0].copy(), "stretch")
            assert np.abs(engine.fuse_uint8(a, b) - stretched).max() <= 0.5 + 1e-3
            again = engine.fuse(a, b).copy()
            assert np.array_equal(again, engine.fuse(a, b))
    assert not device.held


@pytest.mark.parametrize(("integrated", "stages"), [(True, ["infer"]), (False, ["h2d", "infer", "d2h"])])
def test_the_device_times_its_stages_where_it_is_asked_to(program: Program, integrated: bool, stages: list[str]) -> None:
    device = SimulatedProgramDevice(program, 87, integrated=integrated)
    a, b = pair(9, 17)
    with FusedBackend(program_bytes(program), driver=device) as engine:
        expected = engine.fuse(a, b).copy()
        assert engine.device_stages_ms() == {}
        engine.time_stages()
        for _ in range(2):
            assert np.array_equal(engine.fuse(a, b), expected)
            times_ms = engine.device_stages_ms()
            assert list(times_ms) == stages
            assert all(time_ms > 0 for time_ms in times_ms.values())
            # 25 kernels on the processor take longer than two copies of some kilobytes.
            assert max(times_ms, key=times_ms.__getitem__) == "infer"
    assert not device.held


def test_a_fuser_takes_the_levels_of_the_last_kernel_for_gray_results(program: Program) -> None:
    draw = np.random.default_rng(3)
    a, b = (draw.integers(0, 256, (13, 40), np.uint8) for _ in range(2))
    with Fuser(FusedBackend(program_bytes(program), driver=SimulatedProgramDevice(program, 87)), find_task("medical")) as fuser:
        assert isinstance(fuser.backend, Uint8OutputBackend)
        found = fuser.fuse(a, b)
        planes = fuser.to_planes(a, b)
        assert np.abs(found.astype(int) - fuser.to_image(fuser.backend.fuse(planes.a, planes.b), planes)).max() <= 1
        again = found.copy()
        fuser.fuse(b, a)
        assert np.array_equal(found, again)


def test_levels_of_what_is_not_finite_are_refused(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = pair(9, 17)
    with FusedBackend(program_bytes(program), driver=SimulatedProgramDevice(program, 87)) as engine:
        monkeypatch.setattr(SimulatedProgramDevice, "download", lambda self, buffer, *_: buffer.array.fill(0xFF))
        engine.fuse(a, b)
        engine.time_stages()  # so that it is recorded anew
        with raises(GateError, "fused"):
            engine.fuse_uint8(a, b)


def test_a_program_of_an_earlier_version_runs_and_passes_its_self_test() -> None:
    stored = stored_program()
    device = SimulatedProgramDevice(parse_program(stored), 87)
    with FusedBackend(stored, driver=device) as engine:
        assert np.isfinite(engine.fuse(*pair(9, 17))).all()


@pytest.mark.parametrize("integrated", [True, False])
@pytest.mark.parametrize("layout", [FastLayout(), FastLayout(16, 3, 4)])
def test_the_network_fast_at_any_size(integrated: bool, layout: FastLayout) -> None:
    draw = np.random.default_rng(0)
    state = {name: draw.normal(0, 0.1, shape).astype(np.float32) for name, shape in layout.shapes.items()}
    program = hollow_program(state, 87)
    device = SimulatedProgramDevice(program, 87, integrated=integrated)
    with FusedBackend(program_bytes(program), driver=device) as engine:
        for size_hw in ((8, 8), (37, 9), (131, 240), (13, 131)):
            a, b = pair(*size_hw)
            expected = reference(state, a[0, 0], b[0, 0])
            fused = engine.fuse(a, b)[0, 0].copy()
            assert compare(fused, expected.astype(np.float32)).psnr_db >= 60
            assert np.abs(engine.fuse_uint8(a, b) - to_output_range(fused, "stretch")).max() <= 0.5 + 1e-3
        a[0, 0, 4, 4] = np.nan
        with raises(GateError, "fused"):
            engine.fuse_uint8(a, b)
    assert not device.held


def test_sources_are_not_changed_and_may_be_read_only(program: Program) -> None:
    a, b = pair(9, 17)
    before = a.copy()
    a.flags.writeable = b.flags.writeable = False
    with FusedBackend(program_bytes(program), driver=SimulatedProgramDevice(program, 87)) as engine:
        engine.fuse(a, b)
    assert np.array_equal(a, before)


def test_any_thread_may_fuse_and_none_unasked(program: Program) -> None:
    device, (a, b) = SimulatedProgramDevice(program, 87), pair(9, 17)
    with FusedBackend(program_bytes(program), driver=device) as engine, ThreadPoolExecutor(1) as elsewhere:
        # The stream opens its engine in one thread and runs it in another, where the size may be a new one.
        fused = elsewhere.submit(lambda: engine.fuse(a, b).copy()).result()
        assert np.array_equal(engine.fuse(a, b), fused)
        with pytest.raises(DeviceMisuseError):
            elsewhere.submit(device.synchronize, 1).result()
    assert not device.held


def test_a_program_for_an_older_device_of_the_same_family_runs(program: Program, random_state: State) -> None:
    older = hollow_program(random_state, 80)
    FusedBackend(program_bytes(older), driver=SimulatedProgramDevice(older, 87)).__exit__()


@pytest.mark.parametrize(
    ("built_for", "here", "remedy"),
    [
        ((90, 120), 87, "--arch sm_87"),
        ((87,), 86, "--arch sm_86"),
        ((90,), 100, "another back end"),
        ((90,), 75, "another back end"),
        ((110,), 120, "--arch sm_120"),
        ((110,), 121, "another back end"),
    ],
)
def test_a_device_without_kernels_is_explained(program: Program, built_for: tuple[int, ...], here: int, remedy: str) -> None:
    targets = {architecture: hollow_target(architecture) for architecture in built_for}
    device = Device("Orin", f"{here // 10}.{here % 10}", integrated=True, maps_host_memory=True, driver="13.0")
    with raises(MisfitError, "Orin", remedy=remedy, expected=built_for, got=here):
        choose_target(dataclasses.replace(program, targets=targets), device)


def test_a_driver_that_is_too_old_is_explained(program: Program) -> None:
    with raises(MisfitError, remedy="driver", expected=12000, got=11040):
        FusedBackend(program_bytes(program), driver=SimulatedProgramDevice(program, 87, driver_version=11040))


def test_a_device_that_computes_wrongly_is_found_before_the_first_frame(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = SimulatedProgramDevice.download

    def wrong(self: SimulatedProgramDevice, buffer: HostBuffer, pointer: int, stream: int) -> None:
        honest(self, buffer, pointer, stream)
        self.start("spoil", lambda: buffer.array.__setitem__(slice(0, 4), 0xFF), stream)

    monkeypatch.setattr(SimulatedProgramDevice, "download", wrong)
    device = SimulatedProgramDevice(program, 87)
    with raises(BackendError, "sm_87", expected=program.self_test.tolerance):
        FusedBackend(program_bytes(program), driver=device)
    assert not device.held


def test_what_cannot_be_fused_is_refused(program: Program) -> None:
    with FusedBackend(program_bytes(program), driver=SimulatedProgramDevice(program, 87)) as engine:
        a, b = pair(12, 16)
        planes, sides = ((1, 1, "H", "W"), "float32"), (8, 16384)
        for first, second, expected, got in (
            (np.concatenate([a, a]), np.concatenate([b, b]), planes, ((2, 1, 12, 16), "float32")),
            (a[0, 0], b[0, 0], planes, ((12, 16), "float32")),
            (a[..., None], b[..., None], planes, ((1, 1, 12, 16, 1), "float32")),
            (a.astype(np.float64), b, planes, ((1, 1, 12, 16), "float64")),
            (a, b.astype(np.float64), planes, ((1, 1, 12, 16), "float64")),
            (a, b[..., :-1], (12, 16), (12, 15)),
            (a[..., :7], b[..., :7], sides, (12, 7)),
            (np.zeros((1, 1, 8, 20000), np.float32), np.zeros((1, 1, 8, 20000), np.float32), sides, (8, 20000)),
        ):
            with raises(ShapeError, expected=expected, got=got):
                engine.fuse(first, second)
        transposed = np.ascontiguousarray(a.transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2)
        assert not transposed.flags.c_contiguous
        assert np.array_equal(engine.fuse(transposed, b).copy(), engine.fuse(a, b))


def test_a_program_with_other_inputs_is_refused(program: Program) -> None:
    buffers = dict(program.schedule.buffers)
    buffers["levels"] = dataclasses.replace(buffers["levels"], role="scratch")
    other = dataclasses.replace(program, schedule=dataclasses.replace(program.schedule, buffers=buffers))
    with raises(BundleError, "levels"):
        FusedBackend(program_bytes(other), driver=SimulatedProgramDevice(other, 87))


# What a wrong loader could do, one thing at a time; the device has to see each.
def _wrong_order(values: list[Any]) -> list[Any]:
    return [*values[:-2], values[-1] % 1000, values[-2] % 1000]


@pytest.mark.parametrize(
    "change",
    [
        lambda honest: lambda p, v, h: honest(p, v, h)[:-8],
        lambda honest: lambda p, v, h: honest(p, [v[0] + 256, *v[1:]], h),
        lambda honest: lambda p, v, h: honest(p, [v[0], v[1] + 256, *v[2:]], h),
        lambda honest: lambda p, v, h: honest(p, _wrong_order(v), h),
    ],
    ids=["too short", "another first buffer", "another second buffer", "another order"],
)
def test_the_device_notices_wrong_arguments(program: Program, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    monkeypatch.setattr(fused_module, "pack", change(fused_module.pack))
    with pytest.raises(DeviceMisuseError):
        FusedBackend(program_bytes(program), driver=SimulatedProgramDevice(program, 87))


def test_the_device_notices_memory_that_is_shared_too_early(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = fused_module.lay_out

    def crammed(*given: Any) -> Any:
        arena = honest(*given)
        return dataclasses.replace(arena, offsets=dict.fromkeys(arena.offsets, 0))

    monkeypatch.setattr(fused_module, "lay_out", crammed)
    with pytest.raises(DeviceMisuseError):
        FusedBackend(program_bytes(program), driver=SimulatedProgramDevice(program, 87))


def test_the_device_notices_launches_in_another_order(program: Program) -> None:
    launches = program.schedule.launches
    swapped = dataclasses.replace(program.schedule, launches=(*launches[:-1], launches[-2]))
    device = SimulatedProgramDevice(dataclasses.replace(program, schedule=swapped), 87)
    with pytest.raises(DeviceMisuseError):
        FusedBackend(program_bytes(program), driver=device)


def test_arguments_lie_where_the_driver_expects_them() -> None:
    parameters = [Parameter("x", "float16*"), Parameter("height", "int32"), Parameter("y", "float32*"), Parameter("n", "int32")]
    block = pack(parameters, [1 << 40, -2, 3, 4], 2)
    assert block == b"".join(
        value.to_bytes(size, "little", signed=True)
        for value, size in ((1 << 40, 8), (-2, 4), (0, 4), (3, 8), (4, 4), (0, 4), (0, 8), (0, 8))
    )
    assert unpack(parameters, block, 2) == [1 << 40, -2, 3, 4]


def test_a_machine_without_device_or_binding_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "installed", lambda: None)
    assert "pip install" in probe().fix
    monkeypatch.setattr(cuda, "installed", lambda: "pycuda")
    monkeypatch.setattr(cuda, "problem", lambda: "the NVIDIA driver finds no device here")
    assert probe() == Status(usable=False, reason="the NVIDIA driver finds no device here")
    monkeypatch.setattr(cuda, "problem", lambda: None)
    monkeypatch.setattr(fused_module, "accelerator", lambda: "Orin")
    assert probe() == Status(usable=True, reason="pycuda on Orin")


def test_a_machine_without_driver_is_explained(program: Program) -> None:
    if cuda.problem() is None:
        pytest.skip("there is a device")
    with raises(BackendError, "CUDA"):
        FusedBackend(program_bytes(program))
