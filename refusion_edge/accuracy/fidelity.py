"""Fidelity of a fused image to its fp32 reference, and the limits that an engine has to meet."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from refusion_edge.arrays import Float32Array
from refusion_edge.network.layouts import Precision

_PEAK = 255.0
# Wang et al., 2004: window 11, sigma 1.5, K1 = 0.01, K2 = 0.03.
_SSIM_WINDOW = 11
_SSIM_SIGMA = 1.5
_SSIM_C1, _SSIM_C2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Distance of a fused luma plane to its reference.

    Attributes:
        psnr_db: Peak signal-to-noise ratio with peak 255, in dB; infinite for equal planes.
        ssim: Structural similarity, at most 1.
        max_error: Largest absolute difference, in gray levels of 255.
    """

    psnr_db: float
    ssim: float
    max_error: float

    def __str__(self) -> str:
        psnr = "equal" if self.psnr_db == math.inf else f"{self.psnr_db:.1f} dB"
        return f"PSNR {psnr}, SSIM {self.ssim:.6f}, max error {self.max_error:.3f} of 255"


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits for a build: minimum PSNR and SSIM, maximum error, in the units of ``Fidelity``."""

    psnr_db: float
    ssim: float
    max_error: float

    def __str__(self) -> str:
        return f"at least {self.psnr_db:g} dB, SSIM {self.ssim:g}, at most {self.max_error:g} of 255"

    def hold(self, fidelity: Fidelity) -> bool:
        """Tell whether a result is within these limits; results with NaN never are."""
        return (
            fidelity.psnr_db >= self.psnr_db
            and fidelity.ssim >= self.ssim
            and fidelity.max_error <= self.max_error
        )  # fmt: skip


LIMITS: dict[Precision, Limits] = {
    # Two summation orders of one fp32 graph differ by about 1e-5 of full scale, that is 0.003 levels.
    "fp32": Limits(psnr_db=90.0, ssim=0.99999, max_error=0.05),
    # Half a level of error in every pixel is 54 dB: invisible, while a broken graph is far below.
    "fp16": Limits(psnr_db=54.0, ssim=0.999, max_error=4.0),
    # Eight bits of mantissa in every product; the sample pairs of all tasks come out at 57 to 60 dB, two levels at worst.
    "bf16": Limits(psnr_db=50.0, ssim=0.998, max_error=8.0),
    # PSNR and SSIM decide; the maximum error only rejects engines that spoil a small part of the image.
    "int8": Limits(psnr_db=45.0, ssim=0.99, max_error=24.0),
}


def compare(fused: Float32Array, reference: Float32Array) -> Fidelity:
    """Compare a fused luma plane with its reference.

    Args:
        fused: (H, W) float32, [0, 1], before any stretch.
        reference: Same shape.
    """
    x = fused.astype(np.float64) * _PEAK
    y = reference.astype(np.float64) * _PEAK
    error = np.abs(x - y)
    mean_square = float(np.mean(error * error))
    psnr_db = math.inf if mean_square == 0 else 10 * math.log10(_PEAK**2 / mean_square)
    # NaN compares as neither small nor large, so turn it into a PSNR that no limit allows.
    return Fidelity(psnr_db if math.isfinite(mean_square) else -math.inf, _ssim(x, y), float(error.max()))


def worst(results: Iterable[Fidelity]) -> Fidelity:
    """Take the worst value of each metric over several images."""
    collected = list(results)
    return Fidelity(
        min(result.psnr_db for result in collected),
        min(result.ssim for result in collected),
        max(result.max_error for result in collected),
    )


def _ssim(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    # The windows of the SSIM in `metrics` stay inside the image. Here, faults at the border have to count, and engines may be
    # built for sizes smaller than one window.
    def blur(plane: NDArray[np.float64]) -> NDArray[np.float64]:
        size = (_SSIM_WINDOW, _SSIM_WINDOW)
        return np.asarray(cv2.GaussianBlur(plane, size, _SSIM_SIGMA, borderType=cv2.BORDER_REFLECT_101), np.float64)

    mean_x, mean_y = blur(x), blur(y)
    variance_x = blur(x * x) - mean_x * mean_x
    variance_y = blur(y * y) - mean_y * mean_y
    covariance = blur(x * y) - mean_x * mean_y
    numerator = (2 * mean_x * mean_y + _SSIM_C1) * (2 * covariance + _SSIM_C2)
    denominator = (mean_x**2 + mean_y**2 + _SSIM_C1) * (variance_x + variance_y + _SSIM_C2)
    return float(np.mean(numerator / denominator))
