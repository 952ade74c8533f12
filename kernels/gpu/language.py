"""``jit`` and ``tl`` of Triton, or placeholders where Triton is not installed.

A kernel shares a file with its NumPy reference, which must also work without Triton; so these files import ``jit`` and ``tl``
from here. Without Triton the decorated functions exist but cannot be launched.

The sources keep to what Triton 3.6 and 3.9 share, in the compiler and in the interpreter: no annotation of a
parameter but ``tl.constexpr``, no loop bound that is a tensor (the interpreter of 3.6 fails on it with NumPy 2.4), no
mask that mixes a scalar with a tensor before it is broadcast, no inline PTX.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

from refusion_edge.machine import is_installed

TRITON_INSTALLED = is_installed("triton")

tl: Any = importlib.import_module("triton.language") if TRITON_INSTALLED else None


COMPILER_OPTIONS = {"num_stages": 1, "enable_fp_fusion": True}
"""How the kernels are compiled, ahead of time and at a launch. One stage, because with more of them the pipeliner copies the
taps into shared memory again for every row. Fused multiply-adds, because the accuracy was measured with them and the default
differs between versions of Triton."""

# As ahead of time, compiled once for any value instead of again for 1 and for multiples of 16: the checks run what ships.
_ANY_VALUE = ("height", "width", "strips")


def is_interpreted() -> bool:
    """Whether Triton interprets kernels on the CPU; it reads this environment variable when a kernel is imported."""
    return TRITON_INSTALLED and os.environ.get("TRITON_INTERPRET") == "1"


def jit(function: Callable[..., Any]) -> Any:
    """Make a Triton kernel; without Triton, return the function unchanged."""
    return importlib.import_module("triton").jit(function, do_not_specialize=_ANY_VALUE) if TRITON_INSTALLED else function
