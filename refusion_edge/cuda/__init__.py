"""The part of the CUDA driver that running engines and kernels needs, through pycuda or cuda-bindings.

Belongs here: devices, modules, memory, streams, events, graphs. Does not belong here: what runs on them.
"""

from __future__ import annotations

import ctypes
import importlib

from refusion_edge.cuda.driver import Driver
from refusion_edge.errors import BackendError
from refusion_edge.machine import is_installed

# In order of preference: distribution, module to look for, home of our layer over it.
_LAYERS = (
    ("pycuda", "pycuda", "refusion_edge.cuda.pycuda:PycudaDriver"),
    ("cuda-bindings", "cuda.bindings", "refusion_edge.cuda.bindings:BindingsDriver"),
)
_NO_DEVICE = 100
# CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
_MAJOR, _MINOR = 75, 76

FIX = "pip install 'refusion-edge[fused]'"
"""Installs cuda-bindings; pycuda, which has no wheels, is preferred where it is installed."""


def problem() -> str | None:
    """The reason why no CUDA device can be used here, or None if one can."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver (libcuda.so.1 cannot be loaded)"
    code = library.cuInit(0)
    if code == _NO_DEVICE:
        return "the NVIDIA driver finds no device"
    return f"the NVIDIA driver does not start (cuInit returns {code})" if code else None


def compute_capability() -> str | None:
    """Compute capability of the first device, such as ``8.7``, or None without a device; creates no context."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    if library.cuInit(0):
        return None
    device, value = ctypes.c_int(), ctypes.c_int()
    found = []
    for attribute in (_MAJOR, _MINOR):
        if library.cuDeviceGet(ctypes.byref(device), 0) or library.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
        found.append(str(value.value))
    return ".".join(found)


def layers() -> tuple[str, ...]:
    """Names of the installed driver layers, the preferred one first; imports none of them."""
    return tuple(name for name, module, _ in _LAYERS if _is_installed(module))


def installed() -> str | None:
    """Name of the preferred driver layer, or None if none is installed; does not import it."""
    return next(iter(layers()), None)


def open_driver(name: str | None = None) -> Driver:
    """Open the first device.

    Args:
        name: ``pycuda`` or ``cuda-bindings``; None for the first that is installed.

    Raises:
        BackendError: There is no device, or no such layer.
    """
    if trouble := problem():
        raise BackendError(f"no CUDA device can be used: {trouble}", "run 'refusion-edge doctor' to see what can")
    for candidate, module, home in _LAYERS:
        if name in (None, candidate) and _is_installed(module):
            file, _, implementation = home.partition(":")
            opened: Driver = getattr(importlib.import_module(file), implementation)()
            return opened
    missing = f"{name} is not installed" if name else "neither pycuda nor cuda-bindings is installed"
    raise BackendError(f"{missing}, and nothing else reaches the CUDA driver", f"run: {FIX}")


def _is_installed(module: str) -> bool:
    # Looking for a dotted name imports its parent, which may be missing itself.
    return is_installed(module.partition(".")[0]) and is_installed(module)
