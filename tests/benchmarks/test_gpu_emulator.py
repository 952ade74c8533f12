"""The comparison of a device with the emulator: the emulator itself and the reference kernels take the place of the device."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton", reason="the GPU kernels are compiled by Triton: pip install 'refusion-edge[triton]'")
pytest.importorskip("torch", reason="the operands come from a module that imports torch")

from benchmarks import gpu_emulator
from benchmarks.gpu_emulator import Recording, Snapshot, compare, difference, half_spacing, load, main, record, store
from refusion_edge.arrays import State
from refusion_edge.cuda.program import Program
from refusion_edge.cuda.program_file import program_bytes
from refusion_edge.errors import BackendError, InputError
from refusion_edge.kernels.emulator.compiled import is_built
from refusion_edge.kernels.emulator.device import EmulatedDevice
from refusion_edge.kernels.gpu.simulated_device import SimulatedProgramDevice
from tests.kernels.emulator.launches import SMALL, fast_state
from tests.kernels.emulator.test_frame import changed_text, planes_of, program_for

if not is_built():
    pytest.skip("the PTX emulator was not built", allow_module_level=True)

SIZE = 13, 37
LAUNCHES = [launch.kernel for launch in SMALL.schedule("float16").launches]


@functools.cache
def recorded() -> tuple[Program, Recording]:
    program = program_for(fast_state(), 87)
    return program, record(program, 87, "fast", planes_of(*SIZE))


@pytest.mark.parametrize(
    ("alone", "integrated"),
    [
        (True, False),
        (False, True),
        pytest.param(True, True, marks=pytest.mark.slow),
        pytest.param(False, False, marks=pytest.mark.slow),
    ],
)
def test_the_emulator_has_the_bits_of_its_recording(alone: bool, integrated: bool) -> None:
    program, recording = recorded()
    device = EmulatedDevice(program, 87, integrated=integrated)
    rows = compare(program, program_bytes(program), recording, device, alone=alone)
    assert {row["kernel"] for row in rows} == set(LAUNCHES)
    assert [(row["different"], row["ulps"] or 0, row["error"], row["good"]) for row in rows] == [(0, 0, 0, True)] * len(rows)
    assert all(row["elements"] > 0 for row in rows)
    assert rows[-1] == {
        "network": "fast", "size_hw": list(SIZE), "mode": "alone" if alone else "frame", "launch": 2, "kernel": "stretch",
        "buffer": "levels", "dtype": "uint8", "elements": 13 * 37, "different": 0, "ulps": None, "error": 0.0,
        "limit": 1.0 if alone else None, "good": True,
    }  # fmt: skip
    assert not device.held


def test_a_device_that_rounds_otherwise_is_good_and_differs_in_bits() -> None:
    program, recording = recorded()
    rows = compare(program, program_bytes(program), recording, SimulatedProgramDevice(program, 87), alone=True)
    assert all(row["good"] for row in rows)
    assert any(row["different"] for row in rows)
    assert all(row["ulps"] < 2000 for row in rows if row["ulps"] is not None)


@pytest.mark.slow
def test_a_difference_is_seen_at_its_launch_alone_and_in_every_later_one_of_the_frame() -> None:
    program, recording = recorded()

    class Wrong(EmulatedDevice):
        def compute(self, call: Any) -> None:
            super().compute(call)
            # The self-test and the frame in between stay right.
            if call.kernel.name == "fast_statistics" and self.frames == 2:
                next(values for name, values in call.arguments.items() if name == "partial_ptr")[:] *= 1.5
            self.frames += call.kernel.name == "stretch"

        frames = 0

    for alone, wrong in ((True, {"fast_statistics"}), (False, set(LAUNCHES))):
        rows = compare(program, program_bytes(program), recording, Wrong(program, 87), alone=alone)
        assert {row["kernel"] for row in rows if row["different"]} == wrong
        # In a frame only the output has a limit.
        assert {row["kernel"] for row in rows if not row["good"]} == (wrong if alone else {"fast_convolutions"})


def test_only_defined_values_are_compared_and_nan_is_never_good() -> None:
    values = np.array([1, 2, np.nan, 4], np.float16)
    defined = np.repeat(np.array([1, 1, 0, 1], np.uint8), 2)
    snapshot = Snapshot(0, "features", values.view(np.uint8), defined)
    other = values.copy()
    other[2] = 7
    same = difference(other.view(np.uint8), snapshot, "float16", 4e-3)
    assert same == {"elements": 3, "different": 0, "ulps": 0.0, "error": 0.0, "limit": 4e-3, "good": True}
    other[1] = np.nextafter(np.float16(2), np.float16(3))
    one = difference(other.view(np.uint8), snapshot, "float16", 4e-3)
    assert (one["different"], one["ulps"], one["good"]) == (1, 1.0, True)
    other[1] = np.nan
    bad = difference(other.view(np.uint8), snapshot, "float16", 4e-3)
    assert (bad["different"], bad["ulps"], bad["error"], bad["good"]) == (1, None, None, False)
    # A signed zero is another bit and no difference.
    zero = Snapshot(0, "sums", np.zeros(4, np.uint8), np.ones(4, np.uint8))
    found = difference(np.array([-0.0], np.float32).view(np.uint8), zero, "float32", 4e-3)
    assert (found["different"], found["error"], found["good"]) == (1, 0.0, True)


def test_units_are_those_of_half_precision_for_every_dtype() -> None:
    values = np.array([1, 1.5, 2, 3e-5, 0, 1000], np.float16)
    assert np.array_equal(half_spacing(values, -values), np.spacing(values).astype(np.float64))
    assert half_spacing(np.float32([1e6]), np.float32([0]))[0] == 2.0 ** (19 - 10)


def test_recordings_are_stored_and_compared_by_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, recording = recorded()
    store(Path("recordings"), program_bytes(program), [recording])
    ((again, data, loaded),) = load(Path("recordings"))
    assert (loaded.network, loaded.size_hw, loaded.counts) == ("fast", SIZE, recording.counts)
    assert all(
        (a.launch, a.buffer) == (b.launch, b.buffer) and np.array_equal(a.data, b.data) and np.array_equal(a.defined, b.defined)
        for a, b in zip(loaded.snapshots, recording.snapshots, strict=True)
    )
    assert [one["ctas"] for one in loaded.counts] == [one["ctas"] for one in recording.counts]
    assert program_bytes(again) == data
    monkeypatch.setattr(gpu_emulator, "cuda", SimpleNamespace(open_driver=lambda: EmulatedDevice(program, 87)))
    assert main(["compare", "recordings", "--json", "found.json"]) == 0
    document = json.loads(Path("found.json").read_text())
    assert document["schema"] == "refusion-edge/gpu-emulator/1"
    assert {row["mode"] for row in document["rows"]} == {"alone", "frame"}
    assert "| fast | `fast_convolutions` |" in capsys.readouterr().out
    assert main(["frame", "recordings"]) == 0
    monkeypatch.setattr(gpu_emulator, "LIMIT", -1.0)
    assert main(["compare", "recordings"]) == 1
    assert "**no**" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["compare", "absent"], 4),
        (["record", "there", "--arch", "sm_87,sm_90"], 2),
        (["record", "there", "--sizes", "48x"], 2),
        (["record", "there", "--networks", "slow"], 2),
    ],
)
def test_what_cannot_be_compared_is_said_in_one_line(words: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == code
    assert capsys.readouterr().err.count("\n") == 1


def test_a_damaged_recording_is_refused() -> None:
    program, recording = recorded()
    store(Path("recordings"), program_bytes(program), [recording])
    Path("recordings/fast-13x37.npz").write_bytes(b"PK")
    with pytest.raises(InputError):
        load(Path("recordings"))


@pytest.mark.slow
def test_nothing_is_recorded_of_a_program_with_a_fault() -> None:
    program = changed_text(program_for(fast_state(), 87), "stretch", "bar.sync \t0;", ";")
    with pytest.raises(BackendError):
        record(program, 87, "fast", planes_of(*SIZE))


@pytest.mark.slow
def test_the_papers_network_is_compared_buffer_by_buffer(random_state: State) -> None:
    program = program_for(random_state, 87)
    recording = record(program, 87, "refusion", planes_of(61, 83))
    rows = compare(program, program_bytes(program), recording, SimulatedProgramDevice(program, 87), alone=True)
    assert len({row["launch"] for row in rows}) == 25
    assert [row for row in rows if not row["good"]] == []
    rows = compare(program, program_bytes(program), recording, EmulatedDevice(program, 87), alone=False)
    assert [row for row in rows if row["different"]] == []
