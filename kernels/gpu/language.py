"""The language that the GPU kernels are written in: Triton where it is installed, and a stand-in where it is not.

A kernel lives in one file with its plain reference. The reference must be usable on machines without Triton, so the
files take ``jit`` and ``tl`` from here. Without Triton the decorated functions exist and cannot be launched.

The sources keep to what Triton 3.6 and 3.9 share, in the compiler and in the interpreter: no annotation of a
parameter but ``tl.constexpr``, no loop bound that is a tensor (the interpreter of 3.6 fails on it with NumPy 2.4), no
mask that mixes a scalar with a tensor before it is broadcast, no inline PTX.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

from refusion_edge._optional import is_installed

TRITON_INSTALLED = is_installed("triton")

tl: Any = importlib.import_module("triton.language") if TRITON_INSTALLED else None


COMPILER_OPTIONS = {"num_stages": 1, "enable_fp_fusion": True}
"""How the kernels are compiled, ahead of time and at a launch. One stage, because with more the pipeliner copies the taps into
shared memory anew for every row; fused multiply-adds, with which the accuracy was measured and whose default differs between
versions of Triton."""

# Compiled for any value, as ahead of time, and not anew for what is 1 or a multiple of 16: what is checked is what ships.
_ANY_VALUE = ("height", "width", "strips")


def is_interpreted() -> bool:
    """Whether Triton runs kernels on the processor: by its own switch, which it reads when a kernel is imported."""
    return TRITON_INSTALLED and os.environ.get("TRITON_INTERPRET") == "1"


def jit(function: Callable[..., Any]) -> Any:
    """Make a Triton kernel, or leave the function as it is where Triton is not installed."""
    return importlib.import_module("triton").jit(function, do_not_specialize=_ANY_VALUE) if TRITON_INSTALLED else function
