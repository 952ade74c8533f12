"""The network in float64, from the NumPy references of the GPU kernels: independent of every CPU kernel, and without torch.

``tests/kernels/gpu/test_triton_frame.py`` holds it to the definition in torch, within 1e-12.
"""

from __future__ import annotations

import numpy as np

from refusion_edge.arrays import Array, State
from refusion_edge.kernels.gpu.folding import fold
from refusion_edge.kernels.gpu.schedule import FUSED, fuse_reference, make_schedule


def fuse_in_double(state: State, a: Array, b: Array) -> Array:
    """Fuse two luma planes.

    Args:
        state: The 86 parameters.
        a: (1, 1, H, W), [0, 1].
        b: Same shape.

    Returns:
        (1, 1, H, W) float64.
    """
    planes = np.stack([a[0, 0], b[0, 0]]).astype(np.float64)
    weights = fold(state).rounded(np.dtype(np.float64))
    return fuse_reference(make_schedule("float64"), weights, planes)[FUSED][None, None]
