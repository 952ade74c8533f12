"""The language that the GPU kernels are written in: Triton where it is installed, and a stand-in where it is not.

A kernel lives in one file with its plain reference. The reference must be usable on machines without Triton, so the
files take ``jit`` and ``tl`` from here. Without Triton the decorated functions exist and cannot be launched.

The sources keep to what Triton 3.6 and 3.9 share, in the compiler and in the interpreter: no annotation of a
parameter but ``tl.constexpr``, no loop bound that is a tensor (the interpreter of 3.6 fails on it with NumPy 2.4), no
mask that mixes a scalar with a tensor before it is broadcast, no inline PTX.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from refusion_edge._optional import is_installed

TRITON_INSTALLED = is_installed("triton")

tl: Any = importlib.import_module("triton.language") if TRITON_INSTALLED else None


def jit(function: Callable[..., Any]) -> Any:
    """Make a Triton kernel, or leave the function as it is where Triton is not installed."""
    return importlib.import_module("triton").jit(function) if TRITON_INSTALLED else function
