"""The CUDA driver, as far as running engines and kernels needs it, through pycuda or cuda-bindings, whichever is installed.

Belongs here: devices, modules, memory, streams, events, graphs. Does not belong here: what runs on them.
"""

from __future__ import annotations

import ctypes
import importlib

from refusion_edge._optional import is_installed
from refusion_edge.cuda.driver import Driver
from refusion_edge.errors import BackendError

# In order of preference: distribution, module to look for, home of our layer over it.
_LAYERS = (
    ("pycuda", "pycuda", "refusion_edge.cuda.pycuda:PycudaDriver"),
    ("cuda-bindings", "cuda.bindings", "refusion_edge.cuda.bindings:BindingsDriver"),
)
_NO_DEVICE = 100
# CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR.
_MAJOR, _MINOR = 75, 76

FIX = "pip install 'refusion-edge[fused]'"
"""What installs a layer over the driver; pycuda, which has no wheels, takes its place where it is there."""


def problem() -> str | None:
    """Say why no CUDA device can be used here, or None if one can."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "there is no NVIDIA driver here (libcuda.so.1 cannot be loaded)"
    code = library.cuInit(0)
    if code == _NO_DEVICE:
        return "the NVIDIA driver finds no device here"
    return f"the NVIDIA driver does not start here (cuInit gives {code})" if code else None


def compute_capability() -> str | None:
    """Compute capability of the first device, such as ``8.7``, or None if there is none; makes no context on it."""
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
    """Names of the driver layers that are installed, the preferred one first, without importing them."""
    return tuple(name for name, module, _ in _LAYERS if _is_installed(module))


def installed() -> str | None:
    """Name of the first driver layer that is installed, without importing it."""
    return next(iter(layers()), None)


def open_driver(name: str | None = None) -> Driver:
    """Open the first device.

    Args:
        name: ``pycuda`` or ``cuda-bindings``; None for the first that is installed.

    Raises:
        BackendError: There is no device, or no such layer.
    """
    if trouble := problem():
        raise BackendError(f"expected a CUDA device, got none: {trouble}; run 'refusion-edge doctor' for what can be used.")
    for candidate, module, home in _LAYERS:
        if name in (None, candidate) and _is_installed(module):
            file, _, implementation = home.partition(":")
            opened: Driver = getattr(importlib.import_module(file), implementation)()
            return opened
    raise BackendError(
        f"expected {name or 'pycuda or cuda-bindings'} to reach the CUDA driver, got neither installed; run: {FIX}."
    )


def _is_installed(module: str) -> bool:
    # The parent of a dotted name is imported by looking for it, and may be missing itself.
    return is_installed(module.partition(".")[0]) and is_installed(module)
