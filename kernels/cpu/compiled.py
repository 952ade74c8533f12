"""The compiled module of the C++ kernels, which is optional. Imports no torch, because running an engine must not."""

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
    """Instruction set named by the environment; empty for the fastest."""
    return os.environ.get(ISA_VARIABLE, "")
