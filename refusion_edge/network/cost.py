"""Arithmetic and memory traffic of the networks per pixel of the image, derived from the shapes of their parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass

from refusion_edge.network.fast import FastLayout
from refusion_edge.network.parameters import DIM, NUM_BLOCKS, NUM_HEADS, PARAMETERS, is_convolution

_PLANE_BYTES = 4
_FEATURE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}


@dataclass(frozen=True, slots=True)
class Work:
    """Arithmetic and memory traffic for one pixel.

    Attributes:
        flops: Floating-point operations of convolutions and attention products; a multiply-add counts as two.
        least_bytes: Memory traffic in bytes if everything between two sums over the whole image is one pass.
    """

    flops: float
    least_bytes: float


def fast_work(layout: FastLayout, precision: str) -> Work:
    """Count the operations and the minimum memory traffic of one pixel in the network ``fast``.

    Operations: the convolutions; the composition, the activations and the statistics together are less than a hundredth.
    Traffic: with the statistics of the frame before, everything is one pass over the sources.

    Args:
        layout: Sizes of the network.
        precision: Precision of the features in memory, of which there are none; accepted for the sake of the other network.
    """
    if precision not in _FEATURE_BYTES:
        raise KeyError(precision)
    return Work(2.0 * layout.multiplications, 3.0 * _PLANE_BYTES)


def refusion_work(precision: str) -> Work:
    """Count the operations and the minimum memory traffic of one pixel in the paper's network.

    Operations: nothing is downsampled and there are no strides, so each element of a convolution kernel is one
    multiply-add. Attention over C channels in N heads multiplies each of C rows with C / N columns, once for the scores and
    once for the values. Norms, activations and softmax are left out; together they are less than a tenth.

    Traffic: attention scales features by sums over the whole image, so the features have to be written before such a sum
    and read after it; nothing else needs memory traffic. There are as many such points in sequence as attentions on the way
    from a source to the result. Planes are float32 in every precision.

    Args:
        precision: Precision of the features in memory.
    """
    multiplications = sum(math.prod(shape) for name, shape in PARAMETERS.items() if is_convolution(name))
    attentions = [(DIM, 2 * NUM_BLOCKS), (DIM, 2), (2 * DIM, NUM_BLOCKS)]  # encoders, fusion module, decoder
    multiplications += sum(count * 2 * channels * channels // NUM_HEADS for channels, count in attentions)
    points = 2 * NUM_BLOCKS + 1
    # Two sources of DIM channels before the fusion module, one of 2 * DIM after it: the same width all the way.
    features = points * 2 * (2 * DIM)
    return Work(2.0 * multiplications, features * _FEATURE_BYTES[precision] + 3.0 * _PLANE_BYTES)
