"""Gating, shared by the feed-forward and the fusion module: ``gelu(gate) * update``, projected and added to features.

    y = base + P (gelu(gate) * update)

The gelu is exact, except for features in half precision, where an approximation is within 1.8e-4 of it: less than the rounding
of the product, which is rounded to the dtype of the features before it is projected.
"""

from __future__ import annotations

import math

import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.kernels.gpu.language import jit, tl
from refusion_edge.kernels.gpu.strip import wide_dtype

# gelu(x) = max(x, 0) - t Phi(-t) with t = |x|. From here on t Phi(-t) is less than the error of the polynomial below.
REACH = 3.95

_exact_erf = np.vectorize(math.erf, otypes=[np.float64])
# Linear between these points the error is 4e-9; beyond 6 the float32 nearest to erf is 1.
_ERF_AT = np.linspace(-6.0, 6.0, 1 << 16)
_ERF = _exact_erf(_ERF_AT)


def gelu_reference(x: Array) -> Array:
    """``x (1 + erf(x / sqrt 2)) / 2`` in the dtype of ``x``."""
    scaled = x / math.sqrt(2.0)
    # Single precision is used for whole images, where one call per number would take minutes.
    erf = _exact_erf(scaled) if x.dtype == np.float64 else np.interp(scaled, _ERF_AT, _ERF)
    activated: Array = (0.5 * x * (1.0 + erf)).astype(x.dtype)
    return activated


def tail(t):  # an array in the reference, a tensor in the kernel
    """``t Phi(-t)`` within 1.8e-4 for t in [0, ``REACH``]: the polynomial of degree 7 closest to it that begins as it does."""
    return t * (
        0.5
        + t * (-0.38842237 + t * (-0.046810333 + t * (0.1430857 + t * (-0.058800217 + t * (0.01016272 + t * -0.00066130189)))))
    )


def half_gelu_reference(x: Array) -> Array:
    """The approximation for features in half precision: within 1.8e-4 of ``gelu_reference``, in a third of the instructions."""
    activated: Array = np.maximum(x, 0) - tail(np.minimum(np.abs(x), x.dtype.type(REACH)))
    return activated


def add_gated_reference(base: Array, gate: Array, update: Array, project: Array) -> Array:
    """Add gated features.

    Args:
        base: What they are added to, (H, W, C) floating.
        gate: (H, W, N) in the wide dtype of ``base``.
        update: The same.
        project: (N, C), inputs before outputs.

    Returns:
        (H, W, C), dtype of ``base``. New memory.
    """
    wide = wide_dtype(base)
    activated = half_gelu_reference(gate) if base.dtype == np.float16 else gelu_reference(gate)
    hidden = (activated * update).astype(base.dtype)
    y: Array = (base + hidden.astype(wide) @ project.astype(wide)).astype(base.dtype)
    return y


_tail = jit(tail)


@jit
def _gelu(x, dtype: tl.constexpr):
    if dtype == tl.float16:
        # NaN must stay NaN, and the minimum below would drop it.
        return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) - _tail(tl.minimum(tl.abs(x), 3.95))
    else:
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@jit
def add_gated_row(base_ptr, y_ptr, gate, update, project, x0, y, height, width, C: tl.constexpr, TILE: tl.constexpr):
    x = x0 + tl.arange(0, TILE)
    hidden = (_gelu(gate, y_ptr.dtype.element_ty) * update).to(y_ptr.dtype.element_ty)
    change = tl.dot(hidden, project, input_precision="ieee")
    inside = ((x < width) & (y + tl.zeros([TILE], tl.int32) < height))[:, None]
    offset = tl.cast(y, tl.int64) * width * C + x[:, None] * C + tl.arange(0, C)[None, :]
    old = tl.load(base_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + offset, (old + change).to(y_ptr.dtype.element_ty), mask=inside)
