"""The table of metrics: looking up, and what it says of each."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from refusion_edge.errors import InputError, ShapeError, UsageError
from refusion_edge.metrics import CONVENTIONS, METRICS, Metric, find_metric, metrics_of, score, score_transition
from tests.conftest import ROOT
from tests.raising import raises

ALL = [metric for by_convention in METRICS.values() for metric in by_convention.values()]


def test_a_name_means_what_its_convention_says() -> None:
    assert find_metric("SSIM") is METRICS["SSIM"]["evaluator"]
    assert find_metric("SSIM", "vifb") is METRICS["SSIM"]["vifb"]
    assert find_metric("vifb:SSIM", "evaluator") is METRICS["SSIM"]["vifb"]
    assert find_metric("ssim255") is METRICS["SSIM255"]["evaluator"]


def test_the_names_of_the_vifb_tables_are_understood() -> None:
    assert find_metric("vifb:Entropy") is METRICS["EN"]["vifb"]
    assert find_metric("Mutinf") is METRICS["MI"]["vifb"]
    assert find_metric("vifb:variance") is METRICS["SD"]["vifb"]


def test_a_metric_of_one_other_convention_is_found_without_its_prefix() -> None:
    assert find_metric("Nabf") is METRICS["Nabf"]["survey"]
    assert find_metric("Flicker") is METRICS["Flicker"]["sequence"]


@pytest.mark.parametrize(
    ("name", "named", "remedy"),
    [("SSIN", "'SSIM'", ""), ("qbaf", "'Qabf'", ""), ("Entropie", "'Entropy'", ""),
     ("Qcb", "vifb:Qcb or survey:Qcb", ""), ("vifb:VIF", "vifb", "evaluator:VIF"), ("vibf:EN", "'vifb'", "")],
)  # fmt: skip
def test_a_wrong_name_gets_the_nearest_one(name: str, named: str, remedy: str) -> None:
    with raises(UsageError, named, remedy=remedy):
        find_metric(name)


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.key)
def test_docstrings_name_convention_direction_and_source(metric: Metric) -> None:
    text = inspect.getdoc(metric.function) or ""
    assert f"``{metric.convention}``" in text
    assert f"{metric.direction} is better" in text
    assert "Source:" in text
    assert metric.convention in CONVENTIONS
    assert metric.low < metric.high


def test_images_of_different_size_are_refused() -> None:
    a, b = np.zeros((20, 30), np.uint8), np.zeros((20, 31), np.uint8)
    with raises(ShapeError, expected=(20, 31), got=((20, 30), (20, 30))):
        score(a, a, b)
    with raises(ShapeError, expected=(20, 30), got=(20, 31)):
        score_transition((a, a, a), (b, b, b), [find_metric("Flicker")])


def test_an_image_without_any_value_is_refused() -> None:
    picture = np.full((20, 20), np.nan, np.float32)
    with raises(InputError, "no pixel"):
        score(picture, picture, picture)


def test_thermal_counts_use_their_own_range() -> None:
    counts = (np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) % 256) + 20_000
    picture = (np.arange(64 * 64) % 256).astype(np.uint8).reshape(64, 64)
    metric = find_metric("MSE")
    assert score(counts, picture, picture, [metric], sensor_a=True)[metric] < 3
    assert score(counts, picture, picture, [metric])[metric] > 1000


def test_unknown_convention_is_refused() -> None:
    with raises(UsageError, "'survey'", got="surveys"):
        metrics_of("surveys")


@pytest.mark.parametrize("metric", ALL, ids=lambda metric: metric.key)
def test_the_documentation_has_a_row_for_it(metric: Metric) -> None:
    rows = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8").splitlines()
    name = f"{metric.name} (`{metric.alias}`)" if metric.alias else metric.name
    (row,) = (row for row in rows if row.startswith(f"| {name} | {metric.convention} |"))
    assert f"| {metric.title} | {metric.direction} |" in row
    assert row.endswith(f"| {metric.paper} |")
