"""The compiled module of the emulator, which is optional."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from refusion_edge.errors import BackendError

MODULE = "refusion_edge.kernels.emulator._emulator"


def is_built() -> bool:
    """Tell whether the compiled module is part of this installation."""
    return importlib.util.find_spec(MODULE) is not None


def load_module() -> Any:
    """Import the compiled module.

    Raises:
        BackendError: It is not built.
    """
    try:
        return importlib.import_module(MODULE)
    except ImportError as error:
        raise BackendError(
            f"the PTX emulator was not built for this installation ({error})",
            "install with a C++20 compiler: pip install . -Cwheel.cmake=true",
        ) from error
