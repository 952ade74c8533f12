"""Tone curves that widen what a set of pairs shows: darker nights, weaker thermal contrast, other exposures."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from refusion_edge.arrays import Array, Float32Array


@dataclass(frozen=True, slots=True)
class ToneSettings:
    """Random tone curves of crops.

    The fusion loss is made of the sources as the network sees them, so any curve leaves it valid; what a few hundred
    pictures never show, such as a visible image that is nearly black, is learned from curves.

    Attributes:
        share: Share of the crops that get curves, [0, 1].
        gamma: Largest exponent; drawn evenly on a logarithmic scale from its reciprocal up to it.
        least_gain: Least factor, (0, 1]; drawn evenly from it up to 1.
        alike: Whether both sources of a pair get the same curve, where their levels belong together.
    """

    share: float
    gamma: float
    least_gain: float
    alike: bool


def toned(a: Array, b: Array, tone: ToneSettings, draw: np.random.Generator) -> tuple[Float32Array, Float32Array]:
    """Put two crops on a scale of [0, 1], at times through curves ``gain * x ** exponent``.

    Args:
        a: Source a, (H, W) uint8.
        b: Source b, same shape.
        tone: Which curves.
        draw: Source of them.

    Returns:
        Both crops, (H, W) float32, [0, 1].
    """
    plain = a.astype(np.float32) / np.float32(255), b.astype(np.float32) / np.float32(255)
    if draw.random() >= tone.share:
        return plain
    curve_a = _curve(tone, draw)
    curve_b = curve_a if tone.alike else _curve(tone, draw)
    return _apply(plain[0], curve_a), _apply(plain[1], curve_b)


def _curve(tone: ToneSettings, draw: np.random.Generator) -> tuple[float, float]:
    reach = math.log(tone.gamma)
    return math.exp(draw.uniform(-reach, reach)), draw.uniform(tone.least_gain, 1)


def _apply(plane: Float32Array, curve: tuple[float, float]) -> Float32Array:
    exponent, gain = np.float32(curve[0]), np.float32(curve[1])
    result: Float32Array = gain * plane**exponent
    return result
