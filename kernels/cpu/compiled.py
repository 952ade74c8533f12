"""The compiled module of C++ kernels, which an installation may lack."""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import Any

MODULE = "refusion_edge.kernels.cpu._native"
ISA_VARIABLE = "REFUSION_EDGE_ISA"
"""Environment variable that names the instruction set to use instead of the fastest."""


def load_module() -> Any:
    """Import the compiled module.

    Raises:
        ImportError: It is not built.
    """
    module: ModuleType = importlib.import_module(MODULE)
    return module


def chosen_isa() -> str:
    """The instruction set that the environment asks for; empty for the fastest."""
    return os.environ.get(ISA_VARIABLE, "")
