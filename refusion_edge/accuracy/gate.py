"""The accuracy gate: compares an engine with the fp32 reference on real images, in image quality metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2

from refusion_edge.accuracy.fidelity import Fidelity, compare, worst
from refusion_edge.arrays import Array, Float32Array
from refusion_edge.backends.registry import Backend
from refusion_edge.bundle.manifest import GateResult
from refusion_edge.errors import GateError
from refusion_edge.images.color import to_planes
from refusion_edge.images.pairs import ImagePair, fingerprint, read_pair
from refusion_edge.images.samples import sample_paths
from refusion_edge.tasks import Task

_BLOCKS = 4
# Two fp32 references differ by about 1e-5 in a pixel, and by less in a mean.
_SAME_MEAN = 1e-4


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
        planes = to_planes(pair.a, pair.b, sensor_a=task.ranged_a)
        # Copied, because a back end may overwrite its result with the next call.
        fused = engine.fuse(planes.a, planes.b)[0, 0].copy()
        expected = reference.fuse(planes.a, planes.b)[0, 0]
        if expected.min() == expected.max():
            raise GateError(
                f"the reference fuses the pair {pair.name} to the same value in every pixel: the weights are broken",
                "use others",
            )
        yield PairFidelity(pair.name, compare(fused, expected), fingerprint([pair]), _block_means(expected))


def gate_result(results: Sequence[PairFidelity], pairs: Iterable[ImagePair]) -> GateResult:
    """Summarize the results on several pairs for the manifest."""
    overall = worst(result.fidelity for result in results)
    return GateResult(
        psnr_db=overall.psnr_db if math.isfinite(overall.psnr_db) else None,
        ssim=overall.ssim,
        max_error=overall.max_error,
        pairs=len(results),
        pairs_sha256=fingerprint(pairs),
        reference={result.pair_sha256: result.reference for result in results},
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


def sample_pairs(task: str, size_hw: tuple[int, int] | None) -> tuple[ImagePair, ...]:
    """Read the sample pairs of a task, scaled to the size of a fixed-size engine."""
    pairs = tuple(read_pair(paths) for paths in sample_paths(task))
    return pairs if size_hw is None else tuple(resized(pair, size_hw) for pair in pairs)


def resized(pair: ImagePair, size_hw: tuple[int, int]) -> ImagePair:
    """Scale a pair to the size of a fixed-size engine."""

    def scale(image: Array) -> Array:
        scaled: Array = cv2.resize(image, (size_hw[1], size_hw[0]), interpolation=cv2.INTER_AREA)
        return scaled

    return ImagePair(pair.name, scale(pair.a), scale(pair.b))
