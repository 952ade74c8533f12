"""The network ``fast``: its layout, its parameters and its definition in NumPy.

The network composes the result from its sources and learns only how. At every pixel

    f = max(a, b) - s |a - b| + r,    clamped to [0, 1]

so s = r = 0 is the maximum, s = 1 the minimum of the sources, and s = 0.5 their mean, whose detail is that of the sources.
The planes s and r come from plain 3x3 convolutions at 1/k of the resolution, k being the unshuffle factor:

1. **Padding.** If H or W is not a multiple of k, both sources are extended at the bottom and at the right by repeating their
   last row and column, to the next multiple. The result is cropped to H x W.
2. **Pixel-unshuffle.** Channel ``k * y + x`` holds the pixels of source a in row y and column x of each k x k cell; the
   k * k channels of source b follow. 2 k k channels in all.
3. **Convolutions.** ``layers.0`` to ``layers.N-1``: 3x3, stride 1, padded by one pixel of zeros at each side, with bias. All
   but the last are followed by LeakyReLU with the slope 0.1. There are C channels between them, and 2 k k after the last.
4. **Pixel-shuffle.** The inverse of 2: the first k * k channels are s at full resolution, the others are r.

The first convolution is adapted to the image by eight statistics of the pair: mean and standard deviation of the planes a,
b, max(a, b) and |a - b|, in this order (mean of a, deviation of a, mean of b, ...). They are taken over every fourth pixel,
those in the even rows and the even columns (counted from 0) of the sources before padding, whatever k is. The deviation is
that of the population: the root of the mean squared distance from the mean. A dense layer of 24 units (``statistics.0``),
LeakyReLU 0.1, and a dense layer (``statistics.1``) turn them into a gain g and an offset o per channel, first the C gains,
then the C offsets, and the first convolution becomes

    weight[c] * (1 + g[c]),    bias[c] * (1 + g[c]) + o[c]

This costs nothing per pixel, and is exact at the border as well, because the padding is zero. A video may use the statistics
of the frame before. No extremes are among them: one defective pixel would change the whole image.

Sizes begin at 8x8. NaN in a source or in a parameter has to reach the result, or to be refused. Precision: weights and planes
are float32; the eight statistics have to be accurate to 1e-6 (sums in double precision, or of short runs), because their
error shifts the whole image; an fp32 implementation then agrees with ``reference`` to about 1e-6.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from refusion_edge.arrays import Array, State
from refusion_edge.errors import UsageError
from refusion_edge.network.parameters import Shape

FORM = "fast"
"""Name of its ONNX graph, where those of the other network have a form; see ``refusion_edge.network.fast_graph``."""
SLOPE = 0.1
"""Slope of LeakyReLU for negative values."""
STATISTICS = 8
"""Number of statistics of a pair."""
HIDDEN = 24
"""Units between the two dense layers."""
STRIDE = 2
"""Statistics are taken over pixels whose row and column are multiples of this."""

FACTORS = (2, 4)
CHANNELS = range(8, 65, 8)
CONVOLUTIONS = range(2, 17)

_TAPS = 9


@dataclass(frozen=True, slots=True)
class FastLayout:
    """The sizes that define a network of this kind.

    Attributes:
        channels: Channels C between the convolutions, a multiple of 8 from 8 to 64.
        convolutions: Number N of 3x3 convolutions, 2 to 16.
        factor: Unshuffle factor k, 2 or 4.
    """

    channels: int = 24
    convolutions: int = 6
    factor: int = 2

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("channels", self.channels, CHANNELS),
            ("convolutions", self.convolutions, CONVOLUTIONS),
            ("factor", self.factor, FACTORS),
        ):
            if value not in allowed:
                listed = ", ".join(map(str, allowed))
                raise UsageError(
                    f"the network fast cannot have {name} = {value}", f"choose one of {listed}", expected=allowed, got=value
                )

    @property
    def planes(self) -> int:
        """Channels before the first and after the last convolution, 2 k k."""
        return 2 * self.factor**2

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels before, between and after the convolutions, N + 1 numbers."""
        return (self.planes, *[self.channels] * (self.convolutions - 1), self.planes)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shapes of all parameters by name, in order."""
        return dict(self._named_shapes())

    @property
    def multiplications(self) -> float:
        """Multiply-adds per pixel of the image."""
        return sum(_TAPS * inputs * outputs for inputs, outputs in self._steps()) / self.factor**2

    def _steps(self) -> Iterator[tuple[int, int]]:
        yield from zip(self.widths[:-1], self.widths[1:], strict=True)

    def _named_shapes(self) -> Iterator[tuple[str, Shape]]:
        yield "statistics.0.weight", (HIDDEN, STATISTICS)
        yield "statistics.0.bias", (HIDDEN,)
        yield "statistics.1.weight", (2 * self.channels, HIDDEN)
        yield "statistics.1.bias", (2 * self.channels,)
        for index, (inputs, outputs) in enumerate(self._steps()):
            yield f"layers.{index}.weight", (outputs, inputs, 3, 3)
            yield f"layers.{index}.bias", (outputs,)


def layout_of(shapes: Mapping[str, Shape]) -> FastLayout:
    """Find the layout that parameters of these shapes belong to.

    Args:
        shapes: Shapes by name. Only the first weight and the names of the layers are looked at; whether the others fit is
            for the caller to compare with ``FastLayout.shapes``.

    Raises:
        UsageError: The first weight is missing, or is of no layout.
    """
    first = shapes.get("layers.0.weight", ())
    if len(first) != 4:
        raise UsageError("there is no first convolution of the network fast", "give parameters of this network")
    convolutions = sum(name.startswith("layers.") and name.endswith(".weight") for name in shapes)
    return FastLayout(channels=first[0], convolutions=convolutions, factor=math.isqrt(first[1] // 2))


def statistics(a: Array, b: Array) -> NDArray[np.float64]:
    """The eight statistics of a pair, see the module.

    Args:
        a: Source a, (H, W), floating, [0, 1].
        b: Source b, same shape.

    Returns:
        (8,) float64.
    """
    a, b = (plane[::STRIDE, ::STRIDE].astype(np.float64) for plane in (a, b))
    planes = (a, b, np.maximum(a, b), np.abs(a - b))
    return np.array([figure for plane in planes for figure in (plane.mean(), plane.std())])


def folded(state: State, figures: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weight and bias of the first convolution for an image with these statistics.

    Args:
        state: All parameters.
        figures: Statistics, (8,).

    Returns:
        Weight, (C, 2 k k, 3, 3), and bias, (C,), float64.
    """
    hidden = _leaky(_dense(state, "statistics.0", figures))
    gain, offset = np.split(_dense(state, "statistics.1", hidden), 2)
    weight, bias = _of(state, "layers.0")
    return weight * (1 + gain[:, None, None, None]), bias * (1 + gain) + offset


