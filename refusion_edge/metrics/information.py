"""Metrics of information theory, on histograms of gray levels."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from refusion_edge.metrics.planes import Plane, defined, stretch

_LEVELS = 256
# Cvejic's exponent of the Tsallis entropy.
_TSALLIS_ORDER = 1.85


def entropy(fused: Plane) -> float:
    """Entropy of the fused image: -sum p log2 p over its 256 gray levels.

    Args:
        fused: (H, W).

    Returns:
        [0, 8] bit, higher is better; 0 for a constant image. Conventions ``evaluator`` and ``vifb`` (Entropy).

    Source:
        Roberts, van Aardt, Ahmed: Assessment of image fusion procedures using entropy, J. Appl. Remote Sens. 2, 2008.
    """
    return _entropy(_histogram(fused))


def mutual_information(a: Plane, b: Plane, fused: Plane) -> float:
    """Mutual information with both sources: I(F;A) + I(F;B), I(X;Y) = sum p(x,y) ln(p(x,y) / (p(x) p(y))).

    Args:
        a: Source a, (H, W).
        b: Source b, (H, W).
        fused: (H, W).

    Returns:
        [0, 2 * 8 ln 2] nat (times 1.4427 for bit), higher is better. Convention ``evaluator``: exact gray levels.

    Source:
        Qu, Zhang, Yan: Information measure for performance of image fusion, Electron. Lett. 38(7), 2002.
    """
    return math.log(2) * (_mutual_information(a, fused) + _mutual_information(b, fused))


def mutual_information_stretched(a: Plane, b: Plane, fused: Plane) -> float:
    """Mutual information with both sources after each image was stretched to 0..255.

    Args:
        a: Source a, (H, W).
        b: Source b, (H, W).
        fused: (H, W).

    Returns:
        [0, 2 * 8 ln 2] nat, higher is better. Convention ``vifb`` (Mutinf). Equal to ``mutual_information`` if every
        image spans 0..255; otherwise the stretch can merge gray levels.

    Source:
        Qu, Zhang, Yan, 2002; stretch as in the VIFB benchmark (metricsMutinf.m).
    """
    return mutual_information(stretch(a), stretch(b), stretch(fused))


def cross_entropy(a: Plane, b: Plane, fused: Plane) -> float:
    """Cross entropy: (D(A,F) + D(B,F)) / 2, D(X,F) = sum p_x log2(p_x / p_f) over levels that occur in both.

    Args:
        a: Source a, (H, W).
        b: Source b, (H, W).
        fused: (H, W).

    Returns:
        Bit, lower is better; 0 for equal histograms. Can be negative and is 0 without a common gray level, because
        levels that occur in one image only are left out. Conventions ``vifb`` (Cross_entropy) and ``survey`` (CE).

    Source:
        Bulanon, Burks, Alchanatis: Image fusion of visible and thermal images for fruit detection, Biosyst. Eng. 103,
        2009; the sum over common levels as in the VIFB benchmark (metricsCross_entropy.m).
    """
    return (_divergence(_histogram(a), _histogram(fused)) + _divergence(_histogram(b), _histogram(fused))) / 2


def normalized_mutual_information(a: Plane, b: Plane, fused: Plane) -> float:
    """Normalized mutual information: 2 (I(F;A) / (H(F) + H(A)) + I(F;B) / (H(F) + H(B))), images stretched first.

    Args:
        a: Source a, (H, W).
        b: Source b, (H, W).
        fused: (H, W).

    Returns:
        [0, 2], higher is better; undefined (NaN) if the fused image and a source are both constant. Convention
        ``survey`` (NMI, Q_MI).

    Source:
        Hossny, Nahavandi, Creighton: Comments on 'Information measure for performance of image fusion', Electron.
        Lett. 44(18), 2008; stretch as in Liu et al., Objective assessment of multiresolution image fusion algorithms,
        IEEE TPAMI 34(1), 2012.
    """
    a, b, fused = stretch(a), stretch(b), stretch(fused)
    entropy_fused = entropy(fused)
    total = 0.0
    for source in (a, b):
        both = entropy_fused + entropy(source)
        total += 2 * _mutual_information(source, fused) / both if both > 0 else math.nan
    return total


def tsallis_information(a: Plane, b: Plane, fused: Plane) -> float:
    """Tsallis mutual information: T(A,F) + T(B,F), T(X,F) = (1 - sum p(x,f)^q / (p(x) p(f))^(q-1)) / (1 - q), q = 1.85.

    Args:
        a: Source a, (H, W).
        b: Source b, (H, W).
        fused: (H, W).

    Returns:
        At least 0, higher is better. Convention ``survey`` (TE), images stretched first.

    Source:
        Cvejic, Canagarajah, Bull: Image fusion metric based on mutual information and Tsallis entropy, Electron. Lett.
        42(11), 2006; stretch and exponent as in Liu et al., 2012.
    """
    a, b, fused = stretch(a), stretch(b), stretch(fused)
    return _tsallis(a, fused) + _tsallis(b, fused)


def nonlinear_correlation(a: Plane, b: Plane, fused: Plane) -> float:
    """Nonlinear correlation information entropy: 1 + sum (r / 3) log256(r / 3) over the eigenvalues r of the matrix of NCC.

    NCC(X,Y) = H'(X) + H'(Y) - H'(X,Y) with entropies to base 256, images stretched first; the diagonal is 1.

    Args:
        a: Source a, (H, W).
        b: Source b, (H, W).
        fused: (H, W).

    Returns:
        About [0.80, 1], higher is better. Convention ``survey`` (QNCIE).

    Source:
        Wang, Shen, Jin: Performance evaluation of image fusion techniques, in: Image Fusion: Algorithms and
        Applications, 2008; stretch as in Liu et al., 2012.
    """
    a, b, fused = stretch(a), stretch(b), stretch(fused)
    bits = math.log2(_LEVELS)
    ab, af, bf = (_mutual_information(x, y) / bits for x, y in ((a, b), (a, fused), (b, fused)))
    shares = np.linalg.eigvalsh(np.array([[1.0, ab, af], [ab, 1.0, bf], [af, bf, 1.0]])) / 3
    # Equal images give eigenvalues of 0, which rounding can push below.
    shares = shares[shares > 0]
    return 1 + float(np.sum(shares * np.log2(shares))) / bits


def _histogram(plane: Plane) -> NDArray[np.float64]:
    levels = defined(plane)
    return np.bincount(levels.astype(np.intp).ravel(), minlength=_LEVELS) / levels.size


def _joint_histogram(x: Plane, y: Plane) -> NDArray[np.float64]:
    """Count pairs of gray levels; returns probabilities, (256, 256), x along the rows. NaN is at the same places in both."""
    x, y = defined(x), defined(y)
    pairs = x.astype(np.intp) * _LEVELS + y.astype(np.intp)
    return np.bincount(pairs.ravel(), minlength=_LEVELS**2).reshape(_LEVELS, _LEVELS) / x.size


def _entropy(probabilities: NDArray[np.float64]) -> float:
    occurring = probabilities[probabilities > 0]
    # `0.0 -` instead of a sign: the entropy of a constant is 0, not -0.
    return 0.0 - float(np.sum(occurring * np.log2(occurring)))


def _mutual_information(x: Plane, y: Plane) -> float:
    """I(X;Y) in bit; never below 0, whatever the rounding."""
    joint = _joint_histogram(x, y)
    return max(0.0, _entropy(joint.sum(axis=1)) + _entropy(joint.sum(axis=0)) - _entropy(joint))


def _divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    common = (p > 0) & (q > 0)
    return float(np.sum(p[common] * np.log2(p[common] / q[common])))


def _tsallis(x: Plane, y: Plane) -> float:
    joint = _joint_histogram(x, y)
    independent = np.outer(joint.sum(axis=1), joint.sum(axis=0))
    occurring = joint > 0
    power_sum = np.sum(joint[occurring] ** _TSALLIS_ORDER / independent[occurring] ** (_TSALLIS_ORDER - 1))
    return float((1 - power_sum) / (1 - _TSALLIS_ORDER))
