"""Diagnostics on held-back pairs that distinguish a healthy run from one that merely lowers its loss.

Each of them has caught a failure; docs/training.md lists which.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from refusion_edge.arrays import Array, Float32Array, Uint8Array
from refusion_edge.images.color import OUTPUT_RANGES, to_output_range
from refusion_edge.metrics import Metric, find_metric, score
from refusion_edge.train.augmentation import defocused_pair
from refusion_edge.train.collection import PairCollection
from refusion_edge.train.crops import PLAIN, crop_batch
from refusion_edge.train.layers import Parameters
from refusion_edge.train.losses import LossWeights, gradient_magnitude, reconstruction_loss
from refusion_edge.train.meta import Batch, Networks
from refusion_edge.train.networks import prior_weights
from refusion_edge.train.settings import GuardSettings, Settings
from refusion_edge.train.targets import targets_of
from refusion_edge.train.views import Teacher, Views

SHARP_PSNR, TEACHER_PSNR = "PSNR-sharp", "PSNR-teacher"

_OWN_FIGURES = (SHARP_PSNR, TEACHER_PSNR)
_LOGGED_METRICS = ("EN", "SD", "SF", "AG", "MI", "SCD", "VIF", "Qabf", "SSIM")
# Guarded diagnostics of the output of F, which P affects only through the loss.
_OF_FUSION = ("swap", "share", "position")
# The position between the sources is measured at pixels where they differ by more than this.
_DISTINCT = 0.1
# Counter stream of held crops, apart from those of training.
_STREAM = 7


@dataclass(frozen=True, slots=True)
class HeldImage:
    """A whole image for the metrics.

    Attributes:
        a: Luma of source a, (H, W) uint8.
        b: Luma of source b, same size.
        sharp: The all-in-focus image, if the sources were made from one.
        taught: The teacher's result, (H, W) float32 in [0, 1], if there is a teacher.
    """

    a: Array
    b: Array
    sharp: Array | None
    taught: Float32Array | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """The data of the validation, the same throughout a run.

    Attributes:
        batch: Fixed crops in both orders.
        prior: Weights proposed by the prior alone for the crops with source a first.
        images: Whole images.
    """

    batch: Batch
    prior: LossWeights
    images: tuple[HeldImage, ...]


def hold(collection: PairCollection, settings: Settings, device: torch.device, teacher: Teacher | None = None) -> Held:
    """Draw the fixed crops and choose the images for validation."""
    batch, crop_px, seed = settings.validation.crops, settings.run.late_crop_px, settings.run.seed
    figures = None
    if settings.run.network == "fast":
        views = Views(collection, PLAIN, seed).draw(0, batch=batch, crop_px=crop_px, stream=_STREAM)
        crops, figures = (views.a, views.b), views.figures.to(device)
    else:
        crops = crop_batch(collection, 0, batch=batch, crop_px=crop_px, seed=seed, stream=_STREAM)
    count = min(settings.validation.images, len(collection))
    picked = [round(index * (len(collection) - 1) / max(1, count - 1)) for index in range(count)]
    images = tuple(_held_image(collection, which, seed, teacher) for which in picked)
    a, b = (plane.to(device) for plane in crops)
    targets = targets_of(a, b, settings.targets) if settings.targets.depart else None
    held = Batch.in_both_orders(a, b, figures, targets=targets)
    return Held(held, prior_weights(settings.proposal, *held.compared), images)


@torch.no_grad()
def diagnose(networks: Networks, theta: Parameters, phi: Parameters, rho: Parameters, held: Held) -> dict[str, float]:
    """Measure the diagnostics on the held crops: against the sources, or against the targets that take their place in the loss.

    Returns:
        ``w``, ``v``: mean weight of source a, ``_spread``: its spatial standard deviation, ``_between``: that of the
        images' means, ``_slot``: mean weight of a as first input minus as second, ``_moved``: mean distance of the
        weight from the prior's, where the sources differ. ``share``: least-squares share of a in the output.
        ``position``: where the output lies between the darker (0) and the brighter (1) source. ``swap``: mean change
        of the output when the inputs are swapped. ``sharpness``: gradient magnitude relative to the larger of the
        sources'. ``reconstruction_*``: terms of L_r, for both orders, if R is trained.
    """
    batch = held.batch
    pairs = len(batch.a) // 2
    a, b = batch.compared
    fused = networks.fuse(theta, *batch.inputs)
    forth, back = fused[:pairs], fused[pairs:]
    weights = networks.propose(phi, a, b)
    found = {**_of_weights("w", weights.intensity), **_of_weights("v", weights.gradient)}
    magnitude_a, magnitude_b = gradient_magnitude(a), gradient_magnitude(b)
    found["w_moved"] = _moved(weights.intensity[:pairs], held.prior.intensity, a - b)
    found["v_moved"] = _moved(weights.gradient[:pairs], held.prior.gradient, magnitude_a - magnitude_b)
    found["share"] = _ratio(((forth - b) * (a - b)).sum(), (a - b).square().sum())
    darker, brighter = torch.minimum(a, b), torch.maximum(a, b)
    distinct = brighter - darker > _DISTINCT
    found["position"] = _mean(((forth - darker) / (brighter - darker).clamp(min=_DISTINCT))[distinct])
    found["swap"] = _mean((forth - back).abs())
    larger = torch.maximum(magnitude_a, magnitude_b)
    found["sharpness"] = _ratio(gradient_magnitude(forth).sum(), larger.sum())
    if not networks.reconstructs:
        return found
    for order, plane in (("forth", forth), ("back", back)):
        # R is to reconstruct the sources themselves.
        loss = reconstruction_loss(*networks.reconstruct(rho, plane), batch.a[:pairs], batch.b[:pairs])
        found[f"reconstruction_intensity_{order}"] = loss.intensity.item()
        found[f"reconstruction_gradient_{order}"] = loss.gradient.item()
    return found


@torch.no_grad()
def measure(
    fuse: Callable[[Tensor, Tensor], Tensor], held: Held, names: Sequence[str], device: torch.device
) -> dict[str, float]:
    """Mean fusion metrics over the held images.

    Args:
        fuse: Fuses two planes (1, 1, H, W) in [0, 1].
        held: The images.
        names: Metrics that decide on the best weights, in addition to those that are always logged.
        device: Where to fuse.

    Returns:
        ``NAME`` of the output in the range ``fixed`` and ``NAME_stretched`` of that in the range ``stretch``; ``PSNR-sharp``
        over the images made from a sharp one, ``PSNR-teacher`` if there is a teacher.
    """
    metrics = _metrics((*_LOGGED_METRICS, *names))
    values: dict[str, list[float]] = {}
    for image in held.images:
        planes = [torch.from_numpy(plane[None, None] / np.float32(255)).to(device) for plane in (image.a, image.b)]
        fused = fuse(planes[0], planes[1])[0, 0].float().clamp(0, 1).cpu().numpy()
        for output_range in OUTPUT_RANGES:
            shown = _to_uint8(to_output_range(fused, output_range))
            suffix = "_stretched" if output_range == "stretch" else ""
            for metric, value in score(image.a, image.b, shown, metrics).items():
                values.setdefault(f"{metric.name}{suffix}", []).append(value)
        if image.sharp is not None:
            values.setdefault(SHARP_PSNR, []).append(_psnr_db(fused, image.sharp.astype(np.float32) / 255))
        if image.taught is not None:
            values.setdefault(TEACHER_PSNR, []).append(_psnr_db(fused, image.taught))
    means = {name: float(np.mean([v for v in found if math.isfinite(v)] or [0.0])) for name, found in values.items()}
    return {name: means[name] for name in sorted(means)}


def score_of(found: dict[str, float], factors: dict[str, float]) -> float:
    """The score that decides which weights are best; a metric that does not exist for these pairs counts as 0.

    Raises:
        UsageError: A name is not a metric.
    """
    names = {name: name if name in _OWN_FIGURES else find_metric(name).name for name in factors}
    return sum(factor * found.get(names[name], 0.0) for name, factor in factors.items())


def distances(found: dict[str, float], limits: GuardSettings) -> dict[str, float]:
    """How far each guarded diagnostic lies beyond its limits; 0 within them."""
    ranges = {
        "w_slot": (-limits.slot, limits.slot),
        "v_slot": (-limits.slot, limits.slot),
        "swap": (0.0, limits.swap),
        "share": limits.share,
        "position": limits.position,
    }
    return {name: max(low - found[name], found[name] - high, 0.0) for name, (low, high) in ranges.items()}


def collapse(found: dict[str, float], limits: GuardSettings, reference: dict[str, float]) -> str:
    """Name the guarded diagnostic that P drove beyond its limits; empty if there is none.

    P is frozen only for what it caused. An untrained F may be beyond a limit for a while, so a diagnostic beyond its limit
    when P began to learn has to worsen by a margin. And F follows the prior first: where one source is brighter or sharper
    nearly everywhere, a healthy share is close to 0 or 1. So a diagnostic of F counts as beyond its limits by no more than P
    has moved the weights from the prior, less the margin.
    """
    reach = max(found["w_moved"], found["v_moved"]) - limits.margin

    def caused(name: str, distance: float) -> float:
        return min(distance, reach) if name in _OF_FUSION else distance

    def allowed(name: str) -> float:
        before = reference.get(name, 0.0)
        return before + limits.margin if before > 0 else 0.0

    worse = [name for name, distance in distances(found, limits).items() if caused(name, distance) > allowed(name)]
    return ", ".join(f"{name} = {found[name]:.3f}" for name in worse)


def agreement(gradients: Sequence[Tensor]) -> float:
    """Mean cosine between all pairs of meta-gradients: 1 where all agree, 0 where they are noise."""
    if len(gradients) < 2:
        return math.nan
    stacked = torch.stack([gradient / gradient.norm().clamp(min=torch.finfo(gradient.dtype).tiny) for gradient in gradients])
    count = len(gradients)
    return ((stacked.sum(dim=0).square().sum() - stacked.square().sum()) / (count * (count - 1))).item()


@torch.no_grad()
def examples(networks: Networks, theta: Parameters, phi: Parameters, rho: Parameters, held: Held) -> dict[str, Tensor]:
    """Sources, result, weights and reconstructions of the first held crop, name to (H, W) in [0, 1]."""
    batch = held.batch
    a, b = batch.a[:1], batch.b[:1]
    fused = networks.fuse(theta, a, b)
    weights: LossWeights = networks.propose(phi, *(plane[:1] for plane in batch.compared))
    reconstructed = networks.reconstruct(rho, fused)
    images = (a, b, fused, weights.intensity, weights.gradient, *reconstructed)
    names = ("a", "b", "fused", "w", "v", "reconstructed_a", "reconstructed_b")
    return {name: image[0, 0].float().cpu() for name, image in zip(names, images, strict=True)}


def _held_image(collection: PairCollection, which: int, seed: int, teacher: Teacher | None) -> HeldImage:
    a, b = collection.planes(which)
    sharp = None
    if collection.is_sharp(which):
        sharp = a
        a, b = defocused_pair(a, np.random.Generator(np.random.Philox(key=seed, counter=(0, _STREAM, 1, which))))
    if teacher is None:
        return HeldImage(a, b, sharp)
    plane_a, plane_b = (plane[None, None].astype(np.float32) / np.float32(255) for plane in (a, b))
    # The next call may overwrite what a back end returns.
    return HeldImage(a, b, sharp, teacher.fuse(plane_a, plane_b)[0, 0].copy())


def _psnr_db(fused: Array, right: Array) -> float:
    return 10 * math.log10(1 / max(float(np.mean(np.square(fused - right))), 1e-14))


def _of_weights(name: str, both: Tensor) -> dict[str, float]:
    forth, back = both.chunk(2)
    return {
        name: _mean(forth),
        f"{name}_spread": _mean(forth.std(dim=(1, 2, 3))),
        f"{name}_between": forth.mean(dim=(1, 2, 3)).std(correction=0).item(),
        # As second input, source a has the rest of the weight.
        f"{name}_slot": (forth.mean() - (1 - back).mean()).item(),
    }


def _moved(weight: Tensor, prior: Tensor, difference: Tensor) -> float:
    """Mean distance between two weights, pixels counting by how much the choice of the source matters there."""
    importance = difference.square()
    return _ratio(((weight - prior).abs() * importance).sum(), importance.sum())


def _metrics(names: Sequence[str]) -> list[Metric]:
    return list(dict.fromkeys(find_metric(name) for name in names if name not in _OWN_FIGURES))


def _to_uint8(luma: Array) -> Uint8Array:
    shown: Uint8Array = np.rint(luma.clip(0, 255)).astype(np.uint8)
    return shown


def _mean(values: Tensor) -> float:
    return values.mean().item() if values.numel() else 0.5


def _ratio(part: Tensor, whole: Tensor) -> float:
    return (part / whole.clamp(min=torch.finfo(whole.dtype).tiny)).item()
