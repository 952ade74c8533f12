"""What holds for every image: symmetry, range, identity, and no exception whatever the images are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from refusion_edge.arrays import Array
from refusion_edge.metrics import METRICS, Metric, find_metric, information, metrics_of, score, similarity, structure

ALL = [metric for by_convention in METRICS.values() for metric in by_convention.values() if metric.reads != "transition"]
# Rounding in sums of some thousand terms.
SLACK = 1e-6


@st.composite
def triples(draw: st.DrawFn, least: int = 8, most: int = 48) -> tuple[Array, ...]:
    """Three images of one size: noise, blocks or constants, also equal to each other."""
    height, width = draw(st.integers(least, most)), draw(st.integers(least, most))
    seed = draw(st.integers(0, 2**32 - 1))
    kinds = draw(st.tuples(*[st.sampled_from(("noise", "blocks", "constant", "black", "white", "levels"))] * 3))
    rng = np.random.default_rng(seed)
    pictures = []
    for kind in kinds:
        if kind == "noise":
            picture = rng.integers(0, 256, (height, width))
        elif kind == "blocks":
            picture = np.kron(rng.integers(0, 256, (height // 8 + 1, width // 8 + 1)), np.ones((8, 8), int))[:height, :width]
        elif kind == "levels":
            picture = rng.integers(0, 3, (height, width)) + 100
        else:
            picture = np.full((height, width), {"constant": int(rng.integers(1, 255)), "black": 0, "white": 255}[kind])
        pictures.append(picture.astype(np.uint8))
    if draw(st.booleans()):
        pictures[2] = pictures[draw(st.integers(0, 1))]
    return tuple(pictures)


@settings(max_examples=40, deadline=None)
@given(triples())
def test_values_lie_in_the_stated_range_or_are_undefined(pictures: tuple[Array, ...]) -> None:
    for metric, value in score(*pictures, ALL).items():
        # The Evaluator's SSIM has next to no stabilizer and float32 moments: in flat windows anything can come out.
        slack = math.inf if metric.key == "evaluator:SSIM" else SLACK
        assert not math.isfinite(value) or metric.low - slack <= value <= metric.high + slack, (metric.label, value)


@settings(max_examples=40, deadline=None)
@given(triples())
def test_swapping_the_sources_changes_nothing(pictures: tuple[Array, ...]) -> None:
    a, b, fused = pictures
    symmetric = [metric for metric in ALL if metric.convention != "appearance"]  # that one knows which source is infrared
    there, back = score(a, b, fused, symmetric), score(b, a, fused, symmetric)
    for metric, value in there.items():
        assert back[metric] == pytest.approx(value, rel=1e-9, abs=1e-9, nan_ok=True), metric.label


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(8, 40), st.integers(8, 40))))
def test_a_image_is_most_like_itself(picture: Array) -> None:
    plane = picture.astype(np.float64)
    assert structure.structural_similarity(plane, plane, plane) == pytest.approx(2, abs=1e-6)
    assert structure.structural_similarity_255(plane, plane, plane) == pytest.approx(2, abs=1e-6)
    assert information.mutual_information(plane, plane, plane) == pytest.approx(
        2 * math.log(2) * information.entropy(plane), abs=1e-9
    )
    assert similarity.mean_squared_error(plane, plane, plane) == 0
    assert similarity.peak_signal_to_noise(plane, plane, plane) in (math.inf, -math.inf)
    if plane.min() != plane.max():
        assert similarity.correlation(plane, plane, plane) == pytest.approx(1)
    assert score(picture, picture, picture, [find_metric("Nabf")])[find_metric("Nabf")] == 0


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.uint8, st.tuples(st.integers(8, 30), st.integers(8, 30))), st.randoms(use_true_random=False))
def test_entropy_counts_levels_and_not_places(picture: Array, random: Any) -> None:
    order = list(range(picture.size))
    random.shuffle(order)
    shuffled = picture.ravel()[order].reshape(picture.shape).astype(np.float64)
    assert information.entropy(shuffled) == pytest.approx(information.entropy(picture.astype(np.float64)), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(triples(), st.sampled_from(["transpose", "rows", "columns"]))
def test_mirroring_all_three_changes_nothing(pictures: tuple[Array, ...], how: str) -> None:
    """Except what treats rows and columns unlike (Qcv's blocks, the seams of SF, halving) or the angle pi/2 (Qabf)."""
    turned = [{"transpose": p.T, "rows": p[::-1], "columns": p[:, ::-1]}[how] for p in pictures]
    names = ("EN", "SD", "SF", "AG", "MI", "MSE", "CC", "SCD", "SSIM255", "vifb:SSIM", "EI", "NMI", "QNCIE", "CE", "vifb:Qcb")
    metrics = [find_metric(name, "survey" if name in {"EI", "CE"} else "evaluator") for name in names]
    there, back = score(*pictures, metrics), score(*(np.ascontiguousarray(p) for p in turned), metrics)
    for metric, value in there.items():
        # SSIM255 rounds to float32 after the columns and then after the rows, which turning exchanges.
        tolerance = 1e-4 if metric.name == "SSIM255" else 1e-9
        assert back[metric] == pytest.approx(value, rel=tolerance, abs=tolerance, nan_ok=True), metric.label


def test_entropy_of_a_constant_is_zero() -> None:
    assert information.entropy(np.full((9, 9), 77.0)) == 0
    assert math.copysign(1, information.entropy(np.full((9, 9), 77.0))) == 1


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.key)
def test_a_black_result_is_defined_or_undefined_but_never_an_error(metric: Metric) -> None:
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 256, (2, 180, 170), dtype=np.uint8)
    value = score(a, b, np.zeros_like(a), [metric])[metric]
    # Noise has no flat areas, no clipped ones, and no compact objects, and a black result no contours.
    places = {f"appearance:{name}" for name in ("Kept_a", "Kept_b", "Target", "Noise", "Rim", "Ghost")}
    undefined = {"evaluator:CC", "evaluator:PSNR", "vifb:Qcb", "survey:Qcb", *places}
    assert math.isfinite(value) == (metric.key not in undefined)


@pytest.mark.parametrize(
    ("key", "least"),
    [("evaluator:SSIM", 7), ("evaluator:VIF", 41), ("vifb:SSIM", 11), ("survey:MS-SSIM", 161), ("survey:MEF-SSIM", 41),
     ("survey:Qy", 7), ("survey:FMI", 3), ("survey:FMI_gradient", 3)],
)  # fmt: skip
def test_images_below_the_stated_size_are_undefined(key: str, least: int) -> None:
    metric = find_metric(key)
    rng = np.random.default_rng(5)
    for side, defined in ((least - 1, False), (least, True)):
        a, b, fused = rng.integers(0, 256, (3, side, 200), dtype=np.uint8)
        assert math.isfinite(score(a, b, fused, [metric])[metric]) == defined


def test_every_convention_has_metrics() -> None:
    assert len(metrics_of("evaluator")) == 13
    assert len(metrics_of("vifb")) == 13
