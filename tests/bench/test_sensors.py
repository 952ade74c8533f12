"""What the system tells, from folders that look like those of a Jetson, a laptop, and a machine that tells nothing."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from refusion_edge.bench import sensors
from refusion_edge.bench.sensors import (
    NOT_AVAILABLE,
    CounterMeter,
    MachineState,
    MemoryWatch,
    RailMeter,
    open_meter,
    read_state,
)
from tests.bench.conftest import Write


@pytest.fixture(autouse=True)
def no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without NVIDIA's library, unless a test brings one."""
    monkeypatch.setitem(sys.modules, "pynvml", None)


def jetson(write: Write) -> Path:
    monitor = "sys/class/hwmon/hwmon3"
    return write(
        {
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": 1510400,
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil",
            "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": 729600,
            "sys/class/devfreq/17000000.gpu/cur_freq": 624750000,
            "sys/class/devfreq/15340000.vic/cur_freq": 1,
            "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
            "sys/class/thermal/thermal_zone0/temp": 48500,
            "var/lib/nvpmodel/status": "pmode:0001",
            "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\nCPU 1\n< POWER_MODEL ID=1 NAME=25W >",
            f"{monitor}/name": "ina3221",
            f"{monitor}/in1_label": "VDD_IN",
            f"{monitor}/in1_input": 5000,
            f"{monitor}/curr1_input": 2000,
            f"{monitor}/in2_label": "VDD_CPU_GPU_CV",
            f"{monitor}/in2_input": 5000,
            f"{monitor}/curr2_input": 900,
            f"{monitor}/in7_label": "sum of shunt voltages",
            "sys/class/hwmon/hwmon0/name": "tmp451",
        }
    )


def test_a_jetson_tells_clocks_mode_and_temperatures(write: Write) -> None:
    found = read_state(jetson(write))
    assert found.clocks_mhz == {"cpu0": 1510.4, "cpu1": 729.6, "17000000.gpu": 624.75}
    assert found.temperatures_c == {"cpu-thermal": 48.5}
    assert found.power_mode == "nvpmodel 25W, governor schedutil"


def test_the_rail_of_the_whole_board_counts_once(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = open_meter(jetson(write))
    assert isinstance(meter, RailMeter)
    monkeypatch.setattr(sensors, "_POLL_S", 3600.0)
    now_s = iter([10.0, 10.5, 12.0])
    monkeypatch.setattr(sensors.time, "perf_counter", lambda: next(now_s))
    with meter:
        first, second = meter.read(), meter.read()
    assert first is not None
    assert second is not None
    assert (first.joules, second.joules) == (pytest.approx(5), pytest.approx(20))
    assert second.source == "rail VDD_IN"


def test_without_such_a_rail_all_are_added_and_a_lost_one_ends_it(write: Write) -> None:
    root = jetson(write)
    monitor = root / "sys/class/hwmon/hwmon3"
    (monitor / "in1_label").write_text("VDD_GPU_SOC")
    meter = open_meter(root)
    with meter:
        energy = meter.read()
        assert energy is not None
        assert energy.source == "rails VDD_GPU_SOC + VDD_CPU_GPU_CV"
        (monitor / "curr2_input").unlink()
        assert meter.read() is None


def test_counters_of_the_processor_are_followed_over_their_end(write: Write) -> None:
    package = "sys/class/powercap/intel-rapl:0"
    files: dict[str, object] = {f"{package}/name": "package-0", f"{package}/max_energy_range_uj": 9_000_000}
    root = write({**files, f"{package}/energy_uj": 8_000_000, "sys/class/powercap/intel-rapl:0:0/energy_uj": 1})
    with CounterMeter(root) as meter:
        write({f"{package}/energy_uj": 8_500_000})
        energy = meter.read()
        assert energy is not None
        assert energy.joules == pytest.approx(0.5)
        write({f"{package}/energy_uj": 500_000})
        energy = meter.read()
        assert energy is not None
        assert energy.joules == pytest.approx(1.5)
        assert energy.source == "RAPL package-0"


def test_a_machine_that_tells_nothing_says_so(tmp_path: Path) -> None:
    assert read_state(tmp_path) == MachineState({}, {}, NOT_AVAILABLE)
    with open_meter(tmp_path) as meter:
        assert meter.read() is None


def test_broken_sensors_are_left_out(write: Write) -> None:
    root = write({"sys/class/thermal/thermal_zone0/temp": "broken", "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": ""})
    assert read_state(root) == MachineState()


def fake_nvml() -> types.ModuleType:
    """The library of a board that does not tell its power limit."""
    module = types.ModuleType("pynvml")

    class NVMLError(Exception):
        pass

    def refuse(*_: object) -> None:
        raise NVMLError

    process = types.SimpleNamespace(pid=41, usedGpuMemory=300 << 20)
    energy = iter([1_000, 1_250])
    module.__dict__.update(
        NVMLError=NVMLError, NVML_CLOCK_SM=1, NVML_CLOCK_MEM=2, NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None, nvmlShutdown=lambda: None, nvmlDeviceGetHandleByIndex=lambda index: f"device {index}",
        nvmlDeviceGetClockInfo=lambda device, kind: {1: 1380, 2: 2619}[kind],
        nvmlDeviceGetTemperature=lambda device, sensor: 41, nvmlDeviceGetEnforcedPowerLimit=refuse,
        nvmlDeviceGetTotalEnergyConsumption=lambda device: next(energy),
        nvmlDeviceGetComputeRunningProcesses=lambda device: [process],
    )  # fmt: skip
    return module


def test_the_library_of_a_device_is_asked_where_it_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sensors.device_state() == sensors.DeviceState()
    monkeypatch.setitem(sys.modules, "pynvml", fake_nvml())
    found = read_state(tmp_path)
    assert found.clocks_mhz == {"gpu": 1380, "gpu memory": 2619}
    assert (found.temperatures_c, found.power_mode) == ({"gpu": 41}, NOT_AVAILABLE)
    with open_meter(tmp_path) as meter:
        energy = meter.read()
    assert energy is not None
    assert (energy.joules, energy.source) == (0.25, "NVML device 0")
    assert sensors.device_memory_mib(41) == 300
    assert sensors.device_memory_mib(42) is None


def test_memory_counts_from_where_the_watch_begins() -> None:
    import numpy as np

    with MemoryWatch() as watch:
        before = watch.use()
        block = np.ones(64 << 20, np.uint8)
        held = watch.use()
        del block
        after = watch.use()
    assert held.peak_mib - before.peak_mib > 40
    assert after.peak_mib == pytest.approx(held.peak_mib, abs=8)
    if held.added_mib is not None:
        assert held.added_mib > 40
