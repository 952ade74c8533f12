"""Sensors of the device, from files as the kernel shows them on a Jetson module and on a PC."""

from __future__ import annotations

from pathlib import Path

from refusion_edge.stream.outputs.prometheus import to_prometheus
from refusion_edge.stream.outputs.sensors import Sensors

FILES = {
    "thermal/thermal_zone0": {"type": "cpu-thermal", "temp": "48500"},
    "thermal/thermal_zone1": {"type": "cv0-thermal", "temp": "-256000"},  # switched off
    "thermal/thermal_zone2": {"type": "tj-thermal", "temp": "51250"},
    "hwmon/hwmon0": {
        "name": "ina3221", "in1_label": "VDD_IN", "in1_input": "5000", "curr1_input": "1200", "in2_label": "VDD_CPU_GPU_CV",
        "in2_input": "4800", "curr2_input": "500", "in3_label": "VDD_SOC", "in3_input": "", "curr3_input": "1",
        # A shunt voltage, and the sum of currents: their product is no power.
        "in4_input": "9000", "curr4_input": "9000",
    },
    "hwmon/hwmon1": {"name": "nvme", "temp1_input": "39850", "temp1_label": "Composite"},
    "hwmon/hwmon2": {"name": "nvme", "temp1_input": "41000", "temp1_label": "Composite"},
    "hwmon/hwmon3": {"name": "amdgpu", "power1_average": "15000000", "temp1_input": "no number"},
}  # fmt: skip


def make(folder: Path) -> Sensors:
    for name, files in FILES.items():
        (folder / name).mkdir(parents=True)
        for file, text in files.items():
            (folder / name / file).write_text(f"{text}\n")
    return Sensors(folder)


def test_temperatures_and_powers_are_read_in_their_units(tmp_path: Path) -> None:
    sensors = make(tmp_path)
    assert {name: round(value, 6) for name, value in sensors.temperatures_celsius().items()} == {
        "cpu-thermal": 48.5, "tj-thermal": 51.25, "nvme Composite": 39.85, "nvme Composite 2": 41.0,
    }  # fmt: skip
    powers = {name: round(value, 6) for name, value in sensors.powers_watts().items()}
    assert powers == {"VDD_IN": 6.0, "VDD_CPU_GPU_CV": 2.4, "amdgpu power1": 15.0}
    summary = sensors.summary()
    assert (summary["temperature_celsius"][0], summary["power_watts"][0]) == ("tj-thermal", "amdgpu power1")
    text = to_prometheus([], sensors)
    assert 'refusion_edge_device_temperature_celsius{sensor="tj-thermal"} 51.25' in text
    assert 'refusion_edge_device_power_watts{sensor="VDD_IN"} 6' in text


def test_a_device_without_sensors_has_no_figures(tmp_path: Path) -> None:
    sensors = Sensors(tmp_path)
    assert sensors.summary() == {"temperature_celsius": None, "power_watts": None}
    assert "device" not in to_prometheus([], sensors)
