"""Peak memory of this process and of its device."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
import resource
import sys
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import Self

from refusion_edge.bench import nvml

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
_KIB_PER_MIB = 1024


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """What a measurement took.

    Attributes:
        peak_mib: Most resident memory of the process, MiB.
        added_mib: The same above what was resident before the engine was opened; None where the system cannot tell.
        device_mib: Memory of the process on the accelerator at the end, MiB; None where there is none or it cannot be read.
    """

    peak_mib: float
    added_mib: float | None
    device_mib: float | None


class MemoryWatch:
    """Watches the peak from ``with`` on."""

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
            return MemoryUse(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / per_mib, None, nvml.memory_mib(os.getpid()))
        return MemoryUse(peak_mib, max(0.0, peak_mib - self._before_mib), nvml.memory_mib(os.getpid()))


def _give_back() -> None:
    """Return what earlier engines left to the allocator, which the next one would take unseen."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


def _status_mib(field: str) -> float | None:
    try:
        found = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) / _KIB_PER_MIB if found else None
