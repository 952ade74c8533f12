"""The network ``fast`` in PyTorch, as a function of its parameters. Needs torch; see ``refusion_edge.network.fast``."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from refusion_edge.network.fast import SLOPE, STRIDE, FastLayout, layout_of

# A convolution begins near the identity, with this share of random weights.
_RANDOM_SHARE = 0.3
# The last layer begins near zero, where the result is the maximum of the sources.
_LAST_SHARE = 0.1


def fuse(parameters: Mapping[str, Tensor], a: Tensor, b: Tensor, figures: Tensor | None = None) -> Tensor:
    """Fuse two luma planes.

    Args:
        parameters: Parameters of the network, any floating dtype.
        a: Source a, (B, 1, H, W), dtype of the parameters, [0, 1].
        b: Source b, same shape and dtype.
        figures: Statistics, (B, 8), for crops of a larger image; None for those of the planes.

    Returns:
        (B, 1, H, W), same dtype, not clamped: a loss needs the gradient outside [0, 1] as well.
    """
    layout = layout_of({name: tuple(tensor.shape) for name, tensor in parameters.items()})
    height, width = a.shape[2:]
    bottom, right = -height % layout.factor, -width % layout.factor
    hidden = F.leaky_relu(_dense(parameters, "statistics.0", statistics(a, b) if figures is None else figures), SLOPE)
    gain, offset = _dense(parameters, "statistics.1", hidden)[:, :, None, None].chunk(2, dim=1)
    if bottom or right:
        a, b = (F.pad(plane, (0, right, 0, bottom), mode="replicate") for plane in (a, b))
    features = F.pixel_unshuffle(torch.cat((a, b), dim=1), layout.factor).contiguous(memory_format=torch.channels_last)
    features = _convolve(parameters, "layers.0", features) * (1 + gain) + offset
    for index in range(1, layout.convolutions):
        features = _convolve(parameters, f"layers.{index}", F.leaky_relu(features, SLOPE))
    s, r = F.pixel_shuffle(features.to(a.dtype), layout.factor).chunk(2, dim=1)
    fused = torch.maximum(a, b) - s * (a - b).abs() + r
    return fused[:, :, :height, :width] if bottom or right else fused


def statistics(a: Tensor, b: Tensor) -> Tensor:
    """The eight statistics of every pair of a batch, (B, 1, H, W) each to (B, 8)."""
    a, b = a[:, :, ::STRIDE, ::STRIDE], b[:, :, ::STRIDE, ::STRIDE]
    planes = torch.cat((a, b, torch.maximum(a, b), (a - b).abs()), dim=1)
    figures = torch.stack((planes.mean(dim=(2, 3)), planes.std(dim=(2, 3), correction=0)), dim=2)
    return figures.flatten(1)


def swapped(figures: Tensor) -> Tensor:
    """Statistics of the same pairs with their sources exchanged, (B, 8)."""
    return torch.cat((figures[:, 2:4], figures[:, :2], figures[:, 4:]), dim=1)


def initial(layout: FastLayout, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw parameters for a run from scratch, float32: nearly the maximum of the sources, without use of the statistics."""
    parameters = {name: torch.zeros(shape) for name, shape in layout.shapes.items()}
    for name, tensor in parameters.items():
        if not name.endswith("weight") or name == "statistics.1.weight":
            continue
        fan_in = math.prod(tensor.shape[1:])
        drawn = (torch.rand(tensor.shape, generator=generator) * 2 - 1) / math.sqrt(fan_in)
        outer = name in ("layers.0.weight", "statistics.0.weight")
        last = name == f"layers.{layout.convolutions - 1}.weight"
        if outer or last:
            tensor.copy_(_LAST_SHARE * drawn if last else drawn)
        else:
            # The variance that keeps that of the features, times the share; torch's uniform default has a third of 1 / fan-in.
            torch.nn.init.dirac_(tensor)
            tensor.add_(drawn, alpha=_RANDOM_SHARE * math.sqrt(6 / (1 + SLOPE**2)))
    return parameters


def _dense(parameters: Mapping[str, Tensor], name: str, values: Tensor) -> Tensor:
    return F.linear(values, parameters[f"{name}.weight"], parameters[f"{name}.bias"])


def _convolve(parameters: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.conv2d(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"], padding=1)
