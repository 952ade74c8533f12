"""Clocks, power mode, temperatures, energy and memory, as reported by sysfs, Jetson power rails, RAPL and NVML."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import re
import resource
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from typing_extensions import Self

NOT_AVAILABLE = "not available"
ROOT = Path("/")
_GPU_DEVFREQ = re.compile(r"gpu|ga10b|gv11b|gp10b|gm20b")
# The rail that feeds the whole module, by board; without one, all rails of the board are summed.
_WHOLE_BOARD = ("VDD_IN", "5V_IN", "POM_5V_IN", "VIN")
_POLL_S = 0.1
_UJ_PER_J, _MJ_PER_J, _MW_PER_W, _UW_PER_W = 1e6, 1e3, 1e3, 1e6
_MIB = 1 << 20
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_KIB_PER_MIB = 1024


@dataclass(frozen=True, slots=True)
class MachineState:
    """State of the machine at one moment; readings the system does not provide are absent.

    Attributes:
        clocks_mhz: Processor and device clocks by name.
        temperatures_c: Temperatures by zone.
        power_mode: Power mode and governor as text, or ``not available``.
    """

    clocks_mhz: dict[str, float] = field(default_factory=dict)
    temperatures_c: dict[str, float] = field(default_factory=dict)
    power_mode: str = NOT_AVAILABLE


@dataclass(frozen=True, slots=True)
class Energy:
    """Energy between two moments.

    Attributes:
        joules: Energy.
        source: What measured it.
    """

    joules: float
    source: str


def read_state(root: Path = ROOT) -> MachineState:
    """Read the present state."""
    device = device_state()
    clocks_mhz = {**_processor_clocks(root), **_device_clocks(root), **device.clocks_mhz}
    modes = [mode for mode in (_jetson_mode(root), _governor(root), device.power_mode) if mode]
    return MachineState(clocks_mhz, {**_temperatures(root), **device.temperatures_c}, ", ".join(modes) or NOT_AVAILABLE)


class EnergyMeter(Protocol):
    """Measures energy from ``with`` on."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc: object) -> None: ...

    def read(self) -> Energy | None:
        """Energy so far; None if nothing measures it."""


def open_meter(root: Path = ROOT) -> EnergyMeter:
    """The meter of this machine: the power rails of a Jetson, or else the counters of processor and device."""
    rails = _rails(root)
    return RailMeter(rails) if rails else CounterMeter(root)


class CounterMeter:
    """Counters that the hardware keeps: RAPL of the processor packages, NVML of the first device. Implements ``EnergyMeter``.

    They count the energy of everything on the machine, idle or not.
    """

    def __init__(self, root: Path = ROOT) -> None:
        self._packages = _rapl_packages(root)

    def __enter__(self) -> Self:
        self._used_j = 0.0
        self._counted_uj = {package: _number(package / "energy_uj") for package in self._packages}
        self._device_mj = device_energy_mj()
        return self

    def __exit__(self, *exc: object) -> None: ...

    def read(self) -> Energy | None:
        """Energy so far; a counter that wraps around is followed if it is read often enough."""
        sources = []
        for package, before_uj in self._counted_uj.items():
            now_uj = _number(package / "energy_uj")
            if before_uj is None or now_uj is None:
                continue
            wrapped_uj = _number(package / "max_energy_range_uj") or 0.0
            self._used_j += (now_uj - before_uj + (wrapped_uj if now_uj < before_uj else 0.0)) / _UJ_PER_J
            self._counted_uj[package] = now_uj
            sources.append(f"RAPL {_text(package / 'name')}")
        device_mj = device_energy_mj()
        if device_mj is not None and self._device_mj is not None:
            self._used_j += (device_mj - self._device_mj) / _MJ_PER_J
            self._device_mj = device_mj
            sources.append("NVML device 0")
        return Energy(self._used_j, " + ".join(sources)) if sources else None


