"""What the back ends that run our own kernels require of planes."""

from __future__ import annotations

import numpy as np

from refusion_edge.arrays import Float32Array
from refusion_edge.errors import ShapeError
from refusion_edge.sizes import MAX_SIDE, MIN_SIDE


def require_planes(a: Float32Array, b: Float32Array) -> tuple[int, int]:
    """Check that two sources are planes of one size that the kernels can fuse.

    Args:
        a: Source a, (1, 1, H, W) float32.
        b: Source b, likewise.

    Returns:
        Their size (H, W).

    Raises:
        ShapeError: One has another shape or dtype, they differ in size, or their sides are out of range.
    """
    for name, plane in (("a", a), ("b", b)):
        if plane.ndim != 4 or plane.shape[:2] != (1, 1) or plane.dtype != np.float32:
            raise ShapeError(
                f"source {name} is {plane.shape} {plane.dtype} instead of (1, 1, H, W) float32",
                "convert it, or fuse the pairs of a batch one after the other",
                expected=((1, 1, "H", "W"), "float32"),
                got=(plane.shape, str(plane.dtype)),
            )
    height, width = a.shape[2:]
    if a.shape != b.shape:
        raise ShapeError(
            f"the sources differ in size: a is {height}x{width} and b is {b.shape[2]}x{b.shape[3]} (height x width)",
            "align or resize them first",
            expected=(height, width),
            got=b.shape[2:],
        )
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in (height, width)):
        raise ShapeError(
            f"the sources are {height}x{width} (height x width)",
            f"resize them to sides from {MIN_SIDE} to {MAX_SIDE} pixels",
            expected=(MIN_SIDE, MAX_SIDE),
            got=(height, width),
        )
    return height, width
