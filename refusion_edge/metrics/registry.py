"""The table of all metrics: function, direction, range and paper for each name and convention.

The same name stands for different formulas in different papers, so a metric is always named together with its
convention: ``SSIM (evaluator)`` and ``SSIM (vifb)`` are two metrics.
"""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from refusion_edge.arrays import Array
from refusion_edge.errors import InputError, ShapeError, UsageError
from refusion_edge.images.conversion import to_still
from refusion_edge.images.ranges import Mask
from refusion_edge.metrics import (
    activity,
    appearance,
    edges,
    exposure,
    feature,
    information,
    perceptual,
    similarity,
    structure,
    temporal,
    visual,
)
from refusion_edge.metrics.planes import Plane, to_color_planes, to_gray_plane

Direction = Literal["higher", "lower"]
"""Which values are better."""

Reads = Literal["fused", "sources", "planes", "transition"]
"""What a function is given.

``fused``: the fused plane; ``sources``: both sources and the fused plane; ``planes``: the fused color planes at once;
``transition``: the triples of two successive frames.
"""

CONVENTIONS: dict[str, str] = {
    "evaluator": "gray images, as printed by CDDFuse, EMMA, ReFusion and their family",
    "vifb": "mean over the color planes, as printed by the VIFB benchmark",
    "survey": "gray images, the further metrics of survey toolkits",
    "appearance": "gray images, visible faults of infrared-visible fusion; a is infrared",
    "sequence": "gray frames in order, per transition from one to the next",
}
DEFAULT_CONVENTION = "evaluator"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric in one convention.

    Attributes:
        name: Short name, as in tables.
        convention: Key of ``CONVENTIONS``.
        title: Name in words.
        direction: Whether higher or lower is better.
        low: Least possible value.
        high: Largest possible value.
        unit: Unit of the value, empty for a pure number.
        reads: What the function takes.
        function: Computes the value from planes; NaN or infinity if the metric is undefined.
        paper: Paper that defines it.
        alias: Name in the convention's own tables if different, or empty.
    """

    name: str
    convention: str
    title: str
    direction: Direction
    low: float
    high: float
    unit: str
    reads: Reads
    function: Callable[..., float]
    paper: str
    alias: str = ""

    @property
    def bounds(self) -> str:
        """Range as text."""
        low, high = (f"{bound:.5g}" if math.isfinite(bound) else "any" for bound in (self.low, self.high))
        return f"{low} to {high}" if (low, high) != ("any", "any") else "any"

    @property
    def label(self) -> str:
        """Name together with its convention."""
        return f"{self.name} ({self.convention})"

    @property
    def key(self) -> str:
        """Name together with its convention, as typed on the command line."""
        return f"{self.convention}:{self.name}"


_INF = math.inf
_NATS = 2 * 8 * math.log(2)
_SURVEY = "Liu et al., IEEE TPAMI 34(1), 2012"

_ALL = (
    Metric("EN", "evaluator", "entropy", "higher", 0, 8, "bit", "fused", information.entropy, "Roberts et al., 2008"),
    Metric("SD", "evaluator", "standard deviation", "higher", 0, 127.5, "levels", "fused",
           activity.standard_deviation, "Rao, 1997"),
    Metric("SF", "evaluator", "spatial frequency", "higher", 0, 255 * math.sqrt(2), "levels", "fused",
           activity.spatial_frequency, "Eskicioglu and Fisher, 1995"),
    Metric("AG", "evaluator", "average gradient", "higher", 0, 255, "levels", "fused",
           activity.average_gradient, "Cui et al., 2015"),
    Metric("MI", "evaluator", "mutual information", "higher", 0, _NATS, "nat", "sources",
           information.mutual_information, "Qu et al., 2002"),
    Metric("MSE", "evaluator", "mean squared error", "lower", 0, 255**2, "levels^2", "sources",
           similarity.mean_squared_error, "Zhao et al. (CDDFuse), 2023"),
    Metric("CC", "evaluator", "correlation coefficient", "higher", -1, 1, "", "sources",
           similarity.correlation, "Ma et al., 2019"),
    Metric("PSNR", "evaluator", "peak signal-to-noise ratio", "higher", -_INF, _INF, "dB", "sources",
           similarity.peak_signal_to_noise, "Zhao et al. (CDDFuse), 2023"),
    Metric("SCD", "evaluator", "sum of the correlations of differences", "higher", -2, 2, "", "sources",
           similarity.correlation_of_differences, "Aslantas and Bendes, 2015"),
    Metric("VIF", "evaluator", "visual information fidelity", "higher", 0, _INF, "", "sources",
           visual.visual_information_fidelity, "Sheikh and Bovik, 2006"),
    Metric("Qabf", "evaluator", "edge information preserved", "higher", 0, 1, "", "sources",
           edges.edge_preservation, "Xydeas and Petrovic, 2000"),
    Metric("SSIM", "evaluator", "structural similarity, data range 2", "higher", -2, 2, "", "sources",
           structure.structural_similarity, "Wang et al., 2004"),
    Metric("SSIM255", "evaluator", "structural similarity, data range 255", "higher", -2, 2, "", "sources",
           structure.structural_similarity_255, "Wang et al., 2004"),

    Metric("EN", "vifb", "entropy", "higher", 0, 8, "bit", "fused", information.entropy, "Roberts et al., 2008", "Entropy"),
    Metric("MI", "vifb", "mutual information, stretched", "higher", 0, _NATS, "nat", "sources",
           information.mutual_information_stretched, "Qu et al., 2002", "Mutinf"),
    Metric("CE", "vifb", "cross entropy", "lower", -_INF, _INF, "bit", "sources",
           information.cross_entropy, "Bulanon et al., 2009", "Cross_entropy"),
    Metric("SD", "vifb", "standard deviation", "higher", 0, 127.5, "levels", "fused",
           activity.standard_deviation, "Rao, 1997", "Variance"),
    Metric("AG", "vifb", "average gradient", "higher", 0, _INF, "levels", "fused",
           activity.average_gradient_inside, "Cui et al., 2015", "Avg_gradient"),
    Metric("EI", "vifb", "edge intensity", "higher", 0, 1020 * math.sqrt(2), "levels", "fused",
           activity.edge_intensity, "Rajalingam and Priya, 2018", "Edge_intensity"),
    Metric("SF", "vifb", "spatial frequency, with seams", "higher", 0, 255 * math.sqrt(2), "levels", "planes",
           activity.spatial_frequency_of_color, "Zhang et al. (VIFB), 2020", "Spatial_frequency"),
    Metric("RMSE", "vifb", "norm of the error over N", "lower", 0, 255, "levels", "sources",
           similarity.norm_per_pixel, "Zhang et al. (VIFB), 2020", "Rmse"),
    Metric("PSNR", "vifb", "peak over norm of the error", "higher", -_INF, _INF, "dB", "sources",
           similarity.peak_to_norm, "Zhang et al. (VIFB), 2020", "Psnr"),
    Metric("SSIM", "vifb", "structural similarity, Gaussian windows", "higher", -2, 2, "", "sources",
           structure.structural_similarity_gaussian, "Wang et al., 2004", "Ssim"),
    Metric("Qabf", "vifb", "edge information preserved", "higher", 0, 1, "", "sources",
           edges.edge_preservation, "Xydeas and Petrovic, 2000"),
    Metric("Qcb", "vifb", "Chen-Blum quality", "higher", 0, 1, "", "sources", perceptual.chen_blum, "Chen and Blum, 2009"),
    Metric("Qcv", "vifb", "Chen-Varshney quality", "lower", 0, _INF, "", "sources",
           perceptual.chen_varshney, "Chen and Varshney, 2007"),

    Metric("CE", "survey", "cross entropy", "lower", -_INF, _INF, "bit", "sources",
           information.cross_entropy, "Bulanon et al., 2009"),
    Metric("EI", "survey", "edge intensity", "higher", 0, 1020 * math.sqrt(2), "levels", "fused",
           activity.edge_intensity, "Rajalingam and Priya, 2018"),
    Metric("NMI", "survey", "normalized mutual information", "higher", 0, 2, "", "sources",
           information.normalized_mutual_information, "Hossny et al., 2008", "Qmi"),
    Metric("TE", "survey", "Tsallis mutual information", "higher", 0, _INF, "", "sources",
           information.tsallis_information, "Cvejic et al., 2006", "Qte"),
    Metric("QNCIE", "survey", "nonlinear correlation information entropy", "higher", 0, 1, "", "sources",
           information.nonlinear_correlation, "Wang et al., 2008"),
    Metric("FMI", "survey", "feature mutual information, pixels", "higher", -_INF, _INF, "", "sources",
           feature.feature_information, "Haghighat et al., 2011", "FMI_pixel"),
    Metric("FMI_gradient", "survey", "feature mutual information, gradient", "higher", -_INF, _INF, "", "sources",
           feature.feature_information_gradient, "Haghighat et al., 2011"),
    Metric("FMI_dct", "survey", "feature mutual information, cosine transform", "higher", -_INF, _INF, "", "sources",
           feature.feature_information_cosine, "Haghighat and Razian, 2014"),
    Metric("Qy", "survey", "Yang's similarity", "higher", -1, 1, "", "sources", structure.yang_similarity, "Yang et al., 2008"),
    Metric("Qcb", "survey", "Chen-Blum quality", "higher", 0, 1, "", "sources", perceptual.chen_blum, "Chen and Blum, 2009"),
    Metric("Qcv", "survey", "Chen-Varshney quality", "lower", 0, _INF, "", "sources",
           perceptual.chen_varshney, "Chen and Varshney, 2007"),
    Metric("Nabf", "survey", "fusion artifacts", "lower", 0, 1, "", "sources", edges.artifacts, "Shreyamsha Kumar, 2013"),
    Metric("MS-SSIM", "survey", "multi-scale structural similarity", "higher", 0, 2, "", "sources",
           structure.multi_scale_similarity, "Wang et al., 2003"),
    Metric("MEF-SSIM", "survey", "multi-exposure structural similarity", "higher", 0, 1, "", "sources",
           exposure.exposure_similarity, "Ma et al., 2015"),

    Metric("Kept_a", "appearance", "detail of a that is kept where b is clipped", "higher", 0, _INF, "", "sources",
           appearance.kept_infrared, "refusion-edge"),
    Metric("Kept_b", "appearance", "detail of b that is kept where a is clipped", "higher", 0, _INF, "", "sources",
           appearance.kept_visible, "refusion-edge"),
    Metric("Target", "appearance", "contrast of hot compact objects", "higher", -255, 255, "levels", "sources",
           appearance.target_contrast, "refusion-edge"),
    Metric("Lost", "appearance", "number of hot compact objects with a contrast below 8 levels", "lower", 0, _INF, "objects",
           "sources", appearance.lost_targets, "refusion-edge"),
    Metric("Noise", "appearance", "noise added in flat, bright areas of b", "lower", -255, 255, "levels", "sources",
           appearance.added_noise, "refusion-edge"),
    Metric("Rim", "appearance", "bright rims at strong edges of b", "lower", -510, 510, "levels", "sources",
           appearance.rims, "refusion-edge"),
    Metric("Ghost", "appearance", "share of the gradients around contours that no source has", "lower", 0, 1, "", "sources",
           appearance.ghost_contours, "refusion-edge"),

    Metric("Flicker", "sequence", "change beyond that of the sources", "lower", 0, 255, "levels", "transition",
           temporal.flicker, "refusion-edge"),
    Metric("Pumping", "sequence", "change of brightness beyond that of the sources", "lower", 0, 255, "levels", "transition",
           temporal.pumping, "refusion-edge"),
    Metric("Grain", "sequence", "temporal noise", "lower", 0, 255 * 1.4826 * math.sqrt(2), "levels", "transition",
           temporal.grain, "refusion-edge"),
)  # fmt: skip


def _by_name(metrics: Iterable[Metric]) -> dict[str, dict[str, Metric]]:
    table: dict[str, dict[str, Metric]] = {}
    for metric in metrics:
        table.setdefault(metric.name, {})[metric.convention] = metric
    return table


METRICS: dict[str, dict[str, Metric]] = _by_name(_ALL)
"""Name of a metric to convention to the metric."""


def metrics_of(convention: str) -> tuple[Metric, ...]:
    """All metrics of a convention, in the order of its tables.

    Raises:
        UsageError: There is no such convention.
    """
    if convention not in CONVENTIONS:
        raise UsageError(
            f"there is no convention '{convention}'{_nearest(convention, CONVENTIONS)}",
            f"choose from {', '.join(CONVENTIONS)}",
            expected=tuple(CONVENTIONS),
            got=convention,
        )
    return tuple(metric for metric in _ALL if metric.convention == convention)


def find_metric(name: str, convention: str = DEFAULT_CONVENTION) -> Metric:
    """Look up a metric.

    Args:
        name: ``SSIM``, or with its convention ``vifb:SSIM``; also the alias, such as ``vifb:Entropy``. Upper or lower case.
        convention: Convention to search first if the name has none; a metric that exists in only one other convention is
            also found.

    Raises:
        UsageError: There is no such metric, or the name is ambiguous; the message suggests the nearest.
    """
    prefix, separator, bare = name.rpartition(":")
    named = [metric for metric in _ALL if bare and bare.lower() in (metric.name.lower(), metric.alias.lower())]
    candidates = [metric for metric in named if metric.convention == (prefix or convention)]
    if separator:
        metrics_of(prefix)
    elif not candidates:
        candidates = named
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise UsageError(f"'{name}' could be {' or '.join(metric.key for metric in candidates)}", "write one of these")
    if named:
        raise UsageError(
            f"the convention {prefix} has no metric '{name}'", f"write {' or '.join(metric.key for metric in named)}"
        )
    known = [text for metric in _ALL for text in (metric.name, metric.alias) if text]
    raise UsageError(
        f"there is no metric '{name}'{_nearest(bare, known)}",
        f"choose from {', '.join(METRICS)}",
        expected=tuple(METRICS),
        got=name,
    )


class Scores(dict[Metric, float]):
    """Metric to value; a metric can also be looked up by its name, such as ``scores["EN"]``."""

    def __getitem__(self, key: Metric | str) -> float:
        if not isinstance(key, str):
            return super().__getitem__(key)
        # What was computed decides which convention a bare name means.
        found = [metric for metric in self if key.lower() in (metric.name.lower(), metric.alias.lower())]
        metric = found[0] if len(found) == 1 else find_metric(key)
        if metric not in self:
            raise UsageError(f"{metric.key} was not computed", "add it to the metrics of score()", got=key)
        return super().__getitem__(metric)


def score(
    a: object,
    b: object,
    fused: object,
    metrics: Sequence[Metric] | None = None,
    *,
    sensor_a: bool = False,
    invalid: Mask | None = None,
) -> Scores:
    """Score one fused image, on the pixels that have a value in all three images.

    The images are cropped to these pixels. Where others are left between them, windows that touch one are left out, and
    metrics over the spectrum of the whole image (FMI_dct, Qcb, Qcv) are undefined.

    Args:
        a: Source a, (H, W) or (H, W, 3) RGB; uint8, uint16 or float32 in [0, 1]. NaN means no value. Or any other image that
            ``Fuser.fuse`` takes, such as a path.
        b: Source b, same height and width.
        fused: Fused image, same height and width.
        metrics: What to compute; all of the convention ``evaluator`` if None. Metrics over time are not possible.
        sensor_a: Whether 16-bit or float gray of source a is raw sensor data, as ``Task.ranged_a`` says.
        invalid: Further pixels without a value, (H, W); see ``refusion_edge.images.ranges.Displayed``.

    Returns:
        Metric to value, in the order asked for; NaN or infinite where a metric is undefined. ``scores["EN"]`` is the value of a
        metric by its name.

    Raises:
        ShapeError: The three differ in height or width.
        InputError: No pixel has a value in all three images.
    """
    named = (("source a", a), ("source b", b), ("the fused image", fused))
    arrays = (image if isinstance(image, np.ndarray) else to_still(image, name).pixels for name, image in named)
    images = _Images(*arrays, sensor_a=sensor_a, invalid=invalid)
    return _score(metrics_of(DEFAULT_CONVENTION) if metrics is None else metrics, images, None)


def score_transition(
    previous: tuple[Array, Array, Array],
    current: tuple[Array, Array, Array],
    metrics: Sequence[Metric],
    *,
    sensor_a: bool = False,
    invalid: Mask | None = None,
    previous_invalid: Mask | None = None,
) -> Scores:
    """Score one frame of a sequence, see ``score``; metrics over time compare it with the previous frame.

    Args:
        previous: Source a, source b and fused image of the previous frame.
        current: The same of this frame.
        metrics: What to compute.
        sensor_a: As in ``score``.
        invalid: As in ``score``.
        previous_invalid: The same of the previous frame.

    Raises:
        ShapeError: Images differ in height or width.
        InputError: No pixel of a frame has a value in all three images.
    """
    if previous[0].shape[:2] != current[0].shape[:2]:
        raise ShapeError(
            f"frames of different sizes, {_size(previous[0])} and then {_size(current[0])} (height x width), have no change "
            "over time",
            "score them apart",
            expected=previous[0].shape[:2],
            got=current[0].shape[:2],
        )
    images = _Images(*current, sensor_a=sensor_a, invalid=invalid)
    return _score(metrics, images, _Images(*previous, sensor_a=sensor_a, invalid=previous_invalid))


class _Images:
    """The three images of one moment, converted once to each kind of planes."""

    def __init__(self, a: Array, b: Array, fused: Array, *, sensor_a: bool, invalid: Mask | None) -> None:
        if not a.shape[:2] == b.shape[:2] == fused.shape[:2]:
            raise ShapeError(
                f"sources and result differ in size: a is {_size(a)}, b is {_size(b)}, fused is {_size(fused)} (height x "
                "width)",
                "score them as they were fused, without resizing",
                expected=fused.shape[:2],
                got=(a.shape[:2], b.shape[:2]),
            )
        self._images = ((a, sensor_a), (b, False), (fused, False))
        self._invalid = invalid

    @functools.cached_property
    def frame(self) -> temporal.Triple:
        """(H, W) each, gray; NaN in all three where one of them has no value."""
        a, b, fused = _alike([to_gray_plane(image, sensor=sensor) for image, sensor in self._images], self._invalid)
        return a, b, fused

    @functools.cached_property
    def gray(self) -> temporal.Triple:
        """``frame``, cropped to the pixels that have a value."""
        a, b, fused = _cropped(self.frame)
        return a, b, fused

    @functools.cached_property
    def color(self) -> tuple[Plane, Plane, Plane]:
        """(1, H, W) each if all three are gray, else (3, H, W) each; cropped as ``gray`` is."""
        planes = [to_color_planes(image, sensor=sensor) for image, sensor in self._images]
        planes = _cropped(_alike(planes, self._invalid))
        count = max(map(len, planes))
        a, b, fused = (np.broadcast_to(plane, (count, *plane.shape[1:])) for plane in planes)
        return a, b, fused


def _alike(planes: list[Plane], invalid: Mask | None) -> list[Plane]:
    """Take the value of a pixel, (..., H, W), from all planes if one of them has none there."""
    missing = np.zeros(planes[0].shape[-2:], np.bool_) if invalid is None else invalid.copy()
    for plane in planes:
        missing |= np.isnan(plane if plane.ndim == 2 else plane[0])
    if missing.all():
        raise InputError("no pixel has a value in both sources and in the result", "check the images")
    if missing.any():
        for plane in planes:
            plane[..., missing] = np.nan
    return planes


def _cropped(planes: Sequence[Plane]) -> list[Plane]:
    """Crop planes, (..., H, W), to the rectangle around their pixels that have a value."""
    first = planes[0] if planes[0].ndim == 2 else planes[0][0]
    present = ~np.isnan(first)
    if present.all():
        return list(planes)
    rows, columns = (np.flatnonzero(present.any(axis=axis)) for axis in (1, 0))
    box = (..., slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    return [np.ascontiguousarray(plane[box]) for plane in planes]


def _score(metrics: Sequence[Metric], images: _Images, previous: _Images | None) -> Scores:
    return Scores((metric, _value(metric, images, previous)) for metric in metrics)


def _value(metric: Metric, images: _Images, previous: _Images | None) -> float:
    if metric.reads == "transition":
        return math.nan if previous is None else metric.function(previous.frame, images.frame)
    if metric.convention == "vifb":
        a, b, fused = images.color
        if metric.reads == "planes":
            return metric.function(np.broadcast_to(fused, (3, *fused.shape[1:])))
        return float(np.mean([_of_plane(metric, *triple) for triple in zip(a, b, fused, strict=True)]))
    return _of_plane(metric, *images.gray)


def _of_plane(metric: Metric, a: Plane, b: Plane, fused: Plane) -> float:
    return metric.function(fused) if metric.reads == "fused" else metric.function(a, b, fused)


def _size(image: Array) -> str:
    return f"{image.shape[0]}x{image.shape[1]}"


def _nearest(name: str, known: Iterable[str] | Mapping[str, object]) -> str:
    spelled: dict[str, str] = {}
    for text in known:
        spelled.setdefault(text.lower(), text)
    nearest = difflib.get_close_matches(name.lower(), spelled, n=1, cutoff=0.3)
    return f" (did you mean '{spelled[nearest[0]]}'?)" if nearest else ""