@dataclass(frozen=True, slots=True)
class Rail:
    """A monitored power rail.

    Attributes:
        name: Its label.
        folder: Folder of its monitor.
        channel: Its channel number there.
    """

    name: str
    folder: Path
    channel: int

    def power_w(self) -> float | None:
        """Power now, W; None if it cannot be read."""
        power_uw = _number(self.folder / f"power{self.channel}_input")
        if power_uw is not None:
            return power_uw / _UW_PER_W
        millivolts = _number(self.folder / f"in{self.channel}_input")
        milliamperes = _number(self.folder / f"curr{self.channel}_input")
        if millivolts is None or milliamperes is None:
            return None
        return millivolts * milliamperes / _MW_PER_W / _MW_PER_W


class RailMeter:
    """Power rails, read ten times a second by a thread and integrated. Implements ``EnergyMeter``."""

    def __init__(self, rails: tuple[Rail, ...]) -> None:
        self._rails = rails
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="power rails", daemon=True)
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._joules, self._broken = 0.0, False
        self._at_s = time.perf_counter()
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join(timeout=1.0)

    def read(self) -> Energy | None:
        """Energy so far; None after a rail could not be read."""
        self._add()
        with self._lock:
            names = " + ".join(rail.name for rail in self._rails)
            return None if self._broken else Energy(self._joules, f"rail{'s' if len(self._rails) > 1 else ''} {names}")

    def _poll(self) -> None:
        while not self._stop.wait(_POLL_S):
            self._add()

    def _add(self) -> None:
        powers_w = [rail.power_w() for rail in self._rails]
        known_w = [power for power in powers_w if power is not None]
        with self._lock:
            now_s = time.perf_counter()
            self._broken |= len(known_w) < len(powers_w)
            self._joules += sum(known_w) * (now_s - self._at_s)
            self._at_s = now_s


def _processor_clocks(root: Path) -> dict[str, float]:
    clocks_mhz = {}
    for folder in sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq")):
        clock_khz = _number(folder / "scaling_cur_freq")
        if clock_khz is not None:
            clocks_mhz[folder.parent.name] = clock_khz / 1e3
    return clocks_mhz


def _device_clocks(root: Path) -> dict[str, float]:
    clocks_mhz = {}
    for folder in sorted((root / "sys/class/devfreq").glob("*")):
        clock_hz = _number(folder / "cur_freq")
        if clock_hz is not None and _GPU_DEVFREQ.search(folder.name):
            clocks_mhz[folder.name] = clock_hz / 1e6
    return clocks_mhz


def _temperatures(root: Path) -> dict[str, float]:
    found = {}
    for folder in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        millidegrees = _number(folder / "temp")
        if millidegrees is not None:
            found[_text(folder / "type") or folder.name] = millidegrees / 1e3
    return found


def _jetson_mode(root: Path) -> str:
    """Name of the mode set by nvpmodel."""
    status = re.search(r"pmode:(\d+)", _text(root / "var/lib/nvpmodel/status"))
    if status is None:
        return ""
    number = int(status[1])
    names = re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>", _text(root / "etc/nvpmodel.conf"))
    named = {int(identifier): name for identifier, name in names}
    return f"nvpmodel {named.get(number, number)}"


def _governor(root: Path) -> str:
    files = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")
    governors = sorted({_text(file) for file in files} - {""})
    return f"governor {'/'.join(governors)}" if governors else ""


def _rapl_packages(root: Path) -> tuple[Path, ...]:
    """Whole packages; their subdomains, which have two numbers, are included in them."""
    folder = root / "sys/class/powercap"
    return tuple(sorted(path for path in folder.glob("intel-rapl:*") if path.name.count(":") == 1))


def _rails(root: Path) -> tuple[Rail, ...]:
    found: list[Rail] = []
    for folder in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        if _text(folder / "name") not in ("ina3221", "ina3221x", "ina238"):
            continue
        for label in sorted(folder.glob("in[0-9]_label")):
            name = _text(label)
            rail = Rail(name, folder, int(label.name[2]))
            if "sum of shunt" not in name.lower() and rail.power_w() is not None:
                found.append(rail)
    whole = [rail for rail in found if rail.name in _WHOLE_BOARD]
    return tuple(whole[:1] or found)


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace").strip()
    return ""


