"""The metrics of the convention ``evaluator`` written as in the papers: whole 2-D windows, no shortcuts.

The reference that the fast versions of ``refusion_edge.metrics`` are tested against and timed against. All functions
take planes of gray levels, (H, W) float64, and return a number.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.signal import convolve2d
from scipy.stats import entropy as scipy_entropy

Plane = NDArray[np.float64]


def entropy(fused: Plane) -> float:
    """EN."""
    return float(scipy_entropy(np.histogram(fused, np.arange(257))[0], base=2))


def standard_deviation(fused: Plane) -> float:
    """SD."""
    return float(np.sqrt(np.mean((fused - fused.mean()) ** 2)))


def spatial_frequency(fused: Plane) -> float:
    """SF."""
    rows, columns = fused[:, 1:] - fused[:, :-1], fused[1:] - fused[:-1]
    return float(np.sqrt(np.mean(rows**2) + np.mean(columns**2)))


def average_gradient(fused: Plane) -> float:
    """AG."""
    gradient = np.zeros((2, *fused.shape))
    gradient[0, :, 1:-1] = (fused[:, 2:] - fused[:, :-2]) / 2
    gradient[0, :, 0], gradient[0, :, -1] = fused[:, 1] - fused[:, 0], fused[:, -1] - fused[:, -2]
    gradient[1, 1:-1] = (fused[2:] - fused[:-2]) / 2
    gradient[1, 0], gradient[1, -1] = fused[1] - fused[0], fused[-1] - fused[-2]
    return float(np.mean(np.sqrt((gradient**2).sum(axis=0) / 2)))


def mutual_information(a: Plane, b: Plane, fused: Plane) -> float:
    """MI."""
    total = 0.0
    for source in (a, b):
        joint = np.histogram2d(source.ravel(), fused.ravel(), np.arange(257))[0] / fused.size
        independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
        occurring = joint > 0
        total += float(np.sum(joint[occurring] * np.log(joint[occurring] / independent[occurring])))
    return total


def mean_squared_error(a: Plane, b: Plane, fused: Plane) -> float:
    """MSE."""
    return float((np.mean((a - fused) ** 2) + np.mean((b - fused) ** 2)) / 2)


def peak_signal_to_noise(a: Plane, b: Plane, fused: Plane) -> float:
    """PSNR."""
    return float(10 * np.log10(fused.max() ** 2 / mean_squared_error(a, b, fused)))


def correlation(a: Plane, b: Plane, fused: Plane) -> float:
    """CC."""
    return float((_pearson(a, fused) + _pearson(b, fused)) / 2)


def correlation_of_differences(a: Plane, b: Plane, fused: Plane) -> float:
    """SCD."""
    return _pearson(a, fused - b) + _pearson(b, fused - a)


def visual_information_fidelity(a: Plane, b: Plane, fused: Plane) -> float:
    """VIF."""
    return _fidelity(a, fused) + _fidelity(b, fused)


def edge_preservation(a: Plane, b: Plane, fused: Plane) -> float:
    """Qabf."""
    (strength_a, angle_a), (strength_b, angle_b), (strength_f, angle_f) = (_sobel(plane) for plane in (a, b, fused))
    kept = _preservation(strength_a, angle_a, strength_f, angle_f) * strength_a
    kept += _preservation(strength_b, angle_b, strength_f, angle_f) * strength_b
    return float(kept.sum() / (strength_a + strength_b).sum())


def structural_similarity(a: Plane, b: Plane, fused: Plane, data_range: float = 2.0) -> float:
    """SSIM, and SSIM255 with a data range of 255; in float64; the Evaluator computes in float32."""
    return _similarity(a, fused, data_range) + _similarity(b, fused, data_range)


def structural_similarity_255(a: Plane, b: Plane, fused: Plane) -> float:
    """SSIM255."""
    return structural_similarity(a, b, fused, 255.0)


PLAIN = {
    "EN": entropy,
    "SD": standard_deviation,
    "SF": spatial_frequency,
    "AG": average_gradient,
    "MI": mutual_information,
    "MSE": mean_squared_error,
    "CC": correlation,
    "PSNR": peak_signal_to_noise,
    "SCD": correlation_of_differences,
    "VIF": visual_information_fidelity,
    "Qabf": edge_preservation,
    "SSIM": structural_similarity,
    "SSIM255": structural_similarity_255,
}
"""Name of the metric to its plain formula."""


def _pearson(x: Plane, y: Plane) -> float:
    return float(np.corrcoef(x.ravel(), y.ravel())[0, 1])


def _fidelity(reference: Plane, distorted: Plane) -> float:
    kept = total = 0.0
    for scale in range(1, 5):
        size = 2 ** (5 - scale) + 1
        grid = np.arange(size) - size // 2
        window = np.exp(-(grid[:, None] ** 2 + grid[None, :] ** 2) / (2 * (size / 5) ** 2))
        window /= window.sum()
        if scale > 1:
            reference, distorted = (convolve2d(plane, window, "valid")[::2, ::2] for plane in (reference, distorted))
        mean_r, mean_d = convolve2d(reference, window, "valid"), convolve2d(distorted, window, "valid")
        variance_r = np.maximum(convolve2d(reference**2, window, "valid") - mean_r**2, 0)
        variance_d = np.maximum(convolve2d(distorted**2, window, "valid") - mean_d**2, 0)
        covariance = convolve2d(reference * distorted, window, "valid") - mean_r * mean_d
        gain = covariance / (variance_r + 1e-10)
        noise = variance_d - gain * covariance
        gain[variance_r < 1e-10] = 0
        noise[variance_r < 1e-10] = variance_d[variance_r < 1e-10]
        variance_r[variance_r < 1e-10] = 0
        gain[variance_d < 1e-10] = 0
        noise[variance_d < 1e-10] = 0
        noise[gain < 0] = variance_d[gain < 0]
        gain[gain < 0] = 0
        noise[noise <= 1e-10] = 1e-10
        kept += float(np.log10(1 + gain**2 * variance_r / (noise + 2)).sum())
        total += float(np.log10(1 + variance_r / 2).sum())
    return kept / total


def _sobel(plane: Plane) -> tuple[Plane, Plane]:
    x = convolve2d(plane, [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], "same")
    y = convolve2d(plane, [[1, 2, 1], [0, 0, 0], [-1, -2, -1]], "same")
    angle = np.where(x == 0, np.pi / 2, np.arctan(y / np.where(x == 0, 1, x)))
    return np.sqrt(x**2 + y**2), angle


def _preservation(strength: Plane, angle: Plane, strength_f: Plane, angle_f: Plane) -> Plane:
    ratio = np.minimum(strength, strength_f) / np.where(strength == strength_f, 1, np.maximum(strength, strength_f))
    agreement = 1 - np.abs(angle - angle_f) / (np.pi / 2)
    return np.asarray(0.9994 / (1 + np.exp(-15 * (ratio - 0.5))) * 0.9879 / (1 + np.exp(-22 * (agreement - 0.8))))


def _similarity(x: Plane, y: Plane, data_range: float) -> float:
    window = np.full((7, 7), 1 / 49)
    mean_x, mean_y = convolve2d(x, window, "valid"), convolve2d(y, window, "valid")
    variance_x = (convolve2d(x**2, window, "valid") - mean_x**2) * 49 / 48
    variance_y = (convolve2d(y**2, window, "valid") - mean_y**2) * 49 / 48
    covariance = (convolve2d(x * y, window, "valid") - mean_x * mean_y) * 49 / 48
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    numerator = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return float(np.mean(numerator / ((mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2))))
