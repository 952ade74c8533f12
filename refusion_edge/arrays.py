"""NumPy array types shared by the package."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Float32Array: TypeAlias = NDArray[np.float32]
Float64Array: TypeAlias = NDArray[np.float64]
Uint8Array: TypeAlias = NDArray[np.uint8]
State: TypeAlias = dict[str, NDArray[np.float32]]
"""Parameters of a fusion network, name to float32 array; ``refusion_edge.network.family`` tells which one by the names."""


def bytes_of(array: Array) -> Uint8Array:
    """View the bytes of an array, without a copy if it is contiguous."""
    flat: Uint8Array = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return flat
