"""What NVIDIA's management library tells about the first device, where its Python package is installed."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class DeviceState:
    """State of the device.

    Attributes:
        clocks_mhz: ``gpu`` and ``gpu memory`` to their clocks.
        temperatures_c: ``gpu`` to its temperature.
        power_mode: Its power limit in words; empty if it has none.
    """

    clocks_mhz: dict[str, float] = field(default_factory=dict)
    temperatures_c: dict[str, float] = field(default_factory=dict)
    power_mode: str = ""


def state() -> DeviceState:
    """Clocks, temperature and power limit; empty where there is no such device."""
    with _device() as (nvml, device):
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


def energy_mj() -> float | None:
    """Energy of the device since its driver was loaded, mJ; None where it is not counted."""
    with _device() as (nvml, device):
        counted = None if nvml is None else _asked(nvml, nvml.nvmlDeviceGetTotalEnergyConsumption, device)
        return None if counted is None else float(counted)


def memory_mib(pid: int) -> float | None:
    """Device memory of a process, MiB; None where it cannot be read or the process uses none."""
    with _device() as (nvml, device):
        processes = [] if nvml is None else _asked(nvml, nvml.nvmlDeviceGetComputeRunningProcesses, device) or []
        used = [process.usedGpuMemory for process in processes if process.pid == pid and process.usedGpuMemory is not None]
        return used[0] / _MIB if used else None


@contextlib.contextmanager
def _device() -> Iterator[tuple[Any, Any]]:
    """The library and the first device, or two None."""
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
    except Exception:  # absent, or without a driver: its error class cannot be named without importing it
        yield None, None
        return
    try:
        device = _asked(nvml, nvml.nvmlDeviceGetHandleByIndex, 0)
        yield (None, None) if device is None else (nvml, device)
    finally:
        nvml.nvmlShutdown()


def _asked(nvml: Any, question: Any, *arguments: Any) -> Any:
    # Every device answers only some of the questions.
    with contextlib.suppress(nvml.NVMLError):
        return question(*arguments)
    return None