def _number(path: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        return float(path.read_text())
    return None


@dataclass(frozen=True, slots=True)
class DeviceState:
    """State of the first NVIDIA device.

    Attributes:
        clocks_mhz: ``gpu`` and ``gpu memory`` to their clocks.
        temperatures_c: ``gpu`` to its temperature.
        power_mode: Its power limit as text; empty if it has none.
    """

    clocks_mhz: dict[str, float] = field(default_factory=dict)
    temperatures_c: dict[str, float] = field(default_factory=dict)
    power_mode: str = ""


def device_state() -> DeviceState:
    """Clocks, temperature and power limit; empty without an NVIDIA device."""
    with _nvml_device() as (nvml, device):
        if nvml is None:
            return DeviceState()
        clocks = {"gpu": nvml.NVML_CLOCK_SM, "gpu memory": nvml.NVML_CLOCK_MEM}
        clocks_mhz = {name: _asked(nvml, nvml.nvmlDeviceGetClockInfo, device, kind) for name, kind in clocks.items()}
        degrees = _asked(nvml, nvml.nvmlDeviceGetTemperature, device, nvml.NVML_TEMPERATURE_GPU)
        limit_mw = _asked(nvml, nvml.nvmlDeviceGetEnforcedPowerLimit, device)
        return DeviceState(
            {name: float(clock) for name, clock in clocks_mhz.items() if clock is not None},
            {} if degrees is None else {"gpu": float(degrees)},
            "" if limit_mw is None else f"GPU limited to {limit_mw / 1e3:g} W",
        )


def device_energy_mj() -> float | None:
    """Energy of the device since its driver was loaded, mJ; None if it is not counted."""
    with _nvml_device() as (nvml, device):
        counted = None if nvml is None else _asked(nvml, nvml.nvmlDeviceGetTotalEnergyConsumption, device)
        return None if counted is None else float(counted)


def device_memory_mib(pid: int) -> float | None:
    """Device memory of a process, MiB; None if it cannot be read or the process uses none."""
    with _nvml_device() as (nvml, device):
        processes = [] if nvml is None else _asked(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, device) or []
        used = [process.usedGpuMemory for process in processes if process.pid == pid and process.usedGpuMemory is not None]
        return used[0] / _MIB if used else None


@contextlib.contextmanager
def _nvml_device() -> Iterator[tuple[Any, Any]]:
    """The library and the first device, or (None, None)."""
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # absent, or without a driver; its error class cannot be named without importing it
        yield None, None
        return
    try:
        device = _asked(nvml, nvml.nvmlDeviceGetHandleByIndex, 0)
        yield (None, None) if device is None else (nvml, device)
    finally:
        nvml.nvmlShutdown()


def _asked(nvml: Any, question: Any, *arguments: Any) -> Any:
    # No device supports every query.
    with contextlib.suppress(nvml.NVMLError):
        return question(*arguments)
    return None


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Memory used during a measurement.

    Attributes:
        peak_mib: Peak resident memory of the process, MiB.
        added_mib: Peak above what was resident before the engine was opened; None if the system does not report it.
        device_mib: Accelerator memory of the process at the end, MiB; None without an accelerator or if it cannot be read.
    """

    peak_mib: float
    added_mib: float | None
    device_mib: float | None


class MemoryWatch:
    """Tracks peak memory from ``with`` on."""

    def __enter__(self) -> Self:
        _give_back()
        self._before_mib = _status_mib("VmRSS")
        try:
            _CLEAR.write_text(_RESET_PEAK)
            self._is_reset = True
        except OSError:
            self._is_reset = False
        return self

    def __exit__(self, *exc: object) -> None: ...

    def use(self) -> MemoryUse:
        """The peak so far."""
        peak_mib = _status_mib("VmHWM")
        if peak_mib is None or self._before_mib is None or not self._is_reset:
            per_mib = _KIB_PER_MIB**2 if sys.platform == "darwin" else _KIB_PER_MIB
            return MemoryUse(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / per_mib, None, device_memory_mib(os.getpid()))
        return MemoryUse(peak_mib, max(0.0, peak_mib - self._before_mib), device_memory_mib(os.getpid()))


def _give_back() -> None:
    """Return memory that earlier engines left with the allocator, where the next one would reuse it unnoticed."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _status_mib(field: str) -> float | None:
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) / _KIB_PER_MIB if found else None
