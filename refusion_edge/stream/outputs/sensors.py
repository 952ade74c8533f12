"""Temperatures and power of this device, from the files in which Linux shows its sensors.

Source:
    Kernel documentation: thermal/sysfs-api.rst (thermal zones, millidegrees Celsius), hwmon/sysfs-interface.rst (millidegrees
    Celsius, millivolts, milliamperes, microwatts) and hwmon/ina3221.rst (the power monitor of Jetson modules: its first three
    channels are rails, the later ones are shunt voltages and sums).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FOLDER = Path("/sys/class")
# Sensors of parts that are switched off, or not connected, show values outside this range.
_LEAST_CELSIUS, _MOST_CELSIUS = -60.0, 200.0
_RAILS = (1, 2, 3)
_MOST_SENSORS = 64


@dataclass(frozen=True, slots=True)
class Sensor:
    """A sensor.

    Attributes:
        name: Its name, unique among those of its kind.
        files: Files whose numbers are multiplied.
        scale: Factor from their product to degrees Celsius or watts.
    """

    name: str
    files: tuple[Path, ...]
    scale: float

    def read(self) -> float | None:
        """Its value now, or None if it shows none, as the sensor of a part that is switched off."""
        value = self.scale
        for file in self.files:
            try:
                value *= int(file.read_text())
            except (OSError, ValueError):
                return None
        return value


class Sensors:
    """The sensors of this device; there are none on other systems than Linux and in most virtual machines.

    Args:
        folder: Where the system shows them.
    """

    def __init__(self, folder: Path = _FOLDER) -> None:
        self._temperatures = _unique(_temperatures(folder))
        self._powers = _unique(_powers(folder))

    def temperatures_celsius(self) -> dict[str, float]:
        """Temperature by sensor."""
        values = {sensor.name: sensor.read() for sensor in self._temperatures}
        return {name: value for name, value in values.items() if value is not None and _LEAST_CELSIUS < value < _MOST_CELSIUS}

    def powers_watts(self) -> dict[str, float]:
        """Power by sensor. Rails may contain one another, so their sum means nothing."""
        values = {sensor.name: sensor.read() for sensor in self._powers}
        return {name: value for name, value in values.items() if value is not None and value >= 0}

    def summary(self) -> dict[str, Any]:
        """The highest temperature and the highest power, each as ``[sensor, value]``, or None."""

        def highest(values: dict[str, float]) -> list[Any] | None:
            name = max(values, key=values.__getitem__, default=None)
            return None if name is None else [name, values[name]]

        return {"temperature_celsius": highest(self.temperatures_celsius()), "power_watts": highest(self.powers_watts())}


def _temperatures(folder: Path) -> Iterator[Sensor]:
    for zone in sorted(folder.glob("thermal/thermal_zone*")):
        yield Sensor(_text(zone / "type") or zone.name, (zone / "temp",), 1e-3)
    for file in sorted(folder.glob("hwmon/hwmon*/temp*_input")):
        yield Sensor(_label(file), (file,), 1e-3)


def _powers(folder: Path) -> Iterator[Sensor]:
    for chip in sorted(folder.glob("hwmon/hwmon*")):
        for pattern in ("power*_input", "power*_average"):
            for file in sorted(chip.glob(pattern)):
                yield Sensor(_label(file), (file,), 1e-6)
        if _text(chip / "name") == "ina3221":
            for number in _RAILS:
                volts, amperes = chip / f"in{number}_input", chip / f"curr{number}_input"
                if volts.exists() and amperes.exists():
                    yield Sensor(_text(chip / f"in{number}_label") or f"rail {number}", (volts, amperes), 1e-6)


def _label(file: Path) -> str:
    """The chip, and what it calls the value: ``coretemp Package id 0``."""
    place = file.name.rpartition("_")[0]
    return f"{_text(file.parent / 'name') or file.parent.name} {_text(file.parent / f'{place}_label') or place}"


def _text(file: Path) -> str:
    try:
        return file.read_text(errors="replace").strip("\0 \n")
    except OSError:
        return ""


def _unique(sensors: Iterator[Sensor]) -> tuple[Sensor, ...]:
    """Number the sensors that share a name, as several disks do."""
    found: dict[str, Sensor] = {}
    for sensor in sensors:
        name, number = sensor.name, 2
        while name in found:
            name, number = f"{sensor.name} {number}", number + 1
        found[name] = Sensor(name, sensor.files, sensor.scale)
    return tuple(found.values())[:_MOST_SENSORS]