def reference(state: State, a: Array, b: Array, figures: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Fuse two planes in float64: the definition that every implementation is compared with.

    Args:
        state: All parameters.
        a: Source a, (H, W), floating, [0, 1]; from 8x8.
        b: Source b, same shape.
        figures: Statistics, (8,); None for those of this pair.

    Returns:
        (H, W) float64, [0, 1].
    """
    layout = layout_of({name: array.shape for name, array in state.items()})
    height, width = a.shape
    factor = layout.factor
    weight, bias = folded(state, statistics(a, b) if figures is None else figures)
    margins = ((0, -height % factor), (0, -width % factor))
    a, b = (np.pad(plane.astype(np.float64), margins, mode="edge") for plane in (a, b))
    features = _convolve(np.concatenate([_unshuffle(plane, factor) for plane in (a, b)]), weight, bias)
    for index in range(1, layout.convolutions):
        features = _convolve(_leaky(features), *_of(state, f"layers.{index}"))
    s, r = (_shuffle(part, factor) for part in np.split(features, 2))
    fused: NDArray[np.float64] = np.clip(np.maximum(a, b) - s * np.abs(a - b) + r, 0, 1)
    return fused[:height, :width]


def _of(state: State, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return state[f"{name}.weight"].astype(np.float64), state[f"{name}.bias"].astype(np.float64)


def _dense(state: State, name: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    weight, bias = _of(state, name)
    result: NDArray[np.float64] = weight @ values + bias
    return result


def _leaky(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(values >= 0, values, SLOPE * values)


def _unshuffle(plane: NDArray[np.float64], factor: int) -> NDArray[np.float64]:
    """(H, W) to (k k, H / k, W / k)."""
    height, width = plane.shape
    cells = plane.reshape(height // factor, factor, width // factor, factor)
    return cells.transpose(1, 3, 0, 2).reshape(factor**2, height // factor, width // factor)


def _shuffle(channels: NDArray[np.float64], factor: int) -> NDArray[np.float64]:
    """(k k, h, w) to (k h, k w), the inverse of ``_unshuffle``."""
    height, width = channels.shape[1:]
    cells = channels.reshape(factor, factor, height, width)
    return cells.transpose(2, 0, 3, 1).reshape(factor * height, factor * width)


def _convolve(features: NDArray[np.float64], weight: NDArray[np.float64], bias: NDArray[np.float64]) -> NDArray[np.float64]:
    """3x3 convolution with zero padding, (I, h, w) to (O, h, w)."""
    height, width = features.shape[1:]
    padded = np.pad(features, ((0, 0), (1, 1), (1, 1)))
    total = np.repeat(bias, height * width).reshape(len(bias), height, width)
    for y in range(3):
        for x in range(3):
            total += np.tensordot(weight[:, :, y, x], padded[:, y : y + height, x : x + width], axes=1)
    return total
