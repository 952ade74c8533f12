"""The accuracy gate: compares an engine with the fp32 reference on real images, and the limits that it has to meet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from refusion_edge.arrays import Array, Float32Array, State
from refusion_edge.backends.registry import Backend
from refusion_edge.bundle.manifest import GateResult
from refusion_edge.errors import GateError
from refusion_edge.images.luma import to_planes
from refusion_edge.images.pairs import ImagePair, fingerprint, read_pair
from refusion_edge.images.samples import sample_paths
from refusion_edge.network.forms import Precision
from refusion_edge.tasks import Task

_BLOCKS = 4
# Two fp32 references differ by about 1e-5 in a pixel, and by less in a mean.
_SAME_MEAN = 1e-4
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
    return Fidelity(psnr_db if math.isfinite(mean_square) else -math.inf, float(similarity(x, y).mean()), float(error.max()))


def worst(results: Iterable[Fidelity]) -> Fidelity:
    """Take the worst value of each metric over several images."""
    collected = list(results)
    return Fidelity(
        min(result.psnr_db for result in collected),
        min(result.ssim for result in collected),
        max(result.max_error for result in collected),
    )


@dataclass(frozen=True, slots=True)
class PairFidelity:
    """Fidelity of the fused image of one pair.

    Attributes:
        name: Name of the pair.
        fidelity: Distance to the reference, before any stretch.
        pair_sha256: Hash over the pixels of the pair.
        reference: Means of the reference's fused image over 4x4 blocks, row by row, in [0, 1].
    """

    name: str
    fidelity: Fidelity
    pair_sha256: str
    reference: tuple[float, ...]


def measure(engine: Backend, reference: Backend, pairs: Iterable[ImagePair], task: Task) -> Iterator[PairFidelity]:
    """Fuse every pair with the engine and with the reference, and compare.

    Raises:
        InputError: A pair cannot be fused.
        ShapeError: A pair does not fit a fixed-size engine.
        GateError: The output of the reference itself is constant.
    """
    for pair in pairs:
        planes = to_planes(pair.a, pair.b, task, encodings=pair.encodings)
        # Copied, because a back end may overwrite its result with the next call.
        fused = engine.fuse(planes.a, planes.b)[0, 0].copy()
        expected = reference.fuse(planes.a, planes.b)[0, 0]
        if expected.min() == expected.max():
            raise GateError(
                f"the reference fuses the pair {pair.name} to the same value in every pixel: the weights are broken",
                "use others",
            )
        yield PairFidelity(pair.name, compare(fused, expected), fingerprint([pair]), _block_means(expected))


def run_gate(
    engine: Backend,
    state: State,
    pairs: tuple[ImagePair, ...],
    task: Task,
    precision: Precision,
    *,
    subject: str,
    remedy: str,
) -> tuple[tuple[PairFidelity, ...], GateResult]:
    """Run the accuracy gate: every pair, compared with the fp32 reference of the same weights.

    Args:
        engine: The engine, or its CPU proxy.
        state: The 86 parameters that it was built from.
        pairs: Pairs of images that it can fuse.
        task: Their task.
        precision: Precision of the engine, which determines the limits.
        subject: The engine in the message, such as "the fp16 engine differs too much from".
        remedy: What to do if it fails, in the imperative.

    Returns:
        The result of each pair, and their summary for the manifest.

    Raises:
        GateError: The engine is not within the limits.
    """
    from refusion_edge.backends.onnxruntime import open_reference

    with open_reference(state) as reference:
        results = tuple(measure(engine, reference, pairs, task))
    overall, limits = worst(result.fidelity for result in results), LIMITS[precision]
    if not limits.hold(overall):
        raise GateError(
            f"{subject} the fp32 reference: {overall}, and the limits are {limits}", remedy, expected=limits, got=overall
        )
    return results, GateResult(
        psnr_db=overall.psnr_db if math.isfinite(overall.psnr_db) else None,
        ssim=overall.ssim,
        max_error=overall.max_error,
        pairs=len(results),
        pairs_sha256=fingerprint(pairs),
        reference={result.pair_sha256: result.reference for result in results},
    )


def worst_gate(gates: Sequence[GateResult]) -> GateResult:
    """Take the worst value of each metric over several runs of the gate with the same pairs and the same reference."""
    finite = [gate.psnr_db for gate in gates if gate.psnr_db is not None]
    return replace(
        gates[0],
        psnr_db=min(finite, default=None),
        ssim=min(gate.ssim for gate in gates),
        max_error=max(gate.max_error for gate in gates),
    )


def changed_weights(results: Iterable[PairFidelity], built: GateResult) -> bool | None:
    """Tell whether the weights have changed since the build, judging by the output of the reference.

    The gate compares an engine with the weights in its own bundle. An engine that consists of nothing but those weights passes
    it even if they were changed.

    Args:
        results: Results measured now.
        built: Results measured when the bundle was built.

    Returns:
        Whether the means of the reference differ; None if no pair was measured both times.
    """
    both = [
        (result.reference, built.reference[result.pair_sha256])
        for result in results
        if result.pair_sha256 in built.reference
    ]  # fmt: skip
    if not both:
        return None
    return any(abs(now - then) > _SAME_MEAN for means in both for now, then in zip(*means, strict=True))


def _block_means(plane: Float32Array) -> tuple[float, ...]:
    blocks = cv2.resize(plane, (_BLOCKS, _BLOCKS), interpolation=cv2.INTER_AREA)
    return tuple(round(float(mean), 6) for mean in blocks.ravel())


def gate_pairs(task: Task, size_hw: tuple[int, int] | None, others: Iterable[ImagePair] = ()) -> tuple[ImagePair, ...]:
    """Read the pairs of the accuracy gate: the sample pairs of a task and others, scaled to the size of a fixed-size engine."""
    pairs = (*(read_pair(paths) for paths in sample_paths(task.name)), *others)
    return pairs if size_hw is None else tuple(resized(pair, size_hw) for pair in pairs)


def resized(pair: ImagePair, size_hw: tuple[int, int]) -> ImagePair:
    """Scale a pair to the size of a fixed-size engine."""

    def scale(image: Array) -> Array:
        scaled: Array = cv2.resize(image, (size_hw[1], size_hw[0]), interpolation=cv2.INTER_AREA)
        return scaled

    return replace(pair, a=scale(pair.a), b=scale(pair.b))


def similarity(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Structural similarity of the window around every pixel of two planes, (H, W), [0, 255]."""

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
    ratio: NDArray[np.float64] = numerator / denominator
    return ratio
